//! inotify(7) with watch descriptors of the caller's choice.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// `_IOW('I', 0, __s32)`, include/uapi/linux/inotify.h (Linux 4.17, CONFIG_CHECKPOINT_RESTORE).
const INOTIFY_IOC_SETNEXTWD: libc::c_ulong = 0x4004_4900;

/// A new instance, close-on-exec.
pub fn create() -> io::Result<OwnedFd> {
    // SAFETY: only numbers are passed.
    let fd = unsafe { libc::inotify_init1(libc::IN_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Has the next new watch get the lowest free descriptor from `wd` (at least 1) on.
pub fn set_next_wd(fd: BorrowedFd<'_>, wd: i32) -> io::Result<()> {
    // SAFETY: this request takes the number itself as its argument.
    if unsafe { libc::ioctl(fd.as_raw_fd(), INOTIFY_IOC_SETNEXTWD, libc::c_long::from(wd)) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Watches `path`; returns the watch descriptor.
pub fn add_watch(fd: BorrowedFd<'_>, path: &Path, mask: u32) -> io::Result<i32> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: the path outlives the call and ends in NUL.
    let wd = unsafe { libc::inotify_add_watch(fd.as_raw_fd(), path.as_ptr(), mask) };
    if wd < 0 { Err(io::Error::last_os_error()) } else { Ok(wd) }
}
