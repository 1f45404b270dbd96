//! What only NETLINK_SOCK_DIAG tells of a unix socket: who its peer is, which halves are shut down (CONFIG_UNIX_DIAG).

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{MsgFlags, recv, send};

use super::socket;

const NETLINK_SOCK_DIAG: i32 = 4;
const SOCK_DIAG_BY_FAMILY: u16 = 20;

// Attributes and what asks for them (linux/unix_diag.h).
const UNIX_DIAG_PEER: u16 = 2;
const UNIX_DIAG_ICONS: u16 = 3;
const UNIX_DIAG_RQLEN: u16 = 4;
const UNIX_DIAG_SHUTDOWN: u16 = 6;
const UDIAG_SHOW_PEER: u32 = 4;
const UDIAG_SHOW_ICONS: u32 = 8;
const UDIAG_SHOW_RQLEN: u32 = 0x10;

/// struct nlmsghdr and struct unix_diag_req.
#[repr(C)]
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
struct Request {
    len: u32,
    kind: u16,
    flags: u16,
    sequence: u32,
    port: u32,
    family: u8,
    protocol: u8,
    pad: u16,
    states: u32,
    inode: u32,
    show: u32,
    cookie: [u32; 2],
}

const _: () = assert!(size_of::<Request>() == 16 + 24);

/// struct nlmsghdr, and struct unix_diag_msg: where the attributes begin.
const HEADER: usize = 16;
const MESSAGE: usize = 16;

/// What the kernel tells of one socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UnixSocket {
    /// The inode of the socket it is connected to. 0: of one that was closed, or that its server has not accepted yet.
    pub peer: Option<u32>,
    /// For a listening socket: connections that wait to be accepted, and how many may.
    pub queue: (u32, u32),
    /// 1: receives nothing more; 2: sends nothing more.
    pub shutdown: u8,
}

/// A connection to the kernel for such questions, about the network namespace that we are in.
#[derive(Debug)]
pub struct UnixDiag {
    netlink: OwnedFd,
}

impl UnixDiag {
    /// Opens it.
    pub fn open() -> io::Result<UnixDiag> {
        let netlink = socket::create(libc::AF_NETLINK, libc::SOCK_RAW, NETLINK_SOCK_DIAG)?;
        Ok(UnixDiag { netlink })
    }

    /// The socket with this inode.
    pub fn look(&self, inode: u32) -> io::Result<UnixSocket> {
        parse(&self.ask(inode, UDIAG_SHOW_PEER | UDIAG_SHOW_RQLEN)?, inode)
    }

    /// The inodes of those that wait to be accepted by the listening socket with this inode, in order. 0: of one that was closed.
    pub fn waiting(&self, inode: u32) -> io::Result<Vec<u32>> {
        let mut waiting = Vec::new();
        attributes(&self.ask(inode, UDIAG_SHOW_ICONS)?, inode, |kind, value| {
            if kind == UNIX_DIAG_ICONS {
                waiting.extend((0..value.len() / 4).map_while(|n| u32_at(value, n * 4).ok()));
            }
            Ok(())
        })?;
        Ok(waiting)
    }

    fn ask(&self, inode: u32, show: u32) -> io::Result<Vec<u8>> {
        let request = Request {
            len: size_of::<Request>() as u32,
            kind: SOCK_DIAG_BY_FAMILY,
            flags: libc::NLM_F_REQUEST as u16,
            sequence: inode,
            port: 0,
            family: libc::AF_UNIX as u8,
            protocol: 0,
            pad: 0,
            states: u32::MAX,
            inode,
            show,
            cookie: [u32::MAX; 2],
        };
        send(self.netlink.as_raw_fd(), bytemuck::bytes_of(&request), MsgFlags::empty())?;
        // Somaxconn connections of four bytes each.
        let mut answer = vec![0u8; 65536];
        let n = recv(self.netlink.as_raw_fd(), &mut answer, MsgFlags::empty())?;
        answer.truncate(n);
        Ok(answer)
    }
}

