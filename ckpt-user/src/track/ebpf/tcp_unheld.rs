//! TCP sockets that no program has a descriptor of: those that wait to be accepted, which the listening socket has, and those that their program
//! has closed and that still send, which are found where the kernel looks connections up (net/ipv4/inet_hashtables.c).

use std::os::fd::BorrowedFd;

use super::kernel_memory::missing;
use super::tcp_queue::{ATTEMPTS, BUFFERS_MAX, DOING, Reader, TcpNumbers, endless, with_reader};
use super::{EbpfError, Result};
use crate::ids::PAGE_SIZE;
use crate::sys::btf::Btf;
use crate::sys::inet_diag::Endpoint;
use crate::sys::tcp::state;

/// Offsets in bytes within the kernel's structs.
#[derive(Debug)]
pub(super) struct Unheld {
    waiting: u64,
    next_waiting: u64,
    made: u64,
    network: u64,
    table: u64,
    chains: u64,
    chains_mask: u64,
    node: u64,
    group: u64,
    chooser: u64,
    common: Common,
}

/// Of struct sock_common, with which every socket begins.
#[derive(Debug)]
struct Common {
    state: u64,
    family: u64,
    port: u64,
    peer_port: u64,
    ipv4: u64,
    peer_ipv4: u64,
    ipv6: u64,
    peer_ipv6: u64,
}

impl Unheld {
    pub(super) fn of(btf: &Btf) -> Result<Unheld> {
        let offset = |of: &str, path: &str| btf.offset_of(of, path).map(u64::from).map_err(missing);
        let common = |path: &str| offset("sock_common", path);
        Ok(Unheld {
            waiting: offset("inet_connection_sock", "icsk_accept_queue.rskq_accept_head")?,
            next_waiting: offset("request_sock", "dl_next")?,
            made: offset("request_sock", "sk")?,
            network: common("skc_net")?,
            table: offset("net", "ipv4.tcp_death_row.hashinfo")?,
            chains: offset("inet_hashinfo", "ehash")?,
            chains_mask: offset("inet_hashinfo", "ehash_mask")?,
            node: common("skc_nulls_node")?,
            group: offset("sock", "sk_reuseport_cb")?,
            chooser: offset("sock_reuseport", "prog")?,
            common: Common {
                state: common("skc_state")?,
                family: common("skc_family")?,
                port: common("skc_num")?,
                peer_port: common("skc_dport")?,
                ipv4: common("skc_rcv_saddr")?,
                peer_ipv4: common("skc_daddr")?,
                ipv6: common("skc_v6_rcv_saddr")?,
                peer_ipv6: common("skc_v6_daddr")?,
            },
        })
    }
}

/// A connection that a listening socket has, and no program has accepted yet.
#[derive(Clone, Copy, Debug)]
pub struct TcpWaiting {
    sock: u64,
    /// The address of the server's end.
    pub local: Endpoint,
    /// That of the client.
    pub peer: Endpoint,
    /// Its state ([`crate::sys::tcp::state`]).
    pub state: u8,
}

/// The connections that wait to be accepted by the listening socket behind a descriptor of ours, in their order.
pub fn tcp_waiting(listener: BorrowedFd<'_>) -> Result<Vec<TcpWaiting>> {
    with_reader(|reader| {
        let sock = reader.sock(listener)?;
        let mut found = Vec::new();
        let mut request = reader.kernel.number(sock + reader.unheld.waiting)?;
        while request != 0 {
            let made = reader.kernel.number(request + reader.unheld.made)?;
            found.push(reader.unheld(made)?);
            request = reader.kernel.number(request + reader.unheld.next_waiting)?;
            if found.len() > BUFFERS_MAX {
                return Err(endless());
            }
        }
        Ok(found)
    })
}

/// What such a connection has received, the numbers, and its state. It must be waiting still.
pub fn tcp_received(waiting: &TcpWaiting) -> Result<(TcpNumbers, u8, Vec<u8>)> {
    with_reader(|reader| {
        for _ in 0..ATTEMPTS {
            let state = reader.unheld(waiting.sock)?.state;
            if let Some((numbers, bytes)) = reader.unread(waiting.sock)?
                && reader.unheld(waiting.sock)?.state == state
            {
                return Ok((numbers, state, bytes));
            }
        }
        Err(EbpfError::unexpected(DOING, "it does not come to rest"))
    })
}

/// The numbers of the socket with these addresses, which its program has closed, and all that the other end has not acknowledged of what it sends.
/// `None`: there is no such socket, or it sends nothing any more. `beside`: a socket of the same network namespace.
pub fn tcp_of_closed(beside: BorrowedFd<'_>, local: Endpoint, peer: Endpoint) -> Result<Option<(TcpNumbers, Vec<u8>)>> {
    with_reader(|reader| {
        let beside = reader.sock(beside)?;
        let is_it = |one: &TcpWaiting| (one.local, one.peer) == (local, peer) && state::has_finished(one.state);
        let Some(found) = reader.look_up(beside, is_it)? else { return Ok(None) };
        reader.all_unacknowledged(found.sock).map(Some)
    })
}

