//! What the processor holds of a thread: general registers, the extended state, the blocked signals, and the system call that it was
//! frozen in.

use serde::{Deserialize, Serialize};

use crate::error::{Doing, Error, Result};
use crate::ids::Addr;
use crate::sys::prctl::TILE_DATA;
use crate::sys::ptrace::{self, Regs};
use crate::tracee::batch::Batch;
use crate::tracee::interrupted::{self, Sleep, SleepCall, WaitTimes};
use crate::tracee::memory::ProcessMemory;
use crate::tracee::remote::RemoteTask;
use crate::tracee::stub::ERESTART_RESTARTBLOCK;
use crate::tracee::thread::StoppedThread;

/// The name of the section.
pub const KIND: &str = "cpu";

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CpuRecord {
    /// The general registers.
    pub regs: RegsRecord,
    /// The XSAVE area as the kernel gives it.
    #[serde(with = "serde_bytes")]
    pub xstate: Vec<u8>,
    /// Blocked signals; bit n-1 is signal n.
    pub sigmask: u64,
    /// A wait with a time that was left.
    #[serde(default)]
    pub sleep: Option<Sleep>,
}

macro_rules! regs_record {
    ($($name:ident),*) => {
        /// The general registers by name; `orig_rax` tells the interrupted system call, all ones: none.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(default)]
        #[allow(missing_docs)]
        pub struct RegsRecord { $(pub $name: u64),* }

        impl From<&Regs> for RegsRecord {
            fn from(regs: &Regs) -> RegsRecord {
                RegsRecord { $($name: regs.$name),* }
            }
        }

        impl From<&RegsRecord> for Regs {
            fn from(record: &RegsRecord) -> Regs {
                Regs { $($name: record.$name),* }
            }
        }
    };
}

regs_record!(
    r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8, rax, rcx, rdx, rsi, rdi, orig_rax, rip, cs, eflags, rsp, ss, fs_base,
    gs_base, ds, es, fs, gs
);

/// Selector of 64-bit user code: anything else is a 32-bit program.
const USER_CS: u64 = 0x33;

/// What must be known before a remote call is made in a stopped thread.
pub fn check(thread: &StoppedThread) -> Result<()> {
    if thread.regs.cs == USER_CS {
        return Ok(());
    }
    Err(Error::Refused(crate::Refusal {
        pid: thread.pid,
        object: format!("thread {}", thread.tid),
        reason: "runs 32-bit code".to_owned(),
        advice: "ckpt saves 64-bit programs only".to_owned(),
        passing: false,
    }))
}

/// Reads the state of a stopped thread.
pub fn collect(thread: &StoppedThread, memory: &ProcessMemory, waits: &WaitTimes) -> Result<CpuRecord> {
    let (pid, tid) = (thread.pid, thread.tid);
    let xstate = ptrace::get_xstate(tid).doing(|| format!("cannot read the extended registers of thread {tid} of pid {pid}"))?;
    let sleep = interrupted::sleep_of(thread, memory, waits)?;
    Ok(CpuRecord { regs: RegsRecord::from(&thread.regs), xstate, sigmask: thread.sigmask, sleep })
}

/// The kernel gives a thread room for AMX tiles when it first uses one, and takes their contents only then: uses one.
const USE_A_TILE: &[u8] = &[
    0xc4, 0xe2, 0x78, 0x49, 0x07, // ldtilecfg [rdi]
    0xc4, 0xe2, 0x7b, 0x49, 0xc0, // tilezero tmm0
    0xc4, 0xe2, 0x78, 0x49, 0xc0, // tilerelease
    0xb8, 0x27, 0x00, 0x00, 0x00, // mov eax, 39 (getpid)
    0x0f, 0x05, // syscall
];

/// Where XSTATE_BV stands in the XSAVE area.
const XSTATE_BV: usize = 512;