fn malformed() -> io::Error {
    io::Error::other("malformed answer of NETLINK_SOCK_DIAG")
}

fn u32_at(bytes: &[u8], at: usize) -> io::Result<u32> {
    let word = bytes.get(at..at + 4).and_then(|word| word.try_into().ok());
    word.map(u32::from_ne_bytes).ok_or_else(malformed)
}

fn u16_at(bytes: &[u8], at: usize) -> io::Result<u16> {
    let word = bytes.get(at..at + 2).and_then(|word| word.try_into().ok());
    word.map(u16::from_ne_bytes).ok_or_else(malformed)
}

fn parse(answer: &[u8], inode: u32) -> io::Result<UnixSocket> {
    let mut socket = UnixSocket::default();
    attributes(answer, inode, |kind, value| {
        match kind {
            UNIX_DIAG_PEER => socket.peer = Some(u32_at(value, 0)?),
            UNIX_DIAG_RQLEN => socket.queue = (u32_at(value, 0)?, u32_at(value, 4)?),
            UNIX_DIAG_SHUTDOWN => socket.shutdown = *value.first().ok_or_else(malformed)?,
            _ => {}
        }
        Ok(())
    })?;
    Ok(socket)
}

/// Each attribute of the answer about a socket: what it is, and its value.
fn attributes(answer: &[u8], inode: u32, mut each: impl FnMut(u16, &[u8]) -> io::Result<()>) -> io::Result<()> {
    let kind = u16_at(answer, 4)?;
    if i32::from(kind) == libc::NLMSG_ERROR {
        return Err(io::Error::from_raw_os_error((u32_at(answer, HEADER)? as i32).saturating_neg()));
    }
    if kind != SOCK_DIAG_BY_FAMILY || u32_at(answer, HEADER + 4)? != inode {
        return Err(malformed());
    }
    let end = (u32_at(answer, 0)? as usize).min(answer.len());
    let mut at = HEADER + MESSAGE;
    while at + 4 <= end {
        let len = usize::from(u16_at(answer, at)?);
        if len < 4 || at + len > end {
            return Err(malformed());
        }
        each(u16_at(answer, at + 2)?, &answer[at + 4..at + len])?;
        at += len.next_multiple_of(4);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use nix::sys::stat::fstat;

    use super::*;

    fn inode(fd: &OwnedFd) -> u32 {
        fstat(fd).unwrap().st_ino as u32
    }

    #[test]
    fn peers_are_told() {
        let diag = UnixDiag::open().unwrap();
        let (a, b) = socket::pair(libc::AF_UNIX, libc::SOCK_STREAM).unwrap();
        assert_eq!(diag.look(inode(&a)).unwrap().peer, Some(inode(&b)));
        socket::shut_down(a.as_fd(), libc::SHUT_WR).unwrap();
        assert_eq!((diag.look(inode(&a)).unwrap().shutdown, diag.look(inode(&b)).unwrap().shutdown), (2, 1));
        drop(b);
        let lone = diag.look(inode(&a)).unwrap();
        assert_eq!((lone.peer, lone.shutdown), (Some(0), 3));
        let fresh = socket::create(libc::AF_UNIX, libc::SOCK_DGRAM, 0).unwrap();
        assert_eq!(diag.look(inode(&fresh)).unwrap(), UnixSocket::default());
        assert_eq!(diag.look(u32::MAX).unwrap_err().raw_os_error(), Some(libc::ENOENT));
    }

    #[test]
    fn malformed_answers_are_errors() {
        for len in [0, 4, 6, 16, 20, 31] {
            assert!(parse(&vec![0; len], 0).is_err());
        }
        let mut answer = vec![0; 40];
        answer[0] = 40;
        answer[4] = 20;
        assert!(parse(&answer, 0).is_err(), "an attribute of no length");
        answer[32] = 200;
        assert!(parse(&answer, 0).is_err(), "an attribute beyond the end");
    }
}
