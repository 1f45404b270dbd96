//! Answers to remote calls that not every kernel has.

use nix::errno::Errno;

use crate::error::{Doing, Result};

/// What a call returned, or `None` when it failed with one of the errors by which a kernel says that it has no such thing.
pub fn unless_absent(returned: Result<u64, Errno>, absent: &[Errno], doing: impl FnOnce() -> String) -> Result<Option<u64>> {
    match returned {
        Err(errno) if absent.contains(&errno) => Ok(None),
        other => other.map(Some).doing(doing),
    }
}
