//! TCP connections made again, both ends at once, with nothing sent between them (TCP_REPAIR): the same addresses, what each had received, and
//! then what was on its way.
//!
//! Until everything is there, both ends stay in a state in which closing them leaves no trace. Then they come alive: they tell each other how much
//! they take, what was on its way is sent again, and halves that were shut down are shut down.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::poll::{PollFd, PollFlags, poll};

use super::Restorer;
use super::socket;
use super::tcp_connection::{self, TcpConnection, TcpEnd};
use crate::error::{Doing, Error, Result};
use crate::ids::ObjRef;
use crate::sys::inet_diag::{Endpoint, InetDiag, InetSocket};
use crate::sys::socket as raw;
use crate::sys::tcp::{self as raw_tcp, TcpInfo, state};

/// What the kernel charges for bytes that wait beside the bytes themselves: as much again, and this.
const OVERHEAD: usize = 64 << 10;

/// Makes both ends. `None`: that end was closed. Instead of one that waits to be accepted, a duplicate of the other.
pub fn make(cx: &mut Restorer<'_>, connection: ObjRef) -> Result<[Option<OwnedFd>; 2]> {
    let ends = ends_of(cx, connection)?;
    if let Some(at) = ends.iter().position(|end| end.waiting) {
        let fd = ends[1 - at].bound()?;
        // Connecting is for the kernel from here on.
        raw_tcp::end_repair(fd.as_fd()).doing(|| format!("cannot make {} again", ends[1 - at].name()))?;
        let mut made = [None, None];
        made[1 - at] = duplicate(&fd, &ends[1 - at])?;
        made[at] = Some(fd);
        return Ok(made);
    }
    make_both(cx, ends)
}

fn ends_of(cx: &Restorer<'_>, connection: ObjRef) -> Result<[TcpEnd; 2]> {
    let TcpConnection { ends: [one, other] } = cx.record(connection, tcp_connection::KIND)?;
    let ends: [TcpEnd; 2] = [cx.record(one, tcp_connection::END)?, cx.record(other, tcp_connection::END)?];
    for end in &ends {
        if !end.socket.is_inet() || end.socket.kind != libc::SOCK_STREAM || end.socket.protocol == libc::IPPROTO_MPTCP {
            return Err(Error::Restart(format!("the image holds {} as an end of a TCP connection", end.socket)));
        }
    }
    Ok(ends)
}

fn duplicate(fd: &OwnedFd, end: &TcpEnd) -> Result<Option<OwnedFd>> {
    (!end.closed).then(|| fd.try_clone().doing(|| "cannot duplicate a socket")).transpose()
}

/// Has a client connect to the listening socket at which it waits, once that listens.
pub fn connect_later(cx: &mut Restorer<'_>, connection: ObjRef, listener: BorrowedFd<'_>) -> Result<()> {
    let lost = || Error::Restart(format!("the image has no connection {connection} that waits to be accepted, or has it twice"));
    let ends = ends_of(cx, connection)?;
    let at = ends.iter().position(|end| end.waiting).ok_or_else(lost)?;
    let made = cx.shared(connection, |cx| make(cx, connection))?;
    let fd = made[at].take().ok_or_else(lost)?;
    let [mut client, server] = ends;
    let server = if at == 0 { std::mem::replace(&mut client, server) } else { server };
    let (groups, listener) = (cx.groups.clone(), listener.try_clone_to_owned().doing(|| "cannot duplicate a socket")?);
    cx.when_open(move |_| {
        groups.choosing(listener.as_fd(), || client.connect(fd.as_fd()))?;
        let sent = [&server.received[..], &client.sent].concat();
        TcpEnd { sent, ..client }.send(fd.as_fd())
    });
    Ok(())
}

fn make_both(cx: &mut Restorer<'_>, ends: [TcpEnd; 2]) -> Result<[Option<OwnedFd>; 2]> {
    let starts = [(); 2].map(|()| RandomState::new().build_hasher().finish() as u32);
    let made = [0, 1].map(|n| {
        let [end, other] = [n, 1 - n].map(|n| &ends[n]);
        // What the other end has received already was sent before.
        end.make(starts[n].wrapping_add(other.received.len() as u32), starts[1 - n], other)
    });
    let [a, b] = made;
    let (a, b) = (a?, b?);
    let open = [duplicate(&a, &ends[0])?, duplicate(&b, &ends[1])?];
    cx.when_open(move |_| {
        let fds = [a, b];
        let alive = ends.iter().zip(&fds);
        alive.clone().try_for_each(|(end, fd)| end.come_alive(fd.as_fd()))?;
        // Those that are closed end with that.
        alive.clone().try_for_each(|(end, fd)| end.send(fd.as_fd()))?;
        [(0, 1), (1, 0)].into_iter().try_for_each(|(own, other)| ends[own].be_broken_by(fds[other].as_fd()))
    });
    Ok(open)
}

