//! Reading the kernel's own records about the threads of a process: restart blocks, and when each thread last ran.

use std::io::{ErrorKind, Read};
use std::num::NonZeroU64;
use std::os::fd::AsFd;
use std::time::Duration;

use aya::programs::{Iter, ProgramError};
use aya::{Btf as AyaBtf, Ebpf, EbpfLoader};
use ckpt_ebpf::faults::FAULTS;
use ckpt_ebpf::tasks::{ABSENT, OFFSETS, PROGRAM, STATE_OWNERS, STATE_PARTS, StatePart, TaskOffsets, TaskRecord};
use nix::time::{ClockId, clock_gettime};

use super::restart_block::{Deadline, Layout, RestartBlock};
use super::thread_state::Table;
use super::{EbpfError, Result, load};
use crate::ids::{Addr, PAGE_SIZE, Pid, Tid};
use crate::sys::bpf::{Visited, task_iterator};
use crate::sys::btf::{Btf, BtfError};
use crate::tracee::interrupted::{Sleep, SleepCall};

/// One thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskTiming {
    /// The thread, as the caller's pid namespace numbers it.
    pub tid: Tid,
    /// How its interrupted system call goes on, if it is within one.
    pub restart: RestartBlock,
    /// What was left until [`RestartBlock::deadline`] when this was read; zero if it has passed. None without a deadline, or if
    /// that is on a clock that ckpt cannot read for the thread.
    pub time_left: Option<Duration>,
    /// When the scheduler last charged the thread for running, on CLOCK_MONOTONIC: for a thread that sleeps, when it fell asleep.
    /// Late or early by a tick of the kernel's (1 to 10 ms), where the caller has just been given the processor, which brings its clock up
    /// to date. None if the kernel does not tell.
    ///
    /// This is how a wait that keeps its time-out to itself (epoll_wait(2), select(2)) is found out about, before it is
    /// disturbed: freezing a thread makes it run.
    pub last_ran: Option<Duration>,
    /// How often the thread went to sleep by itself; being stopped by a tracer counts, too. If it has grown by more than that
    /// between two readings, the thread was awake in between.
    pub voluntary_switches: u64,
    /// `None` if the kernel does not tell.
    pub state: Option<ThreadState>,
}

/// Stands for all that a thread, stopped, can be asked by system calls of its own: as long as it is the same, the answers are. Not those that tell
/// a time, nor those that tell of a memory policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThreadState(NonZeroU64);

impl TaskTiming {
    /// How a thread that is stopped within such a call must go on waiting, if the time that is left is known.
    pub fn sleep(&self) -> Option<Sleep> {
        let call = match &self.restart {
            RestartBlock::Sleep { until, remainder } => {
                SleepCall::Nanosleep { clock: until.clock, rest: remainder.unwrap_or(Addr(0)) }
            }
            RestartBlock::Futex { address, expected, bitset, private, until } => {
                let realtime = if until.clock == libc::CLOCK_REALTIME { libc::FUTEX_CLOCK_REALTIME } else { 0 };
                let private = if *private { libc::FUTEX_PRIVATE_FLAG } else { 0 };
                let operation = libc::FUTEX_WAIT_BITSET | realtime | private;
                SleepCall::Futex { word: *address, operation, value: *expected, bits: *bitset }
            }
            RestartBlock::Poll { fds, count, .. } => SleepCall::Poll { fds: *fds, count: *count },
            RestartBlock::None | RestartBlock::Unknown { .. } => return None,
        };
        let left_ns = u64::try_from(self.time_left?.as_nanos()).unwrap_or(u64::MAX);
        Some(Sleep { call, left_ns })
    }
}

/// Which address space a process has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressSpace {
    /// The kernel's address of it.
    pub(super) mm: u64,
    /// How many programs the process has executed: each has another address space, which may be at the address of one before.
    execs: u64,
    /// When the process was made, which had another's number, maybe.
    started: u64,
}

/// Which address space a process has, how often its mappings may have changed, and who uses it.
#[derive(Clone, Copy, Debug)]
pub struct MemoryState {
    /// See there.
    pub space: AddressSpace,
    /// Tasks whose address space it is, and system calls of others that are within it, such as process_vm_writev(2).
    users: u64,
    /// Counts how often its lock was taken for writing, without which no mapping changes. `None`: this kernel does not tell.
    changes: Option<u32>,
}

