//! The I/O priority of a thread (ioprio_set(2)).

use serde::{Deserialize, Serialize};

use super::task::{Subject, TaskResource};
use super::{Collector, Restorer};
use crate::error::{Doing, Result};
use crate::sys::sched;
use crate::tracee::batch::{Answers, Batch};
use crate::tracee::remote::RemoteTask;

/// See the module.
#[derive(Debug, Clone, Copy)]
pub struct IoPriority;

/// Class and level, as ioprio_get returns them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct IoPriorityRecord {
    /// See the struct.
    pub priority: i32,
}

impl TaskResource for IoPriority {
    const KIND: &'static str = "io-priority";
    type Record = IoPriorityRecord;
    type Asked = ();

    fn ask(_who: &Subject<'_>, _batch: &mut Batch) -> Result<()> {
        Ok(())
    }

    fn collect(_cx: &mut Collector<'_>, who: &Subject<'_>, (): (), _answers: &Answers) -> Result<IoPriorityRecord> {
        let priority = sched::io_priority(who.tid).doing(|| format!("cannot read the I/O priority of thread {}", who.tid))?;
        Ok(IoPriorityRecord { priority })
    }

    fn restore(_cx: &mut Restorer<'_>, task: &mut RemoteTask<'_>, record: &IoPriorityRecord) -> Result<()> {
        let (tid, wanted) = (task.tid(), record.priority);
        let now = sched::io_priority(tid).doing(|| format!("cannot read the I/O priority of thread {tid}"))?;
        if now == wanted {
            return Ok(());
        }
        match sched::set_io_priority(tid, wanted) {
            Err(e) if e.raw_os_error() == Some(libc::EPERM) => {
                tracing::warn!(
                    "thread {tid} had the I/O priority {wanted:#x}, which this user may not give it again; it has {now:#x}"
                );
                Ok(())
            }
            other => other.doing(|| format!("cannot set the I/O priority of thread {tid} to {wanted:#x}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::trial::{self, Trial};

    #[test]
    fn the_priority_returns() {
        // Class best effort, level 7; class idle; class real-time, level 2.
        for priority in [2 << 13 | 7, 3 << 13, 1 << 13 | 2] {
            let (before, after) =
                trial::roundtrip::<IoPriority>(|program| sched::set_io_priority(program.pid().leader(), priority).unwrap());
            assert_eq!((before.priority, after.priority), (priority, priority));
        }
        let (before, after) = trial::roundtrip::<IoPriority>(|_| {});
        assert_eq!(before, after);
        assert!(Trial::sleep().restore::<IoPriority>(&IoPriorityRecord { priority: -1 }).is_err());
    }
}
