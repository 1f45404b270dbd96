//! While the target stands still, nothing is as urgent as to let it run on: no other thread shall take the processor away meanwhile, least of all one of
//! ckpt's own that merges older images.

use std::sync::Arc;

use crate::ids::Tid;
use crate::pipeline::{Background, Resting};
use crate::sys::sched::{self, SchedAttr};

/// To the system calls of the scheduler, the calling thread.
const OWN: Tid = Tid(0);

/// The thread that has made it comes before all that have no real-time policy, and so do those that it starts, and what is in the background rests, until
/// this is dropped.
#[derive(Debug)]
pub(super) struct Urgent {
    /// What it was before. `None`: it has not changed.
    before: Option<SchedAttr>,
    _resting: Resting,
}

impl Urgent {
    /// Where that is not allowed (it takes CAP_SYS_NICE), nothing changes.
    pub(super) fn begin(background: &Arc<Background>) -> Urgent {
        let fair = |attr: &SchedAttr| attr.policy == libc::SCHED_OTHER as u32 || attr.policy == libc::SCHED_BATCH as u32;
        let urgent = SchedAttr {
            size: size_of::<SchedAttr>() as u32,
            policy: libc::SCHED_FIFO as u32,
            priority: 1,
            ..SchedAttr::default()
        };
        let before = sched::attributes(OWN).ok().filter(fair).filter(|_| sched::set_attributes(OWN, &urgent).is_ok());
        Urgent { before, _resting: background.rest() }
    }
}

impl Drop for Urgent {
    fn drop(&mut self) {
        // A fair thread has no time of its own to be given back.
        let back = self.before.map(|before| SchedAttr { runtime: 0, ..before });
        if let Some(Err(error)) = back.map(|back| sched::set_attributes(OWN, &back)) {
            tracing::warn!("cannot give ckpt its usual priority again: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_urgent_is_so_no_more() {
        let policy = || sched::attributes(OWN).map(|attr| (attr.policy, attr.nice, attr.priority)).unwrap();
        let before = policy();
        let urgent = Urgent::begin(&Arc::default());
        assert_eq!(policy() != before, urgent.before.is_some());
        let started = std::thread::spawn(policy).join().unwrap();
        assert_eq!(started, policy());
        drop(urgent);
        assert_eq!(policy(), before);
    }
}