impl MemoryState {
    /// Are the mappings now, in `later`, surely the same as they were in this state?
    pub fn still_holds(&self, later: &MemoryState) -> bool {
        self.changes.is_some() && (self.space, self.changes) == (later.space, later.changes)
    }

    /// Is another than the `tasks` that have this address space within it, so that pages may be written that the kernel has counted as written before?
    pub fn is_entered(&self, tasks: usize) -> bool {
        self.users > tasks as u64
    }
}

/// The program, ready to be asked about any process.
///
/// Loading takes up to a tenth of a second, asking some ten microseconds: load before a freeze, ask within.
#[derive(Debug)]
pub struct TaskInspector {
    ebpf: Ebpf,
    layout: Layout,
}

impl TaskInspector {
    /// Loads the program. Needs the kernel's type information (CONFIG_DEBUG_INFO_BTF), and Linux 6.1.
    pub fn load() -> Result<TaskInspector> {
        const DOING: &str = "cannot load the eBPF program that reads restart blocks";
        let missing = |e: BtfError| EbpfError::unsupported(DOING, e.to_string());
        let btf = Btf::of_kernel().map_err(missing)?;
        let offsets = offsets(&btf).map_err(missing)?;
        let layout = Layout::of(&btf).map_err(missing)?;
        let table = Table::of(&btf).map_err(missing)?;
        let page = u32::try_from(PAGE_SIZE).unwrap_or(u32::MAX);
        let mut loader = EbpfLoader::new();
        // The log of write faults is in the same object, and of no use here.
        loader.override_global(OFFSETS, bytemuck::bytes_of(&offsets), true).map_max_entries(FAULTS, page);
        if let Some(Table { owners, parts }) = &table {
            loader.override_global(STATE_OWNERS, bytemuck::bytes_of(owners), true);
            loader.override_global(STATE_PARTS, bytemuck::cast_slice::<StatePart, u8>(parts), true);
        }
        let mut ebpf = load(&mut loader)?;
        let kernel = AyaBtf::from_sys_fs().map_err(|e| EbpfError::new(DOING, e))?;
        let program = ebpf.program_mut(PROGRAM).ok_or_else(|| EbpfError::unexpected(DOING, "it is not in the object"))?;
        let program: &mut Iter = program.try_into().map_err(|e: ProgramError| EbpfError::new(DOING, e))?;
        program.load("task", &kernel).map_err(|e| EbpfError::new(DOING, e))?;
        Ok(TaskInspector { ebpf, layout })
    }

    /// All threads of the process, in no particular order, and at least one; and its address space as it is now. No thread is disturbed.
    pub fn look(&self, pid: Pid) -> Result<(Vec<TaskTiming>, MemoryState)> {
        let records = self.records(Visited::Threads(pid))?;
        Ok((records.iter().map(|record| self.timing(record)).collect(), memory_of(&records[0])))
    }

    /// The number of the process in the initial pid namespace, by which the kernel's side of eBPF knows it.
    pub fn kernel_tgid(&self, pid: Pid) -> Result<u32> {
        self.records(Visited::Leader(pid)).map(|records| records[0].kernel_tgid)
    }

    /// The address space of the process as it is now.
    pub fn memory_of(&self, pid: Pid) -> Result<MemoryState> {
        self.records(Visited::Leader(pid)).map(|records| memory_of(&records[0]))
    }

    /// Never empty.
    fn records(&self, visited: Visited) -> Result<Vec<TaskRecord>> {
        let (Visited::Threads(pid) | Visited::Leader(pid)) = visited;
        let doing = || format!("cannot read the restart blocks of pid {pid}");
        let program = self.ebpf.program(PROGRAM).ok_or_else(|| EbpfError::unexpected(doing(), "the program is not loaded"))?;
        let program: &Iter = program.try_into().map_err(|e: ProgramError| EbpfError::new(doing(), e))?;
        let fd = program.fd().map_err(|e| EbpfError::new(doing(), e))?;
        let mut bytes = Vec::with_capacity(16 * 1024);
        let read = task_iterator(fd.as_fd(), visited).and_then(|file| file.take(u64::MAX).read_to_end(&mut bytes));
        match read {
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::InvalidInput => {
                return Err(EbpfError::unsupported(
                    doing(),
                    "this kernel cannot iterate over the threads of one process (Linux 6.1 can)",
                ));
            }
            Err(e) => return Err(EbpfError::new(doing(), e)),
        }
        if bytes.is_empty() {
            return Err(EbpfError::new(doing(), std::io::Error::from_raw_os_error(libc::ESRCH)));
        }
        let records = bytes.chunks_exact(size_of::<TaskRecord>());
        if !records.remainder().is_empty() {
            return Err(EbpfError::unexpected(doing(), "the program wrote an incomplete record"));
        }
        Ok(records.map(bytemuck::pod_read_unaligned).collect())
    }

