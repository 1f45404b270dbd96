//! The word that the kernel clears and wakes when a thread ends (set_tid_address(2)): how pthread_join learns of it.

use serde::{Deserialize, Serialize};

use super::task::{Subject, TaskResource};
use super::{Collector, Restorer};
use crate::error::{Doing, Result};
use crate::ids::Addr;
use crate::tracee::batch::{Answers, Batch, CallId, Slot};
use crate::tracee::remote::RemoteTask;

/// See the module.
#[derive(Debug, Clone, Copy)]
pub struct TidAddress;

/// Where the word is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TidAddressRecord {
    /// 0: there is none.
    pub address: Addr,
}

impl TaskResource for TidAddress {
    const KIND: &'static str = "tid-address";
    type Record = TidAddressRecord;
    type Asked = (CallId, Slot);

    fn ask(_who: &Subject<'_>, batch: &mut Batch) -> Result<Self::Asked> {
        let value = batch.room(size_of::<u64>());
        Ok((batch.call(libc::SYS_prctl, [libc::PR_GET_TID_ADDRESS.into(), value.into()]), value))
    }

    fn collect(cx: &mut Collector<'_>, who: &Subject<'_>, (id, value): Self::Asked, answers: &Answers) -> Result<Self::Record> {
        match answers.ret(id) {
            Err(nix::errno::Errno::EINVAL) => cx.refuse(
                who.pid,
                format!("thread {}", who.tid),
                "has an address to be cleared at its end, which this kernel does not tell",
                "use a kernel with CONFIG_CHECKPOINT_RESTORE",
            ),
            other => {
                other.doing(|| format!("cannot read the tid address of thread {}", who.tid))?;
                Ok(TidAddressRecord { address: Addr(answers.value(value)) })
            }
        }
    }

    fn restore(_cx: &mut Restorer<'_>, task: &mut RemoteTask<'_>, record: &Self::Record) -> Result<()> {
        task.call("cannot set the tid address", libc::SYS_set_tid_address, [record.address.into()]).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::trial;

    #[test]
    fn the_address_returns() {
        let made = TidAddressRecord { address: Addr(0x5678) };
        let (before, after) = trial::roundtrip::<TidAddress>(|program| program.restore::<TidAddress>(&made).unwrap());
        assert_eq!((before, after), (made, made));
        let (before, _) = trial::roundtrip::<TidAddress>(|_| {});
        assert_ne!(before.address, Addr(0), "glibc sets one");
    }
}
