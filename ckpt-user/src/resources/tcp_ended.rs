//! What is left of a TCP connection that has ended at both ends: what was received before and has not been read, and whether the other end has broken
//! it.
//!
//! Nothing tells who was at the other end, and nobody can ask. So a restart makes it with an end that is closed at once, or that breaks it.

use std::sync::atomic::{AtomicU16, Ordering};

use super::Collector;
use super::collector::ObjectKey;
use super::file::Descriptor;
use super::socket::{self, SocketType};
use super::socket_options::SocketOptions;
use super::tcp;
use super::tcp_connection::{self, TcpConnection, TcpEnd, check_room, refuse};
use super::tcp_way;
use crate::error::{Doing, Result};
use crate::ids::ObjRef;
use crate::sys::socket as raw;
use crate::track::ebpf::tcp_numbers;

/// The next port for an end that is not there, so that all have other ones: from the first, which hardly anybody connects from.
#[derive(Debug)]
struct Ports(AtomicU16);

impl Ports {
    fn next(&self, other_than: &[u8]) -> [u8; 2] {
        loop {
            let port = self.0.fetch_add(1, Ordering::Relaxed).to_be_bytes();
            if port != [0, 0] && port != other_than {
                return port;
            }
        }
    }
}

/// Collects it as the second end of a connection. `has_error`: the program has not been told of an error yet.
pub fn collect(cx: &mut Collector<'_>, d: &Descriptor<'_>, socket: SocketType, has_error: bool) -> Result<ObjRef> {
    if socket.protocol == libc::IPPROTO_MPTCP {
        return refuse(d, "is an MPTCP connection that has ended, with data or an error that the program has not received yet");
    }
    let key = ObjectKey::Inode(tcp_connection::KIND, 0, d.stat.st_ino);
    let numbers = match tcp_numbers(d.own) {
        Ok(numbers) => numbers,
        Err(error) => {
            let what = "is a TCP connection that has ended, with data or an error that the program has not received yet";
            return refuse(d, &format!("{what}, at which ckpt cannot look without eBPF ({error})"));
        }
    };
    let broken = match numbers.error {
        0 if !has_error => None,
        error @ (libc::ECONNRESET | libc::EPIPE) => Some(error),
        _ => {
            return refuse(
                d,
                "is a TCP connection with an error, or a note of what was sent, that the program has not received yet",
            );
        }
    };
    let received = tcp_way::peek(d)?;
    // The end of the stream counts as one, if it has come and was not read. A look ends where urgent data was.
    let waiting = numbers.next_received.wrapping_sub(numbers.next_read) as usize;
    if numbers.has_urgent || !(received.len()..=received.len() + 1).contains(&waiting) {
        return refuse(d, "is a TCP connection that has ended, and had urgent data in its queue");
    }
    let local = raw::local_address(d.own).doing(|| socket::looking(d))?;
    let ports = cx.fact(|_| Ok(Ports(AtomicU16::new(1))))?;
    let mut peer = local.clone();
    peer.get_mut(2..4).into_iter().for_each(|port| port.copy_from_slice(&ports.next(port)));
    let mut options = SocketOptions::collect(cx, d, socket)?;
    tcp::leave_out_what_was_agreed_on(&mut options);
    let size = |name| raw::int_option(d.own, libc::SOL_SOCKET, name).doing(|| socket::looking(d));
    let buffers = (size(libc::SO_SNDBUF)? as u32, size(libc::SO_RCVBUF)? as u32);
    // Who breaks it finds it alive.
    let shutdown = if broken.is_some() { 0 } else { 2 };
    let end = TcpEnd { socket, local, peer, received, shutdown, broken, buffers, options, ..TcpEnd::default() };
    let ends = [end.closed_peer(), end];
    check_room(d, &ends)?;
    TcpConnection::intern(cx, key, [0, d.stat.st_ino], &ends)
}
