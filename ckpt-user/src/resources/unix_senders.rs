//! Datagrams of which the receiver learns who has sent them, because their senders have names. The same sockets send them again.

use std::cell::RefCell;
use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use super::Collector;
use super::file::Descriptor;
use super::holders::Holders;
use super::socket;
use super::unix_queue::{self, Message};
use crate::error::{Doing, Error, Result};
use crate::sys::socket as raw;
use crate::sys::unix_diag::UnixDiag;

/// Datagram sockets by the addresses that they are bound to.
#[derive(Clone, Debug, Default)]
pub struct Senders(Rc<RefCell<HashMap<Vec<u8>, OwnedFd>>>);

impl Senders {
    /// Takes note of a socket that has this name, or will have it before messages are sent.
    pub fn add(&self, address: &[u8], fd: BorrowedFd<'_>) -> Result<()> {
        let own = fd.try_clone_to_owned().doing(|| "cannot duplicate a socket")?;
        self.0.borrow_mut().insert(address.to_vec(), own);
        Ok(())
    }

    /// Sends the messages to the socket at `to`, each from the socket that its receiver has to hear of, or else from `nameless`, which is connected to
    /// it. `files`: those that travel with them, in order.
    pub fn fill(&self, to: &[u8], nameless: BorrowedFd<'_>, messages: &[Message], files: &[BorrowedFd<'_>]) -> Result<()> {
        let (senders, mut files) = (self.0.borrow(), files);
        for alike in messages.chunk_by(|one, other| one.from == other.from) {
            let count = alike.iter().map(|message| message.descriptors as usize).sum();
            let (own, others) = files.split_at_checked(count).unwrap_or((files, &[]));
            files = others;
            let from = &alike[0].from;
            if from.is_empty() {
                unix_queue::fill(nameless, &[], alike, own)?;
                continue;
            }
            let sender = senders.get(from).ok_or_else(|| {
                Error::Restart(format!("the image holds a message from {}, but no socket of that name", socket::describe(from)))
            })?;
            unix_queue::fill(sender.as_fd(), to, alike, own)?;
        }
        Ok(())
    }
}

/// The names of all datagram sockets of the cut that may still send. Of a name that two have, nobody can tell whose it is.
#[derive(Debug, Default)]
struct Names(HashMap<Vec<u8>, usize>);

/// Could the senders that have names send all these again? They are in the cut; and a socket with a peer hears from no other.
pub fn are_there(cx: &mut Collector<'_>, d: &Descriptor<'_>, messages: &[Message], diag: &UnixDiag) -> Result<bool> {
    let all = Holders::of(cx)?;
    let names = cx.fact(|_| names(&all, d, diag))?;
    let peer = raw::peer_address(d.own).ok();
    let hears = |from: &Vec<u8>| peer.as_ref().is_none_or(|peer| peer == from);
    Ok(messages.iter().all(|message| hears(&message.from) && (message.from.is_empty() || names.0.get(&message.from) == Some(&1))))
}

fn names(all: &Holders, d: &Descriptor<'_>, diag: &UnixDiag) -> Result<Names> {
    let mut names = Names::default();
    for inode in all.inodes(d.stat.st_dev) {
        let Some(holder) = all.get(d.stat.st_dev, inode).first() else { continue };
        let own = holder.duplicate()?;
        let is = |name, value| raw::int_option(own.as_fd(), libc::SOL_SOCKET, name).is_ok_and(|it| it == value);
        if is(libc::SO_DOMAIN, libc::AF_UNIX) && is(libc::SO_TYPE, libc::SOCK_DGRAM) {
            let doing = || socket::looking(d);
            let (address, seen) = (raw::local_address(own.as_fd()).doing(doing)?, diag.look(inode as u32).doing(doing)?);
            if seen.shutdown == 0 {
                *names.0.entry(address).or_default() += 1;
            }
        }
    }
    Ok(names)
}
