//! Signals that wait, with all that the kernel knows of them (siginfo): those of the whole process, and those of one thread.
//!
//! They are looked at through ptrace, which leaves them where they are, and queued again by the new task itself: only to itself may a
//! process send a siginfo that claims to come from the kernel. Actions must stand before, because setting a signal to be ignored
//! throws away what waits of it.

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::task::{Subject, TaskResource};
use super::{Collector, Restorer};
use crate::error::{Doing, Error, Result};
use crate::sys::ptrace_state::{self, SIGINFO_BYTES};
use crate::tracee::batch::{Answers, Batch};
use crate::tracee::remote::RemoteTask;

/// Signals queued for the whole process. Restored by its main thread.
#[derive(Debug, Clone, Copy)]
pub struct SharedPending;

/// Signals queued for one thread.
#[derive(Debug, Clone, Copy)]
pub struct ThreadPending;

/// The signals that wait.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PendingRecord {
    /// One siginfo_t each (128 bytes), in the order in which they were queued.
    pub signals: Vec<ByteBuf>,
}

/// How many signals are queued with one batch.
const PER_BATCH: usize = 16;

fn collect(who: &Subject<'_>, shared: bool) -> Result<PendingRecord> {
    // Of each that is queued, there is a bit in the status.
    if (if shared { who.status.shdpnd } else { who.status.sigpnd }) == 0 {
        return Ok(PendingRecord::default());
    }
    let signals = ptrace_state::pending_signals(who.tid, shared)
        .doing(|| format!("cannot read the pending signals of thread {} of pid {}", who.tid, who.pid))?;
    Ok(PendingRecord { signals: signals.into_iter().map(|info| ByteBuf::from(info.to_vec())).collect() })
}

/// si_signo of a siginfo, if it can be queued at all.
fn signal_of(info: &[u8]) -> Result<i32> {
    let number = info.first_chunk().map(|bytes| i32::from_le_bytes(*bytes));
    match number {
        Some(signal) if info.len() == SIGINFO_BYTES && (1..=64).contains(&signal) && signal != libc::SIGKILL => Ok(signal),
        _ => Err(Error::Restart("the image holds a pending signal that is none".to_owned())),
    }
}

fn restore(task: &mut RemoteTask<'_>, record: &PendingRecord, shared: bool) -> Result<()> {
    let (pid, tid) = (task.pid(), task.tid());
    for some in record.signals.chunks(PER_BATCH) {
        let mut batch = Batch::new();
        let mut calls = Vec::new();
        for info in some {
            let signal = signal_of(info)?;
            let raw = batch.bytes(info);
            let id = if shared {
                batch.call(libc::SYS_rt_sigqueueinfo, [pid.0.into(), signal.into(), raw.into()])
            } else {
                batch.call(libc::SYS_rt_tgsigqueueinfo, [pid.0.into(), tid.0.into(), signal.into(), raw.into()])
            };
            calls.push((signal, id));
        }
        let answers = task.run(batch)?;
        for (signal, id) in calls {
            answers.ret(id).doing(|| format!("cannot queue signal {signal} for thread {tid} of pid {pid}"))?;
        }
    }
    Ok(())
}

impl TaskResource for SharedPending {
    const KIND: &'static str = "pending-signals-of-process";
    type Record = PendingRecord;
    type Asked = ();

    fn ask(_who: &Subject<'_>, _batch: &mut Batch) -> Result<()> {
        Ok(())
    }

    fn collect(_cx: &mut Collector<'_>, who: &Subject<'_>, (): (), _answers: &Answers) -> Result<PendingRecord> {
        collect(who, true)
    }

    fn restore(_cx: &mut Restorer<'_>, task: &mut RemoteTask<'_>, record: &PendingRecord) -> Result<()> {
        restore(task, record, true)
    }
}

impl TaskResource for ThreadPending {
    const KIND: &'static str = "pending-signals";
    type Record = PendingRecord;
    type Asked = ();

    fn ask(_who: &Subject<'_>, _batch: &mut Batch) -> Result<()> {
        Ok(())
    }

    fn collect(_cx: &mut Collector<'_>, who: &Subject<'_>, (): (), _answers: &Answers) -> Result<PendingRecord> {
        collect(who, false)
    }

    fn restore(_cx: &mut Restorer<'_>, task: &mut RemoteTask<'_>, record: &PendingRecord) -> Result<()> {
        restore(task, record, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::trial::Trial;
    use crate::sys::signal;

    fn info(signal: i32, code: i32, value: u64) -> ByteBuf {
        let mut bytes = vec![0u8; SIGINFO_BYTES];
        bytes[0..4].copy_from_slice(&signal.to_le_bytes());
        bytes[8..12].copy_from_slice(&code.to_le_bytes());
        bytes[24..32].copy_from_slice(&value.to_le_bytes());
        ByteBuf::from(bytes)
    }

    #[test]
    fn queued_signals_keep_order_code_and_value() {
        // More than one request of ptrace and one batch fetch and queue at a time; SI_TIMER, SI_KERNEL and SEGV_MAPERR among them.
        let mut signals: Vec<ByteBuf> = (0..50).map(|n| info(40, -1, n)).collect();
        signals.extend([info(libc::SIGSEGV, 1, 0xdead), info(34, libc::SI_TIMER, 7), info(libc::SIGHUP, 0x80, 0)]);
        let record = PendingRecord { signals };
        let mut program = Trial::sleep();
        program.restore::<SharedPending>(&record).unwrap();
        let back = program.collect::<SharedPending>().unwrap();
        assert_eq!(back, record);
        assert_eq!(program.collect::<ThreadPending>().unwrap(), PendingRecord::default(), "the two queues are apart");

        let mut other = Trial::sleep();
        other.restore::<ThreadPending>(&back).unwrap();
        assert_eq!(other.collect::<ThreadPending>().unwrap(), record);
        assert_eq!(other.collect::<SharedPending>().unwrap(), PendingRecord::default());
    }

    #[test]
    fn a_signal_from_outside_is_seen_and_left_where_it_is() {
        let mut program = Trial::sleep();
        // Enters the stub, where every signal is blocked.
        program.prctl(libc::PR_GET_DUMPABLE, 0, 0).unwrap();
        signal::kill(program.pid(), libc::SIGUSR1).unwrap();
        for _ in 0..2 {
            let record = program.collect::<SharedPending>().unwrap();
            assert_eq!(record.signals.len(), 1);
            assert_eq!(signal_of(&record.signals[0]).unwrap(), libc::SIGUSR1);
            let sender = i32::from_le_bytes(*record.signals[0][16..].first_chunk().unwrap());
            assert_eq!(sender, std::process::id() as i32, "si_pid");
        }
    }

    #[test]
    fn what_is_no_signal_is_refused() {
        assert!(signal_of(&[]).is_err());
        assert!(signal_of(&info(libc::SIGUSR1, 0, 0)[..127]).is_err());
        assert!(signal_of(&info(libc::SIGKILL, 0, 0)).is_err());
        assert!(signal_of(&info(0, 0, 0)).is_err());
        assert!(signal_of(&info(65, 0, 0)).is_err());
        assert!(signal_of(&info(64, 0, 0)).is_ok());
    }
}
