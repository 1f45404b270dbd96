//! What the kinds of sockets share: which socket it is, its addresses for people, its network namespace. And the last of the
//! socket kinds: it has every socket that no other claims, and refuses it by name.

use std::fmt::Write;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use serde::{Deserialize, Serialize};

use super::file::{Descriptor, FileKind, OpenFile};
use super::socket_options::{FreshSocket, namespace_of};
use super::{Collector, Restorer};
use crate::error::{Doing, Error, Result};
use crate::sys::socket;

/// Any other socket.
#[derive(Debug)]
pub struct OtherSocket;

/// SO_DOMAIN, SO_TYPE and SO_PROTOCOL.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SocketType {
    /// AF_INET, ...
    pub domain: i32,
    /// SOCK_STREAM, ...
    pub kind: i32,
    /// IPPROTO_TCP, ...
    pub protocol: i32,
}

impl SocketType {
    /// What sort of socket a descriptor of our own is. `None`: it is none.
    pub fn of(fd: BorrowedFd<'_>) -> Option<SocketType> {
        let get = |name| socket::int_option(fd, libc::SOL_SOCKET, name).ok();
        Some(SocketType { domain: get(libc::SO_DOMAIN)?, kind: get(libc::SO_TYPE)?, protocol: get(libc::SO_PROTOCOL)? })
    }

    /// IPv4 or IPv6?
    pub fn is_inet(self) -> bool {
        self.domain == libc::AF_INET || self.domain == libc::AF_INET6
    }

    /// A new socket of this sort.
    pub fn create(self) -> Result<OwnedFd> {
        socket::create(self.domain, self.kind, self.protocol).doing(|| format!("cannot make {self}"))
    }
}

impl std::fmt::Display for SocketType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = match self.kind {
            libc::SOCK_STREAM => "stream".to_owned(),
            libc::SOCK_DGRAM => "datagram".to_owned(),
            libc::SOCK_RAW => "raw".to_owned(),
            libc::SOCK_SEQPACKET => "sequenced packet".to_owned(),
            n => format!("type {n}"),
        };
        let domain = match self.domain {
            libc::AF_UNIX => "unix",
            libc::AF_INET => "IPv4",
            libc::AF_INET6 => "IPv6",
            libc::AF_NETLINK => "netlink",
            libc::AF_PACKET => "packet",
            libc::AF_VSOCK => "vsock",
            libc::AF_ALG => "kernel crypto",
            libc::AF_BLUETOOTH => "bluetooth",
            libc::AF_CAN => "CAN",
            libc::AF_XDP => "XDP",
            n => return write!(f, "a {kind} socket of address family {n}, protocol {}", self.protocol),
        };
        let article =
            if self.domain == libc::AF_INET || self.domain == libc::AF_INET6 || self.domain == libc::AF_XDP { "an" } else { "a" };
        write!(f, "{article} {domain} {kind} socket")?;
        if self.protocol != 0 { write!(f, " (protocol {})", self.protocol) } else { Ok(()) }
    }
}

/// The name of a descriptor in refusals.
pub fn name(d: &Descriptor<'_>) -> String {
    format!("descriptor {} ({})", d.fd, d.link.display())
}

/// What was being looked at when a call failed.
pub fn looking(d: &Descriptor<'_>) -> String {
    format!("cannot look at the socket {} of pid {}", d.fd, d.pid)
}

/// Refuses a socket of a network namespace that is not ours: it would be made again in the wrong one.
pub fn check_namespace(cx: &mut Collector<'_>, d: &Descriptor<'_>, kind: SocketType) -> Result<()> {
    // Where a socket cannot tell, the network namespace of the process decides.
    let ours = FreshSocket::of(cx, kind)?;
    let same = match (namespace_of(d.own), &ours.namespace) {
        (Some(theirs), Some(ours)) => theirs == *ours,
        _ => {
            let read = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/net")).doing(|| looking(d));
            read(&d.pid.to_string())? == read("self")?
        }
    };
    if same {
        return Ok(());
    }
    cx.refuse(d.pid, name(d), "belongs to another network namespace", "run ckpt in that network namespace (nsenter -n)")
}