impl TcpEnd {
    fn name(&self) -> String {
        format!("the TCP connection from {} to {}", socket::describe(&self.local), socket::describe(&self.peer))
    }

    fn make(&self, sends: u32, receives: u32, other: &TcpEnd) -> Result<OwnedFd> {
        let doing = || format!("cannot make {} again", self.name());
        let (mut fd, mut freed) = (self.bound()?, false);
        loop {
            raw_tcp::set_numbers(fd.as_fd(), sends, receives).doing(doing)?;
            match raw::connect(fd.as_fd(), &self.peer) {
                Ok(()) => break,
                // What is left of it from its earlier life may be in the way.
                Err(error) if error.raw_os_error() == Some(libc::EADDRNOTAVAIL) && !freed => {
                    self.free()?;
                    (fd, freed) = (self.bound()?, true);
                }
                Err(error) if error.raw_os_error() == Some(libc::EADDRNOTAVAIL) => {
                    let why = format!("{} is there already", self.name());
                    return Err(Error::Restart(format!("{why}, and another program has it: end that, or restart later")));
                }
                other => other.doing(doing)?,
            }
        }
        raw_tcp::set_agreed(fd.as_fd(), &self.agreed(), other.segment_max).doing(doing)?;
        let room = self.received.len().saturating_mul(2).saturating_add(OVERHEAD);
        Buffer::RECEIVING.make_room(fd.as_fd(), room.max(self.buffers.1 as usize)).doing(doing)?;
        raw_tcp::put_received(fd.as_fd(), &self.received, receives.wrapping_add(self.received.len() as u32))
            .doing(|| format!("cannot put {} bytes back into {}", self.received.len(), self.name()))?;
        if !self.closed {
            // What waits may be more than it has room for: then it takes more once some of it was read.
            Buffer::RECEIVING.make_room(fd.as_fd(), self.buffers.1 as usize).doing(doing)?;
        }
        Ok(fd)
    }

    fn bound(&self) -> Result<OwnedFd> {
        let fd = self.socket.create()?;
        self.options.restore(fd.as_fd())?;
        raw_tcp::begin_repair(fd.as_fd()).doing(|| {
            format!(
                "cannot make {} again (TCP_REPAIR); run ckpt as root, or with CAP_NET_ADMIN in this network namespace",
                self.name()
            )
        })?;
        raw::bind(fd.as_fd(), &self.local).map_err(|error| socket::cannot_bind(&self.local, error))?;
        Ok(fd)
    }

    fn agreed(&self) -> TcpInfo {
        TcpInfo { scales: self.scales, sack: self.sack, timestamps: self.timestamps, ..TcpInfo::default() }
    }

    /// Takes away what is left of the connection's earlier life.
    fn free(&self) -> Result<()> {
        let (from, to) = (Endpoint::of(&self.local), Endpoint::of(&self.peer));
        let gone = take_rests_away(|one| [(from, to), (to, from)].contains(&(Some(one.local), Some(one.peer))), |_| false);
        gone.doing(|| format!("cannot take away what is left of {}; it goes by itself within two minutes", self.name()))
    }

    /// Connects it as any program would.
    fn connect(&self, fd: BorrowedFd<'_>) -> Result<()> {
        /// Milliseconds: the server listens, on this machine.
        const PATIENCE: u16 = 10_000;
        let doing = || format!("cannot make {} again", self.name());
        let reuse = self.options.is_set(libc::SOL_SOCKET, libc::SO_REUSEADDR);
        raw::set_int_option(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, reuse.into()).doing(doing)?;
        self.free()?;
        match raw::connect(fd, &self.peer) {
            Err(error) if error.raw_os_error() == Some(libc::EINPROGRESS) => {
                let mut polled = [PollFd::new(fd, PollFlags::POLLOUT)];
                poll(&mut polled, PATIENCE).doing(doing)?;
                // It says whether it is, and why not.
                raw::peer_address(fd).doing(doing).map(drop)
            }
            other => other.doing(doing),
        }
    }

    fn come_alive(&self, fd: BorrowedFd<'_>) -> Result<()> {
        let doing = || format!("cannot bring {} to life", self.name());
        raw_tcp::end_repair(fd).doing(doing)?;
        let reuse = self.options.is_set(libc::SOL_SOCKET, libc::SO_REUSEADDR);
        raw::set_int_option(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, reuse.into()).doing(doing)?;
        self.options.restore_buffer(fd, libc::SO_RCVBUF)
    }

