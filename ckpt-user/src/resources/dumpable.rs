//! May a process leave a core file, and be looked at by its own user (PR_SET_DUMPABLE)?
//!
//! Restored after everything else of the process: once it is off, an unprivileged ckpt could read no more of /proc. Changing
//! credentials resets it, and [`super::credentials`] sees to it that it stays.

use serde::{Deserialize, Serialize};

use super::task::{Subject, TaskResource};
use super::{Collector, Restorer};
use crate::error::{Doing, Result};
use crate::tracee::batch::{Answers, Batch, CallId};
use crate::tracee::remote::RemoteTask;

/// See the module.
#[derive(Debug, Clone, Copy)]
pub struct Dumpable;

/// PR_GET_DUMPABLE: 0 no, 1 yes, 2 for root only (which only the kernel sets, after a change of credentials).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DumpableRecord {
    /// See the struct.
    pub value: u64,
}

/// What the process of `task` has now.
pub fn read(task: &mut RemoteTask<'_>) -> Result<u64> {
    task.call("cannot read PR_GET_DUMPABLE", libc::SYS_prctl, [libc::PR_GET_DUMPABLE.into()])
}

/// Makes it `value`, or off where only the kernel could.
pub fn set(task: &mut RemoteTask<'_>, value: u64) -> Result<()> {
    if read(task)? == value {
        return Ok(());
    }
    let args = [libc::PR_SET_DUMPABLE.into(), u64::from(value == 1).into()];
    task.call("cannot set PR_SET_DUMPABLE", libc::SYS_prctl, args).map(drop)
}

impl TaskResource for Dumpable {
    const KIND: &'static str = "dumpable";
    type Record = DumpableRecord;
    type Asked = CallId;

    fn ask(_who: &Subject<'_>, batch: &mut Batch) -> Result<CallId> {
        Ok(batch.call(libc::SYS_prctl, [libc::PR_GET_DUMPABLE.into()]))
    }

    fn collect(_cx: &mut Collector<'_>, who: &Subject<'_>, id: CallId, answers: &Answers) -> Result<DumpableRecord> {
        let value = answers.ret(id).doing(|| format!("cannot read PR_GET_DUMPABLE of pid {}", who.pid))?;
        Ok(DumpableRecord { value })
    }

    fn restore(_cx: &mut Restorer<'_>, task: &mut RemoteTask<'_>, record: &DumpableRecord) -> Result<()> {
        set(task, record.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::trial;

    #[test]
    fn it_returns() {
        for value in [0, 1] {
            let (before, after) = trial::roundtrip::<Dumpable>(|program| {
                program.prctl(libc::PR_SET_DUMPABLE, value, 0).unwrap();
            });
            assert_eq!((before.value, after.value), (value, value));
        }
    }
}
