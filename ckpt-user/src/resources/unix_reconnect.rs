//! Unix connections that waited to be accepted, made again: once all processes have their descriptors, the clients connect again, in the order in which they
//! waited, send all again that they had sent, and are closed again if they were.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, RawFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::Restorer;
use super::fd_table::OpenFiles;
use super::file::{FileBody, FileKind};
use super::in_flight;
use super::socket;
use super::unix::{Alone, Unix, UnixRecord};
use super::unix_backlog::Arrival;
use super::unix_peer::{self, Apart};
use super::unix_queue;
use crate::error::{Doing, Error, Result};
use crate::ids::{ObjRef, Pid};
use crate::sys::peer::{self, Identity};
use crate::sys::socket as raw;
use crate::tracee::remote::RemoteTask;

/// Something that a task is to do.
type Work<'w> = &'w mut dyn FnMut(&mut RemoteTask<'_>) -> Result<()>;

/// Connects all that waited again, once every server listens. `who`: which process is to do again what one has done with a file, and the number of the
/// file there, if it has it; `within` has that process do something.
pub fn restore(
    cx: &Restorer<'_>,
    files: &OpenFiles,
    who: impl Fn(Option<Pid>, Option<ObjRef>) -> Option<(Pid, Option<RawFd>)>,
    mut within: impl FnMut(Pid, Work<'_>) -> Result<()>,
) -> Result<()> {
    let (mut clients, mut listeners) = (HashMap::new(), Vec::new());
    for (objref, body) in cx.all::<FileBody<UnixRecord>>(Unix::KIND)? {
        match body.record {
            UnixRecord::Waiting(waiting) => drop(clients.insert(waiting.inode, (objref, waiting))),
            UnixRecord::Alone(alone) if !alone.waiting.is_empty() => listeners.push(alone),
            _ => {}
        }
    }
    for listener in listeners {
        let address = address_of(&listener);
        let mut connect = |fd: BorrowedFd<'_>, objref: Option<ObjRef>, by: Option<&Identity>| {
            let doing = || format!("cannot connect to {} again", socket::describe(&address));
            // It fails rather than wait for a program that does not run.
            let flags = fcntl(fd, FcntlArg::F_GETFL).map(OFlag::from_bits_retain).doing(doing)?;
            fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).doing(doing)?;
            match who(by.map(|by| Pid(by.credentials.pid)), objref) {
                Some((pid, Some(own))) => within(pid, &mut |task| unix_peer::connect_as(task, own, &address, by))?,
                Some((pid, None)) => within(pid, &mut |task| {
                    in_flight::fetched(task, fd, |task, own| unix_peer::connect_as(task, own, &address, by))
                })?,
                None => connect_ourselves(fd, &address, by)?,
            }
            fcntl(fd, FcntlArg::F_SETFL(flags)).doing(doing).map(drop)
        };
        for arrival in &listener.waiting {
            let (inode, seen) = match arrival {
                Arrival::Silent(inode) => (*inode, None),
                Arrival::Seen(seen) => (seen.client, Some(seen)),
            };
            match (clients.get(&inode), seen) {
                (Some((objref, waiting)), _) => {
                    let fd = files.get(*objref)?;
                    connect(fd, Some(*objref), seen.map(|seen| &seen.who).or(waiting.client.as_ref()))?;
                    unix_queue::fill(fd, &[], seen.map_or(&[], |seen| &seen.queue), &[])?;
                    waiting.complete(fd)?;
                }
                (None, Some(gone)) if gone.client == 0 => {
                    let fd = listener.socket.create()?;
                    let _name = (!gone.name.is_empty()).then(|| bind_apart(fd.as_fd(), &gone.name));
                    connect(fd.as_fd(), None, Some(&gone.who))?;
                    unix_queue::fill(fd.as_fd(), &[], &gone.queue, &[])?;
                }
                (None, _) => {
                    let address = socket::describe(&address);
                    return Err(Error::Restart(format!("the image lacks the socket {inode} that waits at {address}")));
                }
            }
        }
    }
    Ok(())
}

fn address_of(listener: &Alone) -> Vec<u8> {
    listener.name.as_ref().map(|name| name.reachable_at()).unwrap_or_default()
}

/// Gives a client that is to be closed at once the name that it had.
fn bind_apart(fd: BorrowedFd<'_>, name: &[u8]) -> Option<Apart> {
    let bound = Apart::bind(fd, name);
    if let Err(error) = &bound {
        tracing::warn!("a connection of a client that is gone does not tell its name: {error}");
    }
    bound.ok()
}

/// Connects a socket for a process that is gone, or that nobody knows.
fn connect_ourselves(fd: BorrowedFd<'_>, address: &[u8], by: Option<&Identity>) -> Result<()> {
    let connected = by.map(|by| unix_peer::with_pid(by, || peer::connect(by, fd, address)));
    let why = match connected {
        Some(Ok(())) => return Ok(()),
        Some(Err(error)) => error.to_string(),
        None => "nobody knows who has connected it".to_owned(),
    };
    tracing::warn!("a connection to {} tells of ckpt as its client (SO_PEERCRED): {why}", socket::describe(address));
    raw::connect(fd, address).doing(|| format!("cannot connect a unix socket to {} again", socket::describe(address)))
}
