//! Resource limits (getrlimit(2)).
//!
//! They matter twice at a restart: [`lift`] first raises what stands in the way of descriptors and mappings, and only when everything is
//! in its place the recorded limits are set, which may well lie below what is in use.

use procfs::process::{Limit, LimitValue};
use serde::{Deserialize, Serialize};

use super::task::{Subject, TaskResource};
use super::{Collector, Restorer};
use crate::error::{Doing, Error, Result};
use crate::ids::Pid;
use crate::image::model::TaskState;
use crate::sys::procfs::limits;
use crate::tracee::batch::{Answers, Batch};
use crate::tracee::remote::RemoteTask;

/// See the module.
#[derive(Debug, Clone, Copy)]
pub struct ResourceLimits;

/// The limits of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ResourceLimitsRecord {
    /// In order of number.
    pub limits: Vec<ResourceLimit>,
}

/// One limit; all ones is RLIM_INFINITY.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ResourceLimit {
    /// RLIMIT_*.
    pub resource: u32,
    /// What counts.
    pub soft: u64,
    /// How far the process may raise that.
    pub hard: u64,
}

/// Names, by number.
const NAMES: [&str; 16] = [
    "RLIMIT_CPU",
    "RLIMIT_FSIZE",
    "RLIMIT_DATA",
    "RLIMIT_STACK",
    "RLIMIT_CORE",
    "RLIMIT_RSS",
    "RLIMIT_NPROC",
    "RLIMIT_NOFILE",
    "RLIMIT_MEMLOCK",
    "RLIMIT_AS",
    "RLIMIT_LOCKS",
    "RLIMIT_SIGPENDING",
    "RLIMIT_MSGQUEUE",
    "RLIMIT_NICE",
    "RLIMIT_RTPRIO",
    "RLIMIT_RTTIME",
];

fn read(pid: Pid) -> Result<Vec<ResourceLimit>> {
    let l = limits(pid)?;
    let by_number: [Limit; NAMES.len()] = [
        l.max_cpu_time,
        l.max_file_size,
        l.max_data_size,
        l.max_stack_size,
        l.max_core_file_size,
        l.max_resident_set,
        l.max_processes,
        l.max_open_files,
        l.max_locked_memory,
        l.max_address_space,
        l.max_file_locks,
        l.max_pending_signals,
        l.max_msgqueue_size,
        l.max_nice_priority,
        l.max_realtime_priority,
        l.max_realtime_timeout,
    ];
    let number = |value: LimitValue| match value {
        LimitValue::Unlimited => libc::RLIM_INFINITY,
        LimitValue::Value(value) => value,
    };
    let one = |(n, limit): (usize, Limit)| ResourceLimit {
        resource: n as u32,
        soft: number(limit.soft_limit),
        hard: number(limit.hard_limit),
    };
    Ok(by_number.into_iter().enumerate().map(one).collect())
}

/// The recorded limits beside those that the task has now.
fn pairs(task: &RemoteTask<'_>, record: &ResourceLimitsRecord) -> Result<Vec<(ResourceLimit, ResourceLimit)>> {
    let now = read(task.pid())?;
    let of = |wanted: &ResourceLimit| {
        let current = now.get(wanted.resource as usize).copied();
        let current = current.filter(|_| wanted.soft <= wanted.hard);
        let current =
            current.ok_or_else(|| Error::Restart(format!("the image holds a resource limit that cannot be: {wanted:?}")))?;
        Ok((*wanted, current))
    };
    record.limits.iter().map(of).collect()
}

/// Sets one limit from inside: from outside the kernel asks for CAP_SYS_RESOURCE as soon as the users differ.
fn set(task: &mut RemoteTask<'_>, limit: ResourceLimit) -> Result<()> {
    let name = NAMES.get(limit.resource as usize).unwrap_or(&"a limit");
    let doing = format!("cannot set {name} to {} (at most {})", shown(limit.soft), shown(limit.hard));
    let mut batch = Batch::new();
    let value = batch.value(&[limit.soft, limit.hard]);
    let id = batch.call(libc::SYS_prlimit64, [0u64.into(), limit.resource.into(), value.into(), 0u64.into()]);
    task.run(batch)?.ret(id).doing(|| format!("{doing} in pid {}", task.pid())).map(drop)
}

fn shown(value: u64) -> String {
    if value == libc::RLIM_INFINITY { "unlimited".to_owned() } else { value.to_string() }
}

/// Raises each limit of a new task to what the image's process had, where that is more and where it is allowed. To be called before
/// descriptors are placed and memory is mapped; whatever is not allowed will show there, or in the end.
pub fn lift(task: &mut RemoteTask<'_>, state: &TaskState) -> Result<()> {
    let Some(section) = state.sections.iter().find(|section| section.kind == ResourceLimits::KIND) else {
        return Ok(());
    };
    for (wanted, now) in pairs(task, &section.decode()?)? {
        let higher = ResourceLimit { soft: wanted.soft.max(now.soft), hard: wanted.hard.max(now.hard), ..now };
        if higher == now {
            continue;
        }
        match set(task, higher) {
            Err(e) if e.errno() == Some(libc::EPERM) => {
                set(task, ResourceLimit { soft: higher.soft.min(now.hard), hard: now.hard, ..now })?;
            }
            other => other?,
        }
    }
    Ok(())
}

