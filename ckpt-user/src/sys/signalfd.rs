//! signalfd4(2) with all 64 signals of the kernel, also those that libc keeps for itself.

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// A new signalfd, close-on-exec, for the signals of `mask` (bit 0 is signal 1).
pub fn create(mask: u64) -> io::Result<OwnedFd> {
    // SAFETY: the mask outlives the call, which only reads its 8 bytes.
    let fd = unsafe { libc::syscall(libc::SYS_signalfd4, -1, &raw const mask, size_of_val(&mask), libc::SFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}
