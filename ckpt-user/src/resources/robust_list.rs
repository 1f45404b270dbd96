//! The list of locks that the kernel marks when a thread dies holding them (set_robust_list(2)).

use serde::{Deserialize, Serialize};

use super::task::{Subject, TaskResource};
use super::{Collector, Restorer};
use crate::error::{Doing, Result};
use crate::ids::Addr;
use crate::sys::sched;
use crate::tracee::batch::{Answers, Batch};
use crate::tracee::remote::RemoteTask;

/// See the module.
#[derive(Debug, Clone, Copy)]
pub struct RobustList;

/// Where the list begins.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RobustListRecord {
    /// Address of struct robust_list_head; 0: none.
    pub head: Addr,
    /// Its length.
    pub len: u64,
}

impl TaskResource for RobustList {
    const KIND: &'static str = "robust-list";
    type Record = RobustListRecord;
    type Asked = ();

    fn ask(_who: &Subject<'_>, _batch: &mut Batch) -> Result<()> {
        Ok(())
    }

    fn collect(_cx: &mut Collector<'_>, who: &Subject<'_>, (): (), _answers: &Answers) -> Result<RobustListRecord> {
        let (head, len) = sched::robust_list(who.tid).doing(|| format!("cannot read the robust list of thread {}", who.tid))?;
        Ok(RobustListRecord { head, len: len as u64 })
    }

    fn restore(_cx: &mut Restorer<'_>, task: &mut RemoteTask<'_>, record: &RobustListRecord) -> Result<()> {
        let args = [record.head.into(), record.len.into()];
        task.call("cannot set the robust list", libc::SYS_set_robust_list, args).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::trial;

    #[test]
    fn the_list_returns() {
        let (before, after) = trial::roundtrip::<RobustList>(|_| {});
        assert_eq!(before, after);
        assert_ne!(before.head, Addr(0), "glibc sets one for every thread");
        let (before, after) = trial::roundtrip::<RobustList>(|program| {
            program.restore::<RobustList>(&RobustListRecord { head: Addr(0x1230), len: 24 }).unwrap();
        });
        assert_eq!((before.head, after.head), (Addr(0x1230), Addr(0x1230)));
    }
}
