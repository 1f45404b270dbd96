//! TUN and TAP devices: the requests of /dev/net/tun (linux/if_tun.h).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Bytes of a name with its NUL (IFNAMSIZ).
pub const NAME: usize = 16;

/// struct ifreq with ifr_flags.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// The name of the device, filled up with NULs.
    pub name: [u8; NAME],
    /// IFF_TUN, IFF_NO_PI, ...
    pub flags: u16,
    rest: [u8; 22],
}

const _: () = assert!(size_of::<Request>() == size_of::<libc::ifreq>());

/// `_IOR('T', 210, unsigned int)` and `_IOW('T', 202, int)`, which both take a struct ifreq.
const TUNGETIFF: libc::c_ulong = 0x8004_54d2;
const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
/// `_IOR('T', 211, int)`, `_IOW('T', 212, int)` and `_IOR('T', 219, struct sock_fprog)`.
const TUNGETSNDBUF: libc::c_ulong = 0x8004_54d3;
const TUNSETSNDBUF: libc::c_ulong = 0x4004_54d4;
const TUNGETFILTER: libc::c_ulong = 0x8010_54db;
/// What TUNSETIFF takes: kind, IFF_NO_PI, IFF_ONE_QUEUE, IFF_VNET_HDR, IFF_MULTI_QUEUE, IFF_NAPI, IFF_NAPI_FRAGS.
const TAKEN: u16 = 0x0003 | 0x1000 | 0x2000 | 0x4000 | 0x0100 | 0x0010 | 0x0020;

fn request(fd: BorrowedFd<'_>, request: libc::c_ulong, with: &mut Request) -> io::Result<()> {
    // SAFETY: both requests read and write a struct ifreq, whose size and first fields this one has, and which outlives the call.
    if unsafe { libc::ioctl(fd.as_raw_fd(), request, std::ptr::from_mut(with)) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// The device that the descriptor is attached to. `None`: to none.
pub fn attached_to(fd: BorrowedFd<'_>) -> io::Result<Option<Request>> {
    let mut answer = Request::default();
    match request(fd, TUNGETIFF, &mut answer) {
        Err(error) if error.raw_os_error() == Some(libc::EBADFD) => Ok(None),
        other => other.map(|()| Some(answer)),
    }
}

/// Attaches it to the device with this name.
pub fn attach(fd: BorrowedFd<'_>, name: [u8; NAME], flags: u16) -> io::Result<()> {
    request(fd, TUNSETIFF, &mut Request { name, flags: flags & TAKEN, ..Request::default() })
}

/// A name as the requests take it. `None`: no device can have it.
pub fn name(text: &str) -> Option<[u8; NAME]> {
    let mut name = [0; NAME];
    let fits = !text.is_empty() && text.len() < NAME && !matches!(text, "." | "..") && !text.contains(['/', '%', '\0']);
    name.get_mut(..text.len()).filter(|_| fits)?.copy_from_slice(text.as_bytes());
    Some(name)
}

/// Is there a filter of packets (TUNATTACHFILTER)? Only TAP devices have any.
pub fn has_filter(fd: BorrowedFd<'_>) -> io::Result<bool> {
    // struct sock_fprog: the number of instructions, and a pointer.
    let mut filter = [0u64; 2];
    // SAFETY: the request writes a struct sock_fprog, which has 16 bytes, and the buffer outlives the call.
    if unsafe { libc::ioctl(fd.as_raw_fd(), TUNGETFILTER, filter.as_mut_ptr()) } == 0 {
        return Ok(filter[0] & 0xffff != 0);
    }
    match io::Error::last_os_error() {
        error if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
        error => Err(error),
    }
}

/// How much may be under way.
pub fn send_buffer(fd: BorrowedFd<'_>) -> io::Result<i32> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the request writes one int, which outlives the call.
    if unsafe { libc::ioctl(fd.as_raw_fd(), TUNGETSNDBUF, &raw mut bytes) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(bytes)
}

/// The same, set.
pub fn set_send_buffer(fd: BorrowedFd<'_>, bytes: i32) -> io::Result<()> {
    // SAFETY: the request reads one int, which outlives the call.
    if unsafe { libc::ioctl(fd.as_raw_fd(), TUNSETSNDBUF, &raw const bytes) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
