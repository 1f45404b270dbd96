//! Connections of unix sockets that the server has not accepted yet, where both ends are in the cut.
//!
//! The kernel has made the server's end already, but nobody has a descriptor of it, so nothing tells what was sent over the connection. One over
//! which nothing was sent is all that a new one would be, and is made again once all processes have their descriptors: by the client, in the
//! order in which they waited. Others are refused, for the moment.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd, RawFd};

use serde::{Deserialize, Serialize};

use super::file::{Descriptor, FileBody, FileKind};
use super::holders::Holders;
use super::socket::{self, SocketType};
use super::socket_options::SocketOptions;
use super::unix::{Alone, Unix, UnixRecord};
use super::unix_peer;
use super::{Collector, Restorer};
use crate::error::{Doing, Error, Result};
use crate::ids::{ObjRef, Pid};
use crate::sys::peer::Identity;
use crate::sys::scm::Credentials;
use crate::sys::unix_diag::UnixDiag;
use crate::sys::{procfs, queue, socket as raw};
use crate::tracee::batch::Batch;
use crate::tracee::remote::RemoteTask;

/// A socket that is connected to a server which has not accepted it yet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    /// What sort of socket it is.
    pub socket: SocketType,
    /// Its inode, by which the listening socket calls it.
    pub inode: u32,
    /// Who has connected it, as far as can be told: the process that has it. The server will take that for its peer (SO_PEERCRED).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client: Option<Identity>,
    /// What the program has set.
    #[serde(default)]
    pub options: SocketOptions,
}

/// The length of an address without a name.
const UNNAMED: usize = 2;
const ADVICE: &str = "try again at a quieter moment";

impl Waiting {
    /// A socket whose server is in the cut and will list it ([`of_listener`]).
    pub fn collect(cx: &mut Collector<'_>, d: &Descriptor<'_>, socket: SocketType, diag: &UnixDiag) -> Result<Waiting> {
        let inode = d.stat.st_ino as u32;
        let refuse = |cx: &Collector<'_>, reason: &str| cx.refuse_for_now(d.pid, socket::name(d), reason, ADVICE);
        if !Backlogs::of(cx, d.stat.st_dev, diag)?.clients.contains_key(&inode) {
            return refuse(cx, "is a connection that the other program has not accepted yet");
        }
        if !cx.pids.contains(&d.pid) {
            return refuse(cx, "is in flight, and is a connection that the server has not accepted yet");
        }
        if queue::unreceived(d.own).doing(|| socket::looking(d))? > 0 {
            return refuse(cx, "has sent something to a server that has not accepted the connection yet");
        }
        if raw::local_address(d.own).doing(|| socket::looking(d))?.len() > UNNAMED {
            return refuse(cx, "has a name, and is a connection that the server has not accepted yet");
        }
        let status = procfs::status(d.pid, d.pid.leader())?;
        let credentials = Credentials { pid: d.pid.0, uid: status.uids[1], gid: status.gids[1] };
        let client = Some(Identity { credentials, groups: status.groups });
        Ok(Waiting { socket, inode, client, options: SocketOptions::collect(cx, d, socket)? })
    }

    /// A socket that will be connected later.
    pub fn make(&self) -> Result<OwnedFd> {
        let fd = self.socket.create()?;
        self.options.restore(fd.as_fd())?;
        Ok(fd)
    }
}

/// The clients that wait at a listening socket, which has `waiting` of them, in their order. `can_be_reached`: its name leads to it.
pub fn of_listener(
    cx: &mut Collector<'_>,
    d: &Descriptor<'_>,
    waiting: u32,
    can_be_reached: bool,
    diag: &UnixDiag,
) -> Result<Vec<u32>> {
    let clients = diag.waiting(d.stat.st_ino as u32).doing(|| socket::looking(d))?;
    let all = Holders::of(cx)?;
    let in_cut = |client: &u32| !all.get(d.stat.st_dev, (*client).into()).is_empty();
    if can_be_reached && clients.len() == waiting as usize && clients.iter().all(in_cut) {
        return Ok(clients);
    }
    let reason = format!("has {waiting} connections that the program has not accepted yet");
    cx.refuse_for_now(d.pid, socket::name(d), reason, ADVICE)
}

/// Who waits at the listening sockets of the cut.
#[derive(Debug)]
struct Backlogs {
    /// Inodes of clients, and of the listening socket.
    clients: HashMap<u32, u32>,
}

impl Backlogs {
    fn of(cx: &mut Collector<'_>, device: u64, diag: &UnixDiag) -> Result<std::sync::Arc<Backlogs>> {
        let all = Holders::of(cx)?;
        cx.fact(|_| {
            let mut clients = HashMap::new();
            for inode in all.inodes(device) {
                match diag.waiting(inode as u32) {
                    Ok(waiting) => clients.extend(waiting.into_iter().map(|client| (client, inode as u32))),
                    // A socket of another family.
                    Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
                    Err(error) => return Err(error).doing(|| "cannot ask the kernel about unix sockets"),
                }
            }
            Ok(Backlogs { clients })
        })
    }
}

/// A process that has an open file, and its number there.
pub type Place = (Pid, RawFd);

/// Connects all that waited again, once every server listens. `place`: where an open file is. `connect` is given that and an address.
pub fn restore(
    cx: &Restorer<'_>,
    place: impl Fn(ObjRef) -> Option<Place>,
    mut connect: impl FnMut(Place, &[u8], Option<&Identity>) -> Result<()>,
) -> Result<()> {
    let sockets: Vec<(ObjRef, FileBody<UnixRecord>)> = cx.all(Unix::KIND)?;
    let mut places = HashMap::new();
    for (objref, body) in &sockets {
        if let UnixRecord::Waiting(waiting) = &body.record {
            places.extend(place(*objref).map(|place| (waiting.inode, (place, waiting.client.clone()))));
        }
    }
    for (_, body) in sockets {
        let UnixRecord::Alone(listener) = body.record else { continue };
        let address = address_of(&listener);
        for client in &listener.waiting {
            let found = places.get(client);
            let lost =
                || Error::Restart(format!("the image lacks the socket {client} that waits at {}", socket::describe(&address)));
            let (place, who) = found.ok_or_else(lost)?;
            connect(*place, &address, who.as_ref())?;
        }
    }
    Ok(())
}

fn address_of(listener: &Alone) -> Vec<u8> {
    listener.name.as_ref().map(|name| name.reachable_at()).unwrap_or_default()
}

/// Connects a socket of a task, as somebody.
pub fn connect(task: &mut RemoteTask<'_>, fd: RawFd, address: &[u8], who: Option<&Identity>) -> Result<()> {
    let mut batch = Batch::new();
    let at = batch.bytes(address);
    let connect = |batch: &mut Batch| batch.call(libc::SYS_connect, [fd.into(), at.into(), address.len().into()]);
    let answer = unix_peer::call_as(task, who, batch, connect)?;
    answer.doing(|| format!("cannot connect a unix socket to {} again", socket::describe(address))).map(drop)
}
