//! What this machine offers: every kernel facility that ckpt uses, whether it is there for this caller, and what is lost without it.
//!
//! Every row is tried, on a child or a descriptor of our own; the kernel's version is never asked.

mod table;

use std::io;

use serde::Serialize;

use crate::error::{Doing, Result};
use crate::ids::{Pid, Tid};
use crate::sys::probe::Dummy;
use crate::sys::ptrace;
use table::TABLE;

/// One thing that the kernel can do for us.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Facility {
    /// Its name, as the kernel's documents have it.
    pub name: &'static str,
    /// Is it there, for this caller?
    pub available: bool,
    /// Does nothing at all work without it?
    pub essential: bool,
    /// What was found, or why it is not there.
    pub detail: String,
    /// What cannot be done without it.
    pub lost: &'static str,
}

/// A row of the table.
struct Row {
    name: &'static str,
    essential: bool,
    /// Tries it; what it returns is the detail.
    probe: fn(&Bench) -> io::Result<String>,
    /// When the kernel lacks it: the version or the option that brings it.
    since: &'static str,
    /// When we may not: the right that is missing.
    right: &'static str,
    lost: &'static str,
}

/// What the probes are tried on: a child, stopped under our ptrace if that works.
struct Bench {
    dummy: Dummy,
    traced: io::Result<()>,
}

/// Tries everything.
///
/// Errors: not even a child can be made.
pub fn machine() -> Result<Vec<Facility>> {
    let dummy = Dummy::new().doing(|| "cannot make a process to try things on")?;
    let traced = trace(dummy.pid);
    let bench = Bench { dummy, traced };
    Ok(TABLE.iter().map(|row| row.facility(&bench)).collect())
}

fn trace(pid: Pid) -> io::Result<()> {
    let tid = pid.leader();
    ptrace::seize(tid, 0)?;
    ptrace::interrupt(tid)?;
    while ptrace::wait(tid, true)?.is_none() {}
    Ok(())
}

impl Row {
    fn facility(&self, bench: &Bench) -> Facility {
        let (available, detail) = match (self.probe)(bench) {
            Ok(detail) => (true, detail),
            Err(error) => (false, self.explain(&error)),
        };
        Facility { name: self.name, available, essential: self.essential, detail, lost: self.lost }
    }

    fn explain(&self, error: &io::Error) -> String {
        match error.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => format!("not permitted; needs {}", self.right),
            Some(
                libc::ENOSYS | libc::EINVAL | libc::EIO | libc::ENOTTY | libc::ENOPROTOOPT | libc::EOPNOTSUPP | libc::ENOENT,
            ) => {
                format!("not in this kernel; needs {}", self.since)
            }
            _ => format!("the trial failed: {error}"),
        }
    }
}

impl Bench {
    /// The child, if it is under our ptrace.
    fn tracee(&self) -> io::Result<Tid> {
        match &self.traced {
            Ok(()) => Ok(self.dummy.pid.leader()),
            Err(error) => Err(error.raw_os_error().map_or_else(|| io::ErrorKind::Other.into(), io::Error::from_raw_os_error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_every_linux_has_is_found() {
        let found = machine().unwrap();
        assert_eq!(found.len(), TABLE.len());
        let memory = found.iter().find(|f| f.name == "process_vm_readv").unwrap();
        assert!(memory.available, "{}", memory.detail);
        assert!(found.iter().all(|f| f.available || !f.detail.is_empty()));
    }
}
