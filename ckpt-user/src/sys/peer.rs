//! Whom a unix socket takes its peer for (SO_PEERCRED and SO_PEERGROUPS, unix(7)): the task that has made the pair, connected, or begun to listen. Nobody
//! else can be named, so a short-lived process becomes that task, and makes that one call.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use serde::{Deserialize, Serialize};

use super::child;
use super::clone::{self, Cloned};
use super::scm::Credentials;
use super::socket;
use crate::ids::Pid;

/// Who a peer is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Identity {
    /// Process, effective user and group.
    pub credentials: Credentials,
    /// Its other groups.
    pub groups: Vec<u32>,
}

/// Hardly any process has more groups.
const GROUPS_USUAL: usize = 64;
/// No process has more groups (NGROUPS_MAX).
const GROUPS_MAX: usize = 65536;

/// The peer of a socket, or who listens, if it listens. `None`: it has none.
pub fn of(fd: BorrowedFd<'_>) -> io::Result<Option<Identity>> {
    let value = socket::option(fd, libc::SOL_SOCKET, libc::SO_PEERCRED, size_of::<Credentials>())?;
    let credentials: Credentials =
        bytemuck::try_pod_read_unaligned(&value).map_err(|_| io::Error::other("SO_PEERCRED has another length"))?;
    if credentials.pid == 0 {
        return Ok(None);
    }
    let ask = |most: usize| socket::option(fd, libc::SOL_SOCKET, libc::SO_PEERGROUPS, most * 4);
    let groups = match ask(GROUPS_USUAL)
        .or_else(|error| if error.raw_os_error() == Some(libc::ERANGE) { ask(GROUPS_MAX) } else { Err(error) })
    {
        Ok(bytes) => bytes.chunks_exact(4).map(bytemuck::pod_read_unaligned).collect(),
        Err(error) if error.raw_os_error() == Some(libc::ENODATA) => Vec::new(),
        Err(error) => return Err(error),
    };
    Ok(Some(Identity { credentials, groups }))
}

/// So many descriptors go through a pipe without anybody who reads, even one that holds no more than a page.
const PAIRS_MAX: usize = 512;

/// Pairs of connected sockets that somebody has made: as many as are wanted, or [`PAIRS_MAX`].
pub fn pairs(by: &Identity, domain: i32, kind: i32, wanted: usize) -> io::Result<Vec<[OwnedFd; 2]>> {
    let wanted = wanted.min(PAIRS_MAX);
    let (told, tell) = io::pipe()?;
    run_as(by, || {
        (0..wanted).all(|_| {
            let mut made: [RawFd; 2] = [-1; 2];
            // SAFETY: the array has room for the two descriptors, and is read as what it is.
            unsafe {
                libc::socketpair(domain, kind | libc::SOCK_CLOEXEC, 0, made.as_mut_ptr()) == 0
                    && libc::write(tell.as_raw_fd(), made.as_ptr().cast(), size_of_val(&made)) == size_of_val(&made) as isize
            }
        })
    })?;
    let mut numbers = vec![[0; 2]; wanted];
    io::Read::read_exact(&mut &told, bytemuck::cast_slice_mut::<[RawFd; 2], u8>(&mut numbers))?;
    // SAFETY: the process that has made them shared our descriptors and has ended, so they are ours alone.
    Ok(numbers.into_iter().map(|pair| pair.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })).collect())
}

/// Has a socket listen, which somebody does.
pub fn listen(by: &Identity, fd: BorrowedFd<'_>, backlog: i32) -> io::Result<()> {
    // SAFETY: only numbers are passed.
    run_as(by, || unsafe { libc::listen(fd.as_raw_fd(), backlog) == 0 })
}

/// Connects a socket, which somebody does.
pub fn connect(by: &Identity, fd: BorrowedFd<'_>, address: &[u8]) -> io::Result<()> {
    let (at, len) = (address.as_ptr(), address.len() as libc::socklen_t);
    // SAFETY: the address outlives the call, which only reads it; alignment does not matter, the kernel copies it.
    run_as(by, || unsafe { libc::connect(fd.as_raw_fd(), at.cast(), len) == 0 })
}

/// Makes a system call in a process that is `who`, shares our descriptors, and ends at once. `call`: did it succeed? It runs after a fork of a
/// process with threads, and may make only plain system calls.
///
/// Errors: EEXIST, if a process has that pid; whatever becoming `who` or the call has given.
fn run_as(who: &Identity, call: impl Fn() -> bool) -> io::Result<()> {
    let Identity { credentials, groups } = who;
    // It is not allowed to everybody, but staying in one's groups is.
    let own: Vec<u32> = nix::unistd::getgroups()?.into_iter().map(nix::unistd::Gid::as_raw).collect();
    let regroup = own != *groups;
    match clone::child_with_pid(Pid(credentials.pid), libc::CLONE_FILES as u64)? {
        Cloned::Child => {
            // SAFETY: plain system calls, past the C library, which would look for the threads of its maker; the array outlives the call.
            unsafe {
                let done = (!regroup || libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) == 0)
                    && libc::syscall(libc::SYS_setresgid, credentials.gid, credentials.gid, credentials.gid) == 0
                    && libc::syscall(libc::SYS_setresuid, credentials.uid, credentials.uid, credentials.uid) == 0
                    && call();
                libc::_exit(if done { 0 } else { *libc::__errno_location() })
            }
        }
        Cloned::Parent(pid) => child::answer(pid),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;
    use crate::skip;

    /// A pid that was free a moment ago.
    fn free_pid() -> i32 {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        child.id() as i32
    }

    #[test]
    fn somebody_else_makes_a_pair() {
        if !nix::unistd::geteuid().is_root() {
            return skip::note("somebody_else_makes_a_pair", "not root");
        }
        let who = Identity { credentials: Credentials { pid: free_pid(), uid: 1234, gid: 5678 }, groups: vec![1, 99] };
        let made = pairs(&who, libc::AF_UNIX, libc::SOCK_STREAM, 100).unwrap();
        for (n, fd) in made.iter().flatten().enumerate() {
            assert_eq!(of(fd.as_fd()).unwrap().unwrap(), who, "{n}");
        }
        assert_eq!(socket::send_now(made[99][0].as_fd(), b"x").unwrap(), 1);
        assert_eq!(made.len(), 100);
        let taken = Identity { credentials: Credentials { pid: 1, ..who.credentials }, ..who };
        assert_eq!(pairs(&taken, libc::AF_UNIX, libc::SOCK_STREAM, 1).unwrap_err().raw_os_error(), Some(libc::EEXIST));
    }

    #[test]
    fn nobody_is_the_peer_of_a_new_socket() {
        let fresh = socket::create(libc::AF_UNIX, libc::SOCK_STREAM, 0).unwrap();
        assert_eq!(of(fresh.as_fd()).unwrap(), None);
    }
}
