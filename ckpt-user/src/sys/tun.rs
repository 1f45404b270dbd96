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
/// `_IOR('T', 219, struct sock_fprog)`.
const TUNGETFILTER: libc::c_ulong = 0x8010_54db;
/// `_IOW('T', 204, int)`, `_IOW('T', 206, int)`, `_IOW('T', 205, int)` and `_IOW('T', 208, unsigned int)`, which take the number itself.
const TUNSETOWNER: libc::c_ulong = 0x4004_54cc;
const TUNSETGROUP: libc::c_ulong = 0x4004_54ce;
const TUNSETLINK: libc::c_ulong = 0x4004_54cd;
const TUNSETOFFLOAD: libc::c_ulong = 0x4004_54d0;
/// `_IOW('T', 217, int)`, which takes a struct ifreq.
const TUNSETQUEUE: libc::c_ulong = 0x4004_54d9;
const IFF_ATTACH_QUEUE: u16 = 0x0200;
const IFF_DETACH_QUEUE: u16 = 0x0400;
/// What TUNSETIFF takes: kind, IFF_NO_PI, IFF_ONE_QUEUE, IFF_VNET_HDR, IFF_MULTI_QUEUE, IFF_NAPI, IFF_NAPI_FRAGS.
const TAKEN: u16 = 0x0003 | 0x1000 | 0x2000 | 0x4000 | 0x0100 | 0x0010 | 0x0020;

fn request(fd: BorrowedFd<'_>, request: libc::c_ulong, with: &mut Request) -> io::Result<()> {
    // SAFETY: these requests read and write a struct ifreq, whose size and first fields this one has, and which outlives the call.
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

/// A number that is asked for by one request and set by another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setting {
    /// How many bytes may be under way.
    SendBuffer,
    /// Bytes of the header before each packet (IFF_VNET_HDR).
    HeaderSize,
    /// Is that header little-endian, or big-endian?
    LittleEndian,
    /// See there.
    BigEndian,
    /// The number that the device gets when it is made. It can only be set.
    Index,
    /// Is something at the other end? It can only be set.
    Carrier,
}

impl Setting {
    /// `_IOR('T', N, int)`.
    fn get(self) -> Option<libc::c_ulong> {
        let number = match self {
            Setting::SendBuffer => 211,
            Setting::HeaderSize => 215,
            Setting::LittleEndian => 221,
            Setting::BigEndian => 223,
            Setting::Index | Setting::Carrier => return None,
        };
        Some(0x8004_5400 | number)
    }

    /// `_IOW('T', N, int)`.
    fn set(self) -> libc::c_ulong {
        0x4004_5400
            | match self {
                Setting::SendBuffer => 212,
                Setting::HeaderSize => 216,
                Setting::LittleEndian => 220,
                Setting::BigEndian => 222,
                Setting::Index => 218,
                Setting::Carrier => 226,
            }
    }
}

/// Asks for a number. `None`: this kernel does not know it.
pub fn get(fd: BorrowedFd<'_>, setting: Setting) -> io::Result<Option<i32>> {
    let Some(request) = setting.get() else { return Ok(None) };
    let mut value: libc::c_int = 0;
    // SAFETY: the requests write one int, which outlives the call.
    if unsafe { libc::ioctl(fd.as_raw_fd(), request, &raw mut value) } == 0 {
        return Ok(Some(value));
    }
    match io::Error::last_os_error() {
        error if error.raw_os_error() == Some(libc::EINVAL) => Ok(None),
        error => Err(error),
    }
}

/// The same, set.
pub fn set(fd: BorrowedFd<'_>, setting: Setting, value: i32) -> io::Result<()> {
    // SAFETY: the requests read one int, which outlives the call.
    if unsafe { libc::ioctl(fd.as_raw_fd(), setting.set(), &raw const value) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Who may attach to the device: a user, and a group.
pub fn set_owner(fd: BorrowedFd<'_>, owner: u32) -> io::Result<()> {
    number(fd, TUNSETOWNER, owner)
}

/// See [`set_owner`].
pub fn set_group(fd: BorrowedFd<'_>, group: u32) -> io::Result<()> {
    number(fd, TUNSETGROUP, group)
}

/// What kind of network the device is (ARPHRD_...). It must be down.
pub fn set_link_type(fd: BorrowedFd<'_>, kind: u16) -> io::Result<()> {
    number(fd, TUNSETLINK, kind.into())
}

/// What is left to whoever reads the packets: TUN_F_CSUM, ...
pub fn set_offload(fd: BorrowedFd<'_>, flags: u32) -> io::Result<()> {
    number(fd, TUNSETOFFLOAD, flags)
}

fn number(fd: BorrowedFd<'_>, request: libc::c_ulong, number: u32) -> io::Result<()> {
    // SAFETY: these requests take a number, and no memory.
    if unsafe { libc::ioctl(fd.as_raw_fd(), request, libc::c_ulong::from(number)) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Switches the queue of an attached descriptor on or off.
pub fn set_queue(fd: BorrowedFd<'_>, on: bool) -> io::Result<()> {
    let flags = if on { IFF_ATTACH_QUEUE } else { IFF_DETACH_QUEUE };
    request(fd, TUNSETQUEUE, &mut Request { flags, ..Request::default() })
}
