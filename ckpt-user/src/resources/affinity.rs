//! The processors on which a thread may run (sched_setaffinity(2)).
//!
//! A thread that was bound to nothing is bound to nothing afterwards, however many processors the machine has. One that was bound goes
//! back to the same ones; those that are missing are left out with a warning, and if none is left the restart fails.

use std::fs;

use serde::{Deserialize, Serialize};

use super::task::{Subject, TaskResource};
use super::{Collector, Restorer};
use crate::error::{Doing, Error, Result};
use crate::sys::sched;
use crate::tracee::batch::{Answers, Batch};
use crate::tracee::remote::RemoteTask;

/// See the module.
#[derive(Debug, Clone, Copy)]
pub struct Affinity;

/// Where a thread may run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AffinityRecord {
    /// The processors that it was bound to, ascending. `None`: to none in particular.
    pub processors: Option<Vec<u32>>,
}

/// "0-3,8" as the kernel writes sets of processors.
fn parse_list(text: &str) -> Option<Vec<u32>> {
    let mut all = Vec::new();
    for part in text.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        if last > MAX_PROCESSOR {
            return None;
        }
        all.extend(first..=last);
    }
    Some(all)
}

/// Beyond what any kernel can be built for (CONFIG_NR_CPUS is at most 8192).
const MAX_PROCESSOR: u32 = 8191;

/// The processors that are running.
#[derive(Debug)]
struct Online(Vec<u32>);

fn online() -> Result<Vec<u32>> {
    const PATH: &str = "/sys/devices/system/cpu/online";
    let text = fs::read_to_string(PATH).doing(|| format!("cannot read {PATH}"))?;
    parse_list(&text).ok_or_else(|| Error::Unexpected(format!("{PATH} holds {text:?}")))
}

impl TaskResource for Affinity {
    const KIND: &'static str = "affinity";
    type Record = AffinityRecord;
    type Asked = ();

    fn ask(_who: &Subject<'_>, _batch: &mut Batch) -> Result<()> {
        Ok(())
    }

    fn collect(cx: &mut Collector<'_>, who: &Subject<'_>, (): (), _answers: &Answers) -> Result<AffinityRecord> {
        let allowed = sched::processors(who.tid).doing(|| format!("cannot read the processors of thread {}", who.tid))?;
        let online = cx.fact(|_| online().map(Online))?;
        let is_bound = online.0.iter().any(|cpu| !allowed.contains(cpu));
        Ok(AffinityRecord { processors: is_bound.then_some(allowed) })
    }

    fn restore(_cx: &mut Restorer<'_>, task: &mut RemoteTask<'_>, record: &AffinityRecord) -> Result<()> {
        let tid = task.tid();
        let Some(wanted) = &record.processors else { return Ok(()) };
        let read = || sched::processors(tid).doing(|| format!("cannot read the processors of thread {tid}"));
        if read()? == *wanted {
            return Ok(());
        }
        sched::set_processors(tid, wanted).map_err(|error| {
            Error::os(format!("thread {tid} was bound to the processors {wanted:?}, none of which it can have here"), error)
        })?;
        let got = read()?;
        if got != *wanted {
            tracing::warn!("thread {tid} was bound to the processors {wanted:?}; of these it has {got:?} here");
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::trial::{self, Trial};

    #[test]
    fn lists_of_processors_are_understood() {
        assert_eq!(parse_list("0-3,8\n"), Some(vec![0, 1, 2, 3, 8]));
        assert_eq!(parse_list("5"), Some(vec![5]));
        assert_eq!(parse_list(""), Some(vec![]));
        for damaged in ["x", "1-", "0-4294967295", "-"] {
            assert_eq!(parse_list(damaged), None, "{damaged}");
        }
    }

    #[test]
    fn a_bound_thread_stays_bound_and_a_free_one_free() {
        let bound = AffinityRecord { processors: Some(vec![0]) };
        let (before, after) = trial::roundtrip::<Affinity>(|program| {
            sched::set_processors(program.pid().leader(), &[0]).unwrap();
        });
        if online().unwrap().len() > 1 {
            assert_eq!((&before, &after), (&bound, &bound));
        }
        let (before, after) = trial::roundtrip::<Affinity>(|_| {});
        assert_eq!((before, after), (AffinityRecord::default(), AffinityRecord::default()));
    }

    #[test]
    fn without_any_of_its_processors_a_thread_cannot_be_restarted() {
        let mut program = Trial::sleep();
        for cpus in [vec![8000], vec![1_000_000], vec![]] {
            let error = program.restore::<Affinity>(&AffinityRecord { processors: Some(cpus) }).unwrap_err();
            assert!(error.to_string().contains("bound to"), "{error}");
        }
        program.restore::<Affinity>(&AffinityRecord { processors: Some(vec![0, 8000]) }).unwrap();
        assert_eq!(sched::processors(program.pid().leader()).unwrap(), vec![0]);
    }
}
