//! What waits in a unix socket: looked at without taking it (MSG_PEEK), and sent again.
//!
//! Beyond the first message, only SO_PEEK_OFF leads there. It is part of the socket, so it is put back as it was at once. Should ckpt
//! die in between, the program would notice only if it peeks itself.
//!
//! This way the kernel shows an empty message only once, ever. Whether one is hidden shows in the memory that its sender is charged
//! for; only where the sender is not known, an empty message behind others is lost from the second checkpoint on.

use std::os::fd::{AsFd, BorrowedFd};

use serde::{Deserialize, Serialize};

use super::Collector;
use super::holders::Holder;
use crate::error::{Doing, Result};
use crate::sys::{queue, socket as raw};

/// A message, or all that waits in a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Message {
    /// The bytes.
    #[serde(with = "serde_bytes")]
    pub data: Vec<u8>,
    /// The address that a datagram was sent from. Empty: from a socket without a name.
    #[serde(with = "serde_bytes")]
    pub from: Vec<u8>,
}

/// Room for a message: the usual limit of a socket. Longer ones are asked for again.
const USUAL_MESSAGE: usize = 212_992;
/// The length of an address without a name: only the family.
const UNNAMED: usize = 2;
/// RCV_SHUTDOWN of the kernel.
const RECEIVING: u8 = 1;

/// SO_PEEK_OFF of a socket, as the program has it again when this is dropped.
struct PeekOffset<'f> {
    fd: BorrowedFd<'f>,
    before: i32,
}

impl<'f> PeekOffset<'f> {
    fn at_start(fd: BorrowedFd<'f>) -> std::io::Result<PeekOffset<'f>> {
        let before = raw::int_option(fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF)?;
        let offset = PeekOffset { fd, before };
        offset.set(0)?;
        Ok(offset)
    }

    fn set(&self, offset: i32) -> std::io::Result<()> {
        raw::set_int_option(self.fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF, offset)
    }
}

impl Drop for PeekOffset<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.set(self.before) {
            tracing::warn!("cannot put SO_PEEK_OFF of a socket back to {}: {error}", self.before);
        }
    }
}

/// Everything that waits in `own`, a duplicate of the socket of `holder`. `kind`: SOCK_STREAM, ...; `shutdown`: as
/// NETLINK_SOCK_DIAG tells it.
pub fn peek(cx: &Collector<'_>, holder: &Holder, own: BorrowedFd<'_>, kind: i32, shutdown: u8) -> Result<Vec<Message>> {
    let doing = || format!("cannot look into the socket {} of pid {}", holder.fd, holder.pid);
    let refuse = |reason: &str| {
        let object = format!("descriptor {} (unix socket)", holder.fd);
        cx.refuse_for_now(holder.pid, object, reason, "let the program receive it, or try again at a quieter moment")
    };
    let mut messages = Vec::new();
    let waiting = queue::readable(own).doing(doing)?;
    if kind == libc::SOCK_STREAM {
        if waiting == 0 {
            return Ok(messages);
        }
        let mut data = vec![0; waiting];
        let offset = PeekOffset::at_start(own).doing(doing)?;
        let (got, _) = raw::receive(own, &mut data, libc::MSG_PEEK | libc::MSG_DONTWAIT).doing(doing)?;
        drop(offset);
        if got.flags & libc::MSG_CTRUNC != 0 || got.len != waiting {
            return refuse("holds descriptors or credentials that the program has not received yet");
        }
        messages.push(Message { data, from: Vec::new() });
        return Ok(messages);
    }
    let offset = PeekOffset::at_start(own).doing(doing)?;
    let mut position = 0;
    let mut buffer = vec![0; waiting.max(USUAL_MESSAGE)];
    loop {
        let (got, from) = match raw::receive(own, &mut buffer, libc::MSG_PEEK | libc::MSG_DONTWAIT | libc::MSG_TRUNC) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(messages),
            other => other.doing(doing)?,
        };
        if got.flags & libc::MSG_CTRUNC != 0 {
            return refuse("holds descriptors or credentials that the program has not received yet");
        }
        if got.flags & libc::MSG_TRUNC != 0 {
            // Its length is told all the same.
            buffer.resize(got.len.max(buffer.len() + 1), 0);
            offset.set(position).doing(doing)?;
            continue;
        }
        if got.len == 0 && kind == libc::SOCK_SEQPACKET && shutdown & RECEIVING != 0 {
            // The end, which looks like an empty message.
            return Ok(messages);
        }
        position += got.len as i32;
        let from = if from.len() > UNNAMED { from } else { Vec::new() };
        messages.push(Message { data: buffer[..got.len].to_vec(), from });
    }
}

/// Do messages sent by `sender` to its peer wait there that are empty, beside `messages`? Told by comparing with a pair of our own.
pub fn hides_empty(sender: BorrowedFd<'_>, kind: i32, messages: &[Message]) -> Result<bool> {
    let doing = || "cannot measure the queue of a unix socket";
    let (ours, _receiver) = raw::pair(libc::AF_UNIX, kind).doing(doing)?;
    raw::send_now(ours.as_fd(), b"").doing(doing)?;
    let empty = queue::unreceived(ours.as_fd()).doing(doing)?;
    fill(ours.as_fd(), messages)?;
    let expected = queue::unreceived(ours.as_fd()).doing(doing)? - empty;
    let actual = queue::unreceived(sender).doing(doing)?;
    // What a socket has sent elsewhere counts, too, but hardly ever adds up to just this.
    Ok(actual > expected && (actual - expected).is_multiple_of(empty))
}

/// Sends everything from `sender`, whatever the size of its buffer.
pub fn fill(sender: BorrowedFd<'_>, messages: &[Message]) -> Result<()> {
    let total: usize = messages.iter().map(|m| m.data.len()).sum();
    if total == 0 && messages.is_empty() {
        return Ok(());
    }
    let doing = || format!("cannot put {total} bytes back into a unix socket");
    let get = |name| raw::int_option(sender, libc::SOL_SOCKET, name);
    let set = |name, value| raw::set_int_option(sender, libc::SOL_SOCKET, name, value);
    let (size, locks) = (get(libc::SO_SNDBUF).doing(doing)?, get(libc::SO_BUF_LOCK).ok());
    let room = i32::try_from(total.saturating_mul(2)).unwrap_or(i32::MAX / 2);
    // Only root may go beyond the machine's limit; within it there is mostly room enough.
    let raised = room > size / 4 && set(libc::SO_SNDBUFFORCE, room.saturating_add(size)).is_ok();
    for message in messages {
        let mut rest = &message.data[..];
        loop {
            let n = raw::send_now(sender, rest).doing(doing)?;
            rest = &rest[n..];
            if rest.is_empty() {
                break;
            }
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