/// Does a program choose among the sockets that share the port of this one (SO_ATTACH_REUSEPORT_CBPF, SO_ATTACH_REUSEPORT_EBPF)?
pub fn has_chooser(socket: BorrowedFd<'_>) -> Result<bool> {
    with_reader(|reader| {
        let sock = reader.sock(socket)?;
        let group = reader.kernel.number(sock + reader.unheld.group)?;
        Ok(group != 0 && reader.kernel.number(group + reader.unheld.chooser)? != 0)
    })
}

impl Reader {
    /// The first of all connections in the network namespace of `beside` that is the one that is looked for.
    fn look_up(&mut self, beside: u64, is_it: impl Fn(&TcpWaiting) -> bool) -> Result<Option<TcpWaiting>> {
        let Unheld { network, table, chains, chains_mask, node, .. } = self.unheld;
        // All namespaces share the table, and each may have a connection with these addresses.
        let own = self.kernel.number(beside + network)?;
        let table = self.kernel.number(own + table)?;
        let chains = self.kernel.number(table + chains)?;
        let count = u64::from(self.word(table + chains_mask)?) + 1;
        for first in (0..count).step_by(PAGE_SIZE as usize / 8) {
            let heads = self.kernel.bytes(chains + first * 8, (count - first).min(PAGE_SIZE / 8) as usize * 8)?;
            for head in heads.chunks_exact(8).map(bytemuck::pod_read_unaligned::<u64>) {
                // The end of a chain is an odd number.
                let mut at = head;
                for _ in 0..BUFFERS_MAX {
                    if at & 1 != 0 {
                        break;
                    }
                    let one = self.unheld(at - node)?;
                    // What waits for late segments has no queues.
                    if one.state != state::TIME_WAIT && is_it(&one) && self.kernel.number(one.sock + network)? == own {
                        return Ok(Some(one));
                    }
                    at = self.kernel.number(at)?;
                }
            }
        }
        Ok(None)
    }

    fn unheld(&mut self, sock: u64) -> Result<TcpWaiting> {
        let Common { state, family, port, peer_port, ipv4, peer_ipv4, ipv6, peer_ipv6 } = self.unheld.common;
        let state = self.kernel.bytes(sock + state, 1)?[0];
        let is_ipv6 = i32::from(self.word(sock + family)? as u16) == libc::AF_INET6;
        let mut host = |ipv4: u64, ipv6: u64| {
            let (at, length) = if is_ipv6 { (ipv6, 16) } else { (ipv4, 4) };
            let bytes = self.kernel.bytes(sock + at, length)?;
            Endpoint::host_of(&bytes).ok_or_else(|| EbpfError::unexpected(DOING, "it has no address"))
        };
        let (local, peer) = (host(ipv4, ipv6)?, host(peer_ipv4, peer_ipv6)?);
        let (port, peer_port) = (self.word(sock + port)? as u16, (self.word(sock + peer_port)? as u16).swap_bytes());
        Ok(TcpWaiting { sock, local: Endpoint { host: local, port }, peer: Endpoint { host: peer, port: peer_port }, state })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;
    use std::process::Command;

    use nix::sched::{CloneFlags, unshare};

    use super::*;
    use crate::sys::socket;

    /// A connection whose client was closed while it had much to send, and the server's end.
    fn closed(client: &str, server: &str, byte: u8) -> (TcpStream, Endpoint, Endpoint, TcpListener) {
        let listener = TcpListener::bind(server).unwrap();
        let sender = socket::create(libc::AF_INET, libc::SOCK_STREAM, 0).unwrap();
        let [from, to] = [client, server].map(|text| {
            let address: std::net::SocketAddrV4 = text.parse().unwrap();
            let bytes =
                [&(libc::AF_INET as u16).to_ne_bytes()[..], &address.port().to_be_bytes(), &address.ip().octets(), &[0; 8]];
            bytes.concat()
        });
        socket::bind(sender.as_fd(), &from).unwrap();
        socket::connect(sender.as_fd(), &to).unwrap();
        let mut sender = TcpStream::from(sender);
        let (accepted, _) = listener.accept().unwrap();
        sender.set_nonblocking(true).unwrap();
        while sender.write(&[byte; 100_000]).is_ok() {}
        (accepted, Endpoint::of(&from).unwrap(), Endpoint::of(&to).unwrap(), listener)
    }

    /// Connections with the same addresses in two network namespaces, which the kernel keeps in one table.
    #[test]
    fn each_namespace_has_its_own() {
        const NAME: &str = "each_namespace_has_its_own";
        if !nix::unistd::geteuid().is_root() {
            return crate::skip::note(NAME, "not root");
        }
        let (client, server) = ("127.0.0.1:61", "127.0.0.1:62");
        let there = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).map(|()| {
                let up = Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap();
                assert!(up.success());
                closed(client, server, 2)
            })
        });
        let there = match there.join().unwrap() {
            Ok(there) => there,
            Err(error) => return crate::skip::note(NAME, &error.to_string()),
        };
        let here = closed(client, server, 1);
        for ((accepted, from, to, _listener), byte) in &[(here, 1), (there, 2)] {
            let (_, rest) = tcp_of_closed(accepted.as_fd(), *from, *to).unwrap().unwrap();
            assert!(rest.len() > 100_000 && rest.iter().all(|one| one == byte), "{} bytes, of another connection", rest.len());
        }
    }
}
