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
use super::{Collector, Restorer, tcp_backlog, tcp_ended, tcp_restore, tcp_sockets};
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
            state::CLOSE => unconnected(cx, d, socket)?,
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
            waiting.iter().try_for_each(|&connection| tcp_restore::connect_later(cx, connection))?;
        }
        Ok(fd)
    }

    /// Listens: late, so that nobody can connect to a program that may yet fail to restart.
    fn finish(_cx: &mut Restorer<'_>, fd: BorrowedFd<'_>, record: &TcpRecord) -> Result<()> {
        let TcpState::Listening { backlog, .. } = &record.state else { return Ok(()) };
        with_reuse(fd, record, |fd| raw::listen(fd, i32::try_from(*backlog).unwrap_or(i32::MAX)))
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
    let has_error = ready.contains(PollFlags::POLLERR);
    if !has_error && queue::readable(d.own).doing(|| socket::looking(d))? == 0 {
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

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{SocketAddr, TcpListener, TcpStream};
    use std::os::fd::AsRawFd;
    use std::process::Command;

    use super::super::collector::CollectOptions;
    use super::super::fd_trial::{collect, collect_with, flags, refusal, this_process, wait_for};
    use super::*;

    fn collect_closing(fds: &[BorrowedFd<'_>]) -> super::super::fd_trial::Cut {
        let fds: Vec<i32> = fds.iter().map(|fd| fd.as_raw_fd()).collect();
        collect_with(&CollectOptions { tcp_close: true, ..CollectOptions::default() }, this_process(), &fds).unwrap()
    }

    #[test]
    fn listening_sockets() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let old = TcpListener::bind(address.parse::<SocketAddr>().unwrap()).unwrap();
            old.set_nonblocking(true).unwrap();
            raw::listen(old.as_fd(), 37).unwrap();
            let address = old.local_addr().unwrap();
            let cut = collect(&[old.as_fd()]).unwrap();
            let busy = cut.restore().unwrap_err().to_string();
            assert!(busy.contains("another program") && busy.contains(&address.to_string()), "{busy}");
            let status = flags(&old);
            drop(old);
            let new = cut.restore_soon().remove(0);
            assert_eq!(flags(&new), status);
            let again = collect(&[new.as_fd()]).unwrap();
            assert_eq!(again.record::<TcpRecord>(0), cut.record(0));
            let new = TcpListener::from(new);
            let mut client = TcpStream::connect(address).unwrap();
            wait_for(&new, PollFlags::POLLIN);
            new.set_nonblocking(false).unwrap();
            new.accept().unwrap().0.write_all(b"hello").unwrap();
            let mut text = String::new();
            client.read_to_string(&mut text).unwrap();
            assert_eq!(text, "hello");
            drop((client, new));
            // The other end of an accepted connection keeps the port busy for a while; that is no hindrance.
            cut.restore_soon();
        }
    }

    #[test]
    fn multipath() {
        let old = raw::create(libc::AF_INET, libc::SOCK_STREAM, libc::IPPROTO_MPTCP).unwrap();
        let mut address = raw::local_address(old.as_fd()).unwrap();
        address[4..8].copy_from_slice(&[127, 0, 0, 1]);
        raw::bind(old.as_fd(), &address).unwrap();
        raw::listen(old.as_fd(), 5).unwrap();
        let cut = collect(&[old.as_fd()]).unwrap();
        drop(old);
        let new = cut.restore_soon().remove(0);
        assert_eq!(collect(&[new.as_fd()]).unwrap().record::<TcpRecord>(0), cut.record(0));
    }

    #[test]
    fn bound_or_not() {
        let fresh = raw::create(libc::AF_INET6, libc::SOCK_STREAM, 0).unwrap();
        raw::set_int_option(fresh.as_fd(), libc::SOL_IPV6, libc::IPV6_V6ONLY, 1).unwrap();
        let bound = raw::create(libc::AF_INET, libc::SOCK_STREAM, 0).unwrap();
        raw::bind(bound.as_fd(), &raw::local_address(bound.as_fd()).unwrap()).unwrap();
        let address = raw::local_address(bound.as_fd()).unwrap();
        assert_ne!(address[2..4], [0, 0]);
        let cut = collect(&[fresh.as_fd(), bound.as_fd()]).unwrap();
        drop((fresh, bound));
        let new = cut.restore_soon();
        assert!(socket::is_unbound(&raw::local_address(new[0].as_fd()).unwrap()));
        assert_eq!(raw::local_address(new[1].as_fd()).unwrap(), address);
        assert_eq!(raw::int_option(new[0].as_fd(), libc::SOL_IPV6, libc::IPV6_V6ONLY).unwrap(), 1);
        assert_eq!(raw::int_option(new[1].as_fd(), libc::SOL_SOCKET, libc::SO_REUSEADDR).unwrap(), 0);
    }

    /// Another program has the other end.
    #[test]
    fn connections_to_others() {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(server.local_addr().unwrap()).unwrap();
        let (accepted, _) = server.accept().unwrap();
        let mut other = Command::new("sleep").arg("1000").stdin(OwnedFd::from(accepted)).spawn().unwrap();
        client.set_nodelay(true).unwrap();
        let refused = refusal(&client);
        assert!(refused.contains("--tcp-close") && refused.contains(&server.local_addr().unwrap().to_string()), "{refused}");
        let new = collect_closing(&[client.as_fd()]).restore().unwrap().remove(0);
        wait_for(&new, PollFlags::POLLIN | PollFlags::POLLHUP);
        let mut new = TcpStream::from(new);
        assert!(new.nodelay().unwrap());
        assert_eq!(new.read(&mut [0; 10]).unwrap(), 0);
        assert_eq!(new.write(b"x").unwrap_err().raw_os_error(), Some(libc::EPIPE));
        other.kill().unwrap();
        other.wait().unwrap();
    }

    /// Both ends are here. A queue that is more than the new connection takes at first waits at both of its ends.
    #[test]
    fn connections() {
        if !nix::unistd::geteuid().is_root() {
            return crate::skip::note("connections", "not root");
        }
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(server.local_addr().unwrap()).unwrap();
        let (mut accepted, _) = server.accept().unwrap();
        client.set_nonblocking(true).unwrap();
        let bytes: Vec<u8> = (0..10_000_000u32).flat_map(|n| n.to_be_bytes()).collect();
        let mut sent = 0;
        while let Ok(count) = client.write(&bytes[sent..]) {
            sent += count;
        }
        accepted.write_all(b"back").unwrap();
        client.shutdown(std::net::Shutdown::Write).unwrap();
        let names = (client.local_addr().unwrap(), client.peer_addr().unwrap());
        let cut = collect(&[accepted.as_fd(), client.as_fd()]).unwrap();
        drop((client, accepted));
        let mut new = cut.restore().unwrap().into_iter().map(TcpStream::from);
        let (mut accepted, mut client) = (new.next().unwrap(), new.next().unwrap());
        assert_eq!((client.local_addr().unwrap(), client.peer_addr().unwrap()), names);
        let mut read = Vec::new();
        accepted.read_to_end(&mut read).unwrap();
        assert!(read == bytes[..sent], "{} of {sent} bytes", read.len());
        let mut back = [0; 10];
        assert_eq!(client.read(&mut back).unwrap(), 4);
    }

    #[test]
    fn what_is_left_of_a_connection() {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(server.local_addr().unwrap()).unwrap();
        let (accepted, _) = server.accept().unwrap();
        drop(accepted);
        wait_for(&client, PollFlags::POLLIN);
        client.shutdown(std::net::Shutdown::Both).unwrap();
        wait_for(&client, PollFlags::POLLHUP);
        let mut new = TcpStream::from(collect(&[client.as_fd()]).unwrap().restore().unwrap().remove(0));
        assert_eq!(new.read(&mut [0; 10]).unwrap(), 0);
    }

    #[test]
    fn hostile_records_are_errors() {
        let old = TcpListener::bind("127.0.0.1:0").unwrap();
        let changes: [fn(&mut TcpRecord); 5] = [
            |record| record.local = vec![0; 1000],
            |record| record.local = vec![1],
            |record| record.socket.domain = libc::AF_UNIX,
            |record| record.socket.kind = libc::SOCK_RAW,
            |record| record.socket.protocol = -1,
        ];
        for change in changes {
            let mut cut = collect(&[old.as_fd()]).unwrap();
            cut.edit(0, change);
            assert!(cut.restore().is_err());
        }
    }
}
