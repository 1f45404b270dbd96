//! What a process does on each signal: rt_sigaction(2), in the kernel's own layout with the restorer (SEED: signal handlers).
//!
//! /proc tells which signals are caught or ignored, and only those are asked for, because each question prolongs the pause. Flags
//! and mask of a default action mean nothing, but for SIGCHLD's SA_NOCLDWAIT and SA_NOCLDSTOP: it is always asked for.

use serde::{Deserialize, Serialize};

use super::task::{Subject, TaskResource};
use super::{Collector, Restorer};
use crate::error::{Doing, Error, Result};
use crate::ids::Addr;
use crate::sys::signal::KernelSigaction;
use crate::tracee::batch::{Answers, Batch, CallId, Slot};
use crate::tracee::remote::RemoteTask;

/// See the module.
#[derive(Debug, Clone, Copy)]
pub struct SignalActions;

/// The signals that do not have their default action.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SignalActionsRecord {
    /// In order of signal number.
    pub actions: Vec<SignalAction>,
}

/// The action of one signal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SignalAction {
    /// Its number.
    pub signal: i32,
    /// The handler, or 0 (default) or 1 (ignore).
    pub handler: Addr,
    /// SA_*.
    pub flags: u64,
    /// Where the handler returns to.
    pub restorer: Addr,
    /// Signals blocked meanwhile; bit n-1 is signal n.
    pub mask: u64,
}

/// The signals whose action can be other than the default.
fn catchable() -> impl Iterator<Item = i32> {
    (1..=64).filter(|&signal| signal != libc::SIGKILL && signal != libc::SIGSTOP)
}

impl TaskResource for SignalActions {
    const KIND: &'static str = "signal-actions";
    type Record = SignalActionsRecord;
    type Asked = Vec<(i32, CallId, Slot)>;

    fn ask(who: &Subject<'_>, batch: &mut Batch) -> Result<Self::Asked> {
        let set = who.status.sigcgt | who.status.sigign | 1 << (libc::SIGCHLD - 1);
        let ask = |signal: i32| {
            let old = batch.room(size_of::<KernelSigaction>());
            let id = batch.call(libc::SYS_rt_sigaction, [signal.into(), 0u64.into(), old.into(), size_of::<u64>().into()]);
            (signal, id, old)
        };
        Ok(catchable().filter(|signal| set & 1 << (signal - 1) != 0).map(ask).collect())
    }

    fn collect(_cx: &mut Collector<'_>, who: &Subject<'_>, asked: Self::Asked, answers: &Answers) -> Result<Self::Record> {
        let mut actions = Vec::new();
        for (signal, id, slot) in asked {
            answers.ret(id).doing(|| format!("cannot read the action of signal {signal} of pid {}", who.pid))?;
            let raw: KernelSigaction = answers.value(slot);
            if raw != KernelSigaction::default() {
                let KernelSigaction { handler, flags, restorer, mask } = raw;
                actions.push(SignalAction { signal, handler: Addr(handler), flags, restorer: Addr(restorer), mask });
            }
        }
        Ok(SignalActionsRecord { actions })
    }

    fn restore(_cx: &mut Restorer<'_>, task: &mut RemoteTask<'_>, record: &Self::Record) -> Result<()> {
        if let Some(action) = record.actions.iter().find(|action| !catchable().any(|signal| signal == action.signal)) {
            return Err(Error::Restart(format!("the image holds an action for signal {}, which can have none", action.signal)));
        }
        let mut batch = Batch::new();
        let set = |signal: i32| {
            let action = record.actions.iter().find(|action| action.signal == signal);
            let raw = action.map_or(KernelSigaction::default(), |action| KernelSigaction {
                handler: action.handler.0,
                flags: action.flags,
                restorer: action.restorer.0,
                mask: action.mask,
            });
            let new = batch.value(&raw);
            (signal, batch.call(libc::SYS_rt_sigaction, [signal.into(), new.into(), 0u64.into(), size_of::<u64>().into()]))
        };
        let calls: Vec<(i32, CallId)> = catchable().map(set).collect();
        let answers = task.run(batch)?;
        for (signal, id) in calls {
            answers.ret(id).doing(|| format!("cannot set the action of signal {signal} of pid {}", task.pid()))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::trial::{self, Trial};

    #[test]
    fn handlers_ignored_signals_and_flags_return() {
        let (before, after) = trial::roundtrip::<SignalActions>(|program| {
            let mut set = |signal: i32, raw: KernelSigaction| {
                let mut batch = Batch::new();
                let new = batch.value(&raw);
                let id = batch.call(libc::SYS_rt_sigaction, [signal.into(), new.into(), 0u64.into(), 8u64.into()]);
                program.task().run(batch).unwrap().ret(id).unwrap();
            };
            let flags = (libc::SA_RESTART | libc::SA_SIGINFO) as u64 | 0x0400_0000;
            set(libc::SIGUSR1, KernelSigaction { handler: 0x1234_5678, flags, restorer: 0x8765_4321, mask: 0xf0f0 });
            set(libc::SIGPIPE, KernelSigaction { handler: 1, ..KernelSigaction::default() });
            set(libc::SIGCHLD, KernelSigaction { flags: libc::SA_NOCLDWAIT as u64, ..KernelSigaction::default() });
            set(64, KernelSigaction { handler: 0x1000, flags: 0x0400_0000, ..KernelSigaction::default() });
        });
        assert_eq!(before, after);
        let of = |signal: i32| before.actions.iter().find(|a| a.signal == signal).copied();
        assert_eq!(
            of(libc::SIGUSR1).map(|a| (a.handler, a.restorer, a.mask)),
            Some((Addr(0x1234_5678), Addr(0x8765_4321), 0xf0f0))
        );
        assert_eq!(of(libc::SIGPIPE).map(|a| a.handler), Some(Addr(1)));
        assert_eq!(of(libc::SIGCHLD).map(|a| a.flags), Some(libc::SA_NOCLDWAIT as u64));
        assert!(of(64).is_some());
    }

    #[test]
    fn what_the_new_task_had_before_is_undone() {
        let mut program = Trial::sleep();
        let mut batch = Batch::new();
        let new = batch.value(&KernelSigaction { handler: 1, ..KernelSigaction::default() });
        batch.call(libc::SYS_rt_sigaction, [libc::SIGHUP.into(), new.into(), 0u64.into(), 8u64.into()]);
        program.task().run(batch).unwrap();
        assert!(program.collect::<SignalActions>().unwrap().actions.iter().any(|a| a.signal == libc::SIGHUP));
        program.restore::<SignalActions>(&SignalActionsRecord::default()).unwrap();
        assert_eq!(program.collect::<SignalActions>().unwrap(), SignalActionsRecord::default());
    }

    #[test]
    fn an_image_cannot_set_sigkill() {
        let mut program = Trial::sleep();
        for signal in [0, libc::SIGKILL, libc::SIGSTOP, 65, -1] {
            let record = SignalActionsRecord { actions: vec![SignalAction { signal, ..SignalAction::default() }] };
            assert!(program.restore::<SignalActions>(&record).is_err());
        }
    }
}
