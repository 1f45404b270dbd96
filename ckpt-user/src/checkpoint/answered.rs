//! What threads have answered at the last cut, for as long as the kernel's own records say that they would answer the same.

use std::collections::HashMap;

use crate::error::Result;
use crate::ids::Tid;
use crate::tracee::batch::{Answers, Batch};
use crate::tracee::remote::RemoteTask;
use crate::track::ebpf::ThreadState;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Answered {
    last: HashMap<Tid, Known>,
    now: HashMap<Tid, Known>,
}

#[derive(Debug)]
struct Known {
    state: ThreadState,
    batch: Batch,
    answers: Answers,
    /// Of the main thread of a process: what it maps is locked.
    locks: bool,
}

/// A thread that is asked.
pub(super) struct Asking<'a, 'b> {
    pub(super) task: RemoteTask<'b>,
    pub(super) state: Option<ThreadState>,
    /// Asked of a main thread that has been asked: whether what was mapped for that is locked.
    pub(super) locks: &'a dyn Fn() -> Result<bool>,
}

impl Answered {
    /// What the thread answers to the batch, and whether what it maps is locked.
    pub(super) fn ask(&self, asking: Asking<'_, '_>, batch: &Batch) -> Result<(Answers, bool)> {
        let Asking { mut task, state, locks } = asking;
        let known = self.last.get(&task.tid()).filter(|known| Some(known.state) == state && known.batch == *batch);
        if let Some(Known { answers, locks, .. }) = known {
            return Ok((answers.clone(), *locks));
        }
        let answers = task.ask(batch.clone())?;
        task.leave()?;
        Ok((answers, locks()?))
    }

    /// It would answer the same as long as it is in this state.
    pub(super) fn remember(&mut self, tid: Tid, state: Option<ThreadState>, batch: Batch, (answers, locks): (Answers, bool)) {
        if let Some(state) = state {
            self.now.insert(tid, Known { state, batch, answers, locks });
        }
    }

    /// All threads were asked: others are there no more.
    pub(super) fn end_of_cut(&mut self) {
        self.last = std::mem::take(&mut self.now);
    }
}
