//! What is on its way from one end of a TCP connection to the other.
//!
//! All processes stand still, but the kernel goes on sending. So what an end has sent is looked at before what the other has received, and the
//! numbers of the bytes tell which of them both have ([`tcp_numbers`]). Nothing is changed by it: the bytes that were received are looked at with
//! MSG_PEEK, those that were not are read where the kernel keeps them.

use super::Collector;
use super::file::Descriptor;
use super::socket;
use super::tcp_connection::{TcpEnd, refuse};
use super::tcp_sockets::TcpSockets;
use super::unix_peek::PeekOffset;
use crate::error::{Doing, Result};
use crate::sys::inet_diag::InetSocket;
use crate::sys::queue;
use crate::sys::tcp::{self as raw_tcp, state};
use crate::track::ebpf::{TcpNumbers, TcpWaiting, tcp_numbers, tcp_of_closed, tcp_received, tcp_unacknowledged};

/// The kernel may be just receiving it.
const ATTEMPTS: usize = 100;

/// What goes from one end to the other.
#[derive(Debug, Default)]
pub struct Way {
    /// The numbers of the end that sends. `None`: it knows that all has arrived.
    sender: Option<TcpNumbers>,
    /// What it does not know to have arrived; once it was taken, what has not arrived.
    rest: Vec<u8>,
    /// It sends nothing more.
    has_finished: bool,
}

impl Way {
    /// What `from` has sent.
    pub fn of(from: &Descriptor<'_>, end: &TcpEnd) -> Result<Way> {
        let has_finished = end.shutdown & 2 != 0;
        if queue::unreceived(from.own).doing(|| socket::looking(from))? == 0 {
            return Ok(Way { has_finished, ..Way::default() });
        }
        match tcp_unacknowledged(from.own) {
            Ok((numbers, _)) if numbers.is_urgent => {
                refuse(from, "is a TCP connection with urgent data that has not arrived yet")
            }
            Ok((numbers, rest)) => Ok(Way { sender: Some(numbers), rest, has_finished }),
            Err(error) => refuse(
                from,
                &format!("is a TCP connection with bytes on their way, at which ckpt cannot look without eBPF ({error})"),
            ),
        }
    }

    /// What the other end of `to`, which its program has closed, has sent.
    pub fn of_closed(to: &Descriptor<'_>, rest: &InetSocket) -> Result<Way> {
        match tcp_of_closed(to.own, rest.local, rest.peer) {
            Ok(Some((numbers, _))) if numbers.is_urgent => {
                refuse(to, "is a TCP connection with urgent data that has not arrived yet")
            }
            Ok(Some((numbers, rest))) => Ok(Way { sender: Some(numbers), rest, has_finished: true }),
            // It has gone meanwhile: all has arrived.
            Ok(None) if has_all(to)? => Ok(Way::default()),
            Ok(None) => refuse(to, "is a TCP connection that the other program has closed, and that is just ending"),
            Err(error) => {
                let reason = "is a TCP connection that the other program has closed, with bytes on their way, at which ckpt cannot look without eBPF";
                refuse(to, &format!("{reason} ({error})"))
            }
        }
    }

    /// What the other end, `to`, has received. What has not arrived there stays behind ([`Way::into_rest`]).
    pub fn take(&mut self, cx: &mut Collector<'_>, to: &Descriptor<'_>) -> Result<Vec<u8>> {
        for _ in 0..ATTEMPTS {
            let before = self.sender.map(|_| tcp_numbers(to.own)).transpose()?;
            let received = peek(to)?;
            let has_end = has_all(to)?;
            // A look ends where urgent data was, even if that was received.
            let waiting = TcpSockets::of(cx)?.look(to)?.received as usize;
            if !(received.len()..=received.len() + usize::from(has_end)).contains(&waiting) {
                continue;
            }
            // Without numbers, nothing comes that is not here.
            let Some(before) = before else { return Ok(received) };
            if tcp_numbers(to.own)? == before && self.keep_rest(before.next_received, has_end) {
                return Ok(received);
            }
        }
        refuse(to, "is a TCP connection that does not come to rest, or had urgent data in its queue")
    }

    /// The same where the other end waits to be accepted, by the program that has `listener`.
    pub fn take_waiting(&mut self, listener: &Descriptor<'_>, to: &TcpWaiting) -> Result<Vec<u8>> {
        for _ in 0..ATTEMPTS {
            let (numbers, now, received) = match tcp_received(to) {
                Ok(found) => found,
                Err(error) => return refuse(listener, &format!("has connections that wait to be accepted ({error})")),
            };
            if !matches!(now, state::ESTABLISHED | state::CLOSE_WAIT) {
                return refuse(listener, "has a connection that was broken before the program has accepted it");
            }
            if numbers.has_urgent {
                return refuse(listener, "has a connection with urgent data that the program has not accepted yet");
            }
            if self.sender.is_none() || self.keep_rest(numbers.next_received, state::has_all(now)) {
                return Ok(received);
            }
        }
        refuse(listener, "has a connection that the program has not accepted yet, and that does not come to rest")
    }

    /// Keeps what the other end has not received, which is all from the byte `next` on; `has_end`: it has received the end, too.
    fn keep_rest(&mut self, next: u32, has_end: bool) -> bool {
        let Some(sender) = self.sender else { return true };
        let ends = usize::from(self.has_finished && !has_end);
        let missing = sender.next_written.wrapping_sub(next) as usize;
        match missing.checked_sub(ends).and_then(|missing| self.rest.len().checked_sub(missing)) {
            Some(known) => {
                self.rest.drain(..known);
                true
            }
            None => false,
        }
    }

    /// What has not arrived.
    pub fn into_rest(self) -> Vec<u8> {
        if self.sender.is_some() { self.rest } else { Vec::new() }
    }
}

/// Has all arrived that the other end has sent, and the end of it?
pub fn has_all(d: &Descriptor<'_>) -> Result<bool> {
    Ok(state::has_all(raw_tcp::info(d.own).doing(|| socket::looking(d))?.state))
}

/// What waits to be read.
pub fn peek(d: &Descriptor<'_>) -> Result<Vec<u8>> {
    let doing = || socket::looking(d);
    let _offset = PeekOffset::off(d.own).doing(doing)?;
    loop {
        let waiting = queue::readable(d.own).doing(doing)?;
        // To look where nothing is takes an error that waits from the program.
        if waiting == 0 {
            return Ok(Vec::new());
        }
        let received = raw_tcp::peek(d.own, waiting + 1).doing(doing)?;
        if received.len() <= waiting {
            return Ok(received);
        }
    }
}
