//! Network devices, their addresses and routes: messages of NETLINK_ROUTE (rtnetlink(7)), about the network namespace that we are in.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{MsgFlags, recv, send};
use serde::{Deserialize, Serialize};

use super::socket;

/// A kind of message: its number when something is asked for is 2 higher, when it is taken away 1 higher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A device: struct ifinfomsg.
    Link,
    /// An address: struct ifaddrmsg.
    Address,
    /// A route: struct rtmsg.
    Route,
}

/// What one message tells.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// The struct before the attributes.
    pub header: Vec<u8>,
    /// What each is, and its value.
    pub attributes: Vec<(u16, Vec<u8>)>,
}

/// struct nlmsghdr.
const HEADER: usize = 16;
/// Whoever is told of changes meanwhile begins again.
const NLM_F_DUMP_INTR: u16 = 0x10;

impl Kind {
    fn number(self) -> u16 {
        match self {
            Kind::Link => libc::RTM_NEWLINK,
            Kind::Address => libc::RTM_NEWADDR,
            Kind::Route => libc::RTM_NEWROUTE,
        }
    }

    /// Bytes of its struct.
    fn header(self) -> usize {
        match self {
            Kind::Link => 16,
            Kind::Address => 8,
            Kind::Route => 12,
        }
    }
}

impl Message {
    /// One with nothing but the family in its struct.
    pub fn of(kind: Kind, family: i32) -> Message {
        let mut header = vec![0; kind.header()];
        header[0] = family as u8;
        Message { header, attributes: Vec::new() }
    }

    /// An attribute's value.
    pub fn get(&self, attribute: u16) -> Option<&[u8]> {
        self.attributes.iter().find(|(kind, _)| *kind == attribute).map(|(_, value)| &value[..])
    }

    /// The same as a number.
    pub fn number(&self, attribute: u16) -> Option<u32> {
        self.get(attribute).and_then(|value| value.try_into().ok()).map(u32::from_ne_bytes)
    }

    /// A number in the struct. 0: it is not that long.
    pub fn header_u32(&self, at: usize) -> u32 {
        self.header.get(at..at + 4).and_then(|word| word.try_into().ok()).map_or(0, u32::from_ne_bytes)
    }

    /// The same, changed.
    pub fn set_header_u32(&mut self, at: usize, value: u32) {
        if let Some(word) = self.header.get_mut(at..at + 4) {
            word.copy_from_slice(&value.to_ne_bytes());
        }
    }

    fn bytes(&self, kind: u16, flags: i32) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; HEADER];
        bytes.extend_from_slice(&self.header);
        for (attribute, value) in &self.attributes {
            let len = u16::try_from(4 + value.len()).map_err(|_| io::Error::other("an attribute is too long"))?;
            bytes.extend_from_slice(&len.to_ne_bytes());
            bytes.extend_from_slice(&attribute.to_ne_bytes());
            bytes.extend_from_slice(value);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        let len = bytes.len() as u32;
        bytes[..4].copy_from_slice(&len.to_ne_bytes());
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&((libc::NLM_F_REQUEST | flags) as u16).to_ne_bytes());
        Ok(bytes)
    }

    fn parse(kind: Kind, bytes: &[u8]) -> io::Result<Message> {
        let (header, mut rest) = bytes.split_at_checked(kind.header()).ok_or_else(malformed)?;
        let mut attributes = Vec::new();
        while rest.len() >= 4 {
            let len = usize::from(u16::from_ne_bytes([rest[0], rest[1]]));
            let value = rest.get(4..len).ok_or_else(malformed)?;
            // The upper bits tell how its value is laid out.
            attributes.push((u16::from_ne_bytes([rest[2], rest[3]]) & 0x3fff, value.to_vec()));
            rest = rest.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        }
        Ok(Message { header: header.to_vec(), attributes })
    }
}

/// A connection to the kernel.
#[derive(Debug)]
pub struct Netlink(OwnedFd);

impl Netlink {
    /// Opens it.
    pub fn open() -> io::Result<Netlink> {
        socket::create(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE).map(Netlink)
    }

