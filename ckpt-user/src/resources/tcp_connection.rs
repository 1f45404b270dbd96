//! TCP connections of which both ends are in the cut, or of which one was closed and has sent all that it had to: what waits at each end, and
//! what is on its way between them.
//!
//! What is on its way [`super::tcp_way`] finds out.

use std::ffi::OsString;
use std::os::fd::AsFd;

use nix::poll::PollFlags;
use nix::sys::stat::fstat;
use serde::{Deserialize, Serialize};

use super::collector::ObjectKey;
use super::file::{Descriptor, FdInfo};
use super::holders::Holder;
use super::socket::{self, SocketType};
use super::socket_options::SocketOptions;
use super::tcp_sockets::{self, TcpSockets};
use super::tcp_way::{self, Way};
use super::{Collector, tcp};
use crate::error::{Doing, Error, Refusal, Result};
use crate::ids::ObjRef;
use crate::image::model::Section;
use crate::sys::inet_diag::{Endpoint, InetSocket};
use crate::sys::tcp::{self as raw_tcp, TcpInfo, state};
use crate::sys::{queue, socket as raw};

/// The kind of the object.
pub const KIND: &str = "tcp-connection";
/// The kind of what each of its ends is: objects of their own, since both together may hold more than fits into one.
pub const END: &str = "tcp-end";

/// A connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TcpConnection {
    /// Its two ends, objects of kind "tcp-end".
    pub ends: [ObjRef; 2],
}

/// One end.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TcpEnd {
    /// No process has it any more.
    pub closed: bool,
    /// No process has it yet: it waits to be accepted. Then `received` is sent again by the other end.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub waiting: bool,
    /// IPv4 or IPv6.
    pub socket: SocketType,
    /// Its address, as the kernel's bytes.
    #[serde(with = "serde_bytes")]
    pub local: Vec<u8>,
    /// That of the other end, as it sees it.
    #[serde(with = "serde_bytes")]
    pub peer: Vec<u8>,
    /// What it has received, and its program has not read.
    #[serde(with = "serde_bytes")]
    pub received: Vec<u8>,
    /// What it has been given to send, and the other end has not received.
    #[serde(with = "serde_bytes")]
    pub sent: Vec<u8>,
    /// 1: receives nothing more; 2: sends nothing more.
    pub shutdown: u8,
    /// The other end has broken the connection: the error number (ECONNRESET, EPIPE) of which the program has not been told yet.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub broken: Option<i32>,
    /// The longest segment that it takes.
    pub segment_max: u32,
    /// By how many bits windows are shifted: those that the other end tells, and those that this end tells.
    pub scales: Option<(u8, u8)>,
    /// What has gaps may be acknowledged.
    pub sack: bool,
    /// Segments carry timestamps.
    pub timestamps: bool,
    /// SO_SNDBUF and SO_RCVBUF, which grow by themselves unless they are among the options.
    pub buffers: (u32, u32),
    /// What the program has set.
    pub options: SocketOptions,
}

/// More cannot be in one object.
const BYTES_MAX: usize = 60 << 20;
const ADVICE: &str = "try again at a quieter moment";

/// An end in the cut.
#[derive(Clone, Copy, Debug)]
pub struct Here {
    /// Who has it.
    pub holder: Holder,
}

