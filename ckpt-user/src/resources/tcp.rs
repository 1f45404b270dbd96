//! TCP (and MPTCP) sockets: those that listen, those that are not connected, bound or not, and connections within the cut
//! ([`super::tcp_connection`]).
//!
//! Of a connection that leads out of the cut, an image would hold only one end. It is refused by name, or (`--tcp-close`) comes back as a
//! connection that the other end has closed: reads find the end of the stream, writes EPIPE, poll a hang-up.

use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

use nix::poll::PollFlags;
use serde::{Deserialize, Serialize};

use super::collector::ObjectKey;
use super::file::{Descriptor, FileKind, OpenFile};
use super::socket::{self, SocketType};
use super::socket_options::SocketOptions;
use super::tcp_connection::{self, Here, TcpConnection, TcpEnd};
use super::tcp_sockets::{Other, TcpSockets};
use super::{Collector, Restorer, reuseport, tcp_backlog, tcp_ended, tcp_restore, tcp_sockets};
use crate::error::{Doing, Error, Result};
use crate::ids::ObjRef;
use crate::sys::inet_diag::Endpoint;
use crate::sys::tcp::{self as raw_tcp, TcpInfo, state};
use crate::sys::{queue, socket as raw};

/// See the module.
#[derive(Debug)]
pub struct Tcp;

/// The state of a TCP socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TcpRecord {
    /// IPv4 or IPv6, TCP or MPTCP.
    pub socket: SocketType,
    /// What it was doing.
    pub state: TcpState,
    /// The address it is bound to, as the kernel's bytes. Empty: none, or the connection has it.
    #[serde(with = "serde_bytes")]
    pub local: Vec<u8>,
    /// What the program has set; of an end of a connection, the connection has it.
    #[serde(default)]
    pub options: SocketOptions,
}

/// What a TCP socket was doing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TcpState {
    /// Nothing yet.
    Unconnected,
    /// It listens, with this many connections waiting at most.
    Listening {
        /// As listen(2) took it.
        backlog: u32,
        /// Those that wait to be accepted, in order: objects of kind "tcp-connection".
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        waiting: Vec<ObjRef>,
    },
    /// It was connected, or tried to be.
    Closed,
    /// It is an end of a connection within the cut.
    Connected {
        /// The connection, an object of kind "tcp-connection".
        connection: ObjRef,
        /// Which end: 0 or 1.
        end: u8,
    },
}

impl FileKind for Tcp {
    const KIND: &'static str = "tcp";
    type Record = TcpRecord;

    fn matches(d: &Descriptor<'_>) -> bool {
        let tcp = [libc::IPPROTO_TCP, libc::IPPROTO_MPTCP];
        d.socket.is_some_and(|s| s.is_inet() && s.kind == libc::SOCK_STREAM && tcp.contains(&s.protocol))
    }

    fn collect(cx: &mut Collector<'_>, d: &Descriptor<'_>) -> Result<TcpRecord> {
        let socket = d.socket.ok_or_else(|| Error::Unexpected(format!("descriptor {} of pid {} is no socket", d.fd, d.pid)))?;
        socket::check_namespace(cx, d, socket)?;
        let info = raw_tcp::info(d.own).doing(|| socket::looking(d))?;
        let state = match info.state {
            state::LISTEN => {
                reuseport::check(cx, d)?;
                check_keys(cx, d)?;
                let waiting = match info.waiting {
                    0 => Vec::new(),
                    count => match tcp_backlog::collect(cx, d, count) {
                        Err(Error::Refused(refusal)) if cx.options.tcp_close && cx.options.last_try => {
                            tracing::info!("saved without those that wait: {refusal}");
                            Vec::new()
                        }
                        other => other?,
                    },
                };
                TcpState::Listening { backlog: info.backlog, waiting }
            }
            state::CLOSE => {
                check_keys(cx, d)?;
                unconnected(cx, d, socket)?
            }
            _ => connected(cx, d, socket, &info)?,
        };
        if let TcpState::Connected { .. } = state {
            return Ok(TcpRecord { socket, state, local: Vec::new(), options: SocketOptions::default() });
        }
        let local = raw::local_address(d.own).doing(|| socket::looking(d))?;
        let local = if state == TcpState::Closed || socket::is_unbound(&local) { Vec::new() } else { local };
        let mut options = SocketOptions::collect(cx, d, socket)?;
        if state == TcpState::Closed {
            leave_out_what_was_agreed_on(&mut options);
        }
        Ok(TcpRecord { socket, state, local, options })
    }

