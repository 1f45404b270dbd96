//! Connections of unix sockets that the server has not accepted yet.
//!
//! The kernel has made the server's end already, but nobody has a descriptor of it. Who waits, in which order, the kernel tells; what was sent over each
//! connection, and by whom, is read where it lies ([`crate::track::ebpf::unix_waiting`]). Without eBPF only those can be saved over which nothing was sent.
//!
//! At a restart they are made again by [`super::unix_reconnect`].

use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::file::Descriptor;
use super::holders::Holders;
use super::socket::{self, SocketType};
use super::socket_options::SocketOptions;
use super::unix_name::UnixName;
use super::unix_pair::shut_down;
use super::unix_queue::Message;
use super::{Collector, Restorer};
use crate::error::{Doing, Result};
use crate::ids::Pid;
use crate::sys::peer::Identity;
use crate::sys::scm::Credentials;
use crate::sys::unix_diag::UnixDiag;
use crate::sys::{procfs, queue};
use crate::track::ebpf::{UnixArrived, UnixSent, prepare_for_unix, unix_waiting};

/// A socket that is connected to a server which has not accepted it yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    /// What sort of socket it is.
    pub socket: SocketType,
    /// Its inode, by which the listening socket calls it.
    pub inode: u32,
    /// Who has connected it, as far as can be told: the process that has it. The server will take that for its peer (SO_PEERCRED), unless the listening
    /// socket knows better.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<Identity>,
    /// What it is bound to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<UnixName>,
    /// 1: receives nothing more; 2: sends nothing more.
    #[serde(default, skip_serializing_if = "is_open")]
    pub shutdown: u8,
    /// What the program has set.
    #[serde(default)]
    pub options: SocketOptions,
}

fn is_open(shutdown: &u8) -> bool {
    *shutdown == 0
}

/// A connection that waits at a listening socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Arrival {
    /// Nothing was sent over it: the inode of the client's socket.
    Silent(u32),
    /// One that ckpt has looked into.
    Seen(Box<Arrived>),
}

/// What ckpt has seen of a connection.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Arrived {
    /// The inode of the client's socket. 0: it was closed.
    pub client: u32,
    /// Who has connected it.
    pub who: Identity,
    /// The address of a socket that was closed. Empty: it had none.
    #[serde(with = "serde_bytes", skip_serializing_if = "Vec::is_empty")]
    pub name: Vec<u8>,
    /// What the client has sent.
    pub queue: Vec<Message>,
}

const ADVICE: &str = "try again at a quieter moment";

impl Waiting {
    /// A socket whose server is in the cut and will list it ([`of_listener`]). `shutdown`: as NETLINK_SOCK_DIAG tells it.
    pub fn collect(
        cx: &mut Collector<'_>,
        d: &Descriptor<'_>,
        socket: SocketType,
        shutdown: u8,
        diag: &UnixDiag,
    ) -> Result<Waiting> {
        if !has(cx, d, diag)? {
            let reason = "is a connection that the other program has not accepted yet";
            return cx.refuse_for_now(d.pid, socket::name(d), reason, ADVICE);
        }
        let holder = Holders::of(cx)?.holder_of(d);
        let name = UnixName::collect(cx, &holder, d.own)?;
        // Nobody can tell who has connected one that is in flight.
        let client = if cx.pids.contains(&d.pid) { Some(identity_of(d.pid)?) } else { None };
        let options = SocketOptions::collect(cx, d, socket)?;
        Ok(Waiting { socket, inode: d.stat.st_ino as u32, client, name, shutdown, options })
    }

    /// A socket that will be connected later.
    pub fn make(&self, cx: &mut Restorer<'_>) -> Result<OwnedFd> {
        let fd = self.socket.create()?;
        if let Some(name) = self.name.clone() {
            let own = fd.try_clone().doing(|| "cannot duplicate a socket")?;
            cx.defer(move || name.bind(own.as_fd(), |_| Ok(())));
        }
        Ok(fd)
    }

    /// Once it is connected. Some options would have changed how it was connected, and what was sent.
    pub(super) fn complete(&self, fd: BorrowedFd<'_>) -> Result<()> {
        self.options.restore(fd)?;
        shut_down(fd, self.shutdown)
    }
}

