//! The log of write faults: which pages of which process were written for the first time since they were protected, as it happens; how many they
//! were, and where.
//!
//! Faults only: what the kernel writes through get_user_pages faults in no process. The page tables have the last word; this
//! log is what makes it quick. What did not fit is counted, never silently dropped.

use std::collections::HashMap;
use std::fmt;
use std::os::fd::AsFd;

use aya::Ebpf;
use aya::maps::{Array, HashMap as BpfHashMap, MapData, MapError, RingBuf};
use aya_log::EbpfLogger;
use ckpt_ebpf::faults::{self, Control, Counter, Entry, Kind, Region, TaskInfo};

use super::{EbpfError, Result, hash_map, map};
use crate::sys::bpf::take_all;
use crate::sys::btf::{Btf, BtfError};

// As plain bytes and numbers, which is what aya takes.
type TaskInfoBytes = [u8; size_of::<TaskInfo>()];
type ControlWords = [u64; size_of::<Control>() / 8];

/// Something that has happened to a process that is watched. Processes have the numbers that the initial pid namespace gives them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Happening {
    /// It is about to write to a page that is protected, or not there.
    Write {
        /// The page's number.
        page: u64,
        /// Was the page there, and only protected?
        was_present: bool,
        /// Did user code write, or the kernel for it?
        by_user_code: bool,
    },
    /// It has made another process, which is watched, too.
    Fork(u32),
    /// It executes another program, so all that was told of its memory means nothing any more.
    Exec,
    /// It has ended, and is watched no more.
    Exit,
    /// It is about to give up pages, of a mapping that stays as it is.
    Removal {
        /// The first of them, by its number.
        page: u64,
        /// How many, and maybe up to twice as many.
        count: u64,
    },
}

/// Over all processes since the programs were loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// What went into the log.
    pub logged: u64,
    /// That for which it was full. If this has grown, the log is not complete.
    pub lost: u64,
    /// Write faults that were counted for their process, but not for a region, as there were too many of these.
    pub unplaced: u64,
    /// Processes that were made by those who are watched, and are not watched, as there were too many.
    pub untracked: u64,
}

/// See the module. Processes have the numbers that the initial pid namespace gives them.
pub struct FaultLog {
    tracked: BpfHashMap<MapData, u32, TaskInfoBytes>,
    /// Taken out all at once, for which aya has nothing.
    regions: MapData,
    /// Taken out of it before their time.
    early: Vec<(Region, u64)>,
    control: Array<MapData, ControlWords>,
    counters: Array<MapData, u64>,
    ring: RingBuf<MapData>,
    messages: EbpfLogger<&'static dyn log::Log>,
    told: Control,
}

