//! System V IPC that the cut uses: objects of the namespace, found by who uses them rather than through a descriptor.

use super::{Collector, Restorer, sysv_msg, sysv_sem, sysv_shm};
use crate::error::Result;
use crate::sys::sysv::{self, Kind};
use crate::tracee::remote::RemoteTask;

/// Semaphores or a message queue of a restart. What was made for it goes if it fails.
#[derive(Debug)]
pub struct Made {
    kind: Kind,
    id: i32,
    is_ours: bool,
}

impl Made {
    /// Just made.
    pub fn new(kind: Kind, id: i32) -> Made {
        Made { kind, id, is_ours: true }
    }

    /// There already, left by the program's earlier life.
    pub fn found(kind: Kind, id: i32) -> Made {
        Made { kind, id, is_ours: false }
    }

    /// The restart can fail no more.
    pub fn stay(&mut self) {
        self.is_ours = false;
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        if self.is_ours
            && let Err(error) = sysv::remove(self.kind, self.id)
        {
            tracing::warn!("cannot remove the System V {} {}: {error}", self.kind, self.id);
        }
    }
}

/// Collects what no mapping leads to.
pub fn collect(cx: &mut Collector<'_>) -> Result<()> {
    sysv_sem::collect(cx)?;
    sysv_msg::collect(cx)
}

/// Makes everything, before the processes. What was made goes again if it is not settled.
pub fn make(cx: &mut Restorer<'_>) -> Result<()> {
    sysv_shm::make(cx)?;
    sysv_sem::make(cx)?;
    sysv_msg::make(cx)
}

/// What one process of the cut does for all: values and messages, of which the kernel notes who they came from.
pub fn restore_shared(cx: &Restorer<'_>, task: &mut RemoteTask<'_>) -> Result<()> {
    sysv_sem::restore_values(cx, task)?;
    sysv_msg::restore_messages(cx, task)
}

/// What each process does for itself, after that.
pub fn restore_own(cx: &Restorer<'_>, task: &mut RemoteTask<'_>) -> Result<()> {
    sysv_sem::restore_undo(cx, task)
}

/// Nothing can fail any more, and every process has attached what it had.
pub fn settle(cx: &mut Restorer<'_>) -> Result<()> {
    sysv_shm::settle(cx)?;
    sysv_sem::settle(cx)?;
    sysv_msg::settle(cx)
}
