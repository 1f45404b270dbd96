//! The options of a socket. Saved is what differs from a new socket of the same sort: what the program has set. What it left alone is
//! for the machine to decide on which it runs.

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};

use nix::errno::Errno;
use nix::sys::stat::SFlag;
use serde::{Deserialize, Serialize};

use super::Collector;
use super::descriptors::{Descriptors, LEAST};
use super::file::Descriptor;
use super::socket::{self, SocketType};
use crate::error::{Doing, Error, Result};
use crate::ids::Pid;
use crate::sys::{parallel, socket as raw};

/// What a program has set, in the order in which it is to be set again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SocketOptions {
    /// Of the table below.
    pub set: Vec<SocketOption>,
    /// The program of its packet filter (SO_ATTACH_FILTER).
    #[serde(with = "serde_bytes")]
    pub filter: Vec<u8>,
}

/// One option.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SocketOption {
    /// SOL_SOCKET, ...
    pub level: i32,
    /// SO_KEEPALIVE, ...
    pub name: i32,
    /// As getsockopt gives it and setsockopt takes it.
    #[serde(with = "serde_bytes")]
    pub value: Vec<u8>,
}

/// An option that can be read and set: level, number, name.
type Known = (i32, i32, &'static str);

macro_rules! options {
    ($($level:ident: $($name:ident)*;)*) => { &[$($((libc::$level, libc::$name, stringify!($name)),)*)*] };
}

/// Those for which libc has a name.
const KNOWN: &[Known] = options! {
    SOL_SOCKET: SO_REUSEADDR SO_REUSEPORT SO_BINDTODEVICE SO_MARK SO_KEEPALIVE SO_BROADCAST SO_LINGER SO_OOBINLINE SO_PRIORITY
        SO_RCVLOWAT SO_RCVTIMEO SO_SNDTIMEO SO_TIMESTAMP SO_TIMESTAMPNS SO_TIMESTAMPING SO_DONTROUTE SO_PASSCRED SO_PASSSEC
        SO_PASSPIDFD SO_BUSY_POLL SO_INCOMING_CPU SO_RXQ_OVFL SO_NOFCS SO_SELECT_ERR_QUEUE SO_MAX_PACING_RATE SO_ZEROCOPY
        SO_PREFER_BUSY_POLL SO_BUSY_POLL_BUDGET SO_PEEK_OFF SO_TXTIME;
    SOL_IP: IP_TOS IP_TTL IP_MTU_DISCOVER IP_RECVERR IP_PKTINFO IP_RECVTTL IP_RECVTOS IP_FREEBIND IP_TRANSPARENT IP_MINTTL
        IP_NODEFRAG IP_BIND_ADDRESS_NO_PORT IP_RECVORIGDSTADDR IP_RECVOPTS IP_RETOPTS IP_OPTIONS IP_MULTICAST_TTL IP_MULTICAST_LOOP
        IP_MULTICAST_ALL IP_UNICAST_IF IP_PASSSEC;
    SOL_IPV6: IPV6_V6ONLY IPV6_UNICAST_HOPS IPV6_MULTICAST_HOPS IPV6_MULTICAST_LOOP IPV6_MULTICAST_IF IPV6_MULTICAST_ALL
        IPV6_MTU_DISCOVER IPV6_RECVERR IPV6_RECVPKTINFO IPV6_RECVHOPLIMIT IPV6_RECVTCLASS IPV6_TCLASS IPV6_DONTFRAG
        IPV6_TRANSPARENT IPV6_FREEBIND IPV6_MINHOPCOUNT IPV6_UNICAST_IF IPV6_ADDR_PREFERENCES IPV6_AUTOFLOWLABEL
        IPV6_RECVORIGDSTADDR;
    SOL_TCP: TCP_CONGESTION TCP_NODELAY TCP_MAXSEG TCP_CORK TCP_KEEPIDLE TCP_KEEPINTVL TCP_KEEPCNT TCP_SYNCNT TCP_LINGER2
        TCP_DEFER_ACCEPT TCP_WINDOW_CLAMP TCP_USER_TIMEOUT TCP_THIN_LINEAR_TIMEOUTS TCP_FASTOPEN TCP_NOTSENT_LOWAT TCP_SAVE_SYN
        TCP_FASTOPEN_CONNECT TCP_FASTOPEN_NO_COOKIE TCP_INQ;
    SOL_UDP: UDP_CORK UDP_SEGMENT UDP_GRO UDP_NO_CHECK6_TX UDP_NO_CHECK6_RX;
    SOL_NETLINK: NETLINK_PKTINFO NETLINK_BROADCAST_ERROR NETLINK_NO_ENOBUFS NETLINK_LISTEN_ALL_NSID NETLINK_CAP_ACK NETLINK_EXT_ACK
        NETLINK_GET_STRICT_CHK;
};

/// Those for which it has none yet. Linux 6.16: whether a unix socket takes descriptors.
const NEWER: &[Known] = &[(libc::SOL_SOCKET, 83, "SO_PASSRIGHTS")];

/// No option of the table is longer (IFNAMSIZ, TCP_CA_NAME_MAX, the 40 bytes of IP options).
const VALUE_MAX: usize = 64;
/// In an image, at most so many.
const COUNT_MAX: usize = 256;

/// Bits of SO_BUF_LOCK: this buffer has the size that the program has set, and does not grow by itself.
const SNDBUF_LOCK: i32 = 1;
const RCVBUF_LOCK: i32 = 2;

fn read(fd: BorrowedFd<'_>, level: i32, name: i32, value: &mut [u8; VALUE_MAX]) -> Result<Option<usize>> {
    match raw::option_into(fd, level, name, value) {
        Ok(len) => Ok(Some(len)),
        // Not one of this sort of socket, or of this kernel, or of this state of the socket.
        Err(error) => match Errno::from_raw(error.raw_os_error().unwrap_or(0)) {
            Errno::ENOPROTOOPT | Errno::EOPNOTSUPP | Errno::EINVAL | Errno::ENOTCONN => Ok(None),
            errno => Err(errno).doing(|| format!("cannot read socket option {level}:{name}")),
        },
    }
}

/// A new socket of some sort, to compare with.
#[derive(Debug)]
pub struct FreshSocket {
    fd: OwnedFd,
    /// Every option of the table that it has.
    options: Vec<(Known, Vec<u8>)>,
    /// Its network namespace. `None`: this kernel does not tell (before Linux 5.14).
    pub namespace: Option<Vec<u8>>,
}

/// A new socket of every sort that was met.
#[derive(Debug, Default)]
struct FreshSockets {
    by_type: Mutex<HashMap<SocketType, Arc<FreshSocket>>>,
}

impl FreshSockets {
    fn of(&self, kind: SocketType) -> Result<Arc<FreshSocket>> {
        let mut by_type = self.by_type.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = by_type.get(&kind) {
            return Ok(known.clone());
        }
        let fresh = Arc::new(FreshSocket::make(kind)?);
        by_type.insert(kind, fresh.clone());
        Ok(fresh)
    }
}

impl FreshSocket {
    /// The new socket of this sort.
    pub fn of(cx: &mut Collector<'_>, kind: SocketType) -> Result<Arc<FreshSocket>> {
        cx.fact(|_| Ok(FreshSockets::default()))?.of(kind)
    }

    fn make(kind: SocketType) -> Result<FreshSocket> {
        let fd = kind.create()?;
        let (mut options, mut value) = (Vec::new(), [0; VALUE_MAX]);
        for &option in KNOWN.iter().chain(NEWER) {
            // An accepted connection shows multicast values of the kernel's own, which no stream can be given.
            let foreign = kind.kind == libc::SOCK_STREAM && option.2.contains("_MULTICAST_");
            if let Some(len) = read(fd.as_fd(), option.0, option.1, &mut value)?.filter(|_| !foreign) {
                options.push((option, value[..len].to_vec()));
            }
        }
        let namespace = namespace_of(fd.as_fd());
        Ok(FreshSocket { fd, options, namespace })
    }
}

/// The options of the sockets in the tables of a cut, by their inodes, where there are many: they take some dozens of calls each, which several threads
/// make. Those of which something could not be read are missing.
#[derive(Debug, Default)]
struct ReadBefore {
    by_inode: HashMap<u64, SocketOptions>,
}

impl ReadBefore {
    fn of(cx: &mut Collector<'_>) -> Result<Arc<ReadBefore>> {
        let (all, fresh) = (Descriptors::of(cx)?, cx.fact(|_| Ok(FreshSockets::default()))?);
        cx.fact(|_| Ok(ReadBefore::read(&all, &fresh)))
    }

    fn read(all: &Descriptors, fresh: &FreshSockets) -> ReadBefore {
        let mut met = HashSet::new();
        let sockets = all.iter().filter_map(|(pid, seen)| {
            let inode = seen.inode.filter(|inode| inode.kind == SFlag::S_IFSOCK)?;
            met.insert(inode.number).then_some((pid, seen.fd, inode.number))
        });
        let sockets: Vec<(Pid, RawFd, u64)> = sockets.collect();
        if parallel::parts(sockets.len() as u64, LEAST as u64) < 2 {
            return ReadBefore::default();
        }
        let one = |pid, fd| {
            let own = all.duplicate(pid, fd)?;
            let Some(kind) = SocketType::of(own.as_fd()) else { return Ok(None) };
            SocketOptions::read(own.as_fd(), &*fresh.of(kind)?)
        };
        let some = |sockets: &[(Pid, RawFd, u64)]| -> Vec<(u64, SocketOptions)> {
            let read = sockets.iter().filter_map(|&(pid, fd, inode)| match one(pid, fd) {
                Ok(options) => Some((inode, options?)),
                Err(error) => {
                    tracing::debug!("the options of descriptor {fd} of pid {pid} are read by themselves: {error}");
                    None
                }
            });
            read.collect()
        };
        ReadBefore { by_inode: parallel::slices(&sockets, LEAST, some).into_iter().flatten().collect() }
    }
}

/// What tells the network namespace of a socket from others. `None`: this kernel does not tell (before Linux 5.14).
pub fn namespace_of(fd: BorrowedFd<'_>) -> Option<Vec<u8>> {
    raw::option(fd, libc::SOL_SOCKET, libc::SO_NETNS_COOKIE, size_of::<u64>()).ok()
}

impl SocketOptions {
    /// What differs from a new socket of the same sort.
    pub fn collect(cx: &mut Collector<'_>, d: &Descriptor<'_>, kind: SocketType) -> Result<SocketOptions> {
        if let Some(options) = ReadBefore::of(cx)?.by_inode.get(&d.stat.st_ino) {
            return Ok(options.clone());
        }
        let fresh = FreshSocket::of(cx, kind)?;
        match SocketOptions::read(d.own, &fresh)? {
            Some(options) => Ok(options),
            None => cx.refuse(
                d.pid,
                socket::name(d),
                "has an eBPF program attached, which the kernel does not hand out",
                "let the program detach it (SO_DETACH_FILTER)",
            ),
        }
    }

    /// `None`: it has an eBPF program for a filter, which nobody can read.
    fn read(own: BorrowedFd<'_>, fresh: &FreshSocket) -> Result<Option<SocketOptions>> {
        let mut options = SocketOptions::default();
        let mut add = |level, name, value: Vec<u8>| options.set.push(SocketOption { level, name, value });
        let mut value = [0; VALUE_MAX];
        for ((level, name, _), usual) in &fresh.options {
            if let Some(len) = read(own, *level, *name, &mut value)?.filter(|&len| value[..len] != **usual) {
                add(*level, *name, value[..len].to_vec());
            }
        }
        let locks = raw::int_option(own, libc::SOL_SOCKET, libc::SO_BUF_LOCK).ok();
        for (name, lock) in [(libc::SO_SNDBUF, SNDBUF_LOCK), (libc::SO_RCVBUF, RCVBUF_LOCK)] {
            let size = |fd| raw::int_option(fd, libc::SOL_SOCKET, name).doing(|| "cannot read the size of a socket's buffer");
            let chosen = match locks {
                Some(locks) => locks & lock != 0,
                // Before Linux 5.14: whoever has another size than usual has probably asked for it.
                None => size(own)? != size(fresh.fd.as_fd())?,
            };
            if chosen {
                add(libc::SOL_SOCKET, name, size(own)?.to_ne_bytes().to_vec());
            }
        }
        match raw::filter(own) {
            Ok(program) => options.filter = program,
            Err(error) if error.raw_os_error() == Some(libc::EACCES) => return Ok(None),
            Err(error) => return Err(error).doing(|| "cannot read the filter of a socket"),
        }
        Ok(Some(options))
    }

    /// Sets the options of a new socket, before it is bound or connected.
    pub fn restore(&self, fd: BorrowedFd<'_>) -> Result<()> {
        if self.set.len() > COUNT_MAX || self.set.iter().any(|option| option.value.len() > VALUE_MAX) {
            return Err(Error::Restart("the image holds impossible socket options".to_owned()));
        }
        for option in &self.set {
            let SocketOption { level, name, value } = option;
            let doing = || format!("cannot set the socket option {}", describe(*level, *name));
            match (*level, *name) {
                (libc::SOL_SOCKET, libc::SO_SNDBUF) => {
                    set_buffer(fd, libc::SO_SNDBUFFORCE, libc::SO_SNDBUF, value).doing(doing)?
                }
                (libc::SOL_SOCKET, libc::SO_RCVBUF) => {
                    set_buffer(fd, libc::SO_RCVBUFFORCE, libc::SO_RCVBUF, value).doing(doing)?
                }
                _ => raw::set_option(fd, *level, *name, value).doing(doing)?,
            }
        }
        if !self.filter.is_empty() {
            raw::set_filter(fd, &self.filter).doing(|| "cannot give a socket its packet filter")?;
        }
        Ok(())
    }

    /// Gives a buffer (SO_SNDBUF, SO_RCVBUF) the size that the program has set again, if it has set one.
    pub fn restore_buffer(&self, fd: BorrowedFd<'_>, name: i32) -> Result<()> {
        let set = self.set.iter().filter(|option| (option.level, option.name) == (libc::SOL_SOCKET, name)).cloned().collect();
        SocketOptions { set, filter: Vec::new() }.restore(fd)
    }

    /// Was this int option set, and not to 0?
    pub fn is_set(&self, level: i32, name: i32) -> bool {
        self.set.iter().any(|o| o.level == level && o.name == name && o.value.iter().any(|&b| b != 0))
    }
}

fn describe(level: i32, name: i32) -> String {
    let known = KNOWN.iter().chain(NEWER).find(|known| (known.0, known.1) == (level, name));
    match (level, name) {
        (libc::SOL_SOCKET, libc::SO_SNDBUF) => "SO_SNDBUF".to_owned(),
        (libc::SOL_SOCKET, libc::SO_RCVBUF) => "SO_RCVBUF".to_owned(),
        _ => known.map_or_else(|| format!("{name} of level {level}"), |known| known.2.to_owned()),
    }
}

/// The kernel doubles what it is told, for its own needs. Beyond the limit of the machine only root may go.
fn set_buffer(fd: BorrowedFd<'_>, force: i32, plain: i32, value: &[u8]) -> std::io::Result<()> {
    let bytes = value.try_into().map_err(|_| std::io::Error::from_raw_os_error(libc::EINVAL))?;
    let half = i32::from_ne_bytes(bytes) / 2;
    match raw::set_int_option(fd, libc::SOL_SOCKET, force, half) {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => raw::set_int_option(fd, libc::SOL_SOCKET, plain, half),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::super::collector::CollectOptions;
    use nix::sys::stat::fstat;

    use super::super::fd_trial;
    use super::*;
    use crate::sys::sched;

    fn tcp() -> SocketType {
        SocketType { domain: libc::AF_INET, kind: libc::SOCK_STREAM, protocol: libc::IPPROTO_TCP }
    }

    fn collect(fd: BorrowedFd<'_>, kind: SocketType) -> SocketOptions {
        let options = CollectOptions::default();
        let mut cx = Collector::new(&options, vec![fd_trial::this_process()]);
        fd_trial::with_descriptor(fd, |d| SocketOptions::collect(&mut cx, d, kind)).unwrap()
    }

    #[test]
    fn only_what_was_set_and_all_of_it() {
        let old = tcp().create().unwrap();
        assert_eq!(collect(old.as_fd(), tcp()), SocketOptions::default());
        let set = |level, name, value| raw::set_int_option(old.as_fd(), level, name, value).unwrap();
        set(libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1);
        set(libc::SOL_SOCKET, libc::SO_RCVBUF, 30000);
        set(libc::SOL_TCP, libc::TCP_NODELAY, 1);
        set(libc::SOL_TCP, libc::TCP_KEEPIDLE, 77);
        set(libc::SOL_IP, libc::IP_TOS, 0x10);
        raw::set_option(old.as_fd(), libc::SOL_SOCKET, libc::SO_BINDTODEVICE, b"lo\0").unwrap();
        raw::set_option(old.as_fd(), libc::SOL_SOCKET, libc::SO_RCVTIMEO, bytemuck::bytes_of(&[3i64, 250_000])).unwrap();
        raw::set_option(old.as_fd(), libc::SOL_SOCKET, libc::SO_LINGER, bytemuck::bytes_of(&[1i32, 9])).unwrap();
        raw::set_filter(old.as_fd(), bytemuck::bytes_of(&[0x0000_ffff_0000_0006_u64])).unwrap();
        let options = collect(old.as_fd(), tcp());
        let new = tcp().create().unwrap();
        options.restore(new.as_fd()).unwrap();
        assert_eq!(collect(new.as_fd(), tcp()), options);
        let names: Vec<_> = options.set.iter().map(|o| describe(o.level, o.name)).collect();
        for name in
            ["SO_KEEPALIVE", "SO_RCVBUF", "TCP_NODELAY", "TCP_KEEPIDLE", "IP_TOS", "SO_BINDTODEVICE", "SO_RCVTIMEO", "SO_LINGER"]
        {
            assert!(names.contains(&name.to_owned()), "{name} in {names:?}");
        }
        assert_eq!(options.filter.len(), 8);
        assert!(options.is_set(libc::SOL_TCP, libc::TCP_NODELAY) && !options.is_set(libc::SOL_TCP, libc::TCP_CORK));
    }

    #[test]
    fn many_sockets_are_read_at_once_and_told_apart() {
        let sockets: Vec<OwnedFd> = (0..8 * LEAST).map(|_| tcp().create().unwrap()).collect();
        for (n, socket) in sockets.iter().enumerate() {
            raw::set_int_option(socket.as_fd(), libc::SOL_SOCKET, libc::SO_RCVLOWAT, 1 + n as i32).unwrap();
        }
        let all = Descriptors::read(&[fd_trial::this_process()]).unwrap();
        let read = ReadBefore::read(&all, &FreshSockets::default());
        assert_eq!(read.by_inode.is_empty(), sched::parallelism() < 2);
        let fresh = FreshSocket::make(tcp()).unwrap();
        for (n, socket) in sockets.iter().enumerate() {
            let alone = SocketOptions::read(socket.as_fd(), &fresh).unwrap().unwrap();
            let found = read.by_inode.get(&fstat(socket).unwrap().st_ino);
            assert_eq!(found, Some(&alone).filter(|_| !read.by_inode.is_empty()));
            assert_eq!(alone.is_set(libc::SOL_SOCKET, libc::SO_RCVLOWAT), n > 0);
        }
    }

    #[test]
    fn hostile_records_are_errors() {
        let option = |len: usize| SocketOption { level: 1, name: 2, value: vec![0; len] };
        for set in [
            vec![option(1000)],
            vec![option(4); 1000],
            vec![option(1)],
            vec![SocketOption { level: -1, name: -1, value: vec![] }],
        ] {
            let options = SocketOptions { set, filter: Vec::new() };
            assert!(options.restore(tcp().create().unwrap().as_fd()).is_err());
        }
        let filter = vec![0xff; 8 * 70_000];
        assert!(SocketOptions { set: Vec::new(), filter }.restore(tcp().create().unwrap().as_fd()).is_err());
    }
}
