//! Every TCP connection of the machine, as the kernel lists them: decides whether the other end of one is in the cut, belongs to somebody
//! else, or was closed by its program.

use std::collections::{HashMap, HashSet};
use std::os::fd::AsFd;
use std::sync::Arc;

use super::Collector;
use super::descriptors;
use super::file::Descriptor;
use super::holders::{Holder, Holders};
use super::socket;
use super::tcp_connection::refuse;
use crate::error::{Doing, Error, Result};
use crate::ids::Pid;
use crate::sys::inet_diag::{Endpoint, InetDiag, InetSocket};
use crate::sys::socket as raw;
use crate::sys::tcp::state;
use crate::track::ebpf::prepare_for_tcp;

/// See the module.
#[derive(Debug)]
pub struct TcpSockets {
    diag: InetDiag,
    /// By the address of the socket and that of its peer.
    by_ends: HashMap<(Endpoint, Endpoint), Vec<InetSocket>>,
}

/// The other end of a connection.
#[derive(Clone, Copy, Debug)]
pub enum Other {
    /// A process of the cut has it.
    Here(Holder, InetSocket),
    /// Its program has closed it: all that it has sent is in `0`, or has arrived.
    Closed(Option<InetSocket>),
    /// No program has accepted it yet.
    NotAccepted,
    /// Another program has it, perhaps of another machine.
    Outside,
    /// Several sockets could be it.
    Several,
}

impl TcpSockets {
    /// Those of the network namespace of ckpt.
    pub fn of(cx: &mut Collector<'_>) -> Result<Arc<TcpSockets>> {
        cx.fact(|_| {
            let doing = || "cannot ask the kernel about TCP sockets (NETLINK_SOCK_DIAG; is its module inet_diag there?)";
            let diag = InetDiag::open().doing(doing)?;
            let mut by_ends: HashMap<_, Vec<InetSocket>> = HashMap::new();
            for found in diag.all().doing(doing)? {
                by_ends.entry((found.local, found.peer)).or_default().push(found);
            }
            Ok(TcpSockets { diag, by_ends })
        })
    }

    /// The sockets with this address and this peer.
    pub fn get(&self, local: Endpoint, peer: Endpoint) -> &[InetSocket] {
        self.by_ends.get(&(local, peer)).map_or(&[], Vec::as_slice)
    }

    /// Has the socket with this inode keys by which segments are signed (TCP_MD5SIG), as far as we are told?
    pub fn is_signed(&self, inode: u64) -> bool {
        self.by_ends.values().flatten().any(|one| u64::from(one.inode) == inode && one.is_signed)
    }

    /// Who in the cut has a socket that listens at an address.
    pub fn listeners(&self, cx: &mut Collector<'_>, device: u64, address: Endpoint) -> Result<Vec<Holder>> {
        let holders = Holders::of(cx)?;
        let here = |one: &&InetSocket| one.state == state::LISTEN && one.local.port == address.port;
        let inodes = self.by_ends.values().flatten().filter(here).map(|one| u64::from(one.inode));
        Ok(inodes.filter_map(|inode| holders.get(device, inode).first().copied()).collect())
    }

    /// A connected socket as it is now.
    pub fn look(&self, d: &Descriptor<'_>) -> Result<InetSocket> {
        let (local, peer) = addresses(d)?;
        let seen = Endpoint::of(&local).zip(Endpoint::of(&peer)).map(|(from, to)| self.get(from, to));
        match seen {
            Some([one]) if u64::from(one.inode) == d.stat.st_ino => match self.diag.look(one) {
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => refuse(d, ENDS),
                other => other.doing(|| socket::looking(d)),
            },
            _ => Err(Error::Unexpected(format!("the kernel does not list the TCP socket {} of pid {}", d.fd, d.pid))),
        }
    }

