//! What only NETLINK_SOCK_DIAG tells of a unix socket: who its peer is, which halves are shut down (CONFIG_UNIX_DIAG).

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::sys::socket::{MsgFlags, recv, send};

use super::sock_diag::{self, BY_FAMILY, HEADER, LONGEST, malformed, u16_at, u32_at};

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

/// struct unix_diag_msg: the attributes follow.
const MESSAGE: usize = 16;
/// Where the state stands in it, and that of a socket that listens (TCP_LISTEN).
const STATE: usize = 2;
const LISTEN: u8 = 10;

/// One about a socket alone, or an error.
const SHORT: usize = 512;

/// What the kernel tells of one socket.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct UnixSocket {
    /// The inode of the socket it is connected to. 0: of one that was closed, or that its server has not accepted yet.
    pub peer: Option<u32>,
    /// It listens.
    pub listens: bool,
    /// For a listening socket: connections that wait to be accepted, and how many may.
    pub queue: (u32, u32),
    /// 1: receives nothing more; 2: sends nothing more.
    pub shutdown: u8,
}

/// A connection to the kernel for such questions, about the network namespace that we are in.
#[derive(Debug)]
pub struct UnixDiag {
    netlink: OwnedFd,
    /// What was told of all at once.
    told: HashMap<u32, UnixSocket>,
}

impl UnixDiag {
    /// Opens it.
    pub fn open() -> io::Result<UnixDiag> {
        Ok(UnixDiag { netlink: sock_diag::open()?, told: HashMap::new() })
    }

    /// The same, and has all sockets told at once: quicker, if many are to be looked at. For each one the kernel looks through its whole table.
    pub fn open_for_many() -> io::Result<UnixDiag> {
        let mut diag = UnixDiag::open()?;
        let dump = (libc::NLM_F_ROOT | libc::NLM_F_MATCH) as u16;
        diag.request(0, UDIAG_SHOW_PEER | UDIAG_SHOW_RQLEN, dump)?;
        let UnixDiag { netlink, told } = &mut diag;
        sock_diag::answers(netlink.as_fd(), |message| {
            let inode = u32_at(message, HEADER + 4)?;
            told.insert(inode, parse(message, inode)?);
            Ok(())
        })?;
        Ok(diag)
    }

    /// The socket with this inode.
    pub fn look(&self, inode: u32) -> io::Result<UnixSocket> {
        if let Some(told) = self.told.get(&inode) {
            return Ok(*told);
        }
        let mut room = [0; SHORT];
        parse(self.ask(inode, UDIAG_SHOW_PEER | UDIAG_SHOW_RQLEN, &mut room)?, inode)
    }

    /// The inodes of those that wait to be accepted by the listening socket with this inode, in order. 0: of one that was closed.
    pub fn waiting(&self, inode: u32) -> io::Result<Vec<u32>> {
        let (mut waiting, mut room) = (Vec::new(), vec![0; LONGEST]);
        attributes(self.ask(inode, UDIAG_SHOW_ICONS, &mut room)?, inode, |kind, value| {
            if kind == UNIX_DIAG_ICONS {
                waiting.extend((0..value.len() / 4).map_while(|n| u32_at(value, n * 4).ok()));
            }
            Ok(())
        })?;
        Ok(waiting)
    }

    fn ask<'a>(&self, inode: u32, show: u32, room: &'a mut [u8]) -> io::Result<&'a [u8]> {
        self.request(inode, show, 0)?;
        let len = recv(self.netlink.as_raw_fd(), room, MsgFlags::empty())?;
        Ok(&room[..len])
    }

    fn request(&self, inode: u32, show: u32, flags: u16) -> io::Result<()> {
        let request = Request {
            len: size_of::<Request>() as u32,
            kind: BY_FAMILY,
            flags: libc::NLM_F_REQUEST as u16 | flags,
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
        send(self.netlink.as_raw_fd(), bytemuck::bytes_of(&request), MsgFlags::empty()).map(drop)?;
        Ok(())
    }
}

fn parse(answer: &[u8], inode: u32) -> io::Result<UnixSocket> {
    let mut socket =
        UnixSocket { listens: answer.get(HEADER + STATE).is_some_and(|&state| state == LISTEN), ..UnixSocket::default() };
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
    if kind != BY_FAMILY || u32_at(answer, HEADER + 4)? != inode {
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
    use nix::sys::stat::fstat;

    use super::super::socket;
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
        socket::bind(fresh.as_fd(), &(libc::AF_UNIX as u16).to_ne_bytes()).unwrap();
        assert!(!diag.look(inode(&fresh)).unwrap().listens);
        let server = socket::create(libc::AF_UNIX, libc::SOCK_STREAM, 0).unwrap();
        socket::bind(server.as_fd(), &(libc::AF_UNIX as u16).to_ne_bytes()).unwrap();
        socket::listen(server.as_fd(), 3).unwrap();
        let told = diag.look(inode(&server)).unwrap();
        assert_eq!((told.listens, told.queue), (true, (0, 3)));
        assert_eq!(diag.look(u32::MAX).unwrap_err().raw_os_error(), Some(libc::ENOENT));
    }

    #[test]
    fn all_are_told_at_once() {
        let pairs: Vec<_> = (0..300).map(|_| socket::pair(libc::AF_UNIX, libc::SOCK_SEQPACKET).unwrap()).collect();
        pairs.iter().step_by(2).for_each(|(a, _)| socket::shut_down(a.as_fd(), libc::SHUT_WR).unwrap());
        let (one, many) = (UnixDiag::open().unwrap(), UnixDiag::open_for_many().unwrap());
        for end in pairs.iter().flat_map(|(a, b)| [inode(a), inode(b)]) {
            assert!(many.told.contains_key(&end));
            assert_eq!(many.look(end).unwrap(), one.look(end).unwrap());
        }
        let later = socket::create(libc::AF_UNIX, libc::SOCK_DGRAM, 0).unwrap();
        assert_eq!(many.look(inode(&later)).unwrap(), UnixSocket::default());
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
