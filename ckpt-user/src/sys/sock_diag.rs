//! NETLINK_SOCK_DIAG: what questions about the sockets of any family have in common.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use nix::sys::socket::{MsgFlags, recv};

use super::socket;

const NETLINK_SOCK_DIAG: i32 = 4;
/// The kind of a question, and of what is told of a socket.
pub const BY_FAMILY: u16 = 20;

/// struct nlmsghdr.
pub const HEADER: usize = 16;
/// As many answers as the kernel gives at once, and none is longer.
pub const LONGEST: usize = 65536;

/// A connection to the kernel, about the network namespace that we are in.
pub fn open() -> io::Result<OwnedFd> {
    socket::create(libc::AF_NETLINK, libc::SOCK_RAW, NETLINK_SOCK_DIAG)
}

/// Each socket that is told of, with the header of its message, up to the one that says that there are no more, or that there was an error (or none).
pub fn answers(netlink: BorrowedFd<'_>, mut each: impl FnMut(&[u8]) -> io::Result<()>) -> io::Result<()> {
    let mut buffer = vec![0u8; LONGEST];
    loop {
        let length = recv(netlink.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
        let mut rest = buffer.get(..length).unwrap_or_default();
        while !rest.is_empty() {
            let length = u32_at(rest, 0)? as usize;
            let message = rest.get(..length).filter(|message| message.len() >= HEADER).ok_or_else(malformed)?;
            match i32::from(u16_at(message, 4)?) {
                libc::NLMSG_DONE => return Ok(()),
                libc::NLMSG_ERROR => {
                    return match u32_at(message, HEADER)? as i32 {
                        0 => Ok(()),
                        error => Err(io::Error::from_raw_os_error(error.saturating_neg())),
                    };
                }
                kind if kind == i32::from(BY_FAMILY) => each(message)?,
                _ => return Err(malformed()),
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

/// What the kernel never says.
pub fn malformed() -> io::Error {
    io::Error::other("malformed answer of NETLINK_SOCK_DIAG")
}

/// Four bytes, as a number.
pub fn u32_at(bytes: &[u8], at: usize) -> io::Result<u32> {
    let word = bytes.get(at..at + 4).and_then(|word| word.try_into().ok());
    word.map(u32::from_ne_bytes).ok_or_else(malformed)
}

/// Two bytes, as a number.
pub fn u16_at(bytes: &[u8], at: usize) -> io::Result<u16> {
    let word = bytes.get(at..at + 2).and_then(|word| word.try_into().ok());
    word.map(u16::from_ne_bytes).ok_or_else(malformed)
}
