//! Handles on processes: pidfd_open(2) and pidfd_getfd(2).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use crate::ids::Pid;

fn owned(answer: libc::c_long) -> io::Result<OwnedFd> {
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(answer as RawFd) })
}

/// A handle on `pid`, close-on-exec. `flags`: 0, or PIDFD_NONBLOCK, or PIDFD_THREAD with a thread id.
pub fn open(pid: Pid, flags: u32) -> io::Result<OwnedFd> {
    // SAFETY: only numbers are passed.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_open, pid.0, flags) })
}

/// A duplicate, close-on-exec, of descriptor `fd` of the process: the same open file description. Needs the right to ptrace it.
pub fn get_fd(pidfd: BorrowedFd<'_>, fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: only numbers are passed.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_getfd, pidfd.as_raw_fd(), fd, 0) })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;
    use crate::sys::kcmp;

    #[test]
    fn a_descriptor_is_fetched() {
        let me = Pid(std::process::id() as i32);
        let file: OwnedFd = tempfile::tempfile().unwrap().into();
        let handle = open(me, 0).unwrap();
        let same = get_fd(handle.as_fd(), file.as_raw_fd()).unwrap();
        assert!(kcmp::files(me, file.as_raw_fd(), me, same.as_raw_fd()).unwrap().is_eq());
        assert_eq!(get_fd(handle.as_fd(), 1 << 20).unwrap_err().raw_os_error(), Some(libc::EBADF));
    }
}
