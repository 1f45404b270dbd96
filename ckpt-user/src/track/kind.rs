//! Which way of finding changed pages is taken: what the user can ask for, and what the machine has.

use super::{DirtyTracker, hash, scan, soft_dirty};
use crate::error::{Error, Result};
use crate::tracee::remote::RemoteTask;

/// What the user can ask for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// The best that this machine has
    #[default]
    Auto,
    /// As scan, and pages are copied while the process runs (eBPF)
    Live,
    /// The page tables tell, by userfaultfd and PAGEMAP_SCAN (Linux 6.7)
    Scan,
    /// The page tables tell, by soft-dirty bits (for kernels before 6.7; takes CAP_SYS_ADMIN)
    SoftDirty,
    /// All pages are read, and compared with the hashes of what was saved before
    Hash,
}

/// How changed pages are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// [`scan`]
    Scan,
    /// [`soft_dirty`]
    SoftDirty,
    /// [`hash`]
    Hash,
}

impl Method {
    /// All of them, the best one first.
    const ALL: [Method; 3] = [Method::Scan, Method::SoftDirty, Method::Hash];

    /// Its name in reports and on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Method::Scan => "scan",
            Method::SoftDirty => "soft-dirty",
            Method::Hash => "hash",
        }
    }

    /// The best one that this machine has for the caller. Why is logged.
    pub fn best() -> Method {
        let there = |method: &Method| {
            method
                .probe()
                .inspect_err(|error| tracing::info!("changed pages are not found by {}: {error}", method.name()))
                .is_ok()
        };
        let best = Method::ALL.into_iter().find(there).unwrap_or(Method::Hash);
        tracing::info!("changed pages are found by {}: it is the best that this machine has", best.name());
        best
    }

    /// Does this machine have it, for the caller?
    ///
    /// Errors: what is missing.
    pub fn probe(self) -> Result<()> {
        match self {
            Method::Scan => scan::probe(),
            Method::SoftDirty => soft_dirty::probe(),
            // It takes nothing but reading.
            Method::Hash => Ok(()),
        }
    }

    /// Begins to track the address space of a stopped thread.
    pub fn start(self, task: &mut RemoteTask<'_>) -> Result<Box<dyn DirtyTracker>> {
        Ok(match self {
            Method::Scan => Box::new(scan::ScanTracker::start(task)?),
            Method::SoftDirty => Box::new(soft_dirty::SoftDirtyTracker::start(task)?),
            Method::Hash => Box::new(hash::Unseeing),
        })
    }
}

/// The error of a kind that was asked for by its name, and is not there.
pub fn not_here(name: &str, missing: &Error) -> Error {
    Error::Unexpected(format!(
        "--tracker {name} cannot be used here: {missing}; --tracker auto takes the best that this machine has, and --tracker hash needs \
         nothing (`ckpt check` tells more)"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_is_the_first_that_is_there() {
        let best = Method::best();
        best.probe().unwrap();
        let better = Method::ALL.into_iter().take_while(|method| *method != best);
        assert!(better.into_iter().all(|method| method.probe().is_err()));
        Method::Hash.probe().unwrap();
    }
}
