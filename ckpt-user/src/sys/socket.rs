//! Sockets with addresses and options as the kernel's bytes, whatever their family.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::null_mut;

/// sizeof(struct sockaddr_storage): no address is longer.
const ADDRESS_MAX: usize = 128;

fn check(answer: libc::c_int) -> io::Result<libc::c_int> {
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}

fn owned(answer: libc::c_int) -> io::Result<OwnedFd> {
    let fd = check(answer)?;
    // SAFETY: the kernel has just made this descriptor for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A new socket, close-on-exec.
pub fn create(domain: i32, kind: i32, protocol: i32) -> io::Result<OwnedFd> {
    // SAFETY: only numbers are passed.
    owned(unsafe { libc::socket(domain, kind | libc::SOCK_CLOEXEC, protocol) })
}

/// Two sockets, close-on-exec, connected to each other.
pub fn pair(domain: i32, kind: i32) -> io::Result<(OwnedFd, OwnedFd)> {
    let mut fds: [RawFd; 2] = [-1; 2];
    // SAFETY: the array has room for the two descriptors that the call makes.
    check(unsafe { libc::socketpair(domain, kind | libc::SOCK_CLOEXEC, 0, fds.as_mut_ptr()) })?;
    Ok((owned(fds[0])?, owned(fds[1])?))
}

/// getsockopt: the value, at most `room` bytes of it.
pub fn option(fd: BorrowedFd<'_>, level: i32, name: i32, room: usize) -> io::Result<Vec<u8>> {
    let mut value = vec![0u8; room];
    let len = option_into(fd, level, name, &mut value)?;
    value.truncate(len);
    Ok(value)
}

/// getsockopt for options that take a question in the buffer of the answer. Returns the length of the answer.
pub fn option_into(fd: BorrowedFd<'_>, level: i32, name: i32, value: &mut [u8]) -> io::Result<usize> {
    let mut len = value.len() as libc::socklen_t;
    // SAFETY: the buffer is as long as `len` says, and both outlive the call.
    check(unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, value.as_mut_ptr().cast(), &raw mut len) })?;
    Ok((len as usize).min(value.len()))
}

/// getsockopt of an int.
pub fn int_option(fd: BorrowedFd<'_>, level: i32, name: i32) -> io::Result<i32> {
    let value = option(fd, level, name, 4)?;
    let bytes = value.try_into().map_err(|_| io::Error::other("the option is no int"))?;
    Ok(i32::from_ne_bytes(bytes))
}

/// setsockopt.
pub fn set_option(fd: BorrowedFd<'_>, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
    let len = value.len() as libc::socklen_t;
    // SAFETY: the buffer is as long as `len` says, and outlives the call.
    check(unsafe { libc::setsockopt(fd.as_raw_fd(), level, name, value.as_ptr().cast(), len) }).map(drop)
}

/// setsockopt of an int.
pub fn set_int_option(fd: BorrowedFd<'_>, level: i32, name: i32, value: i32) -> io::Result<()> {
    set_option(fd, level, name, &value.to_ne_bytes())
}

/// The program of the socket's packet filter (struct sock_filter, 8 bytes each). Empty: it has none.
pub fn filter(fd: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    let mut count: libc::socklen_t = 0;
    let get = |buffer: *mut libc::c_void, count: &mut libc::socklen_t| {
        // SAFETY: this option counts in instructions of 8 bytes; the buffer has room for as many as `count` says.
        check(unsafe { libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_GET_FILTER, buffer, &raw mut *count) })
    };
    get(null_mut(), &mut count)?;
    let mut program = vec![0u64; count as usize];
    if count != 0 {
        get(program.as_mut_ptr().cast(), &mut count)?;
    }
    Ok(bytemuck::cast_slice(&program).to_vec())
}

