//! getdents64(2), whose errors readdir(3) hides.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Reads some entries of a directory from its offset on. ENOENT: it was removed, or belongs to a process that is gone.
pub fn read_once(fd: BorrowedFd<'_>) -> io::Result<()> {
    let mut entries = [0u8; 1024];
    // SAFETY: the kernel writes at most as many bytes as the buffer has, which outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_getdents64, fd.as_raw_fd(), entries.as_mut_ptr(), entries.len()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