impl Here {
    /// Lets it be looked at as a descriptor.
    pub fn with<T>(&self, look: impl FnOnce(&Descriptor<'_>) -> Result<T>) -> Result<T> {
        let own = self.holder.duplicate()?;
        let doing = || format!("cannot look at the socket {} of pid {}", self.holder.fd, self.holder.pid);
        let stat = fstat(&own).doing(doing)?;
        let (link, info) = (OsString::from(format!("socket:[{}]", stat.st_ino)), FdInfo::default());
        look(&Descriptor::new((self.holder.pid, self.holder.fd), &link, &info, &stat, own.as_fd()))
    }
}

impl TcpConnection {
    /// Makes an object of a connection, after those of its ends. `inodes`: those of its ends, 0 for one that was closed.
    pub fn intern(cx: &mut Collector<'_>, key: ObjectKey, inodes: [u64; 2], ends: &[TcpEnd; 2]) -> Result<ObjRef> {
        cx.intern(key, |cx, _| {
            let mut intern = |own: usize| {
                let key = ObjectKey::Inode(END, inodes[own], inodes[1 - own]);
                cx.intern(key, |_, _| Ok(Section::encode(END, &ends[own])?))
            };
            Ok(Section::encode(KIND, &TcpConnection { ends: [intern(0)?, intern(1)?] })?)
        })
    }
}

impl TcpEnd {
    /// The ends of a connection: of `one`, and of the other end if somebody has it. Where it was closed, `rest` is what the kernel keeps of it.
    pub fn both(
        cx: &mut Collector<'_>,
        one: &Descriptor<'_>,
        other: Option<&Here>,
        rest: Option<&InetSocket>,
    ) -> Result<[TcpEnd; 2]> {
        let Some(other) = other else {
            let mut end = TcpEnd::collect(cx, one)?;
            let mut closed = end.closed_peer();
            if cx.is_running {
                return Ok([end, closed]);
            }
            if queue::unreceived(one.own).doing(|| socket::looking(one))? > 0 {
                return refuse(one, "is a TCP connection that the other program has closed, with bytes on their way to it");
            }
            let mut way = match rest {
                Some(rest) if rest.sent > 0 && !tcp_way::has_all(one)? => Way::of_closed(one, rest)?,
                _ => Way::default(),
            };
            end.received = way.take(cx, one)?;
            closed.sent = way.into_rest();
            return Ok([end, closed]);
        };
        other.with(|other| {
            let mut ends = [TcpEnd::collect(cx, one)?, TcpEnd::collect(cx, other)?];
            if cx.is_running {
                return Ok(ends);
            }
            let mut ways = [Way::of(one, &ends[0])?, Way::of(other, &ends[1])?];
            ends[1].received = ways[0].take(cx, other)?;
            ends[0].received = ways[1].take(cx, one)?;
            let [there, back] = ways.map(Way::into_rest);
            (ends[0].sent, ends[1].sent) = (there, back);
            check_room(one, &ends)?;
            Ok(ends)
        })
    }

    /// All but what it has received and sent.
    pub fn collect(cx: &mut Collector<'_>, d: &Descriptor<'_>) -> Result<TcpEnd> {
        let doing = || socket::looking(d);
        let socket = d.socket.ok_or_else(|| Error::Unexpected(format!("descriptor {} of pid {} is no socket", d.fd, d.pid)))?;
        socket::check_namespace(cx, d, socket)?;
        let info = raw_tcp::info(d.own).doing(doing)?;
        check(cx, d, socket, &info)?;
        let option = |name| raw::int_option(d.own, libc::SOL_SOCKET, name).doing(doing);
        let (local, peer) = tcp_sockets::addresses(d)?;
        let mut options = SocketOptions::collect(cx, d, socket)?;
        tcp::leave_out_what_was_agreed_on(&mut options);
        let ends = Endpoint::of(&local).zip(Endpoint::of(&peer));
        let all = TcpSockets::of(cx)?;
        let seen = ends.and_then(|(from, to)| all.get(from, to).first());
        // The end of what comes in, too, has it receive nothing more.
        let receives_nothing = seen.is_some_and(|seen| seen.shutdown & 1 != 0 && !state::has_all(seen.state));
        Ok(TcpEnd {
            socket,
            local,
            peer,
            shutdown: u8::from(receives_nothing) | u8::from(state::has_finished(info.state)) << 1,
            segment_max: info.segment_max,
            scales: info.scales,
            sack: info.sack,
            timestamps: info.timestamps,
            buffers: (option(libc::SO_SNDBUF)? as u32, option(libc::SO_RCVBUF)? as u32),
            options,
            ..TcpEnd::default()
        })
    }