/// Bytes of an address, for people.
pub fn describe(address: &[u8]) -> String {
    let word = |at: usize| Some(u16::from_be_bytes(address.get(at..at + 2)?.try_into().ok()?));
    let family = address.get(..2).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
    let inet = || {
        let ip: [u8; 4] = address.get(4..8)?.try_into().ok()?;
        Some(SocketAddrV4::new(Ipv4Addr::from(ip), word(2)?).to_string())
    };
    let inet6 = || {
        let ip: [u8; 16] = address.get(8..24)?.try_into().ok()?;
        let scope = u32::from_ne_bytes(address.get(24..28)?.try_into().ok()?);
        Some(SocketAddrV6::new(Ipv6Addr::from(ip), word(2)?, 0, scope).to_string())
    };
    let known = match family.map(i32::from) {
        Some(libc::AF_INET) => inet(),
        Some(libc::AF_INET6) => inet6(),
        Some(libc::AF_UNIX) => Some(match &address[2..] {
            [] => "an unnamed socket".to_owned(),
            [0, name @ ..] => format!("@{}", String::from_utf8_lossy(name)),
            name => String::from_utf8_lossy(name.split(|&b| b == 0).next().unwrap_or(name)).into_owned(),
        }),
        _ => None,
    };
    known.unwrap_or_else(|| {
        address.iter().fold("address ".to_owned(), |mut text, byte| {
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
            text
        })
    })
}

/// Is an IPv4 or IPv6 address (as bytes) that of a socket that was never bound: no host and no port?
pub fn is_unbound(address: &[u8]) -> bool {
    let host = match address.len() {
        16 => address.get(4..8),
        _ => address.get(8..24),
    };
    address.get(2..4).is_none_or(|port| port == [0, 0]) && host.is_none_or(|host| host.iter().all(|&b| b == 0))
}

/// There is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Never {}

impl FileKind for OtherSocket {
    const KIND: &'static str = "socket";
    type Record = Never;

    fn matches(d: &Descriptor<'_>) -> bool {
        d.link.as_bytes().starts_with(b"socket:[")
    }

    fn collect(cx: &mut Collector<'_>, d: &Descriptor<'_>) -> Result<Never> {
        let what = d.socket.map_or("a socket".to_owned(), |kind| kind.to_string());
        cx.refuse(d.pid, name(d), format!("is {what}, which ckpt cannot save"), "let the program close it first")
    }

    fn restore(_cx: &mut Restorer<'_>, common: &OpenFile, record: &Never) -> Result<OwnedFd> {
        let _: &OpenFile = common;
        match *record {}
    }
}

/// An address in a record of an image, for messages.
pub fn cannot_bind(address: &[u8], error: std::io::Error) -> Error {
    let advice = match error.raw_os_error() {
        Some(libc::EADDRINUSE) => "; another program uses that address now: end it, or restart later",
        Some(libc::EADDRNOTAVAIL) => "; this machine does not have that address",
        _ => "",
    };
    Error::os(format!("cannot bind a socket to {}{advice}", describe(address)), error)
}

#[cfg(test)]
mod tests {
    use super::super::fd_trial::refusal;
    use super::*;

    #[test]
    fn addresses_are_for_people() {
        let unix = |path: &[u8]| [&1u16.to_ne_bytes()[..], path].concat();
        assert_eq!(describe(&unix(b"/run/x\0")), "/run/x");
        assert_eq!(describe(&unix(b"\0abstract")), "@abstract");
        assert_eq!(describe(&unix(b"")), "an unnamed socket");
        let inet = [&2u16.to_ne_bytes()[..], &[0x1f, 0x90, 127, 0, 0, 1], &[0; 8]].concat();
        assert_eq!(describe(&inet), "127.0.0.1:8080");
        assert!(!is_unbound(&inet));
        assert!(is_unbound(&[&2u16.to_ne_bytes()[..], &[0; 14]].concat()));
        let inet6 = [&10u16.to_ne_bytes()[..], &[0, 80, 0, 0, 0, 0], &[0; 15], &[1], &[0; 4]].concat();
        assert_eq!(describe(&inet6), "[::1]:80");
        for bad in [&[][..], &[1], &[2, 0], &[10, 0, 1, 2], &[99, 0, 1]] {
            assert!(describe(bad).starts_with("address") || bad == [1, 0]);
        }
    }

    #[test]
    fn others_are_refused_by_name() {
        for (domain, kind, protocol, name) in [
            (libc::AF_INET, libc::SOCK_RAW, libc::IPPROTO_ICMP, "an IPv4 raw socket (protocol 1)"),
            (libc::AF_PACKET, libc::SOCK_DGRAM, 0, "a packet datagram socket"),
        ] {
            let fd = socket::create(domain, kind, protocol).unwrap();
            let refused = refusal(&fd);
            assert!(refused.contains(name), "{refused}");
        }
    }
}
