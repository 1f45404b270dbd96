//! What travels beside the bytes of a unix socket: descriptors and credentials (SCM_RIGHTS and SCM_CREDENTIALS, unix(7)).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use serde::{Deserialize, Serialize};

use super::socket::{self, Received};

/// Descriptors that one message carries at most (SCM_MAX_FD of the kernel).
pub const DESCRIPTORS_MAX: usize = 253;
/// linux/socket.h.
const SCM_PIDFD: i32 = 4;

/// Who has sent a message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Credentials {
    /// Process.
    pub pid: i32,
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

const _: () = assert!(size_of::<Credentials>() == size_of::<libc::ucred>());

/// What came with a message.
#[derive(Debug, Default)]
pub struct Ancillary {
    /// Descriptors, ours now, in their order.
    pub files: Vec<OwnedFd>,
    /// Who has sent it, if the socket asks for that.
    pub credentials: Option<Credentials>,
    /// A handle on the sender (SO_PASSPIDFD).
    pub handle: Option<OwnedFd>,
    /// Anything else: a time stamp, a security label.
    pub other: bool,
}

/// struct cmsghdr: length of all, level, kind.
const HEADER: usize = 16;
const ALIGNED: usize = 8;
/// Room for as many descriptors as there can be, and all that may stand beside them.
const ROOM: usize = 8192;

/// recvmsg with room for all that may come with the data. Descriptors are close-on-exec. Also tells the sender's address.
pub fn receive(fd: BorrowedFd<'_>, buffer: &mut [u8], flags: i32) -> io::Result<(Received, Vec<u8>, Ancillary)> {
    let mut control = vec![0u64; ROOM / ALIGNED];
    let (received, address, len) =
        socket::receive_with(fd, buffer, bytemuck::cast_slice_mut(&mut control), flags | libc::MSG_CMSG_CLOEXEC)?;
    let control: &[u8] = bytemuck::cast_slice(&control);
    let mut found = Ancillary::default();
    let mut rest = &control[..len.min(control.len())];
    while let Some((level, kind, value)) = take(&mut rest) {
        let owned = |bytes: &[u8]| {
            let number = RawFd::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            // SAFETY: the kernel has just made this descriptor for us, and told nobody else of it.
            unsafe { OwnedFd::from_raw_fd(number) }
        };
        match (level, kind) {
            (libc::SOL_SOCKET, libc::SCM_RIGHTS) => found.files.extend(value.chunks_exact(4).map(owned)),
            // The kernel may say why there is none.
            (libc::SOL_SOCKET, SCM_PIDFD) if value.len() >= 4 && value[3] & 0x80 == 0 => found.handle = Some(owned(value)),
            (libc::SOL_SOCKET, libc::SCM_CREDENTIALS) if value.len() >= size_of::<Credentials>() => {
                found.credentials = Some(bytemuck::pod_read_unaligned(&value[..size_of::<Credentials>()]));
            }
            _ => found.other = true,
        }
    }
    Ok((received, address, found))
}

/// A page that nobody can write to.
struct Closed(*mut libc::c_void);

const CLOSED: usize = 4096;

impl Closed {
    fn new() -> io::Result<Closed> {
        // SAFETY: a new mapping at a place that the kernel chooses takes nothing from anybody.
        let at =
            unsafe { libc::mmap(std::ptr::null_mut(), CLOSED, libc::PROT_NONE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0) };
        if at == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(Closed(at)) }
    }
}

impl Drop for Closed {
    fn drop(&mut self) {
        // SAFETY: the page is ours, and nothing refers to it any more.
        unsafe { libc::munmap(self.0, CLOSED) };
    }
}

/// How many of the next `len` bytes of a stream were sent before the message that the last of them belongs to. A look at them with no room for the last
/// one ends there: the kernel gives what was sent at once as a whole, or (EFAULT) nothing of it.
pub fn before_the_last(fd: BorrowedFd<'_>, len: usize) -> io::Result<usize> {
    let closed = Closed::new()?;
    let mut buffer = vec![0u8; len.saturating_sub(1)];
    let mut pieces = [
        libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() },
        libc::iovec { iov_base: closed.0, iov_len: 1 },
    ];
    // SAFETY: zero is a valid msghdr; the pieces outlive the call; the kernel finds out itself that the second cannot be written to.
    let n = unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = pieces.as_mut_ptr();
        message.msg_iovlen = pieces.len();
        libc::recvmsg(fd.as_raw_fd(), &raw mut message, libc::MSG_PEEK | libc::MSG_DONTWAIT)
    };
    match n {
        0.. => Ok(n as usize),
        _ => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::EFAULT) => Ok(0),
            error => Err(error),
        },
    }
}

