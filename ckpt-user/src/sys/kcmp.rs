//! Do two descriptors lead to the same kernel object? kcmp(2) tells without touching either.

use std::cmp::Ordering;
use std::io;
use std::os::fd::RawFd;

use crate::ids::{Pid, Tid};

// include/uapi/linux/kcmp.h
const KCMP_FILE: i32 = 0;
const KCMP_VM: i32 = 1;
const KCMP_FILES: i32 = 2;
const KCMP_FS: i32 = 3;
const KCMP_SIGHAND: i32 = 4;
const KCMP_SYSVSEM: i32 = 6;
const KCMP_EPOLL_TFD: i32 = 7;

/// struct kcmp_epoll_slot: which file an epoll instance watches.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct EpollSlot {
    /// The epoll's descriptor.
    epoll: u32,
    /// The number that the watched file was registered under.
    target: u32,
    /// Which of the entries with that number, in the order of fdinfo.
    nth: u32,
}

const _: () = assert!(size_of::<EpollSlot>() == 12);

fn kcmp(a: Pid, b: Pid, kind: i32, index_a: u64, index_b: u64) -> io::Result<Ordering> {
    // SAFETY: the indexes are numbers, or (KCMP_EPOLL_TFD) the address of an EpollSlot that the caller keeps and that is only read.
    let answer = unsafe { libc::syscall(libc::SYS_kcmp, a.0, b.0, kind, index_a, index_b) };
    match answer {
        0 => Ok(Ordering::Equal),
        1 => Ok(Ordering::Less),
        2 => Ok(Ordering::Greater),
        3 => Err(io::Error::other("the kernel does not order these objects")),
        _ => Err(io::Error::last_os_error()),
    }
}

/// How the open file description behind descriptor `fd_a` of `a` compares to the one behind `fd_b` of `b`: `Equal` when it is the
/// same one, else an order that holds until the next boot.
pub fn files(a: Pid, fd_a: RawFd, b: Pid, fd_b: RawFd) -> io::Result<Ordering> {
    kcmp(a, b, KCMP_FILE, fd_a as u64, fd_b as u64)
}

/// What processes can share, by flags of clone(2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Shared {
    /// CLONE_VM: the address space.
    Memory,
    /// CLONE_FILES: the descriptor table.
    Files,
    /// CLONE_FS: working directory, root and umask.
    Directories,
    /// CLONE_SIGHAND: the actions of signals.
    SignalActions,
    /// CLONE_SYSVSEM: what is undone to semaphores in the end.
    SemaphoreUndo,
}

/// How what `a` has of it compares to what `b` has: `Equal` when they share it, else an order that holds until the next boot.
pub fn shared(what: Shared, a: Pid, b: Pid) -> io::Result<Ordering> {
    let kind = match what {
        Shared::Memory => KCMP_VM,
        Shared::Files => KCMP_FILES,
        Shared::Directories => KCMP_FS,
        Shared::SignalActions => KCMP_SIGHAND,
        Shared::SemaphoreUndo => KCMP_SYSVSEM,
    };
    kcmp(a, b, kind, 0, 0)
}

/// Do two processes share their memory (CLONE_VM)?
pub fn share_memory(a: Pid, b: Pid) -> io::Result<bool> {
    shared(Shared::Memory, a, b).map(Ordering::is_eq)
}

/// Do two threads share working directory, root and umask (CLONE_FS)? `None`: this kernel has no kcmp.
pub fn share_fs(a: Tid, b: Tid) -> io::Result<Option<bool>> {
    match kcmp(Pid(a.0), Pid(b.0), KCMP_FS, 0, 0) {
        Ok(order) => Ok(Some(order == Ordering::Equal)),
        Err(e) if e.raw_os_error() == Some(libc::ENOSYS) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Is a descriptor the file that an epoll instance watches under the number `target`? A number can be there several times, after its
/// descriptor was closed and used again: `nth` counts such entries in the order of fdinfo.
pub fn is_epoll_target((of, fd): (Pid, RawFd), epoll: (Pid, RawFd), target: RawFd, nth: u32) -> io::Result<bool> {
    let slot = EpollSlot { epoll: epoll.1 as u32, target: target as u32, nth };
    let answer = kcmp(of, epoll.0, KCMP_EPOLL_TFD, fd as u64, (&raw const slot) as u64)?;
    Ok(answer == Ordering::Equal)
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsRawFd, OwnedFd};

    use super::*;

    #[test]
    fn a_duplicate_is_the_same_file() {
        let me = Pid(std::process::id() as i32);
        let one: OwnedFd = tempfile::tempfile().unwrap().into();
        let two = one.try_clone().unwrap();
        let other: OwnedFd = tempfile::tempfile().unwrap().into();
        assert_eq!(files(me, one.as_raw_fd(), me, two.as_raw_fd()).unwrap(), Ordering::Equal);
        assert_ne!(files(me, one.as_raw_fd(), me, other.as_raw_fd()).unwrap(), Ordering::Equal);
        assert!(files(me, one.as_raw_fd(), me, 1 << 20).is_err());
    }
}
