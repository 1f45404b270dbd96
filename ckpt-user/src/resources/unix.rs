//! Unix sockets: pairs and connections within the cut, listening ones, datagram sockets, and those that are nothing yet.
//!
//! A connection to a program outside of the cut is refused by name, unless it is standard input, output or error: those are taken from
//! whoever runs the restart.

use std::cell::OnceCell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::sync::Arc;

use nix::poll::PollFlags;
use nix::sys::stat::SFlag;
use serde::{Deserialize, Serialize};

use super::collector::ObjectKey;
use super::descriptors::Descriptors;
use super::external::{self, ExternalRecord};
use super::file::{Descriptor, FileKind, OpenFile, Place};
use super::holders::{self, Holder, Holders};
use super::socket::{self, SocketType};
use super::socket_options::SocketOptions;
use super::unix_backlog::{self, Arrival, Waiting};
use super::unix_name::UnixName;
use super::unix_pair::{self, UnixPair, shut_down};
use super::unix_peer;
use super::unix_queue::{self, Message};
use super::unix_senders;
use super::{Collector, Restorer};
use crate::error::{Doing, Error, Result};
use crate::ids::ObjRef;
use crate::image::model::Section;
use crate::sys::peer::{self, Identity};
use crate::sys::unix_diag::{UnixDiag, UnixSocket};
use crate::sys::{queue, socket as raw};
use crate::tracee::batch::Batch;
use crate::tracee::remote::RemoteTask;

/// See the module.
#[derive(Debug)]
pub struct Unix;

/// The state of a unix socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum UnixRecord {
    /// One end of a pair.
    Paired(Paired),
    /// A socket of its own.
    Alone(Box<Alone>),
    /// Connected to a program outside of the cut.
    Outside(ExternalRecord),
    /// Connected to a server in the cut, which has not accepted it yet.
    Waiting(Waiting),
}

/// One end of a pair.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Paired {
    /// The pair, an object of kind "unix-pair".
    pub pair: ObjRef,
    /// Which end: 0 or 1.
    pub end: u8,
    /// What the program has set.
    #[serde(default)]
    pub options: SocketOptions,
}

/// A socket that is not connected, or (datagrams) only in one direction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alone {
    /// What sort of socket it is.
    pub socket: SocketType,
    /// What it is bound to.
    #[serde(default)]
    pub name: Option<UnixName>,
    /// It listens, with this many connections waiting at most.
    #[serde(default)]
    pub backlog: Option<u32>,
    /// It listens, and who connects takes this one for its peer (SO_PEERCRED).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listener: Option<Identity>,
    /// It listens, and these wait to be accepted, in order.
    #[serde(default)]
    pub waiting: Vec<Arrival>,
    /// The address that it is connected to. Empty: none.
    #[serde(default, with = "serde_bytes")]
    pub peer: Vec<u8>,
    /// What waits to be received.
    #[serde(default)]
    pub queue: Vec<Message>,
    /// Its inode, if descriptors wait in it: by this the object "in-flight" calls it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inode: Option<u32>,
    /// 1: receives nothing more; 2: sends nothing more.
    #[serde(default)]
    pub shutdown: u8,
    /// What the program has set.
    #[serde(default)]
    pub options: SocketOptions,
}

/// The length of an address without a name.
const UNNAMED: usize = 2;

impl FileKind for Unix {
    const KIND: &'static str = "unix";
    type Record = UnixRecord;

    fn matches(d: &Descriptor<'_>) -> bool {
        d.socket.is_some_and(|s| s.domain == libc::AF_UNIX)
    }

