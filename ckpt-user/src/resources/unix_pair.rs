//! Two unix sockets connected to each other, both in the cut, or one whose other end was closed: what waits in each, and which
//! halves are shut down.
//!
//! Each end tells again who its peer is, and one that was once accepted has the name of the server ([`super::unix_peer`]).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::poll::PollFlags;
use serde::{Deserialize, Serialize};

use super::holders::Holder;
use super::in_flight::Flights;
use super::socket::SocketType;
use super::unix_peer::{self, End};
use super::unix_queue::{self, Message};
use super::{Collector, Restorer, unix_name::UnixName};
use crate::error::{Doing, Error, Result};
use crate::sys::peer::{self, Identity};
use crate::sys::unix_diag::UnixDiag;
use crate::sys::{queue, socket as raw};

/// The length of an address without a name.
const UNNAMED: usize = 2;

/// The kind of the object.
pub const KIND: &str = "unix-pair";

/// Two connected sockets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnixPair {
    /// What sort of sockets they are.
    pub socket: SocketType,
    /// The two ends. `None`: closed.
    pub ends: [Option<UnixEnd>; 2],
}

/// One end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct UnixEnd {
    /// What waits to be received from it.
    pub queue: Vec<Message>,
    /// 1: receives nothing more; 2: sends nothing more.
    pub shutdown: u8,
    /// The other end was closed before it had received everything.
    pub reset: bool,
    /// Its name (datagram sockets).
    pub name: Option<UnixName>,
    /// Its inode, if descriptors wait in it: by this the object "in-flight" calls it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inode: Option<u32>,
    /// Who its peer is (SO_PEERCRED).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub peer: Option<Identity>,
    /// The name of the server by which it was accepted. Empty: it was not.
    #[serde(with = "serde_bytes", skip_serializing_if = "Vec::is_empty")]
    pub server: Vec<u8>,
}

impl UnixPair {
    /// Collects both ends; an end without a holder was closed.
    pub fn collect(
        cx: &mut Collector<'_>,
        socket: SocketType,
        ends: [Option<(Holder, u32)>; 2],
        diag: &UnixDiag,
    ) -> Result<UnixPair> {
        let mut collect = |end: Option<(Holder, u32)>| {
            end.map(|(holder, inode)| UnixEnd::collect(cx, socket, &holder, inode, diag)).transpose()
        };
        let [a, b] = ends.map(&mut collect);
        let pair = UnixPair { socket, ends: [a?, b?] };
        for (own, other) in [(0, 1), (1, 0)] {
            let (Some(end), Some((holder, _))) = (&pair.ends[own], ends[own]) else { continue };
            let refuse =
                |reason: &str| holder.refuse_for_now(reason, "let the program receive it, or try again at a quieter moment");
            let peer = pair.ends[other].as_ref().and_then(|end| end.name.as_ref()).map_or(&[][..], |name| &name.address);
            if end.queue.iter().any(|message| message.from != peer) {
                return refuse("holds a message that others have sent");
            }
            if let (true, Some((sender, _))) = (socket.kind != libc::SOCK_STREAM, ends[other])
                && unix_queue::hides_empty(sender.duplicate()?.as_fd(), socket.kind, &end.queue)?
            {
                return refuse("holds an empty message, which the kernel shows only once");
            }
        }
        Ok(pair)
    }

    /// Makes the pair again. An end that was closed is closed, at the latest when its messages were sent.
    pub fn make(self, cx: &mut Restorer<'_>) -> Result<[Option<OwnedFd>; 2]> {
        if self.socket.domain != libc::AF_UNIX {
            return Err(Error::Restart(format!("the image holds {} as a pair of unix sockets", self.socket)));
        }
        let doing = || "cannot make a pair of unix sockets again";
        let fds = unix_peer::pair(cx, self.socket, self.told())?;
        for (end, fd) in self.ends.iter().zip(&fds) {
            if let Some(name) = end.as_ref().and_then(|end| end.name.as_ref()) {
                name.bind(fd.as_fd(), |_| Ok(()))?;
            }
        }
        let open = [0, 1].map(|end| self.ends[end].is_some());
        if self.is_laden() {
            let [a, b] = [fds[0].try_clone().doing(doing)?, fds[1].try_clone().doing(doing)?];
            cx.when_open(move |flights| self.fill([a.as_fd(), b.as_fd()], flights));
        } else {
            self.fill([fds[0].as_fd(), fds[1].as_fd()], &Flights::default())?;
        }
        let [a, b] = fds;
        Ok([open[0].then_some(a), open[1].then_some(b)])
    }

    /// What the ends tell of each other.
    pub fn told(&self) -> [End<'_>; 2] {
        [0, 1].map(|end| {
            self.ends[end].as_ref().map_or_else(End::default, |end| End { peer: end.peer.as_ref(), name: &end.server })
        })
    }

    /// Is there more in its queues than bytes?
    pub fn is_laden(&self) -> bool {
        self.ends.iter().flatten().any(|end| end.queue.iter().any(Message::is_laden))
    }

    fn fill(&self, fds: [BorrowedFd<'_>; 2], flights: &Flights<'_>) -> Result<()> {
        for (own, other) in [(0, 1), (1, 0)] {
            let Some(end) = &self.ends[own] else { continue };
            unix_queue::fill(fds[other], &[], &end.queue, end.inode.map_or(&[], |inode| flights.to(inode)))?;
            if end.reset && self.ends[other].is_none() {
                // Closing an end that has not received everything resets the other.
                raw::send_now(fds[own], b"?").doing(|| "cannot make a pair of unix sockets again")?;
            }
        }
        for (end, fd) in self.ends.iter().zip(fds) {
            shut_down(fd, end.as_ref().map_or(0, |end| end.shutdown))?;
        }
        Ok(())
    }
}

/// Shuts down what NETLINK_SOCK_DIAG tells is shut down. 1: receiving; 2: sending.
pub fn shut_down(fd: BorrowedFd<'_>, mask: u8) -> Result<()> {
    let how = match mask {
        0 => return Ok(()),
        1 => libc::SHUT_RD,
        2 => libc::SHUT_WR,
        _ => libc::SHUT_RDWR,
    };
    raw::shut_down(fd, how).doing(|| "cannot shut a unix socket down")
}

impl UnixEnd {
    fn collect(cx: &mut Collector<'_>, socket: SocketType, holder: &Holder, inode: u32, diag: &UnixDiag) -> Result<UnixEnd> {
        let doing = || format!("cannot look at the socket {} of pid {}", holder.fd, holder.pid);
        let own = holder.duplicate()?;
        let seen = diag.look(inode).doing(doing)?;
        let state = queue::poll_now(own.as_fd()).doing(doing)?;
        // An end of a stream may have the name of the socket that has accepted it, which is not its own to bind.
        let name = if socket.kind == libc::SOCK_DGRAM { UnixName::collect(cx, holder, own.as_fd())? } else { None };
        let queue = unix_queue::collect(cx, holder, own.as_fd(), inode, (socket.kind, seen.shutdown))?;
        let server = if socket.kind == libc::SOCK_DGRAM { Vec::new() } else { raw::local_address(own.as_fd()).doing(doing)? };
        Ok(UnixEnd {
            peer: peer::of(own.as_fd()).doing(doing)?,
            server: if server.len() > UNNAMED { server } else { Vec::new() },
            inode: queue.iter().any(|message| message.descriptors > 0).then_some(inode),
            queue,
            shutdown: seen.shutdown,
            reset: state.contains(PollFlags::POLLERR),
            name,
        })
    }
}
