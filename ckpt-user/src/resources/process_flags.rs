//! What a process has asked of the kernel with prctl(2) for all of itself: to be the parent of its orphans, and how its memory is treated.

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use super::answer::unless_absent;
use super::task::{Subject, TaskResource};
use super::{Collector, Restorer};
use crate::error::{Doing, Error, Result};
use crate::tracee::batch::{Answers, Batch, CallId, Slot};
use crate::tracee::remote::RemoteTask;

/// See the module. Restored once the memory is in place: PR_SET_MDWE forbids much of what that takes.
#[derive(Debug, Clone, Copy)]
pub struct ProcessFlags;

/// The settings, each as its PR_GET_* returns it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProcessFlagsRecord {
    /// PR_SET_CHILD_SUBREAPER.
    pub child_subreaper: bool,
    /// PR_SET_THP_DISABLE: bit 0 no huge pages, bit 1 but where advised.
    pub thp_disable: u64,
    /// PR_SET_MEMORY_MERGE: pages may be merged with equal ones.
    pub memory_merge: bool,
    /// PR_SET_MDWE: memory may not become executable; cannot be taken back.
    pub mdwe: u64,
}

/// The calls that ask.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    child_subreaper: (CallId, Slot),
    thp_disable: CallId,
    memory_merge: CallId,
    mdwe: CallId,
}

/// Bits of PR_SET_THP_DISABLE's second argument: PR_THP_DISABLE_EXCEPT_ADVISED (linux/prctl.h, Linux 6.18).
const THP_FLAGS: u64 = 2;

fn get(batch: &mut Batch, option: i32) -> CallId {
    let zero = 0u64.into();
    batch.call(libc::SYS_prctl, [option.into(), zero, zero, zero, zero])
}

fn set(task: &mut RemoteTask<'_>, name: &str, option: i32, a: u64, b: u64) -> Result<()> {
    let args = [option.into(), a.into(), b.into(), 0u64.into(), 0u64.into()];
    task.call(&format!("cannot set {name}"), libc::SYS_prctl, args).map(drop)
}

impl TaskResource for ProcessFlags {
    const KIND: &'static str = "process-flags";
    type Record = ProcessFlagsRecord;
    type Asked = Asked;

    fn ask(_who: &Subject<'_>, batch: &mut Batch) -> Result<Asked> {
        let value = batch.room(size_of::<i32>());
        let child_subreaper = (batch.call(libc::SYS_prctl, [libc::PR_GET_CHILD_SUBREAPER.into(), value.into()]), value);
        Ok(Asked {
            child_subreaper,
            thp_disable: get(batch, libc::PR_GET_THP_DISABLE),
            memory_merge: get(batch, libc::PR_GET_MEMORY_MERGE),
            mdwe: get(batch, libc::PR_GET_MDWE),
        })
    }

    fn collect(_cx: &mut Collector<'_>, who: &Subject<'_>, asked: Asked, answers: &Answers) -> Result<ProcessFlagsRecord> {
        let doing = || format!("cannot read the flags of pid {}", who.pid);
        // Kernels that lack one of them answer EINVAL.
        let read = |id| -> Result<u64> { Ok(unless_absent(answers.ret(id), &[Errno::EINVAL], doing)?.unwrap_or(0)) };
        answers.ret(asked.child_subreaper.0).doing(doing)?;
        Ok(ProcessFlagsRecord {
            child_subreaper: answers.value::<i32>(asked.child_subreaper.1) != 0,
            thp_disable: read(asked.thp_disable)?,
            memory_merge: read(asked.memory_merge)? != 0,
            mdwe: read(asked.mdwe)?,
        })
    }

    fn restore(_cx: &mut Restorer<'_>, task: &mut RemoteTask<'_>, record: &ProcessFlagsRecord) -> Result<()> {
        // A new task may have these two from ckpt, through fork.
        set(task, "PR_SET_CHILD_SUBREAPER", libc::PR_SET_CHILD_SUBREAPER, record.child_subreaper.into(), 0)?;
        let thp_flags = record.thp_disable & THP_FLAGS;
        if record.thp_disable & !(THP_FLAGS | 1) != 0 {
            return Err(Error::Restart(format!("the image holds an unknown PR_SET_THP_DISABLE: {:#x}", record.thp_disable)));
        }
        set(task, "PR_SET_THP_DISABLE", libc::PR_SET_THP_DISABLE, record.thp_disable & 1, thp_flags)?;
        if record.memory_merge {
            set(task, "PR_SET_MEMORY_MERGE", libc::PR_SET_MEMORY_MERGE, 1, 0)?;
        }
        if record.mdwe != 0 {
            set(task, "PR_SET_MDWE", libc::PR_SET_MDWE, record.mdwe, 0)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::trial;

    #[test]
    fn the_settings_return() {
        for made in [
            ProcessFlagsRecord { child_subreaper: true, ..ProcessFlagsRecord::default() },
            ProcessFlagsRecord { thp_disable: 1, memory_merge: true, ..ProcessFlagsRecord::default() },
            ProcessFlagsRecord { thp_disable: 1 | THP_FLAGS, ..ProcessFlagsRecord::default() },
            ProcessFlagsRecord { mdwe: 1, ..ProcessFlagsRecord::default() },
            ProcessFlagsRecord { mdwe: 3, ..ProcessFlagsRecord::default() },
            ProcessFlagsRecord::default(),
        ] {
            let (before, after) = trial::roundtrip::<ProcessFlags>(|program| program.restore::<ProcessFlags>(&made).unwrap());
            assert_eq!((before, after), (made, made));
        }
    }
}
