//! What the kernel knows of a thread: ids, name, priority, processors, timer slack, robust list, rseq.

use std::ffi::CStr;

use ckpt_tests::sys::raw::{Arg, call};
use nix::sched::{CpuSet, sched_getaffinity, sched_getcpu, sched_setaffinity};
use nix::unistd::{Pid, getpid, gettid};

/// What it was when the thread began.
#[derive(Debug, PartialEq, Eq)]
pub struct Attributes {
    pid: Pid,
    tid: Pid,
    name: Vec<u8>,
    priority: i32,
    policy: i64,
    cpus: Vec<bool>,
    slack: i32,
    robust_list: (u64, u64),
}

impl Attributes {
    /// Gives the calling thread, number `index`, attributes of its own, and takes them down.
    pub fn choose(index: usize) -> Attributes {
        let name = std::ffi::CString::new(format!("steady {index})")).expect("no NUL in it");
        nix::sys::prctl::set_name(&name).expect("cannot set the name");
        nix::sys::prctl::set_timerslack(60_000 + index as u64).expect("cannot set the timer slack");
        let tid = gettid().as_raw();
        call(libc::SYS_setpriority, &[(libc::PRIO_PROCESS as i32).into(), tid.into(), (index as i32 % 4).into()])
            .expect("cannot set the priority");
        if index % 2 == 1 {
            let mut parameter = libc::sched_param { sched_priority: 0 };
            call(libc::SYS_sched_setscheduler, &[0.into(), libc::SCHED_BATCH.into(), Arg::to(&mut parameter)])
                .expect("cannot set the policy");
        }
        if index == 2 {
            let mut one = CpuSet::new();
            let all = sched_getaffinity(Pid::from_raw(0)).expect("cannot get the affinity");
            let first = (0..CpuSet::count()).find(|&n| all.is_set(n) == Ok(true)).expect("no processor");
            one.set(first).expect("no such processor");
            sched_setaffinity(Pid::from_raw(0), &one).expect("cannot set the affinity");
        }
        Attributes::now()
    }

    fn now() -> Attributes {
        let affinity = sched_getaffinity(Pid::from_raw(0)).expect("cannot get the affinity");
        let (mut head, mut length) = (0u64, 0u64);
        call(libc::SYS_get_robust_list, &[0.into(), Arg::to(&mut head), Arg::to(&mut length)])
            .expect("cannot get the robust list");
        Attributes {
            pid: getpid(),
            tid: gettid(),
            name: nix::sys::prctl::get_name().map(|name| CStr::to_bytes(&name).to_vec()).unwrap_or_default(),
            priority: call(libc::SYS_getpriority, &[(libc::PRIO_PROCESS as i32).into(), 0.into()])
                .expect("cannot get the priority") as i32,
            policy: call(libc::SYS_sched_getscheduler, &[0.into()]).expect("cannot get the policy"),
            cpus: (0..64).map(|n| affinity.is_set(n) == Ok(true)).collect(),
            slack: nix::sys::prctl::get_timerslack().expect("cannot get the timer slack"),
            robust_list: (head, length),
        }
    }

    /// Are they as they were?
    pub fn check(&self) -> Result<(), String> {
        let now = Attributes::now();
        if *self == now { check_rseq() } else { Err(format!("{now:?} instead of {self:?}")) }
    }
}

/// The kernel keeps the number of the processor up to date in the thread's rseq area, if that is registered (glibc 2.35 does it, and
/// reads it in sched_getcpu): it must be what the system call says.
fn check_rseq() -> Result<(), String> {
    let mut told = (0, 0);
    for _ in 0..1000 {
        let before = sched_getcpu().map_err(|e| format!("sched_getcpu: {e}"))? as u32;
        let mut cpu = 0u32;
        call(libc::SYS_getcpu, &[Arg::to(&mut cpu), Arg::NULL, Arg::NULL]).map_err(|e| format!("getcpu: {e}"))?;
        told = (before, cpu);
        if before == cpu {
            return Ok(());
        }
        // The thread may have moved between the two.
    }
    Err(format!("rseq says processor {}, the kernel {}", told.0, told.1))
}
