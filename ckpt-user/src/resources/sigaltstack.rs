//! The alternate signal stack of a thread (sigaltstack(2)).
//!
//! A thread may be frozen while it stands on that stack; the kernel refuses to change it then, but a new thread stands elsewhere until its
//! registers are set, which comes last.

use serde::{Deserialize, Serialize};

use super::task::{Subject, TaskResource};
use super::{Collector, Restorer};
use crate::error::{Doing, Result};
use crate::ids::Addr;
use crate::tracee::batch::{Answers, Batch, CallId, Slot};
use crate::tracee::remote::RemoteTask;

/// See the module.
#[derive(Debug, Clone, Copy)]
pub struct AlternateStack;

/// stack_t.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AlternateStackRecord {
    /// Its lowest address.
    pub base: Addr,
    /// SS_DISABLE, SS_AUTODISARM.
    pub flags: i32,
    /// Bytes.
    pub size: u64,
}

/// stack_t.
#[repr(C)]
#[derive(Clone, Copy, Default, bytemuck::Pod, bytemuck::Zeroable)]
struct RawStack {
    base: u64,
    flags: i32,
    padding: i32,
    size: u64,
}

const _: () = assert!(size_of::<RawStack>() == size_of::<libc::stack_t>());

impl TaskResource for AlternateStack {
    const KIND: &'static str = "alternate-stack";
    type Record = AlternateStackRecord;
    type Asked = (CallId, Slot);

    fn ask(_who: &Subject<'_>, batch: &mut Batch) -> Result<Self::Asked> {
        let old = batch.room(size_of::<RawStack>());
        Ok((batch.call(libc::SYS_sigaltstack, [0u64.into(), old.into()]), old))
    }

    fn collect(_cx: &mut Collector<'_>, who: &Subject<'_>, (id, old): Self::Asked, answers: &Answers) -> Result<Self::Record> {
        answers.ret(id).doing(|| format!("cannot read the alternate signal stack of thread {}", who.tid))?;
        let RawStack { base, flags, size, .. } = answers.value(old);
        // That it stands on it now is for its registers to say.
        Ok(AlternateStackRecord { base: Addr(base), flags: flags & !libc::SS_ONSTACK, size })
    }

    fn restore(_cx: &mut Restorer<'_>, task: &mut RemoteTask<'_>, record: &Self::Record) -> Result<()> {
        let mut batch = Batch::new();
        let new = batch.value(&RawStack { base: record.base.0, flags: record.flags, padding: 0, size: record.size });
        let id = batch.call(libc::SYS_sigaltstack, [new.into(), 0u64.into()]);
        let answers = task.run(batch)?;
        answers.ret(id).doing(|| format!("cannot set the alternate signal stack of thread {}", task.tid())).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::trial::{self, Trial};

    /// SS_AUTODISARM (linux/signal.h).
    const AUTODISARM: i32 = 1 << 31;

    #[test]
    fn the_stack_returns() {
        for flags in [0, AUTODISARM] {
            let made = AlternateStackRecord { base: Addr(0x10_0000), flags, size: 0x8000 };
            let (before, after) = trial::roundtrip::<AlternateStack>(|program| program.restore::<AlternateStack>(&made).unwrap());
            assert_eq!((before, after), (made, made));
        }
    }

    #[test]
    fn none_stays_none() {
        let (before, after) = trial::roundtrip::<AlternateStack>(|_| {});
        assert_eq!(before, after);
        assert_eq!(before.flags, libc::SS_DISABLE);
    }

    #[test]
    fn a_thread_frozen_on_its_stack_keeps_it() {
        let mut program = Trial::sleep();
        let stack = program.stack_pointer().0 & !0xffff;
        let made = AlternateStackRecord { base: Addr(stack), flags: 0, size: 0x10000 };
        program.restore::<AlternateStack>(&made).unwrap();
        assert_eq!(program.collect::<AlternateStack>().unwrap(), made, "without SS_ONSTACK");
        assert!(program.restore::<AlternateStack>(&made).is_err(), "it stands on it");
    }
}