/// Gives the socket a packet filter.
pub fn set_filter(fd: BorrowedFd<'_>, program: &[u8]) -> io::Result<()> {
    attach(fd, libc::SO_ATTACH_FILTER, program.chunks_exact(8).map(bytemuck::pod_read_unaligned).collect())
}

/// Whoever connects to the port that the socket shares with others comes to the one that began to listen as number `place`, from 0 on.
pub fn choose(fd: BorrowedFd<'_>, place: u32) -> io::Result<()> {
    /// struct sock_filter: code (BPF_RET | BPF_K), no jumps, and the value.
    const RETURN: u64 = 6;
    attach(fd, libc::SO_ATTACH_REUSEPORT_CBPF, vec![RETURN | u64::from(place) << 32])
}

/// Has the kernel choose again.
pub fn choose_no_more(fd: BorrowedFd<'_>) -> io::Result<()> {
    const SO_DETACH_REUSEPORT_BPF: i32 = 68;
    set_int_option(fd, libc::SOL_SOCKET, SO_DETACH_REUSEPORT_BPF, 0)
}

/// Gives the socket a program, of instructions of struct sock_filter.
fn attach(fd: BorrowedFd<'_>, option: i32, mut instructions: Vec<u64>) -> io::Result<()> {
    let len = u16::try_from(instructions.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    let fprog = libc::sock_fprog { len, filter: instructions.as_mut_ptr().cast() };
    let size = size_of_val(&fprog) as libc::socklen_t;
    // SAFETY: the struct and the program that it points to outlive the call, which only reads them; `len` counts its instructions.
    check(unsafe { libc::setsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, option, (&raw const fprog).cast(), size) }).map(drop)
}

type GetName = unsafe extern "C" fn(libc::c_int, *mut libc::sockaddr, *mut libc::socklen_t) -> libc::c_int;

fn get_name(call: GetName, fd: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    // Aligned as any sockaddr must be.
    let mut storage = [0u64; ADDRESS_MAX / 8];
    let mut len = ADDRESS_MAX as libc::socklen_t;
    // SAFETY: the buffer is as long as `len` says, and both outlive the call.
    check(unsafe { call(fd.as_raw_fd(), storage.as_mut_ptr().cast(), &raw mut len) })?;
    let mut address = bytemuck::cast_slice(&storage).to_vec();
    address.truncate(len as usize);
    Ok(address)
}

/// getsockname: the address as the kernel's bytes, the family first.
pub fn local_address(fd: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    get_name(libc::getsockname, fd)
}

/// getpeername.
pub fn peer_address(fd: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    get_name(libc::getpeername, fd)
}

type UseName = unsafe extern "C" fn(libc::c_int, *const libc::sockaddr, libc::socklen_t) -> libc::c_int;

fn use_name(call: UseName, fd: BorrowedFd<'_>, address: &[u8]) -> io::Result<()> {
    let mut storage = [0u64; ADDRESS_MAX / 8];
    let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut storage);
    let room = bytes.get_mut(..address.len()).ok_or_else(|| io::Error::from_raw_os_error(libc::EINVAL))?;
    room.copy_from_slice(address);
    // SAFETY: the buffer holds at least as many bytes as the call is told, and outlives it.
    check(unsafe { call(fd.as_raw_fd(), storage.as_ptr().cast(), address.len() as libc::socklen_t) }).map(drop)
}

/// bind.
pub fn bind(fd: BorrowedFd<'_>, address: &[u8]) -> io::Result<()> {
    use_name(libc::bind, fd, address)
}

/// connect.
pub fn connect(fd: BorrowedFd<'_>, address: &[u8]) -> io::Result<()> {
    use_name(libc::connect, fd, address)
}

/// listen.
pub fn listen(fd: BorrowedFd<'_>, backlog: i32) -> io::Result<()> {
    // SAFETY: only numbers are passed.
    check(unsafe { libc::listen(fd.as_raw_fd(), backlog) }).map(drop)
}

