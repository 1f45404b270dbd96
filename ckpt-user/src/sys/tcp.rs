//! What is special to TCP sockets: their state (TCP_INFO), and the mode in which both ends of a connection are made without a network in
//! between (TCP_REPAIR, tcp(7) and Documentation/networking of the kernel know little of it; net/ipv4/tcp.c has it all).

use std::io;
use std::os::fd::BorrowedFd;

use super::socket;

/// States of the kernel (include/net/tcp_states.h).
pub mod state {
    #![allow(missing_docs)]
    pub const ESTABLISHED: u8 = 1;
    pub const SYN_SENT: u8 = 2;
    pub const SYN_RECV: u8 = 3;
    pub const FIN_WAIT1: u8 = 4;
    pub const FIN_WAIT2: u8 = 5;
    pub const TIME_WAIT: u8 = 6;
    pub const CLOSE: u8 = 7;
    pub const CLOSE_WAIT: u8 = 8;
    pub const LAST_ACK: u8 = 9;
    pub const LISTEN: u8 = 10;
    pub const CLOSING: u8 = 11;

    const NAMES: [&str; 14] = [
        "?",
        "established",
        "connecting (SYN_SENT)",
        "SYN_RECV",
        "FIN_WAIT1",
        "FIN_WAIT2",
        "TIME_WAIT",
        "closed",
        "half closed (CLOSE_WAIT)",
        "LAST_ACK",
        "listening",
        "CLOSING",
        "NEW_SYN_RECV",
        "BOUND_INACTIVE",
    ];

    /// For people.
    pub fn name(state: u8) -> &'static str {
        NAMES.get(usize::from(state)).copied().unwrap_or("?")
    }

    /// Has this end said that it sends nothing more?
    pub fn has_finished(state: u8) -> bool {
        matches!(state, FIN_WAIT1 | FIN_WAIT2 | CLOSING | TIME_WAIT | LAST_ACK)
    }

    /// Has the other end said so, and has all that it sent arrived?
    pub fn has_all(state: u8) -> bool {
        matches!(state, CLOSE_WAIT | LAST_ACK | CLOSING | TIME_WAIT)
    }
}

/// Of struct tcp_info (linux/tcp.h).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpInfo {
    /// See [`state`].
    pub state: u8,
    /// Segments carry timestamps.
    pub timestamps: bool,
    /// The other end may acknowledge what has gaps.
    pub sack: bool,
    /// By how many bits windows are shifted: those that the other end tells, and those that this end tells. `None`: they are not.
    pub scales: Option<(u8, u8)>,
    /// The longest segment that this end takes.
    pub segment_max: u32,
    /// Of a listening socket: connections that wait to be accepted.
    pub waiting: u32,
    /// Of a listening socket: how many may.
    pub backlog: u32,
}

const TIMESTAMPS: u8 = 1;
const SACK: u8 = 2;
const SCALES: u8 = 4;
const INFO_LEN: usize = 88;

/// TCP_INFO.
pub fn info(fd: BorrowedFd<'_>) -> io::Result<TcpInfo> {
    let bytes = socket::option(fd, libc::SOL_TCP, libc::TCP_INFO, INFO_LEN)?;
    let bytes: [u8; INFO_LEN] = bytes.try_into().map_err(|_| io::Error::other("TCP_INFO is shorter than it should be"))?;
    let word = |at: usize| u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let (options, scales) = (bytes[5], bytes[6]);
    Ok(TcpInfo {
        state: bytes[0],
        timestamps: options & TIMESTAMPS != 0,
        sack: options & SACK != 0,
        scales: (options & SCALES != 0).then_some((scales & 15, scales >> 4)),
        segment_max: word(84),
        waiting: word(24),
        backlog: word(28),
    })
}

/// The name of the protocol that is laid over it (TCP_ULP): "tls", ... Empty: none.
pub fn upper_protocol(fd: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    match socket::option(fd, libc::SOL_TCP, libc::TCP_ULP, 16) {
        // A kernel without.
        Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => Ok(Vec::new()),
        other => other.map(|name| name.into_iter().take_while(|&byte| byte != 0).collect()),
    }
}

/// Are there keys by which its segments are signed (TCP-AO, Linux 6.7)?
pub fn has_keys(fd: BorrowedFd<'_>) -> io::Result<bool> {
    const AO_INFO: i32 = 40;
    /// struct tcp_ao_info_opt.
    const ROOM: usize = 48;
    match socket::option(fd, libc::SOL_TCP, AO_INFO, ROOM) {
        Ok(_) => Ok(true),
        // It has none; or this kernel, or (MPTCP) this sort of socket, knows of none.
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOPROTOOPT | libc::EOPNOTSUPP)) => Ok(false),
        Err(error) => Err(error),
    }
}

