//! pidfd_open(2) and pidfd_getfd(2): a handle on another process, and duplicates of its descriptors.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::time::Duration;

use crate::ids::Pid;

fn owned(result: i64) -> io::Result<OwnedFd> {
    match RawFd::try_from(result) {
        // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// A descriptor for a process.
pub fn open(pid: Pid) -> io::Result<OwnedFd> {
    open_with(pid, 0)
}

/// The same with flags (PIDFD_NONBLOCK, ...), with which it may also be one for a thread.
pub fn open_with(pid: Pid, flags: u32) -> io::Result<OwnedFd> {
    // SAFETY: only numbers are passed.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_open, pid.0, flags) })
}

/// A duplicate of the descriptor `fd` of that process: the same open file description. Needs the right to ptrace it.
pub fn get_fd(process: BorrowedFd<'_>, fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: only numbers are passed.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_getfd, process.as_raw_fd(), fd, 0) })
}

/// Is the process there still, be it only to be collected by its parent? Not misled by a new process with the same pid.
pub fn exists(process: BorrowedFd<'_>) -> bool {
    // SAFETY: a null siginfo asks for the one of kill(2); signal 0 is none.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, process.as_raw_fd(), 0, std::ptr::null::<u8>(), 0) };
    result == 0 || io::Error::last_os_error().raw_os_error() != Some(libc::ESRCH)
}

/// Has the process ended, all of it?
pub fn has_ended(process: BorrowedFd<'_>) -> io::Result<bool> {
    ends_within(process, Duration::ZERO)
}

/// The same, by then.
pub fn ends_within(process: BorrowedFd<'_>, at_most: Duration) -> io::Result<bool> {
    wait(process, libc::POLLIN, at_most)
}

/// Waits until a dead process was collected by its parent, or `at_most` has passed.
pub fn wait_for_burial(process: BorrowedFd<'_>, at_most: Duration) -> io::Result<()> {
    // No events: a dead process is always readable, and POLLHUP needs not be asked for.
    wait(process, 0, at_most).map(drop)
}

/// Did one of the events come in time?
fn wait(process: BorrowedFd<'_>, events: i16, at_most: Duration) -> io::Result<bool> {
    let mut poll = libc::pollfd { fd: process.as_raw_fd(), events, revents: 0 };
    let timeout = libc::timespec { tv_sec: at_most.as_secs() as i64, tv_nsec: i64::from(at_most.subsec_nanos()) };
    // SAFETY: one pollfd, a time-out that outlives the call, no signal mask.
    match unsafe { libc::ppoll(&raw mut poll, 1, &raw const timeout, std::ptr::null()) } {
        -1 if io::Error::last_os_error().kind() != io::ErrorKind::Interrupted => Err(io::Error::last_os_error()),
        n => Ok(n > 0),
    }
}