    fn collect(cx: &mut Collector<'_>, d: &Descriptor<'_>) -> Result<UnixRecord> {
        let socket = d.socket.ok_or_else(|| Error::Unexpected(format!("descriptor {} of pid {} is no socket", d.fd, d.pid)))?;
        socket::check_namespace(cx, d, socket)?;
        let diag = diag(cx)?;
        let seen = look(&diag, d, d.stat.st_ino)?;
        let connected = socket.kind != libc::SOCK_DGRAM;
        match seen.peer {
            None => alone(cx, d, socket, seen, Vec::new()),
            Some(0) if connected && (seen.shutdown != 3 || unix_backlog::has(cx, d, &diag)?) => {
                Ok(UnixRecord::Waiting(Waiting::collect(cx, d, socket, seen.shutdown, &diag)?))
            }
            Some(0) => paired(cx, d, socket, None),
            Some(peer) => {
                let all = Holders::of(cx)?;
                let mutual = connected || peer_of(&diag, d, peer)? == Some(d.stat.st_ino as u32);
                match all.get(d.stat.st_dev, peer.into()).first() {
                    Some(holder) if mutual => paired(cx, d, socket, Some((*holder, peer))),
                    other => {
                        let other = other.copied();
                        one_way(cx, d, socket, seen, mutual, other)
                    }
                }
            }
        }
    }

    fn restore(cx: &mut Restorer<'_>, common: &OpenFile, record: &UnixRecord) -> Result<OwnedFd> {
        match record {
            UnixRecord::Outside(record) => external::restore(cx, common, record),
            UnixRecord::Paired(paired) => {
                let made = cx.shared(paired.pair, |cx| cx.record::<UnixPair>(paired.pair, unix_pair::KIND)?.make(cx))?;
                let fd = made.get_mut(usize::from(paired.end)).and_then(Option::take);
                let fd = fd.ok_or_else(|| Error::Restart(format!("the image uses an end of the pair {} twice", paired.pair)))?;
                let laden = cx.record::<UnixPair>(paired.pair, unix_pair::KIND)?.is_laden();
                set_options(cx, fd.as_fd(), &paired.options, laden)?;
                Ok(fd)
            }
            UnixRecord::Alone(alone) => restore_alone(cx, alone),
            UnixRecord::Waiting(waiting) => waiting.make(cx),
        }
    }

    /// Listens and connects as the task itself: whoever connects to it asks with SO_PEERCRED who it is.
    fn attach(_cx: &mut Restorer<'_>, task: &mut RemoteTask<'_>, at: &Place<'_>, record: &UnixRecord) -> Result<()> {
        let UnixRecord::Alone(alone) = record else { return Ok(()) };
        let fd = at.fd;
        if let Some(backlog) = alone.backlog {
            let listen = |batch: &mut Batch| batch.call(libc::SYS_listen, [fd.into(), backlog.into()]);
            unix_peer::call_as(task, alone.listener.as_ref(), Batch::new(), listen)?
                .doing(|| "cannot listen on a unix socket again")?;
        }
        if !alone.peer.is_empty() {
            unix_peer::connect_as(task, fd, &alone.peer, None)?;
        }
        Ok(())
    }
}

fn diag(cx: &mut Collector<'_>) -> Result<Arc<UnixDiag>> {
    /// To ask for one takes the kernel as long as to tell of some dozens.
    const MANY: usize = 16;
    let all = Descriptors::of(cx)?;
    cx.fact(|_| {
        let sockets = all.iter().filter(|(_, seen)| seen.inode.is_some_and(|inode| inode.kind == SFlag::S_IFSOCK));
        let opened = if sockets.count() > MANY { UnixDiag::open_for_many() } else { UnixDiag::open() };
        opened.doing(|| "cannot ask the kernel about unix sockets (NETLINK_SOCK_DIAG)")
    })
}

fn look(diag: &UnixDiag, d: &Descriptor<'_>, inode: u64) -> Result<UnixSocket> {
    diag.look(inode as u32).doing(|| format!("{} (is the kernel's unix_diag module there?)", socket::looking(d)))
}

/// The peer of a peer.
fn peer_of(diag: &UnixDiag, d: &Descriptor<'_>, inode: u32) -> Result<Option<u32>> {
    match diag.look(inode) {
        Ok(seen) => Ok(seen.peer),
        // It lives in another network namespace.
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error).doing(|| socket::looking(d)),
    }
}

