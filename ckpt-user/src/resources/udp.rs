//! UDP sockets: bound or not, connected or not. Datagrams that wait in them are dropped, as any network may drop them: they could only
//! be given back with a wrong sender.

use std::os::fd::{AsFd, OwnedFd};

use nix::poll::PollFlags;
use serde::{Deserialize, Serialize};

use super::file::{Descriptor, FileKind, OpenFile};
use super::multicast::{self, Membership};
use super::socket::{self, SocketType};
use super::socket_options::SocketOptions;
use super::{Collector, Restorer, reuseport};
use crate::error::{Doing, Error, Result};
use crate::sys::{queue, socket as raw};

/// See the module.
#[derive(Debug)]
pub struct Udp;

/// The state of a UDP socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UdpRecord {
    /// IPv4 or IPv6, UDP or UDP-Lite.
    pub socket: SocketType,
    /// The address it is bound to, as the kernel's bytes. Empty: none.
    #[serde(default, with = "serde_bytes")]
    pub local: Vec<u8>,
    /// The address it is connected to. Empty: none.
    #[serde(default, with = "serde_bytes")]
    pub peer: Vec<u8>,
    /// What the program has set.
    #[serde(default)]
    pub options: SocketOptions,
    /// Multicast groups that it has joined.
    #[serde(default)]
    pub memberships: Vec<Membership>,
}

impl FileKind for Udp {
    const KIND: &'static str = "udp";
    type Record = UdpRecord;

    fn matches(d: &Descriptor<'_>) -> bool {
        let udp = [libc::IPPROTO_UDP, libc::IPPROTO_UDPLITE];
        d.socket.is_some_and(|s| s.is_inet() && s.kind == libc::SOCK_DGRAM && udp.contains(&s.protocol))
    }

    fn collect(cx: &mut Collector<'_>, d: &Descriptor<'_>) -> Result<UdpRecord> {
        let socket = d.socket.ok_or_else(|| Error::Unexpected(format!("descriptor {} of pid {} is no socket", d.fd, d.pid)))?;
        socket::check_namespace(cx, d, socket)?;
        reuseport::check(cx, d)?;
        let local = raw::local_address(d.own).doing(|| socket::looking(d))?;
        if queue::poll_now(d.own).doing(|| socket::looking(d))?.contains(PollFlags::POLLIN) {
            tracing::warn!(
                "datagrams that wait in {} of pid {} ({}) are not saved",
                socket::name(d),
                d.pid,
                socket::describe(&local)
            );
        }
        let peer = match raw::peer_address(d.own) {
            Err(error) if error.raw_os_error() == Some(libc::ENOTCONN) => Vec::new(),
            other => other.doing(|| socket::looking(d))?,
        };
        Ok(UdpRecord {
            socket,
            local: if socket::is_unbound(&local) { Vec::new() } else { local },
            peer,
            options: SocketOptions::collect(cx, d, socket)?,
            memberships: multicast::collect(cx, d.own, socket.domain)?,
        })
    }

    fn restore(_cx: &mut Restorer<'_>, _common: &OpenFile, record: &UdpRecord) -> Result<OwnedFd> {
        if !record.socket.is_inet() || record.socket.kind != libc::SOCK_DGRAM {
            return Err(Error::Restart(format!("the image holds {} as a UDP socket", record.socket)));
        }
        let fd = record.socket.create()?;
        record.options.restore(fd.as_fd())?;
        if !record.local.is_empty() {
            raw::bind(fd.as_fd(), &record.local).map_err(|error| socket::cannot_bind(&record.local, error))?;
        }
        for membership in &record.memberships {
            multicast::restore(fd.as_fd(), record.socket.domain, membership)?;
        }
        if !record.peer.is_empty() {
            raw::connect(fd.as_fd(), &record.peer)
                .doing(|| format!("cannot connect a UDP socket to {}", socket::describe(&record.peer)))?;
        }
        Ok(fd)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr, UdpSocket};

    use super::super::fd_trial::{again, collect, wait_for};
    use super::*;

    #[test]
    fn bound_and_connected() {
        for any in ["127.0.0.1:0", "[::1]:0"] {
            let (a, b) = (UdpSocket::bind(any).unwrap(), UdpSocket::bind(any).unwrap());
            a.connect(b.local_addr().unwrap()).unwrap();
            a.set_broadcast(true).unwrap();
            b.send_to(b"lost", a.local_addr().unwrap()).unwrap();
            wait_for(&a, PollFlags::POLLIN);
            let (name_a, name_b) = (a.local_addr().unwrap(), b.local_addr().unwrap());
            let cut = collect(&[a.as_fd(), b.as_fd()]).unwrap();
            drop((a, b));
            let [a, b] = <[OwnedFd; 2]>::try_from(cut.restore_soon()).unwrap().map(UdpSocket::from);
            assert_eq!((a.local_addr().unwrap(), b.local_addr().unwrap()), (name_a, name_b));
            assert_eq!(a.peer_addr().unwrap(), name_b);
            assert!(a.broadcast().unwrap() && b.peer_addr().is_err());
            a.send(b"hello").unwrap();
            let mut buf = [0; 10];
            assert_eq!(b.recv_from(&mut buf).unwrap(), (5, name_a));
        }
    }

    #[test]
    fn neither_bound_nor_connected() {
        let old = raw::create(libc::AF_INET, libc::SOCK_DGRAM, 0).unwrap();
        let [new] = again([old.as_fd()]);
        assert!(socket::is_unbound(&raw::local_address(new.as_fd()).unwrap()));
    }

    #[test]
    fn multicast_groups() {
        let old = UdpSocket::bind("0.0.0.0:0").unwrap();
        old.join_multicast_v4(&Ipv4Addr::new(239, 7, 7, 7), &Ipv4Addr::LOCALHOST).unwrap();
        old.set_multicast_ttl_v4(5).unwrap();
        let cut = collect(&[old.as_fd()]).unwrap();
        drop(old);
        let new = UdpSocket::from(cut.restore_soon().remove(0));
        assert_eq!(new.multicast_ttl_v4().unwrap(), 5);
        // It is a member: it can leave.
        new.leave_multicast_v4(&Ipv4Addr::new(239, 7, 7, 7), &Ipv4Addr::LOCALHOST).unwrap();

        let old = UdpSocket::bind("[::]:0").unwrap();
        let (group, lo) = (Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 7, 7), nix::net::if_::if_nametoindex("lo").unwrap());
        old.join_multicast_v6(&group, lo).unwrap();
        let cut = collect(&[old.as_fd()]).unwrap();
        drop(old);
        UdpSocket::from(cut.restore_soon().remove(0)).leave_multicast_v6(&group, lo).unwrap();
    }

    #[test]
    fn hostile_records_are_errors() {
        let old = UdpSocket::bind("127.0.0.1:0").unwrap();
        let changes: [fn(&mut UdpRecord); 5] = [
            |record| record.local = vec![0; 1000],
            |record| record.peer = vec![2],
            |record| record.socket.domain = libc::AF_UNIX,
            |record| record.memberships = vec![Membership { filter: vec![0; 10] }],
            |record| record.memberships = vec![Membership { filter: vec![0xff; SOME] }],
        ];
        for change in changes {
            let mut cut = collect(&[old.as_fd()]).unwrap();
            cut.edit(0, |record: &mut UdpRecord| {
                record.local.clear();
                change(record);
            });
            assert!(cut.restore().is_err());
        }
    }

    const SOME: usize = 300;
}