    fn restore(cx: &mut Restorer<'_>, _common: &OpenFile, record: &TcpRecord) -> Result<OwnedFd> {
        if !record.socket.is_inet() || record.socket.kind != libc::SOCK_STREAM {
            return Err(Error::Restart(format!("the image holds {} as a TCP socket", record.socket)));
        }
        if let TcpState::Connected { connection, end } = record.state {
            let made = cx.shared(connection, |cx| tcp_restore::make(cx, connection))?;
            let fd = made.get_mut(usize::from(end)).and_then(Option::take);
            return fd.ok_or_else(|| Error::Restart(format!("the image uses an end of the connection {connection} twice")));
        }
        let fd = record.socket.create()?;
        record.options.restore(fd.as_fd())?;
        if !record.local.is_empty() {
            with_reuse(fd.as_fd(), record, |fd| raw::bind(fd, &record.local))?;
        }
        if record.state == TcpState::Closed {
            // It says that the socket is not connected, and shuts it down all the same.
            match raw::shut_down(fd.as_fd(), libc::SHUT_RDWR) {
                Err(error) if error.raw_os_error() == Some(libc::ENOTCONN) => {}
                other => other.doing(|| "cannot shut a socket down")?,
            }
        }
        if let TcpState::Listening { waiting, .. } = &record.state {
            waiting.iter().try_for_each(|&connection| tcp_restore::connect_later(cx, connection, fd.as_fd()))?;
        }
        Ok(fd)
    }

    /// Listens: late, so that nobody can connect to a program that may yet fail to restart.
    fn finish(cx: &mut Restorer<'_>, fd: BorrowedFd<'_>, record: &TcpRecord) -> Result<()> {
        let TcpState::Listening { backlog, .. } = &record.state else { return Ok(()) };
        with_reuse(fd, record, |fd| raw::listen(fd, i32::try_from(*backlog).unwrap_or(i32::MAX)))?;
        cx.groups.add(fd)
    }
}

/// Of what is or was a connection, these tell what the two ends have agreed on, or where the last segment came in; and of the rest, one is only for
/// connections to come.
pub fn leave_out_what_was_agreed_on(options: &mut SocketOptions) {
    const THEIRS: [(i32, i32); 4] = [
        (libc::SOL_TCP, libc::TCP_MAXSEG),
        (libc::SOL_TCP, libc::TCP_WINDOW_CLAMP),
        (libc::SOL_TCP, libc::TCP_FASTOPEN_CONNECT),
        (libc::SOL_SOCKET, libc::SO_INCOMING_CPU),
    ];
    options.set.retain(|o| !THEIRS.contains(&(o.level, o.name)));
}

/// A socket in state CLOSE: new, or what is left of a connection.
fn unconnected(cx: &mut Collector<'_>, d: &Descriptor<'_>, socket: SocketType) -> Result<TcpState> {
    // Only what was connected once is at the end of its stream.
    let ready = queue::poll_now(d.own).doing(|| socket::looking(d))?;
    if !ready.contains(PollFlags::POLLIN) {
        return Ok(TcpState::Unconnected);
    }
    if cx.is_running {
        // What is there to be read is for the freeze to say.
        return Ok(TcpState::Closed);
    }
    let has_error = ready.contains(PollFlags::POLLERR);
    // It counts none where urgent data comes next.
    let is_empty = !ready.contains(PollFlags::POLLPRI) && queue::readable(d.own).doing(|| socket::looking(d))? == 0;
    if !has_error && is_empty {
        return Ok(TcpState::Closed);
    }
    match tcp_ended::collect(cx, d, socket, has_error) {
        Err(Error::Refused(refusal)) if cx.options.tcp_close => {
            tracing::info!("saved without what waits in it: {refusal}");
            Ok(TcpState::Closed)
        }
        other => Ok(TcpState::Connected { connection: other?, end: 1 }),
    }
}

/// Connections that are saved as closed ones, since they cannot be saved otherwise: the inodes of their ends.
#[derive(Debug, Default)]
struct GivenUp(Mutex<HashSet<u64>>);

/// A connection, or an attempt to be one.
fn connected(cx: &mut Collector<'_>, d: &Descriptor<'_>, socket: SocketType, info: &TcpInfo) -> Result<TcpState> {
    let given_up = cx.fact(|_| Ok(GivenUp::default()))?;
    if given_up.0.lock().unwrap_or_else(PoisonError::into_inner).contains(&d.stat.st_ino) {
        return Ok(TcpState::Closed);
    }
    let other = match (info.state, socket.protocol) {
        // Nobody tells who is at the other end.
        (_, libc::IPPROTO_MPTCP) | (state::SYN_SENT | state::SYN_RECV, _) => Other::Outside,
        _ => TcpSockets::of(cx)?.other_end(cx, d, info.state)?,
    };
    match within(cx, d, info, other) {
        Err(Error::Refused(refusal)) if cx.options.tcp_close && (!refusal.passing || cx.options.last_try) => {
            tracing::info!("saved as closed: {refusal}");
            let mut inodes = given_up.0.lock().unwrap_or_else(PoisonError::into_inner);
            inodes.insert(d.stat.st_ino);
            if let Other::Here(_, seen) = other {
                inodes.insert(seen.inode.into());
            }
            Ok(TcpState::Closed)
        }
        other => other,
    }
}