    /// Has the other end break the connection when it is closed, if it had.
    fn be_broken_by(&self, other: BorrowedFd<'_>) -> Result<()> {
        let Some(error) = self.broken else { return Ok(()) };
        let doing = || format!("cannot break {} again", self.name());
        if error == libc::EPIPE {
            // It had told of its end before.
            raw::shut_down(other, libc::SHUT_WR).doing(doing)?;
        }
        raw::set_option(other, libc::SOL_SOCKET, libc::SO_LINGER, bytemuck::bytes_of(&[1i32, 0])).doing(doing)
    }

    /// Sends what was on its way, whatever the size of its buffer.
    fn send(&self, fd: BorrowedFd<'_>) -> Result<()> {
        let doing = || format!("cannot send {} bytes over {} again", self.sent.len(), self.name());
        let room = self.sent.len().saturating_mul(2).saturating_add(OVERHEAD);
        Buffer::SENDING.make_room(fd, room.max(self.buffers.0 as usize)).doing(doing)?;
        let mut rest = &self.sent[..];
        while !rest.is_empty() {
            rest = &rest[raw::send_now(fd, rest).doing(doing)?..];
        }
        if !self.closed {
            Buffer::SENDING.make_room(fd, self.buffers.0 as usize).doing(doing)?;
            self.options.restore_buffer(fd, libc::SO_SNDBUF)?;
        }
        match self.shutdown {
            // Closing it says more.
            _ if self.closed => Ok(()),
            0 => Ok(()),
            1 => raw::shut_down(fd, libc::SHUT_RD),
            2 => raw::shut_down(fd, libc::SHUT_WR),
            _ => raw::shut_down(fd, libc::SHUT_RDWR),
        }
        .doing(|| format!("cannot shut {} down", self.name()))
    }
}

/// Takes away what is left of connections that were closed, from or to a port with this address, of which no program has a descriptor.
pub fn free_port(address: &[u8]) -> std::io::Result<()> {
    let Some(Endpoint { host, port }) = Endpoint::of(address) else { return Ok(()) };
    let is_any = host == [0; 16] || host == IPV4_ANY;
    let is_at = |one: &InetSocket| one.local.port == port && (is_any || one.local.host == host);
    take_rests_away(is_at, |living| living.state == state::LISTEN && is_at(living))
}

/// 0.0.0.0, mapped to IPv6.
const IPV4_ANY: [u8; 16] = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 0];

/// Those of `which`; none, if a program has one of `living`: they may be its own, with what it has sent last, and it is in the way all the same.
fn take_rests_away(which: impl Fn(&InetSocket) -> bool, living: impl Fn(&InetSocket) -> bool) -> std::io::Result<()> {
    let diag = InetDiag::open()?;
    let all = diag.all()?;
    if all.iter().any(|one| one.inode != 0 && living(one)) {
        return Ok(());
    }
    for rest in all.into_iter().filter(|one| one.inode == 0 && state::has_finished(one.state) && which(one)) {
        match diag.destroy(&rest) {
            // It has gone by itself.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            other => other?,
        }
    }
    Ok(())
}

/// A buffer of a socket: its options, beyond the limit of the machine and within, and the bit that keeps its size (SO_BUF_LOCK).
struct Buffer {
    force: i32,
    plain: i32,
    lock: i32,
}

impl Buffer {
    const SENDING: Buffer = Buffer { force: libc::SO_SNDBUFFORCE, plain: libc::SO_SNDBUF, lock: 1 };
    const RECEIVING: Buffer = Buffer { force: libc::SO_RCVBUFFORCE, plain: libc::SO_RCVBUF, lock: 2 };

    /// Gives it a size, which may grow by itself all the same if it could.
    fn make_room(&self, fd: BorrowedFd<'_>, bytes: usize) -> std::io::Result<()> {
        let locks = raw::int_option(fd, libc::SOL_SOCKET, libc::SO_BUF_LOCK);
        // The kernel doubles what it is told.
        let half = i32::try_from(bytes / 2).unwrap_or(i32::MAX / 2);
        match raw::set_int_option(fd, libc::SOL_SOCKET, self.force, half) {
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
                raw::set_int_option(fd, libc::SOL_SOCKET, self.plain, half)?
            }
            other => other?,
        }
        match locks {
            Ok(locks) if locks & self.lock == 0 => raw::set_int_option(fd, libc::SOL_SOCKET, libc::SO_BUF_LOCK, locks),
            // Before Linux 5.14 nobody can say so.
            _ => Ok(()),
        }
    }
}