// linux/tcp.h.
const REPAIR: i32 = 19;
const REPAIR_QUEUE: i32 = 20;
const QUEUE_SEQ: i32 = 21;
const REPAIR_OPTIONS: i32 = 22;
const REPAIR_WINDOW: i32 = 29;
/// struct tcp_repair_window: it begins with the number of the segment that has last told how much the other end takes (snd_wl1), and ends with the
/// number up to which all is acknowledged (rcv_wup).
const WINDOW_BYTES: usize = 20;
const RECEIVING: i32 = 1;
const SENDING: i32 = 2;
// TCP_REPAIR_OPTIONS: the numbers of the options in a segment (RFC 9293, RFC 7323).
const MAXSEG: u32 = 2;
const WINDOW: u32 = 3;
const SACK_PERMITTED: u32 = 4;
const TIMESTAMP: u32 = 8;

/// Is it being made, by somebody?
pub fn is_in_repair(fd: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(socket::int_option(fd, libc::SOL_TCP, REPAIR)? != 0)
}

/// From now on, nothing is sent: bind takes any port, connect finds the other end willing, and closing tells nobody. Needs CAP_NET_ADMIN.
pub fn begin_repair(fd: BorrowedFd<'_>) -> io::Result<()> {
    socket::set_int_option(fd, libc::SOL_TCP, REPAIR, 1)
}

/// The connection is alive: both ends tell each other how much they take. SO_REUSEADDR is off afterwards.
pub fn end_repair(fd: BorrowedFd<'_>) -> io::Result<()> {
    socket::set_int_option(fd, libc::SOL_TCP, REPAIR, 0)
}

/// Before it is connected: the numbers of the next byte that it sends, and of the next one that it receives.
pub fn set_numbers(fd: BorrowedFd<'_>, sends: u32, receives: u32) -> io::Result<()> {
    for (queue, number) in [(SENDING, sends), (RECEIVING, receives)] {
        socket::set_int_option(fd, libc::SOL_TCP, REPAIR_QUEUE, queue)?;
        socket::set_option(fd, libc::SOL_TCP, QUEUE_SEQ, &number.to_ne_bytes())?;
    }
    Ok(())
}

/// Once it is connected: what both ends have agreed on. `segment_max`: the longest segment that the other end takes.
pub fn set_agreed(fd: BorrowedFd<'_>, info: &TcpInfo, segment_max: u32) -> io::Result<()> {
    let mut options = vec![[MAXSEG, segment_max]];
    if let Some((theirs, ours)) = info.scales {
        options.push([WINDOW, u32::from(theirs) | u32::from(ours) << 16]);
    }
    if info.sack {
        options.push([SACK_PERMITTED, 0]);
    }
    if info.timestamps {
        options.push([TIMESTAMP, 0]);
    }
    socket::set_option(fd, libc::SOL_TCP, REPAIR_OPTIONS, bytemuck::cast_slice(&options))
}

/// Puts bytes behind what it has received. `next`: the number of the byte that comes after them.
pub fn put_received(fd: BorrowedFd<'_>, bytes: &[u8], next: u32) -> io::Result<()> {
    /// Each piece becomes one segment, whose memory is one piece, too.
    const PIECE: usize = 16 << 10;
    socket::set_int_option(fd, libc::SOL_TCP, REPAIR_QUEUE, RECEIVING)?;
    for piece in bytes.chunks(PIECE) {
        let mut rest = piece;
        while !rest.is_empty() {
            rest = &rest[socket::send_now(fd, rest)?..];
        }
    }
    // It is as if all of this had been acknowledged: or it would not answer who asks how much it takes.
    let mut window = [0; WINDOW_BYTES];
    socket::option_into(fd, libc::SOL_TCP, REPAIR_WINDOW, &mut window)?;
    window[..4].copy_from_slice(&next.wrapping_sub(1).to_ne_bytes());
    window[WINDOW_BYTES - 4..].copy_from_slice(&next.to_ne_bytes());
    socket::set_option(fd, libc::SOL_TCP, REPAIR_WINDOW, &window)
}

/// What waits to be received, looked at without taking it: at most `room` bytes. The peek offset (SO_PEEK_OFF) must be off.
pub fn peek(fd: BorrowedFd<'_>, room: usize) -> io::Result<Vec<u8>> {
    let mut buffer = vec![0; room];
    match socket::receive_with(fd, &mut buffer, &mut [], libc::MSG_PEEK | libc::MSG_DONTWAIT) {
        Ok((got, _, _)) => buffer.truncate(got.len),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => buffer.clear(),
        Err(error) => return Err(error),
    }
    Ok(buffer)
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn what_two_ends_have_agreed_on() {
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(server.local_addr().unwrap()).unwrap();
        let (accepted, _) = server.accept().unwrap();
        let (a, b) = (info(client.as_fd()).unwrap(), info(accepted.as_fd()).unwrap());
        assert_eq!((a.state, b.state), (state::ESTABLISHED, state::ESTABLISHED));
        assert_eq!(a.scales, b.scales.map(|(theirs, ours)| (ours, theirs)));
        assert_eq!((a.timestamps, a.sack), (b.timestamps, b.sack));
        assert!(a.segment_max > 1000, "{a:?}");
        assert!(upper_protocol(client.as_fd()).unwrap().is_empty());
        assert!(!is_in_repair(client.as_fd()).unwrap());
        client.shutdown(std::net::Shutdown::Write).unwrap();
        assert!(state::has_finished(info(client.as_fd()).unwrap().state));
    }
}