/// Makes room for extended states that a thread gets only on use.
pub fn make_room(task: &mut RemoteTask<'_>, record: &CpuRecord) -> Result<()> {
    let present =
        record.xstate.get(XSTATE_BV..XSTATE_BV + 8).map_or(0, |b| b.iter().rev().fold(0, |n, &b| n << 8 | u64::from(b)));
    if present & TILE_DATA == 0 {
        return Ok(());
    }
    // Palette 1; tile 0 has 64 bytes in each of 16 rows.
    let mut configuration = [0u8; 64];
    (configuration[0], configuration[16], configuration[48]) = (1, 64, 16);
    task.run_code(USE_A_TILE, &configuration)
}

/// How a thread that waited with a time fell asleep again.
#[derive(Clone, Copy, Debug)]
pub struct Asleep(i64);

/// Gives a thread its registers: the last thing that happens to it. Takes it out of the stub.
pub fn restore(task: &mut RemoteTask<'_>, record: &CpuRecord, asleep: Option<Asleep>) -> Result<()> {
    let tid = task.tid();
    let mut regs = Regs::from(&record.regs);
    if regs.rax as i64 == ERESTART_RESTARTBLOCK && (regs.orig_rax as i64) >= 0 {
        finish_sleep(&mut regs, asleep);
        if let Some(Sleep { call: SleepCall::Poll { .. }, left_ns }) = record.sleep
            && regs.orig_rax as i64 == libc::SYS_poll
        {
            // Saved again where the kernel does not tell, it must be known how long this wait was.
            regs.rdx = milliseconds(left_ns) as u64;
        }
    }
    ptrace::set_xstate(tid, &record.xstate).doing(|| {
        format!(
            "cannot set the extended registers of thread {tid} ({} bytes): this processor has other extensions",
            record.xstate.len()
        )
    })?;
    task.leave_with(&regs, record.sigmask)
}

/// A thread that waited with a time falls asleep again for what was left, and is stopped at once. That leaves the kernel where it
/// was: with a restart block for the time that is left. [`restore`] must follow.
pub fn fall_asleep(task: &mut RemoteTask<'_>, record: &CpuRecord) -> Result<Option<Asleep>> {
    let Some(sleep) = record.sleep else { return Ok(None) };
    let mut batch = Batch::new();
    let left = [(sleep.left_ns / 1_000_000_000) as i64, (sleep.left_ns % 1_000_000_000) as i64];
    match sleep.call {
        SleepCall::Nanosleep { clock, rest } => {
            let time = batch.value(&left);
            batch.call(libc::SYS_clock_nanosleep, [clock.into(), 0u64.into(), time.into(), rest.into()]);
        }
        SleepCall::Futex { word, operation, value, bits } => {
            // FUTEX_WAIT_BITSET takes a point in time, FUTEX_WAIT a span.
            let clock = interrupted::futex_clock(operation);
            let until = if operation & libc::FUTEX_CMD_MASK == libc::FUTEX_WAIT_BITSET {
                let at = interrupted::clock_ns(clock)?.saturating_add(sleep.left_ns);
                [(at / 1_000_000_000) as i64, (at % 1_000_000_000) as i64]
            } else {
                left
            };
            let time = batch.value(&until);
            batch.call(libc::SYS_futex, [word.into(), operation.into(), value.into(), time.into(), Addr(0).into(), bits.into()]);
        }
        SleepCall::Poll { fds, count } => {
            batch.call(libc::SYS_poll, [fds.into(), count.into(), milliseconds(sleep.left_ns).into()]);
        }
    }
    Ok(Some(Asleep(task.run_interrupted(batch)?)))
}

fn milliseconds(ns: u64) -> i32 {
    i32::try_from(ns.div_ceil(1_000_000)).unwrap_or(i32::MAX)
}

/// The outcome of falling asleep again. Without a time that we know, the wait ends as interrupted, which every such call may.
fn finish_sleep(regs: &mut Regs, asleep: Option<Asleep>) {
    match asleep {
        Some(Asleep(ERESTART_RESTARTBLOCK)) => {}
        // Over already: the time was up, or the futex had changed.
        Some(Asleep(done)) => (regs.rax, regs.orig_rax) = (done as u64, u64::MAX),
        None => (regs.rax, regs.orig_rax) = (-i64::from(libc::EINTR) as u64, u64::MAX),
    }
}
