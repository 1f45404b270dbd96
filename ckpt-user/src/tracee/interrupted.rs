//! System calls that a freeze has interrupted (SEED S28): what the program must see of them afterwards is nothing.
//!
//! Most calls look after themselves: the kernel leaves -ERESTART* in rax, and makes them again when the thread goes on. Two sorts
//! do not:
//! * calls that return EINTR when a thread is merely stopped (signal(7) lists them): [`mend`] turns that into "make it again
//!   unless a handler runs", with the time-out shortened by what has passed where it is in a register;
//! * calls that keep the time that is left in the kernel (-ERESTART_RESTARTBLOCK): a new task has no such memory, so its time is
//!   taken down ([`Sleep`]; best from the kernel's own record, else from the arguments and how long the thread has slept) and a
//!   restart makes the call anew for that time and interrupts it at once, which leaves the kernel in the same state as before.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::memory::ProcessMemory;
use super::stub::{ERESTART_RESTARTBLOCK, ERESTARTNOHAND};
use super::thread::StoppedThread;
use crate::error::{Doing, Result};
use crate::ids::{Addr, Pid, Tid};
use crate::sys::procfs::{self, Syscall};
use crate::sys::ptrace::Regs;
use crate::sys::sched;

/// How long each thread of some processes has been waiting, taken down before it is stopped (stopping wakes it).
#[derive(Debug, Default)]
pub struct WaitTimes {
    waited: HashMap<Tid, u64>,
    told: HashMap<Tid, Sleep>,
}

impl WaitTimes {
    /// Reads when each thread whose time will be needed last ran, from the scheduler. A thread that ran since, or a kernel that does not tell
    /// (CONFIG_SCHED_DEBUG), gives no time, and its wait counts as just begun.
    ///
    /// `will_learn`: [`WaitTimes::learn`] will tell of those in calls whose time that is left the kernel keeps.
    pub fn read(threads: &[(Pid, Tid)], will_learn: bool) -> WaitTimes {
        let mut by_processor: BTreeMap<u32, Vec<(Tid, u64)>> = BTreeMap::new();
        let needed = |&&(pid, tid): &&(Pid, Tid)| {
            procfs::syscall(pid, tid).is_some_and(|call| loses_its_time(&call) || !will_learn && keeps_its_time(&call))
        };
        for &(pid, tid) in threads.iter().filter(needed) {
            let task = format!("/proc/{pid}/task/{tid}");
            if let (Some(since), Some(processor)) = (last_ran(&task), procfs::last_processor(pid, tid)) {
                by_processor.entry(processor).or_default().push((tid, since));
            }
        }
        // Each processor counts the scheduler's time for itself, without what interrupts and the host have taken.
        let mut waited = HashMap::new();
        for (processor, tids) in by_processor {
            let now = clock_of(processor).unwrap_or(0);
            waited.extend(tids.into_iter().map(|(tid, since)| (tid, now.saturating_sub(since))));
        }
        WaitTimes { waited, told: HashMap::new() }
    }

    /// Takes in what the kernel itself has told about threads that are stopped now.
    pub fn learn(&mut self, told: impl IntoIterator<Item = (Tid, Sleep)>) {
        self.told.extend(told);
    }

    fn told(&self, tid: Tid) -> Option<Sleep> {
        self.told.get(&tid).copied()
    }

    /// Nanoseconds that the thread had been waiting.
    pub fn waited_ns(&self, tid: Tid) -> u64 {
        self.waited.get(&tid).copied().unwrap_or(0)
    }
}

/// Is it a call whose time that is left only the kernel knows for sure?
pub fn keeps_its_time(call: &Syscall) -> bool {
    [libc::SYS_nanosleep, libc::SYS_clock_nanosleep, libc::SYS_futex, libc::SYS_poll, libc::SYS_restart_syscall]
        .contains(&call.number)
}

/// Is it one that has a time-out, and forgets how much of it has passed when its thread is stopped?
fn loses_its_time(call: &Syscall) -> bool {
    match call.number {
        libc::SYS_epoll_wait | libc::SYS_epoll_pwait => call.arguments[3] as i32 > 0,
        libc::SYS_epoll_pwait2 => !is_timeless(call.arguments[3]),
        _ => false,
    }
}

/// The scheduler's clock of a processor: it is brought up to date when a thread is woken there. `None`: we may not run there.
fn clock_of(processor: u32) -> Option<u64> {
    let own = Tid(0);
    let before = sched::processors(own).ok()?;
    sched::set_processors(own, &[processor]).ok()?;
    std::thread::sleep(Duration::from_nanos(1));
    let now = last_ran("/proc/thread-self");
    if let Err(error) = sched::set_processors(own, &before) {
        tracing::warn!("cannot let ckpt run on all its processors again: {error}");
    }
    now
}