/// An end of a pair, whose other end `other` (holder and inode) is in the cut too, or was closed.
fn paired(cx: &mut Collector<'_>, d: &Descriptor<'_>, socket: SocketType, other: Option<(Holder, u32)>) -> Result<UnixRecord> {
    let inode = d.stat.st_ino as u32;
    let own = (Holders::of(cx)?.holder_of(d), inode);
    let options = SocketOptions::collect(cx, d, socket)?;
    let end = u8::from(other.is_some_and(|(_, peer)| peer < inode));
    let ends = if end == 0 { [Some(own), other] } else { [other, Some(own)] };
    let inodes = ends.map(|end| end.map_or(0, |(_, inode)| u64::from(inode)));
    let diag = diag(cx)?;
    let pair = cx.intern(ObjectKey::Inode(unix_pair::KIND, inodes[0], inodes[1]), |cx, _| {
        Ok(Section::encode(unix_pair::KIND, &UnixPair::collect(cx, socket, ends, &diag)?)?)
    })?;
    Ok(UnixRecord::Paired(Paired { pair, end, options }))
}

/// Connected to a socket that is not connected to this one, or that is outside.
fn one_way(
    cx: &mut Collector<'_>,
    d: &Descriptor<'_>,
    socket: SocketType,
    seen: UnixSocket,
    mutual: bool,
    other: Option<Holder>,
) -> Result<UnixRecord> {
    let peer = raw::peer_address(d.own).doing(|| socket::looking(d))?;
    if !mutual && peer.len() > UNNAMED {
        // The name may count from a directory.
        let name = other.map(|other| UnixName::collect(cx, &other, other.duplicate()?.as_fd())).transpose()?.flatten();
        let peer = name.map_or(peer, |name| name.reachable_at());
        return alone(cx, d, socket, seen, peer);
    }
    let all = Holders::of(cx)?;
    if all.in_flight().get(d.stat.st_ino as u32).is_some() {
        let reason = "holds descriptors that a program has sent which is not being checkpointed";
        return all.holder_of(d).refuse_for_now(reason, "let the program receive it, or try again at a quieter moment");
    }
    if (0..=2).contains(&d.fd) {
        return Ok(UnixRecord::Outside(holders::outside(cx, d, "socket")?));
    }
    let name = if peer.len() > UNNAMED { format!(" ({})", socket::describe(&peer)) } else { String::new() };
    cx.refuse(
        d.pid,
        socket::name(d),
        format!("is connected to a program that is not being checkpointed{name}"),
        "checkpoint a process that both descend from, or let the program close it",
    )
}

fn alone(cx: &mut Collector<'_>, d: &Descriptor<'_>, socket: SocketType, seen: UnixSocket, peer: Vec<u8>) -> Result<UnixRecord> {
    let listens = raw::int_option(d.own, libc::SOL_SOCKET, libc::SO_ACCEPTCONN).doing(|| socket::looking(d))? != 0;
    let (waiting, backlog) = seen.queue;
    let diag = diag(cx)?;
    let holder = Holders::of(cx)?.holder_of(d);
    let name = UnixName::collect(cx, &holder, d.own)?;
    let can_be_reached = name.as_ref().is_some_and(UnixName::can_be_reached);
    let waiting = match waiting {
        1.. if listens => unix_backlog::of_listener(cx, d, (socket.kind, seen.queue), can_be_reached, &diag)?,
        _ => Vec::new(),
    };
    let messages = if socket.kind == libc::SOCK_DGRAM {
        unix_queue::collect(cx, &holder, d.own, d.stat.st_ino as u32, (socket.kind, seen.shutdown))?
    } else {
        Vec::new()
    };
    let ready = queue::poll_now(d.own).doing(|| socket::looking(d))?.contains(PollFlags::POLLIN);
    if socket.kind == libc::SOCK_DGRAM && ready && messages.is_empty() && seen.shutdown == 0 {
        let reason = "holds an empty message, which the kernel shows only once";
        return holder.refuse_for_now(reason, "let the program receive it, or try again at a quieter moment");
    }
    let have_names = messages.iter().any(|message| !message.from.is_empty());
    let again = !have_names || (can_be_reached && unix_senders::are_there(cx, d, &messages, &diag)?);
    if !again || (name.is_none() && !messages.is_empty()) {
        let reason = "holds messages of other sockets that could not send them again, which the program has not received yet";
        return holder.refuse_for_now(reason, "try again at a quieter moment");
    }
    let inode = messages.iter().any(|message| message.descriptors > 0).then_some(d.stat.st_ino as u32);
    let options = SocketOptions::collect(cx, d, socket)?;
    let backlog = listens.then_some(backlog);
    let listener = if listens { peer::of(d.own).doing(|| socket::looking(d))? } else { None };
    Ok(UnixRecord::Alone(Box::new(Alone {
        socket,
        name,
        backlog,
        listener,
        waiting,
        peer,
        queue: messages,
        inode,
        shutdown: seen.shutdown,
        options,
    })))
}

