//! What waits in a unix socket: collected ([`super::unix_peek`]), and sent again.

use std::os::fd::{AsFd, BorrowedFd};

use serde::{Deserialize, Serialize};

use super::Collector;
use super::holders::{Holder, Holders};
use super::unix_peek;
use crate::error::{Doing, Error, Result};
use crate::ids::Pid;
use crate::sys::scm::{self, Credentials};
use crate::sys::{queue, socket as raw};
use crate::tracee::spawn::NewProcess;

/// A message, or bytes of a stream that were sent alike.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Message {
    /// The bytes.
    #[serde(with = "serde_bytes")]
    pub data: Vec<u8>,
    /// The address that a datagram was sent from. Empty: from a socket without a name.
    #[serde(with = "serde_bytes")]
    pub from: Vec<u8>,
    /// How many descriptors travel with it. Which ones, the object "in-flight" of the socket tells.
    #[serde(skip_serializing_if = "is_none")]
    pub descriptors: u32,
    /// Who has sent it, if the socket asks for that (SO_PASSCRED).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credentials: Option<Credentials>,
}

fn is_none(descriptors: &u32) -> bool {
    *descriptors == 0
}

impl Message {
    /// More than bytes: to be sent once every file is open and every process there.
    pub fn is_laden(&self) -> bool {
        self.descriptors > 0 || self.credentials.is_some()
    }
}

/// What the kernel charges a sender for a message beside its bytes, at most.
const OVERHEAD: usize = 2048;

/// Everything that waits in `own`, a duplicate of the socket of `holder` with this inode. `kind`: SOCK_STREAM, ...; `shutdown`: as
/// NETLINK_SOCK_DIAG tells it.
pub fn collect(
    cx: &mut Collector<'_>,
    holder: &Holder,
    own: BorrowedFd<'_>,
    inode: u32,
    (kind, shutdown): (i32, u8),
) -> Result<Vec<Message>> {
    if let Some(queue) = Holders::of(cx)?.in_flight().get(inode) {
        let messages = queue.messages.clone()?;
        cx.note_in_flight(inode);
        return Ok(messages);
    }
    let peeked = unix_peek::peek(holder, own, kind, shutdown)?;
    if !peeked.files.is_empty() {
        // Before Linux 5.6 nothing tells beforehand that they are there.
        let advice = "let the program receive it, or try again at a quieter moment";
        return holder.refuse_for_now("holds descriptors that the program has not received yet", advice);
    }
    Ok(peeked.messages)
}

/// Do messages sent by `sender` to its peer wait there that are empty, beside `messages`? Told by comparing with a pair of our own.
pub fn hides_empty(sender: BorrowedFd<'_>, kind: i32, messages: &[Message]) -> Result<bool> {
    let doing = || "cannot measure the queue of a unix socket";
    let (ours, _receiver) = raw::pair(libc::AF_UNIX, kind).doing(doing)?;
    raw::send_now(ours.as_fd(), b"").doing(doing)?;
    let empty = queue::unreceived(ours.as_fd()).doing(doing)?;
    let bare: Vec<Message> =
        messages.iter().map(|message| Message { descriptors: 0, credentials: None, ..message.clone() }).collect();
    fill(ours.as_fd(), &[], &bare, &[])?;
    let expected = queue::unreceived(ours.as_fd()).doing(doing)? - empty;
    let actual = queue::unreceived(sender).doing(doing)?;
    // What a socket has sent elsewhere counts, too, but hardly ever adds up to just this.
    Ok(actual > expected && (actual - expected).is_multiple_of(empty))
}

/// Sends in the name of somebody. If he is gone, a process takes his pid, and keeps it as long as `stand_ins`: the kernel tells by that process, and not
/// by its pid, whether two messages in a stream have one sender.
fn send(
    sender: BorrowedFd<'_>,
    to: &[u8],
    data: &[u8],
    files: &[BorrowedFd<'_>],
    credentials: Option<Credentials>,
    stand_ins: &mut Vec<NewProcess>,
) -> std::io::Result<usize> {
    match scm::send_now(sender, to, data, files, credentials) {
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {
            let pid = Pid(credentials.unwrap_or_default().pid);
            stand_ins.push(NewProcess::spawn(pid, false).map_err(std::io::Error::other)?);
            scm::send_now(sender, to, data, files, credentials)
        }
        Err(error) if error.raw_os_error() == Some(libc::EPERM) && credentials.is_some() => {
            tracing::warn!(
                "a message in a unix socket tells of ckpt as its sender, which is not allowed to name another: {error}"
            );
            scm::send_now(sender, to, data, files, None)
        }
        sent => sent,
    }
}

/// Sends everything from `sender`, whatever the size of its buffer, to an address, or (empty) to its peer. `files`: those that travel with the
/// messages, in order.
pub fn fill(sender: BorrowedFd<'_>, to: &[u8], messages: &[Message], files: &[BorrowedFd<'_>]) -> Result<()> {
    if messages.iter().map(|message| message.descriptors as usize).sum::<usize>() != files.len() {
        return Err(Error::Restart("the image tells in two ways how many descriptors wait in a unix socket".to_owned()));
    }
    if messages.is_empty() {
        return Ok(());
    }
    let total: usize = messages.iter().map(|m| m.data.len()).sum();
    let doing = || format!("cannot put {total} bytes and {} descriptors back into a unix socket", files.len());
    let get = |name| raw::int_option(sender, libc::SOL_SOCKET, name);
    let set = |name, value| raw::set_int_option(sender, libc::SOL_SOCKET, name, value);
    let (size, locks) = (get(libc::SO_SNDBUF).doing(doing)?, get(libc::SO_BUF_LOCK).ok());
    let room = i32::try_from(total.saturating_add(messages.len() * OVERHEAD).saturating_mul(2)).unwrap_or(i32::MAX / 2);
    // Only root may go beyond the machine's limit; within it there is mostly room enough.
    let raised = room > size / 4 && set(libc::SO_SNDBUFFORCE, room.saturating_add(size)).is_ok();
    let (mut files, mut stand_ins) = (files, Vec::new());
    for message in messages {
        let (own, others) = files.split_at(message.descriptors as usize);
        files = others;
        let mut sent = send(sender, to, &message.data, own, message.credentials, &mut stand_ins).doing(doing)?;
        if sent < message.data.len() && !own.is_empty() {
            return Err(Error::Restart("a message with descriptors does not fit into its socket in one piece".to_owned()));
        }
        while sent < message.data.len() {
            sent += send(sender, to, &message.data[sent..], &[], message.credentials, &mut stand_ins).doing(doing)?;
        }
    }
    if raised {
        set(libc::SO_SNDBUFFORCE, size / 2).doing(doing)?;
        if let Some(locks) = locks {
            set(libc::SO_BUF_LOCK, locks).doing(doing)?;
        }
    }
    Ok(())
}