/// "se.exec_start   :   2535535.584697" in milliseconds, as nanoseconds.
fn last_ran(task: &str) -> Option<u64> {
    let text = procfs::read_text(format!("{task}/sched")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("se.exec_start"))?;
    let (ms, fraction) = line.split_once(':')?.1.trim().split_once('.')?;
    Some(ms.parse::<u64>().ok()? * 1_000_000 + fraction.parse::<u64>().ok()?)
}

/// Which call waits with a time that only the kernel knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum SleepCall {
    /// nanosleep and clock_nanosleep with a relative time, on this clock; where the rest is written to.
    Nanosleep {
        /// The clock.
        clock: i32,
        /// The pointer for the remaining time, or null.
        rest: Addr,
    },
    /// FUTEX_WAIT and FUTEX_WAIT_BITSET with a time-out.
    Futex {
        /// The word.
        word: Addr,
        /// The operation with its flags.
        operation: i32,
        /// The value expected.
        value: u32,
        /// The bit set.
        bits: u32,
    },
    /// poll with a time-out.
    Poll {
        /// The array.
        fds: Addr,
        /// Its length.
        count: u32,
    },
}

/// A wait that a restart must go on with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sleep {
    /// The call.
    pub call: SleepCall,
    /// Nanoseconds that were left.
    pub left_ns: u64,
}

fn is_timeless(pointer: u64) -> bool {
    pointer == 0
}

/// The registers with which a stopped thread should go on: those it has, unless it is about to see an EINTR that only the stop
/// has caused. `timeout_at` reads a time-out, in nanoseconds, from the thread's memory.
pub fn mend(regs: &Regs, waited_ns: u64, timeout_at: impl FnOnce(u64) -> Option<u64>) -> Regs {
    let mut out = *regs;
    if regs.rax as i64 != i64::from(-libc::EINTR) || (regs.orig_rax as i64) < 0 {
        return out;
    }
    let again = match regs.orig_rax as i64 {
        libc::SYS_epoll_wait | libc::SYS_epoll_pwait => {
            // The time-out is the fourth argument, in milliseconds; negative: none.
            let timeout = regs.r10 as i32;
            if timeout > 0 {
                let left_ns = (timeout as u64 * 1_000_000).saturating_sub(waited_ns);
                out.r10 = left_ns.div_ceil(1_000_000);
            }
            true
        }
        // The same arguments, but for a time-out in memory, which is the program's: made again as the older call.
        libc::SYS_epoll_pwait2 if !is_timeless(regs.r10) => {
            let Some(timeout_ns) = timeout_at(regs.r10) else { return out };
            out.orig_rax = libc::SYS_epoll_pwait as u64;
            out.r10 = timeout_ns.saturating_sub(waited_ns).div_ceil(1_000_000).min(i32::MAX as u64);
            true
        }
        libc::SYS_epoll_pwait2 => true,
        libc::SYS_semtimedop => is_timeless(regs.r10),
        libc::SYS_rt_sigtimedwait => is_timeless(regs.rdx),
        libc::SYS_io_getevents => is_timeless(regs.r8),
        libc::SYS_semop | libc::SYS_accept | libc::SYS_accept4 | libc::SYS_recvfrom | libc::SYS_recvmsg => true,
        _ => false,
    };
    if again {
        out.rax = ERESTARTNOHAND as u64;
    }
    out
}

/// The wait that a stopped thread goes on with through a restart block, if it is in one, and the kernel or its arguments tell which.
pub fn sleep_of(thread: &StoppedThread, memory: &ProcessMemory, waits: &WaitTimes) -> Result<Option<Sleep>> {
    let regs = &thread.regs;
    if regs.rax as i64 != ERESTART_RESTARTBLOCK || (regs.orig_rax as i64) < 0 {
        return Ok(None);
    }
    match waits.told(thread.tid) {
        Some(told) => Ok(Some(told)),
        None => from_arguments(regs, memory, waits.waited_ns(thread.tid)),
    }
}

/// The arguments tell how long the whole wait was to be; a call that is gone on with (restart_syscall) has none.
fn from_arguments(regs: &Regs, memory: &ProcessMemory, waited_ns: u64) -> Result<Option<Sleep>> {
    let (call, whole_ns) = match regs.orig_rax as i64 {
        libc::SYS_nanosleep => {
            let rest = Addr(regs.rsi);
            let call = SleepCall::Nanosleep { clock: libc::CLOCK_MONOTONIC, rest };
            if let Some(left_ns) = written_rest(memory, rest)? {
                return Ok(Some(Sleep { call, left_ns }));
            }
            (call, timespec_ns(memory, Addr(regs.rdi))?)
        }
        libc::SYS_clock_nanosleep => {
            let rest = Addr(regs.r10);
            let call = SleepCall::Nanosleep { clock: regs.rdi as i32, rest };
            if let Some(left_ns) = written_rest(memory, rest)? {
                return Ok(Some(Sleep { call, left_ns }));
            }
            (call, timespec_ns(memory, Addr(regs.rdx))?)
        }
        libc::SYS_futex => {
            let call = SleepCall::Futex {
                word: Addr(regs.rdi),
                operation: regs.rsi as i32,
                value: regs.rdx as u32,
                bits: regs.r9 as u32,
            };
            let time = timespec_ns(memory, Addr(regs.r10))?;
            // FUTEX_WAIT_BITSET has a point in time there, FUTEX_WAIT a span.
            if regs.rsi as i32 & libc::FUTEX_CMD_MASK == libc::FUTEX_WAIT_BITSET {
                let left_ns = time.saturating_sub(clock_ns(futex_clock(regs.rsi as i32))?);
                return Ok(Some(Sleep { call, left_ns }));
            }
            (call, time)
        }
        libc::SYS_poll => {
            let call = SleepCall::Poll { fds: Addr(regs.rdi), count: regs.rsi as u32 };
            (call, u64::from(regs.rdx as u32) * 1_000_000)
        }
        _ => return Ok(None),
    };
    Ok(Some(Sleep { call, left_ns: whole_ns.saturating_sub(waited_ns) }))
}

