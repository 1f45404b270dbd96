//! By how much the kernel may delay the timers of a thread to save wake-ups (PR_SET_TIMERSLACK).
//!
//! Set before the scheduling policy: real-time threads have no slack, and ignore being given one.

use serde::{Deserialize, Serialize};

use super::task::{Subject, TaskResource};
use super::{Collector, Restorer};
use crate::error::{Doing, Result};
use crate::tracee::batch::{Answers, Batch, CallId};
use crate::tracee::remote::RemoteTask;

/// See the module.
#[derive(Debug, Clone, Copy)]
pub struct TimerSlack;

/// Nanoseconds; 0 for real-time threads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TimerSlackRecord {
    /// See the struct.
    pub ns: u64,
}

impl TaskResource for TimerSlack {
    const KIND: &'static str = "timer-slack";
    type Record = TimerSlackRecord;
    type Asked = CallId;

    fn ask(_who: &Subject<'_>, batch: &mut Batch) -> Result<Self::Asked> {
        Ok(batch.call(libc::SYS_prctl, [libc::PR_GET_TIMERSLACK.into()]))
    }

    fn collect(_cx: &mut Collector<'_>, who: &Subject<'_>, asked: Self::Asked, answers: &Answers) -> Result<TimerSlackRecord> {
        let ns = answers.ret(asked).doing(|| format!("cannot read the timer slack of thread {}", who.tid))?;
        Ok(TimerSlackRecord { ns })
    }

    fn restore(_cx: &mut Restorer<'_>, task: &mut RemoteTask<'_>, record: &TimerSlackRecord) -> Result<()> {
        if record.ns == 0 {
            return Ok(());
        }
        let args = [libc::PR_SET_TIMERSLACK.into(), record.ns.into()];
        task.call("cannot set the timer slack", libc::SYS_prctl, args).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::trial;

    #[test]
    fn the_slack_returns() {
        let (before, after) = trial::roundtrip::<TimerSlack>(|program| {
            program.prctl(libc::PR_SET_TIMERSLACK, 123_456, 0).unwrap();
        });
        assert_eq!((before.ns, after.ns), (123_456, 123_456));
    }
}