fn restore_alone(cx: &mut Restorer<'_>, alone: &Alone) -> Result<OwnedFd> {
    if alone.socket.domain != libc::AF_UNIX {
        return Err(Error::Restart(format!("the image holds {} as a unix socket", alone.socket)));
    }
    let fd = alone.socket.create()?;
    let Some(name) = alone.name.clone() else {
        alone.options.restore(fd.as_fd())?;
        shut_down(fd.as_fd(), alone.shutdown)?;
        return Ok(fd);
    };
    if alone.socket.kind == libc::SOCK_DGRAM {
        cx.senders.add(&name.address, fd.as_fd())?;
    }
    // These are sent when all is there that they need.
    let late = alone.queue.iter().any(|message| message.is_laden() || !message.from.is_empty());
    if !late {
        alone.options.restore(fd.as_fd())?;
    }
    let duplicate = || fd.try_clone().doing(|| "cannot duplicate a socket");
    let (kind, queue, shutdown) = (alone.socket.kind, alone.queue.clone(), alone.shutdown);
    // A socket file of the program's earlier life is replaced only once all else is found to fit.
    let own = duplicate()?;
    if !late {
        cx.defer(move || {
            name.bind(own.as_fd(), |address| {
                if queue.is_empty() { Ok(()) } else { unix_queue::fill(sender_to(address, kind)?.as_fd(), &[], &queue, &[]) }
            })?;
            shut_down(own.as_fd(), shutdown)
        });
        return Ok(fd);
    }
    // Its name may lead nowhere any more by the time when the messages are sent.
    let sender = Rc::new(OnceCell::new());
    let connected = sender.clone();
    let reachable_at = name.reachable_at();
    cx.defer(move || {
        name.bind(own.as_fd(), |address| {
            // It is set only here.
            let _ = connected.set(sender_to(address, kind)?);
            Ok(())
        })
    });
    let (own, inode, options) = (duplicate()?, alone.inode, alone.options.clone());
    let (senders, address) = (cx.senders.clone(), reachable_at);
    cx.when_open(move |flights| {
        let sender =
            sender.get().ok_or_else(|| Error::Unexpected("a unix socket was not bound before it is filled".to_owned()))?;
        senders.fill(&address, sender.as_fd(), &queue, inode.map_or(&[], |inode| flights.to(inode)))?;
        options.restore(own.as_fd())?;
        shut_down(own.as_fd(), shutdown)
    });
    Ok(fd)
}

/// A socket without a name from which messages go to an address.
fn sender_to(address: &[u8], kind: i32) -> Result<OwnedFd> {
    let doing = || format!("cannot send to {}", socket::describe(address));
    let sender = raw::create(libc::AF_UNIX, kind, 0).doing(doing)?;
    raw::connect(sender.as_fd(), address).doing(doing)?;
    Ok(sender)
}

/// Gives a socket its options: `later` if it is filled later, since some would change what is sent to it.
fn set_options(cx: &mut Restorer<'_>, fd: BorrowedFd<'_>, options: &SocketOptions, later: bool) -> Result<()> {
    if !later {
        return options.restore(fd);
    }
    let (own, options) = (fd.try_clone_to_owned().doing(|| "cannot duplicate a socket")?, options.clone());
    cx.when_open(move |_| options.restore(own.as_fd()));
    Ok(())
}
