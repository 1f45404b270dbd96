//! What NETLINK_SOCK_DIAG tells of the TCP sockets of our network namespace (CONFIG_INET_DIAG), those among them that no program has a
//! descriptor of: connections that wait to be accepted, and what is left of connections that were closed.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use nix::sys::socket::{MsgFlags, send};

use super::sock_diag::{self, BY_FAMILY, HEADER, malformed};

const SOCK_DESTROY: u16 = 21;

// linux/inet_diag.h.
const SHUTDOWN: u16 = 8;
const MD5SIG: u16 = 18;
const INFO: u8 = 2;

/// struct inet_diag_sockid.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
struct SocketId {
    local_port: [u8; 2],
    peer_port: [u8; 2],
    local: [u8; 16],
    peer: [u8; 16],
    device: u32,
    cookie: [u32; 2],
}

/// struct nlmsghdr and struct inet_diag_req_v2.
#[repr(C)]
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
struct Request {
    len: u32,
    kind: u16,
    flags: u16,
    sequence: u32,
    port: u32,
    family: u8,
    protocol: u8,
    extensions: u8,
    pad: u8,
    states: u32,
    id: SocketId,
}

/// struct inet_diag_msg.
#[repr(C)]
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
struct Message {
    family: u8,
    state: u8,
    timer: u8,
    retransmits: u8,
    id: SocketId,
    expires: u32,
    received: u32,
    sent: u32,
    uid: u32,
    inode: u32,
}

const _: () = assert!(size_of::<Request>() == HEADER + 56);
const _: () = assert!(size_of::<Message>() == 72);

/// One end of a connection: an IPv6 address, or an IPv4 address mapped to one, and a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Endpoint {
    /// The address.
    pub host: [u8; 16],
    /// The port.
    pub port: u16,
}

impl Endpoint {
    /// Of the kernel's bytes (struct sockaddr_in, sockaddr_in6). `None`: it is of another family.
    pub fn of(address: &[u8]) -> Option<Endpoint> {
        let family = i32::from(u16::from_ne_bytes(address.get(..2)?.try_into().ok()?));
        let port = u16::from_be_bytes(address.get(2..4)?.try_into().ok()?);
        let host = match family {
            libc::AF_INET => mapped(address.get(4..8)?.try_into().ok()?),
            libc::AF_INET6 => address.get(8..24)?.try_into().ok()?,
            _ => return None,
        };
        Some(Endpoint { host, port })
    }
}

impl Endpoint {
    /// Of the bytes of an IPv4 or IPv6 address.
    pub fn host_of(bytes: &[u8]) -> Option<[u8; 16]> {
        bytes.try_into().ok().or_else(|| bytes.try_into().ok().map(mapped))
    }

    /// As the kernel's bytes, of an address family.
    pub fn address(&self, family: i32) -> Vec<u8> {
        let mut address = (family as u16).to_ne_bytes().to_vec();
        address.extend(self.port.to_be_bytes());
        if family == libc::AF_INET {
            address.extend(&self.host[12..]);
            address.extend([0; 8]);
        } else {
            address.extend([0; 4]);
            address.extend(self.host);
            address.extend([0; 4]);
        }
        address
    }

    /// Is it an IPv4 address?
    pub fn is_ipv4(&self) -> bool {
        self.host == mapped([self.host[12], self.host[13], self.host[14], self.host[15]])
    }
}

fn mapped(host: [u8; 4]) -> [u8; 16] {
    let mut address = [0; 16];
    address[10..12].fill(0xff);
    address[12..].copy_from_slice(&host);
    address
}

/// A socket that is connected, or was, or listens.
#[derive(Clone, Copy, Debug)]
pub struct InetSocket {
    /// AF_INET or AF_INET6.
    pub family: i32,
    /// As [`super::tcp::state`] has them.
    pub state: u8,
    /// Its own address.
    pub local: Endpoint,
    /// That of the other end.
    pub peer: Endpoint,
    /// Bytes that wait to be read, an end that was not read included.
    pub received: u32,
    /// Bytes that the other end has not acknowledged, an end that it has not acknowledged included.
    pub sent: u32,
    /// 0: no program has a descriptor of it.
    pub inode: u32,
    /// 1: receives nothing more; 2: sends nothing more.
    pub shutdown: u8,
    /// Segments are signed (TCP_MD5SIG). Told only to who has CAP_NET_ADMIN.
    pub is_signed: bool,
    id: SocketId,
}

/// A connection to the kernel for such questions.
#[derive(Debug)]
pub struct InetDiag {
    netlink: OwnedFd,
}

impl InetDiag {
    /// Opens it.
    pub fn open() -> io::Result<InetDiag> {
        Ok(InetDiag { netlink: sock_diag::open()? })
    }

    /// Every TCP socket that is or was connected, or listens.
    pub fn all(&self) -> io::Result<Vec<InetSocket>> {
        let mut all = Vec::new();
        for family in [libc::AF_INET, libc::AF_INET6] {
            // All states but CLOSE and bound ones.
            const STATES: u32 = 0x1f7e;
            let flags = libc::NLM_F_REQUEST | libc::NLM_F_DUMP;
            self.send(BY_FAMILY, flags, family, STATES, SocketId::default())?;
            self.answers(|message, attributes| all.push(parse(message, attributes)))?;
        }
        Ok(all)
    }

