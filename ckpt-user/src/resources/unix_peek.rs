//! What waits in a unix socket: looked at without taking it (MSG_PEEK).
//!
//! Beyond the first message, only SO_PEEK_OFF leads there. It is part of the socket, so it is put back as it was at once. Should ckpt
//! die in between, the program would notice only if it peeks itself.
//!
//! This way the kernel shows an empty message only once, ever. Whether one is hidden shows in the memory that its sender is charged
//! for; only where the sender is not known, an empty message behind others is lost from the second checkpoint on.
//!
//! Whoever looks at descriptors in flight gets duplicates of them, and the queue keeps its own. In a stream a look ends with the message that
//! has some, and shows them whether it has reached that message or not. Where it began tells a second look, in which the last byte has no room.

use std::os::fd::{BorrowedFd, OwnedFd};

use nix::poll::PollFlags;

use super::holders::Holder;
use super::unix_queue::Message;
use crate::error::{Doing, Result};
use crate::sys::scm::{self, Ancillary, Credentials};
use crate::sys::socket::Received;
use crate::sys::{queue, socket as raw};

/// All that waits.
#[derive(Debug, Default)]
pub struct Peeked {
    /// The messages.
    pub messages: Vec<Message>,
    /// Duplicates of the descriptors that travel with them, in order.
    pub files: Vec<OwnedFd>,
}

/// Room for a message: the usual limit of a socket. Longer ones are asked for again.
const USUAL_MESSAGE: usize = 212_992;
/// The length of an address without a name: only the family.
const UNNAMED: usize = 2;
/// RCV_SHUTDOWN of the kernel.
const RECEIVING: u8 = 1;
/// What the kernel tells of a message that carries no credentials (overflowuid).
const NOBODY: Credentials = Credentials { pid: 0, uid: 65534, gid: 65534 };
const LOOK: i32 = libc::MSG_PEEK | libc::MSG_DONTWAIT;
const ADVICE: &str = "let the program receive it, or try again at a quieter moment";

/// SO_PEEK_OFF of a socket, as the program has it again when this is dropped.
pub(super) struct PeekOffset<'f> {
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

    /// Looks begin at the start, and leave no trace. `None`: they do so already.
    pub(super) fn off(fd: BorrowedFd<'f>) -> std::io::Result<Option<PeekOffset<'f>>> {
        let before = match raw::int_option(fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF) {
            // TCP sockets have it since Linux 6.9.
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => return Ok(None),
            other => other?,
        };
        if before < 0 {
            return Ok(None);
        }
        let offset = PeekOffset { fd, before };
        offset.set(-1)?;
        Ok(Some(offset))
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
pub fn peek(holder: &Holder, own: BorrowedFd<'_>, kind: i32, shutdown: u8) -> Result<Peeked> {
    if kind == libc::SOCK_STREAM { stream(holder, own) } else { messages(holder, own, kind, shutdown) }
}

fn looking(holder: &Holder) -> String {
    format!("cannot look into the socket {} of pid {}", holder.fd, holder.pid)
}

const URGENT: &str = "holds out-of-band data that the program has not received yet";

fn stream(holder: &Holder, own: BorrowedFd<'_>) -> Result<Peeked> {
    let doing = || looking(holder);
    let mut peeked = Peeked::default();
    let mut buffer = vec![0; queue::readable(own).doing(doing)?];
    if buffer.is_empty() {
        return Ok(peeked);
    }
    // A look passes over an urgent byte and shows it as any other the next time.
    if queue::poll_now(own).doing(doing)?.contains(PollFlags::POLLPRI) {
        return holder.refuse_for_now(URGENT, ADVICE);
    }
    let offset = PeekOffset::at_start(own).doing(doing)?;
    let mut at = 0;
    while at < buffer.len() {
        let (got, _, with) = match scm::receive(own, &mut buffer[at..], LOOK) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                (Received { len: 0, flags: 0 }, Vec::new(), Ancillary::default())
            }
            other => other.doing(doing)?,
        };
        if got.len == 0 {
            return holder.refuse_for_now(URGENT, ADVICE);
        }
        let credentials = check(holder, got, &with)?;
        let mut plain = got.len;
        if !with.files.is_empty() {
            offset.set(at as i32).doing(doing)?;
            plain = scm::before_the_last(own, got.len).doing(doing)?;
            offset.set((at + got.len) as i32).doing(doing)?;
        }
        let message = |range: std::ops::Range<usize>, descriptors: usize| Message {
            data: buffer[at + range.start..at + range.end].to_vec(),
            descriptors: descriptors as u32,
            credentials,
            ..Message::default()
        };
        if plain > 0 {
            peeked.messages.push(message(0..plain, 0));
        }
        if !with.files.is_empty() {
            peeked.messages.push(message(plain..got.len, with.files.len()));
            peeked.files.extend(with.files);
        }
        at += got.len;
    }
    Ok(peeked)
}

fn messages(holder: &Holder, own: BorrowedFd<'_>, kind: i32, shutdown: u8) -> Result<Peeked> {
    let doing = || looking(holder);
    let mut peeked = Peeked::default();
    let mut buffer = vec![0; queue::readable(own).doing(doing)?.max(USUAL_MESSAGE)];
    let offset = PeekOffset::at_start(own).doing(doing)?;
    let mut position = 0;
    loop {
        let (got, from, with) = match scm::receive(own, &mut buffer, LOOK | libc::MSG_TRUNC) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(peeked),
            other => other.doing(doing)?,
        };
        if got.flags & libc::MSG_TRUNC != 0 {
            // Its length is told all the same.
            buffer.resize(got.len.max(buffer.len() + 1), 0);
            offset.set(position).doing(doing)?;
            continue;
        }
        if got.len == 0 && kind == libc::SOCK_SEQPACKET && shutdown & RECEIVING != 0 {
            // The end, which looks like an empty message.
            return Ok(peeked);
        }
        let credentials = check(holder, got, &with)?;
        position += got.len as i32;
        peeked.messages.push(Message {
            data: buffer[..got.len].to_vec(),
            from: if from.len() > UNNAMED { from } else { Vec::new() },
            descriptors: with.files.len() as u32,
            credentials,
        });
        peeked.files.extend(with.files);
    }
}

/// Whose credentials came with a message, after looking whether all that came is understood.
fn check(holder: &Holder, got: Received, with: &Ancillary) -> Result<Option<Credentials>> {
    if got.flags & libc::MSG_CTRUNC != 0 {
        let advice = "raise the limit on open files (ulimit -n) of ckpt";
        return holder.refuse_for_now("holds more descriptors that were not received yet than ckpt may have open", advice);
    }
    let credentials = with.credentials.filter(|credentials| *credentials != NOBODY);
    let is_foreign = credentials.is_some_and(|credentials| credentials.pid == 0);
    if with.other || is_foreign || (with.handle.is_some() && with.credentials.is_none()) {
        let reason = "holds messages with more than bytes, descriptors and credentials, which the program has not received yet";
        return holder.refuse_for_now(reason, ADVICE);
    }
    Ok(credentials)
}
