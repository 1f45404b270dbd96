//! The signal that a thread gets when its parent dies (PR_SET_PDEATHSIG). A change of credentials clears it, so it comes after them.

use serde::{Deserialize, Serialize};

use super::task::{Subject, TaskResource};
use super::{Collector, Restorer};
use crate::error::{Doing, Result};
use crate::tracee::batch::{Answers, Batch, CallId, Slot};
use crate::tracee::remote::RemoteTask;

/// See the module.
#[derive(Debug, Clone, Copy)]
pub struct ParentDeathSignal;

/// Its number; 0: none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ParentDeathSignalRecord {
    /// See the struct.
    pub signal: i32,
}

impl TaskResource for ParentDeathSignal {
    const KIND: &'static str = "parent-death-signal";
    type Record = ParentDeathSignalRecord;
    type Asked = (CallId, Slot);

    fn ask(_who: &Subject<'_>, batch: &mut Batch) -> Result<Self::Asked> {
        let value = batch.room(size_of::<i32>());
        Ok((batch.call(libc::SYS_prctl, [libc::PR_GET_PDEATHSIG.into(), value.into()]), value))
    }

    fn collect(_cx: &mut Collector<'_>, who: &Subject<'_>, (id, value): Self::Asked, answers: &Answers) -> Result<Self::Record> {
        answers.ret(id).doing(|| format!("cannot read the parent-death signal of thread {}", who.tid))?;
        Ok(ParentDeathSignalRecord { signal: answers.value(value) })
    }

    fn restore(_cx: &mut Restorer<'_>, task: &mut RemoteTask<'_>, record: &Self::Record) -> Result<()> {
        if record.signal == 0 {
            return Ok(());
        }
        let args = [libc::PR_SET_PDEATHSIG.into(), record.signal.into()];
        task.call("cannot set the parent-death signal", libc::SYS_prctl, args).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::trial::{self, Trial};

    #[test]
    fn the_signal_returns() {
        let (before, after) = trial::roundtrip::<ParentDeathSignal>(|program| {
            program.prctl(libc::PR_SET_PDEATHSIG, libc::SIGUSR2 as u64, 0).unwrap();
        });
        assert_eq!((before.signal, after.signal), (libc::SIGUSR2, libc::SIGUSR2));
        assert!(Trial::sleep().restore::<ParentDeathSignal>(&ParentDeathSignalRecord { signal: 65 }).is_err());
    }
}