/// accept: close-on-exec.
pub fn accept(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // SAFETY: no address is asked for.
    owned(unsafe { libc::accept4(fd.as_raw_fd(), null_mut(), null_mut(), libc::SOCK_CLOEXEC) })
}

/// shutdown. `how`: SHUT_RD, SHUT_WR, SHUT_RDWR.
pub fn shut_down(fd: BorrowedFd<'_>, how: i32) -> io::Result<()> {
    // SAFETY: only numbers are passed.
    check(unsafe { libc::shutdown(fd.as_raw_fd(), how) }).map(drop)
}

/// linux/un.h.
const SIOCUNIXFILE: libc::c_ulong = 0x89e0;

/// The file that a unix socket is bound to, opened with O_PATH. Needs CAP_NET_ADMIN.
pub fn unix_file(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    // SAFETY: the request takes no argument and returns a new descriptor.
    owned(unsafe { libc::ioctl(fd.as_raw_fd(), SIOCUNIXFILE) })
}

/// What one call of recvmsg gave.
#[derive(Clone, Copy, Debug)]
pub struct Received {
    /// Bytes put into the buffer.
    pub len: usize,
    /// MSG_TRUNC: the message is longer. MSG_CTRUNC: descriptors, credentials or the like came with it.
    pub flags: i32,
}

/// recvmsg with room for control messages; also tells the sender's address, and how much of that room was used. What is in there is the caller's to
/// take, descriptors above all.
pub fn receive_with(
    fd: BorrowedFd<'_>,
    buffer: &mut [u8],
    control: &mut [u8],
    flags: i32,
) -> io::Result<(Received, Vec<u8>, usize)> {
    let mut storage = [0u64; ADDRESS_MAX / 8];
    let mut piece = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: zero is a valid msghdr; every pointer put into it outlives the call and has room for as much as is said.
    let (len, message) = unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_name = storage.as_mut_ptr().cast();
        message.msg_namelen = ADDRESS_MAX as libc::socklen_t;
        message.msg_iov = &raw mut piece;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = control.len();
        (libc::recvmsg(fd.as_raw_fd(), &raw mut message, flags), message)
    };
    if len < 0 {
        return Err(io::Error::last_os_error());
    }
    let mut address = bytemuck::cast_slice(&storage).to_vec();
    address.truncate(message.msg_namelen as usize);
    Ok((Received { len: len as usize, flags: message.msg_flags }, address, message.msg_controllen))
}

/// sendmsg with control messages, to an address; an empty one: to the peer.
pub fn send_with(fd: BorrowedFd<'_>, to: &[u8], data: &[u8], control: &[u8], flags: i32) -> io::Result<usize> {
    let mut piece = libc::iovec { iov_base: data.as_ptr().cast_mut().cast(), iov_len: data.len() };
    // SAFETY: zero is a valid msghdr; every pointer put into it outlives the call, which only reads as much as is said.
    let n = unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &raw mut piece;
        message.msg_iovlen = 1;
        if !to.is_empty() {
            message.msg_name = to.as_ptr().cast_mut().cast();
            message.msg_namelen = to.len() as libc::socklen_t;
        }
        if !control.is_empty() {
            message.msg_control = control.as_ptr().cast_mut().cast();
            message.msg_controllen = control.len();
        }
        libc::sendmsg(fd.as_raw_fd(), &raw const message, flags)
    };
    if n < 0 { Err(io::Error::last_os_error()) } else { Ok(n as usize) }
}

/// Sends all of one message, or (stream) some of it, without waiting.
pub fn send_now(fd: BorrowedFd<'_>, data: &[u8]) -> io::Result<usize> {
    // SAFETY: the buffer outlives the call.
    let n = unsafe { libc::send(fd.as_raw_fd(), data.as_ptr().cast(), data.len(), libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
    if n < 0 { Err(io::Error::last_os_error()) } else { Ok(n as usize) }
}