fn identity_of(pid: Pid) -> Result<Identity> {
    let status = procfs::status(pid, pid.leader())?;
    let credentials = Credentials { pid: pid.0, uid: status.uids[1], gid: status.gids[1] };
    Ok(Identity { credentials, groups: status.groups })
}

/// Has what looks into connections loaded, if some wait at one of these sockets, so that a freeze need not wait for it.
pub fn prepare(diag: &UnixDiag, mut inodes: impl Iterator<Item = u32>) {
    // What cannot be looked at is told when it is collected.
    if inodes.any(|inode| diag.look(inode).is_ok_and(|seen| seen.listens && seen.queue.0 > 0))
        && let Err(error) = prepare_for_unix()
    {
        tracing::info!("what was sent over unix connections that wait to be accepted cannot be looked at: {error}");
    }
}

/// What waits at a listening socket of this type (SOCK_STREAM, ...), in order. `queue`: how many, and how many may. `can_be_reached`: its name leads to it.
pub fn of_listener(
    cx: &mut Collector<'_>,
    d: &Descriptor<'_>,
    (kind, (count, backlog)): (i32, (u32, u32)),
    can_be_reached: bool,
    diag: &UnixDiag,
) -> Result<Vec<Arrival>> {
    let doing = || socket::looking(d);
    let clients = diag.waiting(d.stat.st_ino as u32).doing(doing)?;
    let all = Holders::of(cx)?;
    let refuse = |why: &str| {
        let reason = format!("has {count} connections that the program has not accepted yet{why}");
        cx.refuse_for_now(d.pid, socket::name(d), reason, ADVICE)
    };
    if clients.iter().any(|&client| client != 0 && all.get(d.stat.st_dev, client.into()).is_empty()) {
        return refuse(", of programs that are not being checkpointed");
    }
    // The kernel lets in one more than it was told.
    if clients.len() != count as usize || count > backlog.saturating_add(1) {
        return refuse(", more than it may have");
    }
    if !can_be_reached {
        return refuse(", and nobody could connect to it again: its file was deleted");
    }
    if cx.is_running {
        return Ok(clients.into_iter().map(Arrival::Silent).collect());
    }
    match unix_waiting(d.own) {
        Ok(arrived) if arrived.len() == clients.len() && diag.waiting(d.stat.st_ino as u32).doing(doing)? == clients => {
            let seen = clients.into_iter().zip(arrived);
            let seen = seen.map(|(client, arrived)| Ok(Arrival::Seen(Box::new(Arrived::new(client, arrived, kind)?))));
            seen.collect::<Result<_, _>>().or_else(refuse)
        }
        Ok(_) => refuse(", and others just come"),
        Err(error) => {
            for &client in &clients {
                let Some(holder) = all.get(d.stat.st_dev, client.into()).first() else {
                    return refuse(&format!(", of clients that are gone, into which ckpt cannot look without eBPF ({error})"));
                };
                if queue::unreceived(holder.duplicate()?.as_fd()).doing(doing)? > 0 {
                    return refuse(&format!(", and what was sent over them ckpt cannot read without eBPF ({error})"));
                }
            }
            Ok(clients.into_iter().map(Arrival::Silent).collect())
        }
    }
}

impl Arrived {
    /// Errors: what cannot be sent again.
    fn new(client: u32, arrived: UnixArrived, kind: i32) -> Result<Arrived, &'static str> {
        let pids = arrived.sent.iter().flat_map(|sent| sent.credentials).chain([arrived.client.credentials]);
        if pids.into_iter().any(|credentials| credentials.pid == 0) {
            return Err(", of programs in another pid namespace");
        }
        if arrived.is_urgent {
            return Err(", and urgent data (MSG_OOB) was sent over them");
        }
        if arrived.sent.iter().any(|sent| sent.has_files) {
            return Err(", and descriptors were sent over them (SCM_RIGHTS)");
        }
        let name = if client == 0 { arrived.name } else { Vec::new() };
        Ok(Arrived { client, who: arrived.client, name, queue: messages(arrived.sent, kind) })
    }
}