    /// Who is at the other end of the connection `d`, in state `own`.
    pub fn other_end(&self, cx: &mut Collector<'_>, d: &Descriptor<'_>, own: u8) -> Result<Other> {
        let (local, peer) = addresses(d)?;
        let ends = Endpoint::of(&local).zip(Endpoint::of(&peer));
        let Some((from, to)) = ends.filter(|(from, to)| from != to && self.get(*from, *to).len() == 1) else {
            return Ok(Other::Several);
        };
        let other = match self.get(to, from) {
            [] if state::has_all(own) && is_ours(&peer)? => return Ok(Other::Closed(None)),
            [] => return Ok(Other::Outside),
            [one] => *one,
            _ => return Ok(Other::Several),
        };
        if other.inode == 0 {
            let is_over = state::has_finished(other.state);
            return Ok(if is_over { Other::Closed(Some(other)) } else { Other::NotAccepted });
        }
        let all = Holders::of(cx)?;
        let holder = all.get(d.stat.st_dev, other.inode.into()).iter().find(|holder| holder.flags & libc::O_PATH == 0);
        Ok(holder.map_or(Other::Outside, |holder| Other::Here(*holder, other)))
    }
}

const ENDS: &str = "is a TCP connection that is just ending";

/// The address of a connected socket, and that of its peer.
pub fn addresses(d: &Descriptor<'_>) -> Result<(Vec<u8>, Vec<u8>)> {
    let doing = || socket::looking(d);
    let peer = match raw::peer_address(d.own) {
        Err(error) if error.raw_os_error() == Some(libc::ENOTCONN) => return refuse(d, ENDS),
        other => other.doing(doing)?,
    };
    Ok((raw::local_address(d.own).doing(doing)?, peer))
}

/// Has what looks into TCP connections loaded, if one of the processes has some, so that a freeze need not wait for it.
pub fn prepare(pids: &[Pid]) {
    // What cannot be looked at is told when it is collected.
    let Ok(all) = InetDiag::open().and_then(|diag| diag.all()) else { return };
    let mut listeners: HashMap<Endpoint, usize> = HashMap::new();
    for one in all.iter().filter(|one| one.state == state::LISTEN) {
        *listeners.entry(one.local).or_default() += 1;
    }
    // Of those that only listen, it is of use to those that wait to be accepted, and to those that share a port.
    let is_of_use = |one: &&InetSocket| one.state != state::LISTEN || one.received > 0 || listeners.get(&one.local) > Some(&1);
    let names: HashSet<_> =
        all.iter().filter(|one| one.inode != 0).filter(is_of_use).map(|one| format!("socket:[{}]", one.inode)).collect();
    let is_one = |pid: Pid, fd| {
        descriptors::link(pid, fd).ok().flatten().is_some_and(|link| link.to_str().is_some_and(|link| names.contains(link)))
    };
    let have_one = |pid: &Pid| descriptors::numbers(*pid).into_iter().flatten().any(|fd| is_one(*pid, fd));
    if !names.is_empty()
        && pids.iter().any(have_one)
        && let Err(error) = prepare_for_tcp()
    {
        tracing::info!("what is on its way in TCP connections cannot be looked at: {error}");
    }
}

/// Is it an address of this machine? One that is not cannot be bound.
fn is_ours(address: &[u8]) -> Result<bool> {
    let doing = || format!("cannot find out whether {} is an address of this machine", socket::describe(address));
    let family = address.first_chunk().map_or(libc::AF_INET, |family| u16::from_ne_bytes(*family).into());
    let trial = raw::create(family, libc::SOCK_STREAM, 0).doing(doing)?;
    let mut any_port = address.to_vec();
    any_port.get_mut(2..4).into_iter().for_each(|port| port.fill(0));
    match raw::bind(trial.as_fd(), &any_port) {
        Err(error) if error.raw_os_error() == Some(libc::EADDRNOTAVAIL) => Ok(false),
        other => other.doing(doing).map(|()| true),
    }
}