fn within(cx: &mut Collector<'_>, d: &Descriptor<'_>, info: &TcpInfo, other: Other) -> Result<TcpState> {
    let own = d.stat.st_ino;
    let (other, rest, peer) = match other {
        Other::Here(holder, seen) => (Some(Here { holder }), None, u64::from(seen.inode)),
        Other::Closed(rest) => (None, rest, 0),
        Other::NotAccepted => return not_accepted(cx, d),
        Other::Outside => return refuse_connection(cx, d, state::name(info.state)),
        Other::Several => return refuse_connection(cx, d, "one of several that look alike"),
    };
    let (key, end) = (ObjectKey::Inode(tcp_connection::KIND, own.min(peer), own.max(peer)), u8::from(own > peer));
    if let Some(connection) = cx.lookup(&key) {
        return Ok(TcpState::Connected { connection, end });
    }
    let mut ends = TcpEnd::both(cx, d, other.as_ref(), rest.as_ref())?;
    if end == 1 {
        ends.reverse();
    }
    let connection = TcpConnection::intern(cx, key, [own.min(peer), own.max(peer)], &ends)?;
    Ok(TcpState::Connected { connection, end })
}

/// Refuses a socket whose connections to come would be signed. Of one that is bound or new, nobody tells whether it has keys for TCP_MD5SIG.
fn check_keys(cx: &mut Collector<'_>, d: &Descriptor<'_>) -> Result<()> {
    let has_keys = raw_tcp::has_keys(d.own).doing(|| socket::looking(d))? || TcpSockets::of(cx)?.is_signed(d.stat.st_ino);
    if !has_keys {
        return Ok(());
    }
    let reason = "has keys by which the segments of its connections are signed (TCP_MD5SIG, TCP-AO), which ckpt cannot save";
    cx.refuse(d.pid, socket::name(d), reason, "let the program close it")
}

/// A client that waits to be accepted. Its server lists it.
fn not_accepted(cx: &mut Collector<'_>, d: &Descriptor<'_>) -> Result<TcpState> {
    let key = ObjectKey::Inode(tcp_connection::KIND, 0, d.stat.st_ino);
    if let (None, Some(server)) = (cx.lookup(&key), Endpoint::of(&tcp_sockets::addresses(d)?.1)) {
        for holder in TcpSockets::of(cx)?.listeners(cx, d.stat.st_dev, server)? {
            Here { holder }.with(|listener| {
                let count = raw_tcp::info(listener.own).doing(|| socket::looking(listener))?.waiting;
                tcp_backlog::collect(cx, listener, count)
            })?;
        }
    }
    match cx.lookup(&key) {
        Some(connection) => Ok(TcpState::Connected { connection, end: 1 }),
        None if cx.is_running => Ok(TcpState::Unconnected),
        None => tcp_connection::refuse(d, "is a TCP connection that the other program has not accepted yet"),
    }
}

fn refuse_connection<T>(cx: &Collector<'_>, d: &Descriptor<'_>, state: &str) -> Result<T> {
    let address = |bytes: std::io::Result<Vec<u8>>| bytes.map_or("?".to_owned(), |bytes| socket::describe(&bytes));
    let (local, peer) = (address(raw::local_address(d.own)), address(raw::peer_address(d.own)));
    cx.refuse(
        d.pid,
        socket::name(d),
        format!("is a TCP connection from {local} to {peer} ({state}), whose other end is not being checkpointed"),
        "use --tcp-close, which saves such connections as closed ones, checkpoint a process that both ends descend from, or let the program close it",
    )
}

/// Connections may be on its port: those of the image, and what is left of those of the program's earlier life. That must not keep it from
/// coming back.
fn with_reuse(fd: BorrowedFd<'_>, record: &TcpRecord, work: impl Fn(BorrowedFd<'_>) -> std::io::Result<()>) -> Result<()> {
    let reuse = |on| raw::set_int_option(fd, libc::SOL_SOCKET, libc::SO_REUSEADDR, on).doing(|| "cannot set SO_REUSEADDR");
    reuse(1)?;
    let done = match work(fd) {
        // What is left of connections of a program that would not share its port.
        Err(error) if error.raw_os_error() == Some(libc::EADDRINUSE) => match tcp_restore::free_port(&record.local) {
            Ok(()) => work(fd),
            Err(left) => {
                tracing::info!("what is left of connections cannot be taken away: {left}");
                Err(error)
            }
        },
        other => other,
    };
    done.map_err(|error| socket::cannot_bind(&record.local, error))?;
    reuse(i32::from(record.options.is_set(libc::SOL_SOCKET, libc::SO_REUSEADDR)))
}