    /// One of them again, as it is now.
    pub fn look(&self, known: &InetSocket) -> io::Result<InetSocket> {
        self.send(BY_FAMILY, libc::NLM_F_REQUEST | libc::NLM_F_ACK, known.family, u32::MAX, known.id)?;
        let mut found = None;
        self.answers(|message, attributes| found = Some(parse(message, attributes)))?;
        found.ok_or_else(|| io::Error::from_raw_os_error(libc::ENOENT))
    }

    /// Takes away what is left of a connection that no program has a descriptor of. Whoever is at the other end is told (CONFIG_INET_DIAG_DESTROY).
    pub fn destroy(&self, rest: &InetSocket) -> io::Result<()> {
        let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK;
        self.send(SOCK_DESTROY, flags, rest.family, u32::MAX, rest.id)?;
        self.answers(|_, _| {})
    }

    fn send(&self, kind: u16, flags: i32, family: i32, states: u32, id: SocketId) -> io::Result<()> {
        let request = Request {
            len: size_of::<Request>() as u32,
            kind,
            flags: flags as u16,
            sequence: 1,
            port: 0,
            family: family as u8,
            protocol: libc::IPPROTO_TCP as u8,
            // Keys are told only with it.
            extensions: 1 << (INFO - 1),
            pad: 0,
            states,
            id,
        };
        send(self.netlink.as_raw_fd(), bytemuck::bytes_of(&request), MsgFlags::empty())?;
        Ok(())
    }

    /// Each answer.
    fn answers(&self, mut each: impl FnMut(Message, &[u8])) -> io::Result<()> {
        sock_diag::answers(self.netlink.as_fd(), |message| {
            let (head, attributes) = message[HEADER..].split_at_checked(size_of::<Message>()).ok_or_else(malformed)?;
            each(bytemuck::pod_read_unaligned(head), attributes);
            Ok(())
        })
    }
}

fn parse(message: Message, mut attributes: &[u8]) -> InetSocket {
    let family = i32::from(message.family);
    let endpoint = |host: [u8; 16], port: [u8; 2]| {
        let host = if family == libc::AF_INET { mapped([host[0], host[1], host[2], host[3]]) } else { host };
        Endpoint { host, port: u16::from_be_bytes(port) }
    };
    let mut found = InetSocket {
        family,
        state: message.state,
        local: endpoint(message.id.local, message.id.local_port),
        peer: endpoint(message.id.peer, message.id.peer_port),
        received: message.received,
        sent: message.sent,
        inode: message.inode,
        shutdown: 0,
        is_signed: false,
        id: message.id,
    };
    while let Some((head, _)) = attributes.split_first_chunk::<4>() {
        let (length, kind) = (usize::from(u16::from_ne_bytes([head[0], head[1]])), u16::from_ne_bytes([head[2], head[3]]));
        match (kind, attributes.get(4)) {
            (SHUTDOWN, Some(&mask)) => found.shutdown = mask,
            (MD5SIG, Some(_)) => found.is_signed = true,
            _ => {}
        }
        attributes = attributes.get(length.next_multiple_of(4).max(4)..).unwrap_or_default();
    }
    found
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use nix::sys::stat::fstat;

    use super::super::socket;
    use super::super::tcp::state;
    use super::*;

    fn endpoint(address: io::Result<Vec<u8>>) -> Endpoint {
        Endpoint::of(&address.unwrap()).unwrap()
    }

    /// Both ends are found, and the rest of a connection that was closed, which can be taken away.
    #[test]
    fn ends_and_rests() {
        for address in ["127.0.0.1:0", "[::1]:0"] {
            let server = TcpListener::bind(address).unwrap();
            let client = TcpStream::connect(server.local_addr().unwrap()).unwrap();
            let (accepted, _) = server.accept().unwrap();
            let local = endpoint(socket::local_address(client.as_fd()));
            let peer = endpoint(socket::peer_address(client.as_fd()));
            let diag = InetDiag::open().unwrap();
            let find = |from, to| diag.all().unwrap().into_iter().find(|one| (one.local, one.peer) == (from, to));
            let (one, other) = (find(local, peer).unwrap(), find(peer, local).unwrap());
            assert_eq!(u64::from(one.inode), fstat(&client).unwrap().st_ino);
            assert_eq!(u64::from(other.inode), fstat(&accepted).unwrap().st_ino);
            drop(client);
            drop(accepted);
            let rest = find(local, peer).unwrap();
            assert_eq!((rest.inode, rest.state), (0, state::TIME_WAIT));
            match diag.destroy(&rest) {
                Err(error) if matches!(error.raw_os_error(), Some(libc::EPERM | libc::EOPNOTSUPP)) => {
                    crate::skip::note("ends_and_rests", &error.to_string());
                }
                other => {
                    other.unwrap();
                    assert!(find(local, peer).is_none());
                }
            }
        }
    }
}