/// The next control message: level, kind and value.
fn take<'a>(rest: &mut &'a [u8]) -> Option<(i32, i32, &'a [u8])> {
    let whole = *rest;
    let len = u64::from_ne_bytes(whole.get(..8)?.try_into().ok()?) as usize;
    let level = i32::from_ne_bytes(whole.get(8..12)?.try_into().ok()?);
    let kind = i32::from_ne_bytes(whole.get(12..HEADER)?.try_into().ok()?);
    let value = whole.get(HEADER..len)?;
    *rest = whole.get(len.next_multiple_of(ALIGNED)..).unwrap_or_default();
    Some((level, kind, value))
}

fn put(control: &mut Vec<u8>, kind: i32, value: &[u8]) {
    control.extend(((HEADER + value.len()) as u64).to_ne_bytes());
    control.extend(libc::SOL_SOCKET.to_ne_bytes());
    control.extend(kind.to_ne_bytes());
    control.extend(value);
    control.resize(control.len().next_multiple_of(ALIGNED), 0);
}

/// Sends a message, or (stream) some of it, without waiting, with descriptors and in the name of whom is said.
pub fn send_now(
    fd: BorrowedFd<'_>,
    to: &[u8],
    data: &[u8],
    files: &[BorrowedFd<'_>],
    credentials: Option<Credentials>,
) -> io::Result<usize> {
    let mut control = Vec::new();
    if !files.is_empty() {
        let numbers: Vec<u8> = files.iter().flat_map(|file| file.as_raw_fd().to_ne_bytes()).collect();
        put(&mut control, libc::SCM_RIGHTS, &numbers);
    }
    if let Some(credentials) = &credentials {
        put(&mut control, libc::SCM_CREDENTIALS, bytemuck::bytes_of(credentials));
    }
    socket::send_with(fd, to, data, &control, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use nix::sys::stat::fstat;

    use super::*;

    #[test]
    fn descriptors_and_credentials_travel() {
        let (a, b) = socket::pair(libc::AF_UNIX, libc::SOCK_STREAM).unwrap();
        socket::set_int_option(b.as_fd(), libc::SOL_SOCKET, libc::SO_PASSCRED, 1).unwrap();
        let file: OwnedFd = tempfile::tempfile().unwrap().into();
        let me = Credentials {
            pid: std::process::id() as i32,
            uid: nix::unistd::getuid().as_raw(),
            gid: nix::unistd::getgid().as_raw(),
        };
        assert_eq!(send_now(a.as_fd(), &[], b"bytes", &[file.as_fd(), a.as_fd()], Some(me)).unwrap(), 5);
        let mut buffer = [0; 10];
        for flags in [libc::MSG_PEEK, 0] {
            let (got, _, with) = receive(b.as_fd(), &mut buffer, flags).unwrap();
            assert_eq!((got.len, got.flags & libc::MSG_CTRUNC, with.credentials, with.other), (5, 0, Some(me), false));
            let inodes: Vec<u64> = with.files.iter().map(|fd| fstat(fd).unwrap().st_ino).collect();
            assert_eq!(inodes, [&file, &a].map(|fd| fstat(fd).unwrap().st_ino));
        }
    }

    #[test]
    fn the_last_message_begins_somewhere() {
        let (a, b) = socket::pair(libc::AF_UNIX, libc::SOCK_STREAM).unwrap();
        let sent: [&[u8]; 4] = [b"one", &[2; 20_000], b"3", b"four"];
        let mut before = 0;
        for message in sent {
            assert_eq!(send_now(a.as_fd(), &[], message, &[], None).unwrap(), message.len());
            assert_eq!(before_the_last(b.as_fd(), before + message.len()).unwrap(), before);
            before += message.len();
        }
    }

    #[test]
    fn malformed_control_messages_end_the_list() {
        for (len, have) in [(0u64, 16), (15, 16), (17, 16), (u64::MAX, 40), (16, 15)] {
            let mut bytes = len.to_ne_bytes().to_vec();
            bytes.resize(have, 1);
            assert!(take(&mut &bytes[..]).is_none(), "{len} of {have}");
        }
    }
}
