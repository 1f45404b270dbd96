//! Scheduling of a thread: policy, priority, niceness, deadline parameters, utilization clamps (sched_setattr(2)).
//!
//! Read and set from outside. Everything is compared first, so that a restart by the job's own user needs no privilege when nothing has
//! to change.

use serde::{Deserialize, Serialize};

use super::task::{Subject, TaskResource};
use super::{Collector, Restorer};
use crate::error::{Doing, Error, Result};
use crate::ids::Tid;
use crate::sys::sched::{self, SchedAttr};
use crate::tracee::batch::{Answers, Batch};
use crate::tracee::remote::RemoteTask;

/// See the module.
#[derive(Debug, Clone, Copy)]
pub struct Scheduling;

/// struct sched_attr, and the niceness whatever the policy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SchedulingRecord {
    /// SCHED_OTHER, SCHED_FIFO, ...
    pub policy: u32,
    /// SCHED_FLAG_*: reset on fork, deadline flags.
    pub flags: u64,
    /// -20 to 19.
    pub nice: i32,
    /// Real-time priority.
    pub priority: u32,
    /// SCHED_DEADLINE: nanoseconds per period; SCHED_OTHER: the slice, where the kernel has one per thread.
    pub runtime: u64,
    /// SCHED_DEADLINE, nanoseconds.
    pub deadline: u64,
    /// SCHED_DEADLINE, nanoseconds.
    pub period: u64,
    /// Least and greatest utilization, of 1024. `None`: the kernel has no such clamps.
    pub utilization: Option<(u32, u32)>,
}

/// SCHED_ATTR_SIZE_VER0: the struct before the utilization clamps.
const SIZE_WITHOUT_CLAMPS: u32 = 48;
/// What a thread has that never set its clamps.
const UNCLAMPED: (u32, u32) = (0, 1024);

impl SchedulingRecord {
    fn read(tid: Tid) -> Result<SchedulingRecord> {
        let doing = || format!("cannot read how thread {tid} is scheduled");
        let attr = sched::attributes(tid).doing(doing)?;
        let nice = sched::niceness(tid).doing(doing)?;
        let utilization = (attr.size > SIZE_WITHOUT_CLAMPS).then_some((attr.util_min, attr.util_max));
        let SchedAttr { policy, flags, priority, runtime, deadline, period, .. } = attr;
        Ok(SchedulingRecord { policy, flags, nice, priority, runtime, deadline, period, utilization })
    }

    /// What to set on a thread that has `now`.
    fn to_attr(self, now: &SchedulingRecord) -> SchedAttr {
        let clamps = self.utilization.filter(|clamps| *clamps != now.utilization.unwrap_or(UNCLAMPED));
        let is_deadline = self.policy == libc::SCHED_DEADLINE as u32;
        // A slice given is a slice of one's own; 0 is "as everybody has".
        let runtime = if is_deadline || self.runtime != now.runtime { self.runtime } else { 0 };
        let mut attr = SchedAttr {
            size: SIZE_WITHOUT_CLAMPS,
            policy: self.policy,
            flags: self.flags,
            nice: self.nice,
            priority: self.priority,
            runtime,
            deadline: self.deadline,
            period: self.period,
            ..SchedAttr::default()
        };
        if let Some((min, max)) = clamps {
            attr.size = size_of::<SchedAttr>() as u32;
            attr.flags |= libc::SCHED_FLAG_UTIL_CLAMP as u64;
            (attr.util_min, attr.util_max) = (min, max);
        }
        attr
    }
}

impl TaskResource for Scheduling {
    const KIND: &'static str = "sched";
    type Record = SchedulingRecord;
    type Asked = ();

    fn ask(_who: &Subject<'_>, _batch: &mut Batch) -> Result<()> {
        Ok(())
    }

    fn collect(_cx: &mut Collector<'_>, who: &Subject<'_>, (): (), _answers: &Answers) -> Result<SchedulingRecord> {
        SchedulingRecord::read(who.tid)
    }