    /// The other end, which was closed.
    pub fn closed_peer(&self) -> TcpEnd {
        TcpEnd {
            closed: true,
            socket: self.socket,
            local: self.peer.clone(),
            peer: self.local.clone(),
            shutdown: 3,
            segment_max: self.segment_max,
            scales: self.scales.map(|(theirs, ours)| (ours, theirs)),
            sack: self.sack,
            timestamps: self.timestamps,
            ..TcpEnd::default()
        }
    }
}

/// Refuses what does not fit into an object.
pub fn check_room(d: &Descriptor<'_>, ends: &[TcpEnd; 2]) -> Result<()> {
    match ends.iter().map(|end| end.received.len() + end.sent.len()).find(|bytes| *bytes > BYTES_MAX) {
        None => Ok(()),
        Some(bytes) => refuse(
            d,
            &format!("is a TCP connection with {bytes} bytes on their way at one end, which is more than ckpt can save"),
        ),
    }
}

/// Refuses a connection for the moment.
pub fn refuse<T>(d: &Descriptor<'_>, reason: &str) -> Result<T> {
    let (reason, advice) = (reason.to_owned(), ADVICE.to_owned());
    Err(Error::Refused(Refusal { pid: d.pid, object: socket::name(d), reason, advice, passing: true }))
}

/// Refuses what there is beside bytes.
fn check(cx: &mut Collector<'_>, d: &Descriptor<'_>, socket: SocketType, info: &TcpInfo) -> Result<()> {
    let doing = || socket::looking(d);
    let refuse_for_good =
        |reason: String| cx.refuse(d.pid, socket::name(d), reason, "use --tcp-close, or let the program close it");
    if socket.protocol == libc::IPPROTO_MPTCP {
        return refuse_for_good("is an MPTCP connection, which ckpt cannot save".to_owned());
    }
    let upper = raw_tcp::upper_protocol(d.own).doing(doing)?;
    if !upper.is_empty() {
        let upper = String::from_utf8_lossy(&upper);
        return refuse_for_good(format!(
            "is a TCP connection in which the kernel itself speaks {upper} (TCP_ULP), which ckpt cannot save"
        ));
    }
    for (option, name) in [(libc::SO_ZEROCOPY, "MSG_ZEROCOPY"), (libc::SO_TIMESTAMPING, "SO_TIMESTAMPING")] {
        // Notes of what was sent are counted from the first byte, and a restart could not go on.
        if raw::int_option(d.own, libc::SOL_SOCKET, option).is_ok_and(|value| value != 0) {
            return refuse_for_good(format!(
                "is a TCP connection whose program is told of what was sent ({name}), which ckpt cannot save"
            ));
        }
    }
    if raw_tcp::is_in_repair(d.own).doing(doing)? {
        return refuse_for_good("is a TCP connection that is just being made by somebody (TCP_REPAIR)".to_owned());
    }
    if matches!(info.state, state::SYN_SENT | state::SYN_RECV) {
        return refuse(d, "is a TCP connection that is just being made");
    }
    let ready = queue::poll_now(d.own).doing(doing)?;
    if ready.contains(PollFlags::POLLPRI) {
        return refuse(d, "is a TCP connection with urgent data that the program has not received yet");
    }
    if ready.contains(PollFlags::POLLERR) {
        return refuse(d, "is a TCP connection with an error, or a note of what was sent, that the program has not received yet");
    }
    let (local, peer) = tcp_sockets::addresses(d)?;
    let ends = Endpoint::of(&local).zip(Endpoint::of(&peer));
    let all = TcpSockets::of(cx)?;
    let is_signed = ends.is_some_and(|(from, to)| all.get(from, to).iter().any(|seen| seen.is_signed));
    if is_signed || raw_tcp::has_keys(d.own).doing(doing)? {
        let advice = "use --tcp-close, or let the program close it";
        return cx.refuse(
            d.pid,
            socket::name(d),
            "is a TCP connection with signed segments (TCP_MD5SIG, TCP-AO), which ckpt cannot save",
            advice,
        );
    }
    Ok(())
}