/// Bytes of a stream that have one sender come together: the receiver cannot tell them apart.
fn messages(sent: Vec<UnixSent>, kind: i32) -> Vec<Message> {
    let mut messages: Vec<Message> = Vec::new();
    for UnixSent { data, credentials, .. } in sent {
        match messages.last_mut() {
            Some(last) if kind == libc::SOCK_STREAM && last.credentials == credentials => last.data.extend(data),
            _ => messages.push(Message { data, credentials, ..Message::default() }),
        }
    }
    messages
}

/// Does a listening socket of the cut have a connection of this socket that waits?
pub fn has(cx: &mut Collector<'_>, d: &Descriptor<'_>, diag: &UnixDiag) -> Result<bool> {
    Ok(Backlogs::of(cx, d.stat.st_dev, diag)?.clients.contains(&(d.stat.st_ino as u32)))
}

/// Who waits at the listening sockets of the cut.
#[derive(Debug)]
struct Backlogs {
    /// Inodes of clients.
    clients: HashSet<u32>,
}

impl Backlogs {
    fn of(cx: &mut Collector<'_>, device: u64, diag: &UnixDiag) -> Result<Arc<Backlogs>> {
        let all = Holders::of(cx)?;
        cx.fact(|_| {
            let mut clients = HashSet::new();
            for inode in all.inodes(device) {
                let waiting = diag.look(inode as u32).and_then(|seen| match seen.queue {
                    (1.., _) if seen.listens => diag.waiting(inode as u32),
                    _ => Ok(Vec::new()),
                });
                match waiting {
                    Ok(waiting) => clients.extend(waiting.into_iter().filter(|&client| client != 0)),
                    // A socket of another family.
                    Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                    Err(error) => return Err(error).doing(|| "cannot ask the kernel about unix sockets"),
                }
            }
            Ok(Backlogs { clients })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(data: &[u8], pid: i32) -> UnixSent {
        let credentials = Some(Credentials { pid, uid: 0, gid: 0 });
        UnixSent { data: data.to_vec(), credentials, has_files: false }
    }

    #[test]
    fn a_stream_has_no_boundaries_but_those_of_senders() {
        let all = || vec![sent(b"a", 1), sent(b"b", 1), sent(b"c", 2), sent(b"d", 1)];
        let data = |kind| messages(all(), kind).into_iter().map(|message| message.data).collect::<Vec<_>>();
        assert_eq!(data(libc::SOCK_STREAM), [&b"ab"[..], b"c", b"d"]);
        assert_eq!(data(libc::SOCK_SEQPACKET), [&b"a"[..], b"b", b"c", b"d"]);
    }

    #[test]
    fn both_forms_are_read() {
        let queue = messages(vec![sent(b"early", 1)], libc::SOCK_STREAM);
        let seen = Arrived { client: 8, name: b"\x01\0name".to_vec(), queue, ..Arrived::default() };
        let all = vec![Arrival::Silent(7), Arrival::Seen(Box::new(seen))];
        let section = crate::image::model::Section::encode("x", &all).unwrap();
        assert_eq!(section.decode::<Vec<Arrival>>().unwrap(), all);
        let section = crate::image::model::Section::encode("x", &[7u32]).unwrap();
        assert_eq!(section.decode::<Vec<Arrival>>().unwrap(), [Arrival::Silent(7)]);
    }

    #[test]
    fn what_cannot_be_sent_again() {
        let client = Identity { credentials: Credentials { pid: 1, uid: 0, gid: 0 }, groups: Vec::new() };
        let good = UnixArrived { client, name: b"\x01\0name".to_vec(), sent: vec![sent(b"x", 1)], is_urgent: false };
        let new = |arrived: UnixArrived| Arrived::new(0, arrived, libc::SOCK_STREAM);
        assert_eq!(new(good.clone()).unwrap().name, b"\x01\0name");
        assert!(Arrived::new(7, good.clone(), libc::SOCK_STREAM).unwrap().name.is_empty(), "the socket itself has it");
        let foreign = UnixArrived { client: Identity::default(), ..good.clone() };
        let from_a_foreigner = UnixArrived { sent: vec![sent(b"x", 0)], ..good.clone() };
        assert!(
            [foreign, from_a_foreigner].map(new).iter().all(|new| new.as_ref().is_err_and(|why| why.contains("pid namespace")))
        );
        assert!(new(UnixArrived { is_urgent: true, ..good }).is_err());
    }
}
