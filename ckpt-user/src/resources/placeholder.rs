//! Open files that can be had only once the processes are there: until then, something else keeps the places of their descriptors.

use std::fs::File;
use std::os::fd::{OwnedFd, RawFd};

use super::descriptors;
use crate::error::{Doing, Result};
use crate::ids::Pid;
use crate::sys::kcmp;
use crate::tracee::remote::RemoteTask;

/// An open file of its own, which is no other's.
pub fn open() -> Result<OwnedFd> {
    Ok(File::open("/dev/null").doing(|| "cannot open /dev/null")?.into())
}

/// Has the task's descriptor `handle` take the place of the one that was kept by `fd`, under each number, and closes `handle`.
pub fn replace(task: &mut RemoteTask<'_>, fd: RawFd, handle: u64, doing: &str) -> Result<()> {
    for number in same_file(task.pid(), fd)? {
        let flags = task.call(doing, libc::SYS_fcntl, [number.into(), libc::F_GETFD.into()])?;
        let cloexec = if flags & libc::FD_CLOEXEC as u64 != 0 { libc::O_CLOEXEC } else { 0 };
        task.call(doing, libc::SYS_dup3, [handle.into(), number.into(), cloexec.into()])?;
    }
    task.call(doing, libc::SYS_close, [handle.into()]).map(drop)
}

/// Every descriptor of the task that leads to the same open file as `fd`.
fn same_file(pid: Pid, fd: RawFd) -> Result<Vec<RawFd>> {
    let doing = || format!("cannot look at the descriptors of pid {pid}");
    let mut same = Vec::new();
    for number in descriptors::numbers(pid).doing(doing)? {
        if kcmp::files(pid, fd, pid, number).doing(doing)?.is_eq() {
            same.push(number);
        }
    }
    Ok(same)
}
