//! fcntl(2), flock(2) and lseek(2) where nix has no type for what is asked.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

/// struct f_owner_ex.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct OwnerEx {
    /// F_OWNER_TID, F_OWNER_PID or F_OWNER_PGRP.
    pub kind: i32,
    /// The id. 0: nobody.
    pub id: i32,
}

/// F_SETOWN_EX, F_GETOWN_EX, F_SETSIG, F_GETSIG (linux/fcntl.h).
pub const F_SETOWN_EX: i32 = 15;
const F_GETOWN_EX: i32 = 16;
/// See above.
pub const F_SETSIG: i32 = 10;
const F_GETSIG: i32 = 11;

fn check(result: i64) -> io::Result<i64> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Who is signalled when the file is ready (F_GETOWN_EX), and by which signal.
pub fn owner(fd: BorrowedFd<'_>) -> io::Result<(Option<(i32, i32)>, i32)> {
    let mut owner = OwnerEx::default();
    // SAFETY: the struct is the one that the request fills, and outlives the call.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), F_GETOWN_EX, &raw mut owner) }.into())?;
    // SAFETY: only numbers are passed.
    let signal = check(unsafe { libc::fcntl(fd.as_raw_fd(), F_GETSIG) }.into())?;
    Ok(((owner.id != 0).then_some((owner.kind, owner.id)), signal as i32))
}

/// A duplicate with a number not below `above`, closed on exec.
pub fn duplicate_above(fd: BorrowedFd<'_>, above: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: only numbers are passed.
    let new = check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, above) }.into())?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(new as RawFd) })
}

/// FD_CLOEXEC of a descriptor by its number.
pub fn closes_on_exec(fd: RawFd) -> io::Result<bool> {
    // SAFETY: only numbers are passed; a number that is no descriptor gives EBADF.
    let flags = check(unsafe { libc::fcntl(fd, libc::F_GETFD) }.into())?;
    Ok(flags as i32 & libc::FD_CLOEXEC != 0)
}

/// Sets the file offset.
pub fn seek_to(fd: BorrowedFd<'_>, pos: i64) -> io::Result<()> {
    // SAFETY: only numbers are passed.
    check(unsafe { libc::lseek(fd.as_raw_fd(), pos, libc::SEEK_SET) }).map(drop)
}

/// flock(2) without waiting.
pub fn flock(fd: BorrowedFd<'_>, exclusive: bool) -> io::Result<()> {
    let operation = libc::LOCK_NB | if exclusive { libc::LOCK_EX } else { libc::LOCK_SH };
    // SAFETY: only numbers are passed.
    check(unsafe { libc::flock(fd.as_raw_fd(), operation) }.into()).map(drop)
}

/// F_OFD_SETLK.
pub fn lock_open_file(fd: BorrowedFd<'_>, lock: &libc::flock) -> io::Result<()> {
    // SAFETY: the struct outlives the call.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_SETLK, &raw const *lock) }.into()).map(drop)
}

/// The bytes of a struct flock, to be passed to another task. Its padding is zeros if the caller's was.
pub fn flock_bytes(lock: &libc::flock) -> [u8; size_of::<libc::flock>()] {
    let mut bytes = [0; size_of::<libc::flock>()];
    let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
    put(std::mem::offset_of!(libc::flock, l_type), &lock.l_type.to_ne_bytes());
    put(std::mem::offset_of!(libc::flock, l_whence), &lock.l_whence.to_ne_bytes());
    put(std::mem::offset_of!(libc::flock, l_start), &lock.l_start.to_ne_bytes());
    put(std::mem::offset_of!(libc::flock, l_len), &lock.l_len.to_ne_bytes());
    put(std::mem::offset_of!(libc::flock, l_pid), &lock.l_pid.to_ne_bytes());
    bytes
}
/// Makes the empty file `to` a copy of `from` that shares its blocks until either is written to (FICLONE). Only some file systems can (XFS, Btrfs), and only
/// within one.
pub fn share_blocks(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: only descriptors, which are open, are passed.
    let result = unsafe { libc::ioctl(to.as_raw_fd(), libc::FICLONE, from.as_raw_fd()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
