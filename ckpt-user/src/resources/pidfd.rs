//! pidfd_open(2): a handle on a process of the cut. Until that process is there, something else keeps the descriptor's place.

use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;

use serde::{Deserialize, Serialize};

use super::file::{Descriptor, FileKind, OpenFile, Place};
use super::{Collector, Restorer, placeholder};
use crate::error::{Doing, Error, Result};
use crate::ids::{Pid, Tid};
use crate::sys::{pidfd, procfs};
use crate::tracee::remote::RemoteTask;

/// See the module.
#[derive(Debug)]
pub struct PidFd;

/// The state of a pidfd.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PidFdRecord {
    /// The process, or the thread.
    pub id: i32,
    /// Flags of pidfd_open: PIDFD_NONBLOCK, PIDFD_THREAD.
    #[serde(default)]
    pub flags: u32,
}

/// O_NONBLOCK and O_EXCL, which is how the open flags show them (linux/pidfd.h).
const FLAGS: u32 = libc::PIDFD_NONBLOCK | libc::PIDFD_THREAD;

impl PidFd {
    /// Has one opened by ckpt, of a process that is there by now.
    pub fn open(record: &PidFdRecord) -> Result<OwnedFd> {
        pidfd::open_with(Pid(record.id), record.flags & FLAGS).doing(|| format!("cannot make a pidfd of {}", record.id))
    }
}

impl FileKind for PidFd {
    const KIND: &'static str = "pidfd";
    type Record = PidFdRecord;
    const ATTACHES_IN_EACH: bool = true;

    fn matches(d: &Descriptor<'_>) -> bool {
        let link = d.link.as_bytes();
        link == b"anon_inode:[pidfd]" || link.starts_with(b"pidfd:[")
    }

    fn collect(cx: &mut Collector<'_>, d: &Descriptor<'_>) -> Result<PidFdRecord> {
        let id = d.info.get("Pid").and_then(|n| n.parse::<i32>().ok());
        let id = id.ok_or_else(|| Error::Unexpected(format!("no process in the fdinfo of pidfd {} of pid {}", d.fd, d.pid)))?;
        let name = || format!("descriptor {} (pidfd)", d.fd);
        if id <= 0 {
            return cx.refuse(
                d.pid,
                name(),
                "is a handle on a process that has ended, which cannot be had again",
                "let the program close it",
            );
        }
        let process = Pid(procfs::status(Pid(id), Tid(id))?.tgid);
        if !cx.pids.contains(&process) {
            return cx.refuse(
                d.pid,
                name(),
                format!("is a handle on pid {id}, which is not being checkpointed"),
                "checkpoint a process that both descend from, or let the program close it",
            );
        }
        Ok(PidFdRecord { id, flags: d.info.flags as u32 & FLAGS })
    }

    fn restore(_cx: &mut Restorer<'_>, _common: &OpenFile, _record: &PidFdRecord) -> Result<OwnedFd> {
        placeholder::open()
    }

    fn attach(_cx: &mut Restorer<'_>, task: &mut RemoteTask<'_>, at: &Place<'_>, record: &PidFdRecord) -> Result<()> {
        let doing = format!("cannot make a pidfd of {}", record.id);
        let handle = task.call(&doing, libc::SYS_pidfd_open, [record.id.into(), (record.flags & FLAGS).into()])?;
        placeholder::replace(task, at.fd, handle, &doing)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};

    use super::super::collector::CollectOptions;
    use super::super::fd_trial::{Heir, collect_with};
    use super::*;
    use crate::sys::kcmp;

    fn files() -> [OwnedFd; 3] {
        [(); 3].map(|()| File::open("/dev/null").unwrap().into())
    }

    #[test]
    fn a_process_has_a_handle_on_itself() {
        let [a, b, c] = files();
        let mut old = Heir::of([&a, &b, &c]);
        let own = old.pid().0;
        let handle = old.task().call("open", libc::SYS_pidfd_open, [own.into(), libc::PIDFD_NONBLOCK.into()]).unwrap();
        old.task().call("dup", libc::SYS_dup3, [handle.into(), 1.into(), 0.into()]).unwrap();
        let mut cut = collect_with(&CollectOptions::default(), old.pid(), &[1]).unwrap();
        let placeholder = cut.restore().unwrap().remove(0);
        // As if this one were the old one: same file under two numbers, and the pid that the record tells.
        let mut new = Heir::of([&a, &placeholder, &placeholder]);
        let id = new.pid().0;
        cut.edit(0, |record: &mut PidFdRecord| record.id = id);
        cut.attach(0, &mut new.task(), 1).unwrap();
        let info = |fd: i32| fs::read_to_string(format!("/proc/{id}/fdinfo/{fd}")).unwrap();
        for fd in [1, 2] {
            assert!(info(fd).contains(&format!("Pid:\t{id}\n")), "{}", info(fd));
        }
        assert!(kcmp::files(new.pid(), 1, new.pid(), 2).unwrap().is_eq());
        assert!(!info(0).contains("Pid:"));
    }

    #[test]
    fn others_are_refused() {
        let [a, b, c] = files();
        let mut old = Heir::of([&a, &b, &c]);
        let parent = std::process::id();
        let handle = old.task().call("open", libc::SYS_pidfd_open, [parent.into(), 0.into()]).unwrap();
        let refused = collect_with(&CollectOptions::default(), old.pid(), &[handle as i32]).map(|_| ()).unwrap_err().to_string();
        assert!(refused.contains(&format!("handle on pid {parent}")), "{refused}");
    }
}
