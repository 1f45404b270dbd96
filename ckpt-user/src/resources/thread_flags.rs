//! Two things a thread can ask the kernel to treat it by: what happens to it when memory fails under it (PR_MCE_KILL), and that it
//! serves I/O, so that allocating memory for it must not wait for I/O (PR_SET_IO_FLUSHER).

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use super::answer::unless_absent;
use super::capabilities::CAP_SYS_RESOURCE;
use super::task::{Subject, TaskResource};
use super::{Collector, Restorer};
use crate::error::Result;
use crate::tracee::batch::{Answers, Batch, CallId};
use crate::tracee::remote::RemoteTask;

/// See the module.
#[derive(Debug, Clone, Copy)]
pub struct ThreadFlags;

/// What the thread asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ThreadFlagsRecord {
    /// PR_MCE_KILL_LATE, _EARLY or _DEFAULT.
    pub mce_kill: i32,
    /// PR_SET_IO_FLUSHER.
    pub io_flusher: bool,
}

impl Default for ThreadFlagsRecord {
    fn default() -> ThreadFlagsRecord {
        ThreadFlagsRecord { mce_kill: libc::PR_MCE_KILL_DEFAULT, io_flusher: false }
    }
}

/// PR_SET_IO_FLUSHER and PR_GET_IO_FLUSHER (linux/prctl.h).
const PR_SET_IO_FLUSHER: i32 = 57;
const PR_GET_IO_FLUSHER: i32 = 58;

fn prctl(batch: &mut Batch, option: i32, a: u64, b: u64) -> CallId {
    batch.call(libc::SYS_prctl, [option.into(), a.into(), b.into(), 0u64.into(), 0u64.into()])
}

/// The calls that ask.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    mce_kill: CallId,
    /// Only who holds CAP_SYS_RESOURCE may ask, or could have set it.
    io_flusher: Option<CallId>,
}

impl TaskResource for ThreadFlags {
    const KIND: &'static str = "thread-flags";
    type Record = ThreadFlagsRecord;
    type Asked = Asked;

    fn ask(who: &Subject<'_>, batch: &mut Batch) -> Result<Asked> {
        let may_ask = who.status.capeff & (1 << CAP_SYS_RESOURCE) != 0;
        Ok(Asked {
            mce_kill: prctl(batch, libc::PR_MCE_KILL_GET, 0, 0),
            io_flusher: may_ask.then(|| prctl(batch, PR_GET_IO_FLUSHER, 0, 0)),
        })
    }

    fn collect(_cx: &mut Collector<'_>, who: &Subject<'_>, asked: Asked, answers: &Answers) -> Result<ThreadFlagsRecord> {
        let doing = || format!("cannot read the flags of thread {}", who.tid);
        let mce_kill = unless_absent(answers.ret(asked.mce_kill), &[Errno::EINVAL], doing)?;
        let io_flusher = match asked.io_flusher {
            // EPERM: capable in a user namespace of its own only.
            Some(id) => unless_absent(answers.ret(id), &[Errno::EINVAL, Errno::EPERM], doing)?,
            None => None,
        };
        Ok(ThreadFlagsRecord {
            mce_kill: mce_kill.map_or(libc::PR_MCE_KILL_DEFAULT, |value| value as i32),
            io_flusher: io_flusher == Some(1),
        })
    }

    fn restore(_cx: &mut Restorer<'_>, task: &mut RemoteTask<'_>, record: &ThreadFlagsRecord) -> Result<()> {
        let zero = 0u64.into();
        if record.mce_kill != libc::PR_MCE_KILL_DEFAULT {
            let args = [libc::PR_MCE_KILL.into(), libc::PR_MCE_KILL_SET.into(), record.mce_kill.into(), zero, zero];
            task.call("cannot set PR_MCE_KILL", libc::SYS_prctl, args)?;
        }
        if record.io_flusher {
            let args = [PR_SET_IO_FLUSHER.into(), 1u64.into(), zero, zero, zero];
            task.call("cannot set PR_SET_IO_FLUSHER, which needs CAP_SYS_RESOURCE", libc::SYS_prctl, args)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::trial;

    #[test]
    fn the_flags_return() {
        for mce_kill in [libc::PR_MCE_KILL_EARLY, libc::PR_MCE_KILL_LATE, libc::PR_MCE_KILL_DEFAULT] {
            let (before, after) = trial::roundtrip::<ThreadFlags>(|program| {
                program.prctl(libc::PR_MCE_KILL, libc::PR_MCE_KILL_SET as u64, mce_kill as u64).unwrap();
            });
            let made = ThreadFlagsRecord { mce_kill, io_flusher: false };
            assert_eq!((before, after), (made, made));
        }
    }
}