impl TaskResource for ResourceLimits {
    const KIND: &'static str = "resource-limits";
    type Record = ResourceLimitsRecord;
    type Asked = ();

    fn ask(_who: &Subject<'_>, _batch: &mut Batch) -> Result<()> {
        Ok(())
    }

    fn collect(_cx: &mut Collector<'_>, who: &Subject<'_>, (): (), _answers: &Answers) -> Result<Self::Record> {
        Ok(ResourceLimitsRecord { limits: read(who.pid)? })
    }

    fn restore(_cx: &mut Restorer<'_>, task: &mut RemoteTask<'_>, record: &Self::Record) -> Result<()> {
        for (wanted, now) in pairs(task, record)? {
            if wanted == now {
                continue;
            }
            match set(task, wanted) {
                Err(e) if e.errno() == Some(libc::EPERM) && wanted.soft <= now.hard => {
                    set(task, ResourceLimit { hard: now.hard, ..wanted })?;
                    tracing::warn!(
                        "pid {}: {} cannot be raised beyond {} again (it could, up to {}): that needs CAP_SYS_RESOURCE",
                        task.pid(),
                        NAMES.get(wanted.resource as usize).unwrap_or(&"a limit"),
                        shown(now.hard),
                        shown(wanted.hard),
                    );
                }
                other => other?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Pid;
    use crate::image::model::Section;
    use crate::resources::trial::{self, Trial};

    const NOFILE: u32 = libc::RLIMIT_NOFILE;
    const CORE: u32 = libc::RLIMIT_CORE;

    fn of(record: &ResourceLimitsRecord, resource: u32) -> ResourceLimit {
        record.limits[resource as usize]
    }

    #[test]
    fn limits_return() {
        let (before, after) = trial::roundtrip::<ResourceLimits>(|program| {
            set(&mut program.task(), ResourceLimit { resource: NOFILE, soft: 77, hard: 99 }).unwrap();
            set(&mut program.task(), ResourceLimit { resource: libc::RLIMIT_STACK, soft: 1 << 20, hard: u64::MAX }).unwrap();
        });
        assert_eq!(before, after);
        assert_eq!(before.limits.len(), NAMES.len());
        assert_eq!(of(&before, NOFILE), ResourceLimit { resource: NOFILE, soft: 77, hard: 99 });
    }

    #[test]
    fn the_numbers_are_those_of_getrlimit() {
        let record = ResourceLimitsRecord { limits: read(Pid(std::process::id() as i32)).unwrap() };
        for resource in [nix::sys::resource::Resource::RLIMIT_NOFILE, nix::sys::resource::Resource::RLIMIT_MEMLOCK] {
            let (soft, hard) = nix::sys::resource::getrlimit(resource).unwrap();
            assert_eq!(of(&record, resource as u32), ResourceLimit { resource: resource as u32, soft, hard });
        }
    }

    #[test]
    fn lifting_raises_and_never_lowers() {
        let mut program = Trial::sleep();
        set(&mut program.task(), ResourceLimit { resource: NOFILE, soft: 100, hard: 5000 }).unwrap();
        set(&mut program.task(), ResourceLimit { resource: CORE, soft: 4096, hard: 8192 }).unwrap();
        let limits = vec![
            ResourceLimit { resource: NOFILE, soft: 3000, hard: 4000 },
            ResourceLimit { resource: CORE, soft: 0, hard: 8192 },
        ];
        let record = ResourceLimitsRecord { limits };
        let section = Section::encode(ResourceLimits::KIND, &record).unwrap();
        let state = TaskState { pid: program.pid(), sections: vec![section], threads: Vec::new() };
        lift(&mut program.task(), &state).unwrap();
        let now = program.collect::<ResourceLimits>().unwrap();
        assert_eq!(of(&now, NOFILE), ResourceLimit { resource: NOFILE, soft: 3000, hard: 5000 });
        assert_eq!(of(&now, CORE), ResourceLimit { resource: CORE, soft: 4096, hard: 8192 });
    }

    #[test]
    fn limits_that_cannot_be_are_refused() {
        let mut program = Trial::sleep();
        for limit in [
            ResourceLimit { resource: 16, ..ResourceLimit::default() },
            ResourceLimit { resource: u32::MAX, ..ResourceLimit::default() },
            ResourceLimit { resource: NOFILE, soft: 2, hard: 1 },
        ] {
            assert!(program.restore::<ResourceLimits>(&ResourceLimitsRecord { limits: vec![limit] }).is_err());
        }
    }
}
