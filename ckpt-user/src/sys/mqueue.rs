//! POSIX message queues (mq_overview(7)), which are files of a file system of their own.

use std::ffi::CStr;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::null_mut;

use nix::sys::statfs::{FsType, fstatfs};

/// MQUEUE_MAGIC (linux/magic.h).
const MAGIC: i64 = 0x1980_0202;

/// Is it a message queue?
pub fn is_queue(fd: impl AsFd) -> bool {
    fstatfs(fd).is_ok_and(|stat| stat.filesystem_type() == FsType(MAGIC))
}

/// mq_getattr(3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    /// How many messages it can hold.
    pub capacity: i64,
    /// Bytes of the longest message that it takes.
    pub longest: i64,
    /// How many messages wait.
    pub waiting: i64,
}

fn check(result: i64) -> io::Result<i64> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// See [`Attributes`].
pub fn attributes(queue: BorrowedFd<'_>) -> io::Result<Attributes> {
    let mut raw = MaybeUninit::<libc::mq_attr>::zeroed();
    // SAFETY: the struct outlives the call, and zeros are a valid value of it.
    let raw = unsafe {
        check(libc::mq_getattr(queue.as_raw_fd(), raw.as_mut_ptr()).into())?;
        raw.assume_init()
    };
    Ok(Attributes { capacity: raw.mq_maxmsg, longest: raw.mq_msgsize, waiting: raw.mq_curmsgs })
}

/// Opens a queue without waiting in it: a new one (EEXIST: there is one), or (`new` being `None`) one that is there.
pub fn open(name: &CStr, new: Option<(u32, Attributes)>) -> io::Result<OwnedFd> {
    let flags = libc::O_RDWR | libc::O_NONBLOCK | libc::O_CLOEXEC;
    // SAFETY: the name and the struct outlive the calls, and zeros are a valid value of the struct.
    let fd = unsafe {
        match new {
            None => libc::mq_open(name.as_ptr(), flags),
            Some((mode, attributes)) => {
                let mut raw: libc::mq_attr = MaybeUninit::zeroed().assume_init();
                (raw.mq_maxmsg, raw.mq_msgsize) = (attributes.capacity, attributes.longest);
                libc::mq_open(name.as_ptr(), flags | libc::O_CREAT | libc::O_EXCL, mode, &raw mut raw)
            }
        }
    };
    check(fd.into())?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Takes its name away.
pub fn unlink(name: &CStr) -> io::Result<()> {
    // SAFETY: the name outlives the call.
    check(unsafe { libc::mq_unlink(name.as_ptr()) }.into()).map(drop)
}

/// Adds a message.
pub fn send(queue: BorrowedFd<'_>, text: &[u8], priority: u32) -> io::Result<()> {
    // SAFETY: the text outlives the call, and is as long as is said.
    check(unsafe { libc::mq_send(queue.as_raw_fd(), text.as_ptr().cast(), text.len(), priority) }.into()).map(drop)
}

/// Takes all messages out of a queue that was opened without waiting.
pub fn drain(queue: BorrowedFd<'_>, longest: i64) -> io::Result<()> {
    let mut buffer = vec![0u8; usize::try_from(longest).unwrap_or(0)];
    loop {
        // SAFETY: the buffer outlives the call, and is as long as is said.
        let result = unsafe { libc::mq_receive(queue.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len(), null_mut()) };
        match check(result as i64) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}