    fn timing(&self, record: &TaskRecord) -> TaskTiming {
        let name = record.restart_fn.split(|&b| b == 0).next().unwrap_or_default();
        let restart = self.layout.decode(&String::from_utf8_lossy(name), &record.restart_block);
        let monotonic = Duration::from_nanos(record.monotonic);
        TaskTiming {
            tid: Tid(record.tid as i32),
            time_left: restart.deadline().and_then(|deadline| time_left(deadline, monotonic)),
            restart,
            last_ran: last_ran(record),
            voluntary_switches: record.voluntary_switches,
            state: NonZeroU64::new(record.state).map(ThreadState),
        }
    }
}

fn memory_of(record: &TaskRecord) -> MemoryState {
    let space = AddressSpace { mm: record.mm, execs: record.exec_id, started: record.started };
    MemoryState { space, users: record.mm_users, changes: (record.mm_lock_seq != 0).then_some(record.mm_lock_seq) }
}

/// The restart blocks of a process's threads, with a program loaded for this once: see [`TaskInspector`], also for what must be
/// known about them.
pub fn restart_blocks(pid: Pid) -> Result<Vec<TaskTiming>> {
    TaskInspector::load()?.look(pid).map(|(threads, _)| threads)
}

fn offsets(btf: &Btf) -> Result<TaskOffsets, BtfError> {
    let task = |path: &str| btf.offset_of("task_struct", path);
    let mut offsets = TaskOffsets {
        restart_block: task("restart_block")?,
        restart_fn: btf.offset_of("restart_block", "fn")?,
        thread_pid: task("thread_pid")?,
        group_leader: task("group_leader")?,
        voluntary_switches: task("nvcsw")?,
        exec_start: task("se.exec_start")?,
        run_queue_of_task: ABSENT,
        run_queue: ABSENT,
        clock: ABSENT,
        clock_task: ABSENT,
        pid_level: btf.offset_of("pid", "level")?,
        pid_numbers: btf.offset_of("pid", "numbers")?,
        upid_size: btf.size_of("upid")?,
        upid_nr: btf.offset_of("upid", "nr")?,
        upid_ns: btf.offset_of("upid", "ns")?,
        mm: task("mm")?,
        mm_users: btf.offset_of("mm_struct", "mm_users")?,
        mm_lock_seq: ABSENT,
        exec_id: task("self_exec_id")?,
        started: task("start_boottime")?,
    };
    match task("se.cfs_rq") {
        Ok(offset) => {
            offsets.run_queue_of_task = offset;
            offsets.run_queue = btf.offset_of("cfs_rq", "rq")?;
            offsets.clock = btf.offset_of("rq", "clock")?;
            offsets.clock_task = btf.offset_of("rq", "clock_task")?;
        }
        // Without CONFIG_FAIR_GROUP_SCHED there is no way from a task to its clock.
        Err(BtfError::Absent(_)) => {}
        Err(e) => return Err(e),
    }
    match btf.offset_of("mm_struct", "mm_lock_seq") {
        Ok(offset) => offsets.mm_lock_seq = offset,
        // Without CONFIG_PER_VMA_LOCK nothing is counted.
        Err(BtfError::Absent(_)) => {}
        Err(e) => return Err(e),
    }
    Ok(offsets)
}

fn time_left(deadline: Deadline, monotonic: Duration) -> Option<Duration> {
    let now = match deadline.clock {
        libc::CLOCK_MONOTONIC => monotonic,
        libc::CLOCK_REALTIME
        | libc::CLOCK_BOOTTIME
        | libc::CLOCK_REALTIME_ALARM
        | libc::CLOCK_BOOTTIME_ALARM
        | libc::CLOCK_TAI => clock_gettime(ClockId::from_raw(deadline.clock)).ok()?.into(),
        // Those of processors are per thread and process.
        _ => return None,
    };
    Some(deadline.at.saturating_sub(now))
}

fn last_ran(record: &TaskRecord) -> Option<Duration> {
    if record.now == 0 {
        return None;
    }
    let asleep_since = record.exec_start.wrapping_add(record.clock_offset);
    let ago = record.now.saturating_sub(asleep_since);
    Some(Duration::from_nanos(record.monotonic.saturating_sub(ago)))
}
