//! File locks and leases. flock and OFD locks belong to the open file and are taken again on it; POSIX record locks and leases
//! belong to the process and are taken in it.

use std::os::fd::{BorrowedFd, RawFd};

use serde::{Deserialize, Serialize};

use super::file::{FdInfo, OpenFile};
use crate::error::{Doing, Error, Result};
use crate::sys::fcntl as own;
use crate::tracee::batch::Batch;
use crate::tracee::remote::RemoteTask;

/// What sort of lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LockKind {
    /// flock(2).
    Flock,
    /// fcntl(2) F_SETLK.
    Posix,
    /// fcntl(2) F_OFD_SETLK.
    OpenFile,
    /// fcntl(2) F_SETLEASE.
    Lease,
}

/// One lock, as a "lock:" line of fdinfo tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lock {
    /// What sort.
    pub kind: LockKind,
    /// Exclusive (else shared).
    pub write: bool,
    /// First byte.
    pub start: i64,
    /// Number of bytes; 0: to the end, however far that is.
    pub len: i64,
}

/// The locks held through a descriptor.
pub fn parse(info: &FdInfo) -> Result<Vec<Lock>> {
    info.all("lock")
        .map(|line| parse_line(line).ok_or_else(|| Error::Unexpected(format!("cannot understand the lock '{line}' in fdinfo"))))
        .collect()
}

/// "1: POSIX  ADVISORY  WRITE 4242 fe:00:123 0 EOF"
fn parse_line(line: &str) -> Option<Lock> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let kind = match *words.get(1)? {
        "FLOCK" => LockKind::Flock,
        "POSIX" => LockKind::Posix,
        "OFDLCK" => LockKind::OpenFile,
        "LEASE" => LockKind::Lease,
        _ => return None,
    };
    let start: i64 = words.get(words.len() - 2)?.parse().ok()?;
    let len = match *words.last()? {
        "EOF" => 0,
        end => end.parse::<i64>().ok()?.checked_sub(start)?.checked_add(1)?,
    };
    let write = words.contains(&"WRITE");
    (write || words.contains(&"READ")).then_some(Lock { kind, write, start, len })
}

impl Lock {
    fn flock(&self) -> libc::flock {
        libc::flock {
            l_type: if self.write { libc::F_WRLCK } else { libc::F_RDLCK } as i16,
            l_whence: libc::SEEK_SET as i16,
            l_start: self.start,
            l_len: self.len,
            l_pid: 0,
        }
    }
}

fn held(what: &str) -> String {
    format!("cannot lock {what} again (somebody else may hold it now)")
}

/// Of some locks those that belong to the process and not to the open file.
pub fn of_process(locks: Vec<Lock>) -> Vec<Lock> {
    locks.into_iter().filter(|lock| matches!(lock.kind, LockKind::Posix | LockKind::Lease)).collect()
}

/// Takes the locks that belong to the open file.
pub fn restore(fd: BorrowedFd<'_>, common: &OpenFile) -> Result<()> {
    for lock in &common.locks {
        match lock.kind {
            LockKind::Flock => own::flock(fd, lock.write).doing(|| held(&common.link))?,
            LockKind::OpenFile => own::lock_open_file(fd, &lock.flock()).doing(|| held(&common.link))?,
            LockKind::Posix | LockKind::Lease => {}
        }
    }
    Ok(())
}

/// Takes those of `locks` that belong to the process, in it. `what`: the file, for messages.
pub fn attach(task: &mut RemoteTask<'_>, fd: RawFd, locks: &[Lock], what: &str) -> Result<()> {
    for lock in locks {
        let mut batch = Batch::new();
        let id = match lock.kind {
            LockKind::Posix => {
                let flock = batch.bytes(&own::flock_bytes(&lock.flock()));
                batch.call(libc::SYS_fcntl, [fd.into(), libc::F_SETLK.into(), flock.into()])
            }
            LockKind::Lease => {
                let kind = if lock.write { libc::F_WRLCK } else { libc::F_RDLCK };
                batch.call(libc::SYS_fcntl, [fd.into(), libc::F_SETLEASE.into(), kind.into()])
            }
            LockKind::Flock | LockKind::OpenFile => continue,
        };
        task.run(batch)?.ret(id).doing(|| held(what))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lock_lines_are_understood() {
        let lock = |line| parse_line(line).unwrap();
        let posix = lock("1: POSIX  ADVISORY  WRITE 4242 fe:00:123 10 19");
        assert_eq!(posix, Lock { kind: LockKind::Posix, write: true, start: 10, len: 10 });
        let flock = lock("1: FLOCK  ADVISORY  READ  4242 fe:00:123 0 EOF");
        assert_eq!(flock, Lock { kind: LockKind::Flock, write: false, start: 0, len: 0 });
        assert_eq!(lock("2: LEASE  ACTIVE    READ  7 00:2b:1 0 EOF").kind, LockKind::Lease);
        assert_eq!(parse_line("1: WHATEVER"), None);
    }
}