    /// Everything of this kind and family that there is.
    pub fn all(&self, kind: Kind, family: i32) -> io::Result<Vec<Message>> {
        loop {
            self.send(&Message::of(kind, family).bytes(kind.number() + 2, libc::NLM_F_DUMP)?)?;
            let (mut all, mut changed) = (Vec::new(), false);
            while !self.receive(|number, flags, body| {
                changed |= flags & NLM_F_DUMP_INTR != 0;
                if number == kind.number() {
                    all.push(Message::parse(kind, body)?);
                }
                Ok(())
            })? {}
            if !changed {
                return Ok(all);
            }
        }
    }

    /// Makes something, or changes a device.
    pub fn set(&self, kind: Kind, message: &Message) -> io::Result<()> {
        let flags = if kind == Kind::Link { 0 } else { libc::NLM_F_CREATE | libc::NLM_F_APPEND };
        self.change(&message.bytes(kind.number(), libc::NLM_F_ACK | flags)?)
    }

    /// Takes something away.
    pub fn remove(&self, kind: Kind, message: &Message) -> io::Result<()> {
        self.change(&message.bytes(kind.number() + 1, libc::NLM_F_ACK)?)
    }

    fn change(&self, bytes: &[u8]) -> io::Result<()> {
        self.send(bytes)?;
        while !self.receive(|_, _, _| Ok(()))? {}
        Ok(())
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        send(self.0.as_raw_fd(), bytes, MsgFlags::empty()).map(drop).map_err(Into::into)
    }

    /// The next messages: number, flags and what follows of each. Returns whether the answer ends with them.
    fn receive(&self, mut each: impl FnMut(u16, u16, &[u8]) -> io::Result<()>) -> io::Result<bool> {
        let mut buffer = vec![0u8; 1 << 16];
        let n = recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::MSG_TRUNC)?;
        let mut rest = buffer.get(..n).ok_or_else(malformed)?;
        while !rest.is_empty() {
            let u16_at =
                |at: usize| rest.get(at..at + 2).map(|word| u16::from_ne_bytes([word[0], word[1]])).ok_or_else(malformed);
            let len = usize::from(u16_at(0)?) + (usize::from(u16_at(2)?) << 16);
            let (number, flags) = (u16_at(4)?, u16_at(6)?);
            let body = rest.get(HEADER..len).ok_or_else(malformed)?;
            match i32::from(number) {
                libc::NLMSG_DONE | libc::NLMSG_ERROR => {
                    let errno = body.get(..4).and_then(|word| word.try_into().ok()).map_or(0, i32::from_ne_bytes);
                    return if errno < 0 { Err(io::Error::from_raw_os_error(errno.saturating_neg())) } else { Ok(true) };
                }
                _ => each(number, flags, body)?,
            }
            rest = rest.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        }
        Ok(false)
    }
}

fn malformed() -> io::Error {
    io::Error::other("malformed answer of NETLINK_ROUTE")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_device_is_told() {
        let netlink = Netlink::open().unwrap();
        let links = netlink.all(Kind::Link, libc::AF_UNSPEC).unwrap();
        assert!(links.iter().any(|link| link.get(libc::IFLA_IFNAME) == Some(b"lo\0")), "{links:?}");
        let nowhere = Message { header: vec![libc::AF_INET as u8, 32, 0, 0, 0xff, 0xff, 0xff, 0x7f], attributes: Vec::new() };
        assert!(netlink.remove(Kind::Address, &nowhere).is_err());
    }

    #[test]
    fn messages_are_parsed_as_they_are_made() {
        let mut message = Message::of(Kind::Address, libc::AF_INET6);
        message.set_header_u32(4, 77);
        message.attributes = vec![(1, vec![1, 2, 3, 4, 5]), (2, Vec::new()), (3, 9u32.to_ne_bytes().to_vec())];
        let bytes = message.bytes(20, 0).unwrap();
        assert_eq!(Message::parse(Kind::Address, &bytes[HEADER..]).unwrap(), message);
        assert_eq!((message.header_u32(4), message.number(3), message.number(1)), (77, Some(9), None));
        for len in [1, 7, 9, 14] {
            assert!(Message::parse(Kind::Address, &bytes[HEADER..HEADER + len]).is_err() || len == 9, "{len}");
        }
        assert!(Message::parse(Kind::Address, &[0; 12]).is_err(), "an attribute of no length");
        message.attributes.push((1, vec![0; 1 << 16]));
        assert!(message.bytes(20, 0).is_err());
    }
}
