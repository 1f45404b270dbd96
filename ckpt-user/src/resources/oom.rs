//! How willingly the kernel kills a process when memory runs out (/proc/PID/oom_score_adj).

use serde::{Deserialize, Serialize};

use super::task::{Subject, TaskResource};
use super::{Collector, Restorer};
use crate::error::{Doing, Error, Result};
use crate::ids::Pid;
use crate::sys::task_file;
use crate::tracee::batch::{Answers, Batch};
use crate::tracee::remote::RemoteTask;

/// See the module.
#[derive(Debug, Clone, Copy)]
pub struct OomScore;

/// -1000 (never) to 1000.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct OomScoreRecord {
    /// See the struct.
    pub adjustment: i32,
}

fn read(pid: Pid) -> Result<i32> {
    let text = task_file::read_line(pid, pid.leader(), "oom_score_adj")?;
    text.parse().map_err(|_| Error::Unexpected(format!("the oom_score_adj of pid {pid} is {text:?}")))
}

impl TaskResource for OomScore {
    const KIND: &'static str = "oom-score";
    type Record = OomScoreRecord;
    type Asked = ();

    fn ask(_who: &Subject<'_>, _batch: &mut Batch) -> Result<()> {
        Ok(())
    }

    fn collect(_cx: &mut Collector<'_>, who: &Subject<'_>, (): (), _answers: &Answers) -> Result<OomScoreRecord> {
        Ok(OomScoreRecord { adjustment: read(who.pid)? })
    }

    fn restore(_cx: &mut Restorer<'_>, task: &mut RemoteTask<'_>, record: &OomScoreRecord) -> Result<()> {
        let (pid, wanted) = (task.pid(), record.adjustment);
        let now = read(pid)?;
        if now == wanted {
            return Ok(());
        }
        match task_file::write(pid, "oom_score_adj", &wanted.to_string()) {
            Err(e) if matches!(e.raw_os_error(), Some(libc::EACCES | libc::EPERM)) => {
                tracing::warn!("pid {pid} had the oom_score_adj {wanted}, which needs CAP_SYS_RESOURCE; it has {now}");
                Ok(())
            }
            other => other.doing(|| format!("cannot set the oom_score_adj of pid {pid} to {wanted}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::trial::{self, Trial};

    #[test]
    fn the_score_returns() {
        let made = OomScoreRecord { adjustment: 321 };
        let (before, after) = trial::roundtrip::<OomScore>(|program| program.restore::<OomScore>(&made).unwrap());
        assert_eq!((before, after), (made, made));
        assert!(Trial::sleep().restore::<OomScore>(&OomScoreRecord { adjustment: 5000 }).is_err());
    }
}
