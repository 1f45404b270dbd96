//! The log of write faults: which pages of which process were written for the first time since they were protected, as it happens.
//!
//! Faults only: what the kernel writes through get_user_pages faults in no process. The page tables have the last word; this
//! log is what makes it quick. What did not fit is counted, never silently dropped.

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::os::linux::fs::MetadataExt;

use aya::maps::{Array, HashMap as BpfHashMap, MapData, RingBuf};
use aya::{Ebpf, EbpfLoader};
use aya_log::EbpfLogger;
use ckpt_ebpf::faults::{self, Counter, TaskInfo};

use super::inspector::TaskInspector;
use super::{EbpfError, Result, attach, load, map};
use crate::ids::{PAGE_SIZE, Pid};

/// PROC_PID_INIT_INO: the inode number of the initial pid namespace, which is part of the kernel's interface.
const INITIAL_PID_NAMESPACE: u64 = 0xeffffffc;

/// [`TaskInfo`] as bytes, which is what aya takes.
type TaskInfoBytes = [u8; size_of::<TaskInfo>()];

/// How a [`FaultLog`] is made.
#[derive(Clone, Copy, Debug)]
pub struct FaultLogOptions {
    /// Size of the ring buffer in bytes: a power of two, at least a page. A fault takes 32 bytes of it until it is read.
    pub ring_bytes: u32,
}

impl Default for FaultLogOptions {
    fn default() -> FaultLogOptions {
        FaultLogOptions { ring_bytes: faults::FAULTS_BYTES }
    }
}

/// A write fault of a process, noted before the kernel handled it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WriteFault {
    /// Whose.
    pub pid: Pid,
    /// The page number.
    pub page: u64,
    /// What the epoch was set to at that moment.
    pub epoch: u64,
    /// Was the page there, and only protected?
    pub was_present: bool,
    /// Did user code write, or the kernel for it?
    pub by_user_code: bool,
}

/// Faults since the log was attached, over all processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Those that went into the log.
    pub logged: u64,
    /// Those for which it was full. If this has grown, the log is not complete.
    pub lost: u64,
}

/// See the module. Dropping it detaches the programs.
pub struct FaultLog {
    /// Keeps the programs attached.
    _ebpf: Ebpf,
    tracked: BpfHashMap<MapData, u32, TaskInfoBytes>,
    control: Array<MapData, u64>,
    counters: Array<MapData, u64>,
    ring: RingBuf<MapData>,
    messages: EbpfLogger<&'static dyn log::Log>,
    /// Whom we watch, by the number that the kernel's side knows them by.
    pids: HashMap<u32, Pid>,
    /// Made when first needed: to find that number from within another pid namespace.
    inspector: Option<TaskInspector>,
}

impl FaultLog {
    /// Loads the programs and attaches them to the two page-fault tracepoints. Nothing is watched yet.
    pub fn attach(options: FaultLogOptions) -> Result<FaultLog> {
        let ring_bytes = options.ring_bytes;
        if !ring_bytes.is_power_of_two() || u64::from(ring_bytes) < PAGE_SIZE {
            let reason = format!("its size must be a power of two and at least {PAGE_SIZE} bytes, not {ring_bytes}");
            return Err(EbpfError::unexpected("cannot make the log of write faults", reason));
        }
        let mut ebpf = load(EbpfLoader::new().map_max_entries(faults::FAULTS, ring_bytes))?;
        let log = FaultLog {
            tracked: map(&mut ebpf, faults::TRACKED)?,
            control: map(&mut ebpf, faults::CONTROL)?,
            counters: map(&mut ebpf, faults::COUNTERS)?,
            ring: map(&mut ebpf, faults::FAULTS)?,
            messages: EbpfLogger::init(&mut ebpf).map_err(|e| EbpfError::new("cannot read the messages of eBPF programs", e))?,
            pids: HashMap::new(),
            inspector: None,
            _ebpf: attach(ebpf, &[faults::USER_PROGRAM, faults::KERNEL_PROGRAM])?,
        };
        Ok(log)
    }

