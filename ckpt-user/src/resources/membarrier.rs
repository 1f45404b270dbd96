//! The kinds of membarrier(2) that a process has registered for, as glibc, Java, Go and .NET do: without registration the call fails.

use nix::errno::Errno;
use serde::{Deserialize, Serialize};

use super::answer::unless_absent;
use super::task::{Subject, TaskResource};
use super::{Collector, Restorer};
use crate::error::{Error, Result};
use crate::tracee::batch::{Answers, Batch, CallId};
use crate::tracee::remote::RemoteTask;

/// See the module.
#[derive(Debug, Clone, Copy)]
pub struct Membarrier;

/// The registrations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MembarrierRecord {
    /// MEMBARRIER_CMD_REGISTER_* bits. `None`: the kernel (before 6.3) did not tell.
    pub registered: Option<u64>,
}

/// MEMBARRIER_CMD_GET_REGISTRATIONS (linux/membarrier.h).
const GET_REGISTRATIONS: u64 = 1 << 9;
/// Every MEMBARRIER_CMD_REGISTER_*: global, private, private sync-core, private rseq.
const REGISTER: [u64; 4] = [1 << 2, 1 << 4, 1 << 6, 1 << 8];

fn args(command: u64) -> [crate::tracee::batch::Arg; 3] {
    [command.into(), 0u64.into(), 0u64.into()]
}

impl TaskResource for Membarrier {
    const KIND: &'static str = "membarrier";
    type Record = MembarrierRecord;
    type Asked = CallId;

    fn ask(_who: &Subject<'_>, batch: &mut Batch) -> Result<CallId> {
        Ok(batch.call(libc::SYS_membarrier, args(GET_REGISTRATIONS)))
    }

    fn collect(_cx: &mut Collector<'_>, who: &Subject<'_>, id: CallId, answers: &Answers) -> Result<MembarrierRecord> {
        let doing = || format!("cannot read the membarrier registrations of pid {}", who.pid);
        let registered = match answers.ret(id) {
            // A kernel without membarrier: nobody can have registered.
            Err(Errno::ENOSYS) => Some(0),
            returned => unless_absent(returned, &[Errno::EINVAL], doing)?,
        };
        Ok(MembarrierRecord { registered })
    }

    fn restore(_cx: &mut Restorer<'_>, task: &mut RemoteTask<'_>, record: &MembarrierRecord) -> Result<()> {
        let all = REGISTER.iter().fold(0, |all, bit| all | bit);
        let wanted = record.registered.unwrap_or(all);
        if wanted & !all != 0 {
            return Err(Error::Restart(format!("the process had registered for kinds of membarrier unknown to us: {wanted:#x}")));
        }
        for command in REGISTER.into_iter().filter(|command| wanted & command != 0) {
            match task.call("cannot register for membarrier", libc::SYS_membarrier, args(command)) {
                // Where nothing is known, whatever this kernel has is registered: that costs little, and makes no call fail.
                Err(e) if record.registered.is_none() && matches!(e.errno(), Some(libc::EINVAL | libc::ENOSYS)) => {}
                other => drop(other?),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::trial::{self, Trial};

    #[test]
    fn registrations_return() {
        for wanted in [0, 1 << 4, 1 << 2 | 1 << 6] {
            let made = MembarrierRecord { registered: Some(wanted) };
            let (before, after) = trial::roundtrip::<Membarrier>(|program| program.restore::<Membarrier>(&made).unwrap());
            assert_eq!(before, after);
            assert_eq!(before.registered.unwrap() & wanted, wanted);
        }
    }

    #[test]
    fn what_is_unknown_is_all_registered() {
        let mut program = Trial::sleep();
        program.restore::<Membarrier>(&MembarrierRecord::default()).unwrap();
        let call = program.task().call("membarrier", libc::SYS_membarrier, args(1 << 3));
        assert!(call.is_ok(), "PRIVATE_EXPEDITED works: {call:?}");
        assert!(program.restore::<Membarrier>(&MembarrierRecord { registered: Some(1 << 40) }).is_err());
    }
}