impl FaultLog {
    /// The programs that it takes, besides those on page faults.
    pub(super) const PROGRAMS: [&'static str; 3] = [faults::FORK_PROGRAM, faults::EXEC_PROGRAM, faults::EXIT_PROGRAM];

    /// That of an object, whose programs are not attached yet. Nothing is watched so far.
    pub(super) fn of(ebpf: &mut Ebpf, btf: &Btf) -> Result<FaultLog> {
        const DOING: &str = "cannot make the log of write faults";
        let missing = |e: BtfError| EbpfError::unsupported(DOING, e.to_string());
        let told = Control {
            tgid: btf.offset_of("task_struct", "tgid").map_err(missing)?,
            signal: btf.offset_of("task_struct", "signal").map_err(missing)?,
            live: btf.offset_of("signal_struct", "live").map_err(missing)?,
            ..Control::default()
        };
        let mut log = FaultLog {
            tracked: map(ebpf, faults::TRACKED)?,
            regions: hash_map(ebpf, faults::REGIONS)?,
            early: Vec::new(),
            control: map(ebpf, faults::CONTROL)?,
            counters: map(ebpf, faults::COUNTERS)?,
            ring: map(ebpf, faults::FAULTS)?,
            messages: EbpfLogger::init(ebpf).map_err(|e| EbpfError::new("cannot read the messages of eBPF programs", e))?,
            told,
        };
        log.set_epoch(0)?;
        Ok(log)
    }

    /// Watches a process, and those that it makes. Nothing happens if it is watched already.
    pub fn track(&mut self, tgid: u32) -> Result<()> {
        if self.info(tgid)?.is_some() {
            return Ok(());
        }
        let info = TaskInfo { root: tgid, ..TaskInfo::default() };
        let tracked = self.tracked.insert(tgid, bytemuck::cast::<TaskInfo, TaskInfoBytes>(info), 0);
        tracked.map_err(|e| EbpfError::new(format!("cannot watch the write faults of process {tgid}"), e))
    }

    /// Stops to watch a process, and those that it has made. Nothing happens if it was not watched.
    pub fn untrack(&mut self, tgid: u32) -> Result<()> {
        let doing = || format!("cannot stop watching the write faults of process {tgid}");
        let all: Vec<u32> = self.tracked.keys().collect::<Result<_, _>>().map_err(|e| EbpfError::new(doing(), e))?;
        for one in all {
            if self.info(one)?.is_some_and(|info| info.root == tgid) {
                match self.tracked.remove(&one) {
                    // It has ended just now.
                    Ok(()) | Err(MapError::KeyNotFound) => {}
                    Err(e) => return Err(EbpfError::new(doing(), e)),
                }
            }
        }
        Ok(())
    }

    /// What is counted of a process; `None` if it is not watched, or not any more.
    pub fn info(&self, tgid: u32) -> Result<Option<TaskInfo>> {
        match self.tracked.get(&tgid, 0) {
            Ok(info) => Ok(Some(bytemuck::cast::<TaskInfoBytes, TaskInfo>(info))),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(e) => Err(EbpfError::new(format!("cannot read the count of write faults of process {tgid}"), e)),
        }
    }

    /// From now on, faults are noted with this epoch. One that is being noted at this moment may have either.
    pub fn set_epoch(&mut self, epoch: u64) -> Result<()> {
        self.told.epoch = epoch;
        let words = bytemuck::cast::<Control, ControlWords>(self.told);
        self.control.set(0, words, 0).map_err(|e| EbpfError::new("cannot set the epoch of the log of write faults", e))
    }

    /// Takes all there is out of the log, oldest first: the process, the epoch, and what has happened. Never waits: nothing announces an entry.
    /// What the programs have to say goes to the diagnostics.
    pub fn drain(&mut self, mut each: impl FnMut(u32, u64, Happening)) -> Result<()> {
        self.messages.flush();
        let unexpected = |what: &str| EbpfError::unexpected("cannot read the log of write faults", what);
        while let Some(item) = self.ring.next() {
            let entry: Entry = bytemuck::try_pod_read_unaligned(&item).map_err(|_| unexpected("an entry has a wrong size"))?;
            let happening = match entry.kind {
                kind if kind == Kind::Write as u16 => Happening::Write {
                    page: entry.value,
                    was_present: entry.error_code & 1 != 0,
                    by_user_code: entry.error_code & 4 != 0,
                },
                kind if kind == Kind::Fork as u16 => Happening::Fork(entry.value as u32),
                kind if kind == Kind::Exec as u16 => Happening::Exec,
                kind if kind == Kind::Exit as u16 => Happening::Exit,
                kind if kind == Kind::Removal as u16 => {
                    Happening::Removal { page: entry.value, count: 1 << entry.error_code.min(52) }
                }
                _ => return Err(unexpected("an entry is of no known kind")),
            };
            each(entry.tgid, entry.epoch, happening);
        }
        Ok(())
    }

    /// The write faults of a process in each of its regions, in all epochs before `epoch`. These are forgotten, of all processes.
    pub fn take_regions(&mut self, tgid: u32, execs: u32, epoch: u64) -> Result<HashMap<u64, u64>> {
        let taken = take_all::<Region, u64>(self.regions.fd().as_fd());
        let taken = taken.map_err(|e| EbpfError::new("cannot read where write faults were", e))?;
        let mut found = HashMap::new();
        for (region, count) in std::mem::take(&mut self.early).into_iter().chain(taken) {
            if region.epoch >= epoch {
                self.early.push((region, count));
            } else if (region.tgid, region.execs) == (tgid, execs) {
                *found.entry(region.number).or_default() += count;
            }
        }
        Ok(found)
    }

    /// See [`Counters`].
    pub fn counters(&self) -> Result<Counters> {
        let get = |counter: Counter| self.counters.get(&(counter as u32), 0);
        let read = |counter| get(counter).map_err(|e| EbpfError::new("cannot read the counters of the log of write faults", e));
        Ok(Counters {
            logged: read(Counter::Logged)?,
            lost: read(Counter::Lost)?,
            unplaced: read(Counter::Unplaced)?,
            untracked: read(Counter::Untracked)?,
        })
    }
}

impl fmt::Debug for FaultLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultLog").field("epoch", &self.told.epoch).finish_non_exhaustive()
    }
}
