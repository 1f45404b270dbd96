//! The three interval timers of a process (setitimer(2)), with the time that was left.

use serde::{Deserialize, Serialize};

use super::task::{Subject, TaskResource};
use super::{Collector, Restorer};
use crate::error::{Doing, Result};
use crate::tracee::batch::{Answers, Batch, CallId, Slot};
use crate::tracee::remote::RemoteTask;

/// See the module.
#[derive(Debug, Clone, Copy)]
pub struct IntervalTimers;

/// The timers, each as it was at the cut.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct IntervalTimersRecord {
    /// ITIMER_REAL: time that passes.
    pub real: IntervalTimer,
    /// ITIMER_VIRTUAL: processor time in user mode.
    pub virtual_time: IntervalTimer,
    /// ITIMER_PROF: processor time.
    pub profile: IntervalTimer,
}

/// One timer, in (seconds, microseconds).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct IntervalTimer {
    /// The period; zero: it goes off once.
    pub interval: (i64, i64),
    /// Time until it goes off; zero: it is not running.
    pub left: (i64, i64),
}

const KINDS: [i32; 3] = [0, 1, 2];
const NAMES: [&str; 3] = ["ITIMER_REAL", "ITIMER_VIRTUAL", "ITIMER_PROF"];

impl IntervalTimer {
    fn from_raw([interval_s, interval_us, left_s, left_us]: [i64; 4]) -> IntervalTimer {
        IntervalTimer { interval: (interval_s, interval_us), left: (left_s, left_us) }
    }

    /// What to set. A periodic ITIMER_REAL whose signal has not been taken yet stands still, and the kernel would forget its period:
    /// it starts over.
    fn to_raw(self) -> [i64; 4] {
        let left = if self.left == (0, 0) { self.interval } else { self.left };
        [self.interval.0, self.interval.1, left.0, left.1]
    }
}

impl TaskResource for IntervalTimers {
    const KIND: &'static str = "interval-timers";
    type Record = IntervalTimersRecord;
    type Asked = [(CallId, Slot); 3];

    fn ask(_who: &Subject<'_>, batch: &mut Batch) -> Result<Self::Asked> {
        Ok(KINDS.map(|kind| {
            let value = batch.room(size_of::<[i64; 4]>());
            (batch.call(libc::SYS_getitimer, [kind.into(), value.into()]), value)
        }))
    }

    fn collect(cx: &mut Collector<'_>, who: &Subject<'_>, asked: Self::Asked, answers: &Answers) -> Result<Self::Record> {
        for ((id, _), name) in asked.iter().zip(NAMES) {
            answers.ret(*id).doing(|| format!("cannot read {name} of pid {}", who.pid))?;
        }
        let [real, virtual_time, profile] = asked.map(|(_, slot)| IntervalTimer::from_raw(answers.value(slot)));
        let record = IntervalTimersRecord { real, virtual_time, profile };
        if record != IntervalTimersRecord::default() {
            cx.is_passing();
        }
        Ok(record)
    }

    fn restore(_cx: &mut Restorer<'_>, task: &mut RemoteTask<'_>, record: &Self::Record) -> Result<()> {
        let timers = [record.real, record.virtual_time, record.profile];
        let mut batch = Batch::new();
        let mut calls = Vec::new();
        for ((kind, name), timer) in KINDS.into_iter().zip(NAMES).zip(timers) {
            if timer != IntervalTimer::default() {
                let value = batch.value(&timer.to_raw());
                calls.push((name, batch.call(libc::SYS_setitimer, [kind.into(), value.into(), 0u64.into()])));
            }
        }
        let answers = task.run(batch)?;
        for (name, id) in calls {
            answers.ret(id).doing(|| format!("cannot set {name} of pid {}", task.pid()))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::pending::SharedPending;
    use crate::resources::trial::{self, Trial};

    fn set(program: &mut Trial, kind: i32, raw: [i64; 4]) {
        let mut batch = Batch::new();
        let value = batch.value(&raw);
        batch.call(libc::SYS_setitimer, [kind.into(), value.into(), 0u64.into()]);
        program.task().run(batch).unwrap();
    }

    #[test]
    fn timers_go_on_with_the_time_that_was_left() {
        let (before, after) = trial::roundtrip::<IntervalTimers>(|program| {
            set(program, 0, [7, 500, 100, 0]);
            set(program, 1, [0, 0, 200, 0]);
            set(program, 2, [3, 0, 300, 0]);
        });
        let near = |timer: IntervalTimer, seconds: i64| {
            let us = timer.left.0 * 1_000_000 + timer.left.1;
            (us - seconds * 1_000_000).abs() < 5_000_000
        };
        for record in [&before, &after] {
            assert!(near(record.real, 100) && near(record.virtual_time, 200) && near(record.profile, 300), "{record:?}");
            assert_eq!((record.real.interval, record.virtual_time.interval, record.profile.interval), ((7, 500), (0, 0), (3, 0)));
        }
        assert!(after.real.left <= before.real.left, "it cannot gain time: {before:?} {after:?}");
    }

    #[test]
    fn no_timers_stay_none() {
        let (before, after) = trial::roundtrip::<IntervalTimers>(|_| {});
        assert_eq!((before, after), (IntervalTimersRecord::default(), IntervalTimersRecord::default()));
    }

    #[test]
    fn a_period_survives_while_its_signal_waits() {
        let mut program = Trial::sleep();
        set(&mut program, 0, [50, 0, 0, 1]);
        while program.collect::<SharedPending>().unwrap().signals.is_empty() {
            std::thread::yield_now();
        }
        let record = program.collect::<IntervalTimers>().unwrap();
        assert_eq!((record.real.interval, record.real.left), ((50, 0), (0, 0)), "the kernel waits for the signal to be taken");
        let mut other = Trial::sleep();
        other.restore::<IntervalTimers>(&record).unwrap();
        let after = other.collect::<IntervalTimers>().unwrap();
        assert_eq!(after.real.interval, (50, 0));
        assert!(after.real.left.0 >= 49, "{after:?}");
    }
}
