//! TCP connections that a program of the cut has not accepted yet, of clients of the cut: the kernel has made the server's end already, but nobody has a
//! descriptor of it. What the client has sent is read where the kernel keeps it.
//!
//! At a restart the clients connect again, in the order in which they waited, and send all of it again.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use super::Collector;
use super::collector::ObjectKey;
use super::file::Descriptor;
use super::holders::Holders;
use super::socket::SocketType;
use super::tcp_connection::{self, Here, TcpConnection, TcpEnd, check_room, refuse};
use super::tcp_sockets::TcpSockets;
use super::tcp_way::Way;
use crate::error::{Error, Result};
use crate::ids::ObjRef;
use crate::sys::tcp::state;
use crate::track::ebpf::{TcpWaiting, tcp_waiting};

/// What waits at the listening socket `d`, of which the kernel says that there are `count`: connections, in order.
pub fn collect(cx: &mut Collector<'_>, d: &Descriptor<'_>, count: u32) -> Result<Vec<ObjRef>> {
    if cx.is_running {
        return Ok(Vec::new());
    }
    let known = cx.fact(|_| Ok(Backlogs::default()))?;
    if let Some(found) = known.0.lock().unwrap_or_else(PoisonError::into_inner).get(&d.stat.st_ino) {
        return Ok(found.clone());
    }
    let waiting = match tcp_waiting(d.own) {
        Ok(waiting) if waiting.len() == count as usize => waiting,
        Ok(_) => return refuse(d, "has connections that are just being made"),
        Err(error) => {
            let why =
                format!("has {count} connections that wait to be accepted, at which ckpt cannot look without eBPF ({error})");
            return refuse(d, &why);
        }
    };
    let mut found = Vec::new();
    for (place, one) in (0..).zip(&waiting) {
        match connection(cx, d, one, place) {
            Err(Error::Refused(refusal)) if cx.options.tcp_close && cx.options.last_try => {
                tracing::info!("saved without one that waits: {refusal}");
            }
            other => found.extend(other?),
        }
    }
    known.0.lock().unwrap_or_else(PoisonError::into_inner).insert(d.stat.st_ino, found.clone());
    Ok(found)
}

/// What was found at each listening socket, by its inode: its clients and itself are to be of one mind.
#[derive(Debug, Default)]
struct Backlogs(Mutex<HashMap<u64, Vec<ObjRef>>>);

/// `place`: in the queue. `None`: it is left out (`--tcp-close`).
fn connection(cx: &mut Collector<'_>, d: &Descriptor<'_>, waiting: &TcpWaiting, place: u64) -> Result<Option<ObjRef>> {
    let all = TcpSockets::of(cx)?;
    let client = match all.get(waiting.peer, waiting.local) {
        [] if state::has_all(waiting.state) => None,
        [one] => Some(*one),
        _ => return refuse(d, "has connections that the program has not accepted yet, of clients that ckpt cannot find"),
    };
    let inode = client.map_or(0, |client| u64::from(client.inode));
    let has_inode = inode != 0;
    if !has_inode {
        let sent_all = client.is_none_or(|client| state::has_finished(client.state) && client.sent == 0);
        if !sent_all && !state::has_all(waiting.state) {
            return refuse(
                d,
                "has connections that the program has not accepted yet, whose client was closed and is still sending",
            );
        }
        let mut end = server_end(d, waiting);
        end.received = Way::default().take_waiting(d, waiting)?;
        let gone = TcpEnd { closed: true, shutdown: 3, ..end.closed_peer() };
        check_room(d, &[gone.clone(), end.clone()])?;
        // Nobody else refers to it, and no inode has such a number.
        let name = [u64::MAX - place, d.stat.st_ino];
        let key = ObjectKey::Inode(tcp_connection::KIND, name[0], name[1]);
        return TcpConnection::intern(cx, key, name, &[gone, end]).map(Some);
    }
    let holders = Holders::of(cx)?;
    let Some(&holder) = holders.get(d.stat.st_dev, inode).first() else {
        if cx.options.tcp_close {
            return Ok(None);
        }
        return refuse(d, "has connections that the program has not accepted yet, of clients that are not being checkpointed");
    };
    // The end that waits has no inode.
    let key = ObjectKey::Inode(tcp_connection::KIND, 0, inode);
    if let Some(known) = cx.lookup(&key) {
        return Ok(Some(known));
    }
    let ends = Here { holder }.with(|client| {
        let mut own = TcpEnd::collect(cx, client)?;
        let mut way = Way::of(client, &own)?;
        let mut other = TcpEnd { waiting: true, ..own.closed_peer() };
        other.received = way.take_waiting(d, waiting)?;
        own.sent = way.into_rest();
        let ends = [other, own];
        check_room(client, &ends)?;
        Ok(ends)
    })?;
    TcpConnection::intern(cx, key, [0, inode], &ends).map(Some)
}

/// The server's end of a connection whose client is gone.
fn server_end(d: &Descriptor<'_>, waiting: &TcpWaiting) -> TcpEnd {
    let domain = if waiting.local.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 };
    let socket = SocketType { domain, ..d.socket.unwrap_or_default() };
    let (local, peer) = (waiting.local.address(domain), waiting.peer.address(domain));
    TcpEnd { waiting: true, closed: true, socket, local, peer, ..TcpEnd::default() }
}