    fn restore(_cx: &mut Restorer<'_>, task: &mut RemoteTask<'_>, record: &SchedulingRecord) -> Result<()> {
        let tid = task.tid();
        let mut now = SchedulingRecord::read(tid)?;
        if record.nice != now.nice {
            match sched::set_niceness(tid, record.nice) {
                Ok(()) => now = SchedulingRecord::read(tid)?,
                Err(e) if matches!(e.raw_os_error(), Some(libc::EACCES | libc::EPERM)) => tracing::warn!(
                    "thread {tid} had the niceness {}, which this user may not give it again; it stays at {}",
                    record.nice,
                    now.nice
                ),
                Err(e) => return Err(e).doing(|| format!("cannot set the niceness of thread {tid} to {}", record.nice)),
            }
        }
        // What was not granted is not asked for again, and clamps are set only where both kernels have them or one was in use.
        let utilization = record.utilization.filter(|clamps| now.utilization.is_some() || *clamps != UNCLAMPED);
        let wanted = SchedulingRecord { nice: now.nice, utilization: utilization.or(now.utilization), ..*record };
        if wanted == now {
            return Ok(());
        }
        sched::set_attributes(tid, &wanted.to_attr(&now)).map_err(|error| {
            let doing =
                format!("cannot give thread {tid} its scheduling policy {} again (priority {})", record.policy, record.priority);
            match error.raw_os_error() {
                Some(libc::EPERM) => Error::os(format!("{doing}; that needs CAP_SYS_NICE, or a higher RLIMIT_RTPRIO"), error),
                _ => Error::os(doing, error),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::trial::{self, Trial};

    fn attr(record: SchedulingRecord) -> impl FnOnce(&mut Trial) {
        move |program| {
            let tid = program.pid().leader();
            sched::set_niceness(tid, record.nice).unwrap();
            let now = SchedulingRecord::read(tid).unwrap();
            sched::set_attributes(tid, &record.to_attr(&now)).unwrap();
        }
    }

    #[test]
    fn niceness_and_policies_return() {
        let base = SchedulingRecord { nice: 5, ..SchedulingRecord::default() };
        let reset_on_fork = libc::SCHED_FLAG_RESET_ON_FORK as u64;
        for record in [
            base,
            SchedulingRecord { nice: -3, policy: libc::SCHED_BATCH as u32, ..base },
            SchedulingRecord { policy: libc::SCHED_IDLE as u32, flags: reset_on_fork, ..base },
            SchedulingRecord { policy: libc::SCHED_FIFO as u32, priority: 7, flags: reset_on_fork, ..base },
            SchedulingRecord { nice: 0, policy: libc::SCHED_RR as u32, priority: 1, ..base },
            SchedulingRecord {
                policy: libc::SCHED_DEADLINE as u32,
                runtime: 1_000_000,
                deadline: 20_000_000,
                period: 40_000_000,
                ..base
            },
        ] {
            let (before, after) = trial::roundtrip::<Scheduling>(attr(record));
            assert_eq!(before, after);
            assert_eq!(
                (before.policy, before.nice, before.priority, before.flags),
                (record.policy, record.nice, record.priority, record.flags)
            );
            assert_eq!((before.deadline, before.period), (record.deadline, record.period));
        }
    }

    #[test]
    fn a_slice_of_its_own_returns() {
        let record = SchedulingRecord { runtime: 50_000_000, ..SchedulingRecord::default() };
        let (before, after) = trial::roundtrip::<Scheduling>(attr(record));
        assert_eq!(before, after);
    }

    #[test]
    fn clamps_are_set_only_when_they_differ() {
        let now = SchedulingRecord { utilization: Some(UNCLAMPED), ..SchedulingRecord::default() };
        assert_eq!(now.to_attr(&now).size, SIZE_WITHOUT_CLAMPS);
        let clamped = SchedulingRecord { utilization: Some((100, 500)), ..now };
        let attr = clamped.to_attr(&now);
        assert_eq!((attr.util_min, attr.util_max), (100, 500));
        assert_ne!(attr.flags & libc::SCHED_FLAG_UTIL_CLAMP as u64, 0);
    }

    #[test]
    fn nonsense_is_an_error() {
        let record = SchedulingRecord { policy: 99, ..SchedulingRecord::default() };
        assert!(Trial::sleep().restore::<Scheduling>(&record).is_err());
    }
}
