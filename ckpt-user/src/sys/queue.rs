//! How much waits in the queue of a pipe, a socket or an inotify instance, and whether anybody is left at the other end.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

fn int_ioctl(fd: BorrowedFd<'_>, request: libc::c_ulong) -> io::Result<usize> {
    let mut value: libc::c_int = 0;
    // SAFETY: the requests used here write one int, which outlives the call.
    if unsafe { libc::ioctl(fd.as_raw_fd(), request, &raw mut value) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(value.max(0) as usize)
}

/// FIONREAD (SIOCINQ): bytes that can be read. For sockets of datagrams: of the first one.
pub fn readable(fd: BorrowedFd<'_>) -> io::Result<usize> {
    int_ioctl(fd, libc::FIONREAD)
}

/// SIOCOUTQ: bytes of memory that hold what was sent and not received yet.
pub fn unreceived(fd: BorrowedFd<'_>) -> io::Result<usize> {
    int_ioctl(fd, libc::TIOCOUTQ)
}

/// What poll(2) says now, asked for everything.
pub fn poll_now(fd: BorrowedFd<'_>) -> io::Result<PollFlags> {
    let mut polled = [PollFd::new(fd, PollFlags::POLLIN | PollFlags::POLLOUT | PollFlags::POLLPRI)];
    poll(&mut polled, PollTimeout::ZERO)?;
    polled[0].revents().ok_or_else(|| io::Error::other("poll answered with unknown bits"))
}