/// The clock that a futex operation's time-out is on.
pub fn futex_clock(operation: i32) -> i32 {
    if operation & libc::FUTEX_CLOCK_REALTIME != 0 { libc::CLOCK_REALTIME } else { libc::CLOCK_MONOTONIC }
}

/// The kernel tells an interrupted sleeper what is left, where it asked for that.
fn written_rest(memory: &ProcessMemory, rest: Addr) -> Result<Option<u64>> {
    if rest == Addr(0) { Ok(None) } else { timespec_ns(memory, rest).map(Some) }
}

/// A struct timespec of the thread's, in nanoseconds.
pub fn timespec_ns(memory: &ProcessMemory, at: Addr) -> Result<u64> {
    let [seconds, nanoseconds]: [i64; 2] = memory.read_value(at)?;
    Ok((seconds.max(0) as u64).saturating_mul(1_000_000_000).saturating_add(nanoseconds.max(0) as u64))
}

/// CLOCK_* now, in nanoseconds.
pub fn clock_ns(clock: i32) -> Result<u64> {
    let now = nix::time::clock_gettime(nix::time::ClockId::from_raw(clock)).map_err(io::Error::from);
    let now = now.doing(|| format!("cannot read clock {clock}"))?;
    Ok(now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn regs(nr: i64, rax: i64) -> Regs {
        // SAFETY: all bytes zero are a valid value of this struct of integers.
        let mut regs: Regs = unsafe { std::mem::zeroed() };
        (regs.orig_rax, regs.rax) = (nr as u64, rax as u64);
        regs
    }

    #[test]
    fn an_epoll_wait_goes_on_with_the_time_that_is_left() {
        let mut waiting = regs(libc::SYS_epoll_wait, -4);
        waiting.r10 = 1000;
        let mended = mend(&waiting, 400_500_000, |_| None);
        assert_eq!((mended.rax as i64, mended.r10), (ERESTARTNOHAND, 600));
        waiting.r10 = -1i32 as u32 as u64;
        assert_eq!(mend(&waiting, 5_000_000_000, |_| None).r10, waiting.r10, "no time-out stays none");
        assert_eq!(
            mend(&regs(libc::SYS_read, -4), 0, |_| None).rax as i64,
            -4,
            "a call that may have done something is left alone"
        );
        assert_eq!(mend(&regs(-1, -4), 0, |_| None).rax as i64, -4, "not in a system call");
    }

    #[test]
    fn a_time_out_in_memory_moves_into_a_register() {
        let mut waiting = regs(libc::SYS_epoll_pwait2, -4);
        waiting.r10 = 0x1000;
        let mended = mend(&waiting, 400, |at| (at == 0x1000).then_some(2_000_000));
        assert_eq!((mended.orig_rax as i64, mended.r10, mended.rax as i64), (libc::SYS_epoll_pwait, 2, ERESTARTNOHAND));
        assert_eq!(mend(&waiting, 400, |_| None), waiting, "it cannot be read: EINTR");
        waiting.r10 = 0;
        assert_eq!(mend(&waiting, 400, |_| None).orig_rax as i64, libc::SYS_epoll_pwait2);
    }

    #[test]
    fn a_thread_that_waits_in_epoll_wait_with_a_time_out_is_looked_at() {
        let call = |number, timeout| Syscall { number, arguments: [3, 0, 1, timeout, 0, 8] };
        assert!(loses_its_time(&call(libc::SYS_epoll_wait, 100)));
        assert!(loses_its_time(&call(libc::SYS_epoll_pwait2, 0x7fff_0000)));
        assert!(!loses_its_time(&call(libc::SYS_epoll_wait, 0xffff_ffff)), "no time-out");
        assert!(!loses_its_time(&call(libc::SYS_epoll_pwait, 0)), "it does not wait");
        assert!(!loses_its_time(&call(libc::SYS_read, 100)));
    }

    #[test]
    fn the_scheduler_tells_when_a_thread_ran() {
        assert!(last_ran("/proc/thread-self").is_some());
    }
}