    /// Starts to watch a process. Its count starts from zero, also if it was watched before.
    pub fn track(&mut self, pid: Pid) -> Result<()> {
        let tgid = self.kernel_tgid(pid)?;
        let zeros = [0; size_of::<TaskInfo>()];
        let tracked = self.tracked.insert(tgid, zeros, 0);
        tracked.map_err(|e| EbpfError::new(format!("cannot watch the write faults of pid {pid}"), e))?;
        self.pids.insert(tgid, pid);
        Ok(())
    }

    /// Stops to watch a process; what the log still has of it is skipped. Nothing happens if it was not watched.
    pub fn untrack(&mut self, pid: Pid) -> Result<()> {
        let Some(tgid) = self.watched(pid) else { return Ok(()) };
        let doing = || format!("cannot stop watching the write faults of pid {pid}");
        self.tracked.remove(&tgid).map_err(|e| EbpfError::new(doing(), e))?;
        self.pids.remove(&tgid);
        Ok(())
    }

    /// From now on, faults are noted with this epoch. One that is being noted at this moment may have either.
    pub fn set_epoch(&mut self, epoch: u64) -> Result<()> {
        self.control.set(0, epoch, 0).map_err(|e| EbpfError::new("cannot set the epoch of the log of write faults", e))
    }

    /// Takes all there is out of the log, oldest first. Never waits: nothing announces an entry.
    pub fn drain(&mut self, mut each: impl FnMut(WriteFault)) -> Result<()> {
        while let Some(item) = self.ring.next() {
            let entry: faults::WriteFault = bytemuck::try_pod_read_unaligned(&item)
                .map_err(|_| EbpfError::unexpected("cannot read the log of write faults", "an entry has a wrong size"))?;
            let Some(&pid) = self.pids.get(&entry.tgid) else { continue };
            each(WriteFault {
                pid,
                page: entry.page,
                epoch: entry.epoch,
                was_present: entry.error_code & 1 != 0,
                by_user_code: entry.error_code & 4 != 0,
            });
        }
        self.messages.flush();
        Ok(())
    }

    /// Faults of a process since it is watched, in the log or not; None if it is not watched.
    pub fn write_faults(&self, pid: Pid) -> Result<Option<u64>> {
        let Some(tgid) = self.watched(pid) else { return Ok(None) };
        let info = self.tracked.get(&tgid, 0);
        let info = info.map_err(|e| EbpfError::new(format!("cannot read the count of write faults of pid {pid}"), e))?;
        Ok(Some(bytemuck::cast::<TaskInfoBytes, TaskInfo>(info).write_faults))
    }

    /// See [`Counters`].
    pub fn counters(&self) -> Result<Counters> {
        let get = |counter: Counter| self.counters.get(&(counter as u32), 0);
        let read = |counter| get(counter).map_err(|e| EbpfError::new("cannot read the counters of the log of write faults", e));
        Ok(Counters { logged: read(Counter::Logged)?, lost: read(Counter::Lost)? })
    }

    fn watched(&self, pid: Pid) -> Option<u32> {
        self.pids.iter().find(|&(_, &watched)| watched == pid).map(|(&tgid, _)| tgid)
    }

    fn kernel_tgid(&mut self, pid: Pid) -> Result<u32> {
        let own = fs::metadata("/proc/self/ns/pid").map_err(|e| EbpfError::new("cannot find out our pid namespace", e))?;
        if own.st_ino() == INITIAL_PID_NAMESPACE {
            return u32::try_from(pid.0).map_err(|_| EbpfError::unexpected("cannot watch a process", format!("{pid} is no pid")));
        }
        let inspector = match self.inspector.take() {
            Some(inspector) => inspector,
            None => TaskInspector::load()?,
        };
        self.inspector.insert(inspector).kernel_tgid(pid)
    }
}

impl fmt::Debug for FaultLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultLog").field("pids", &self.pids).finish_non_exhaustive()
    }
}
