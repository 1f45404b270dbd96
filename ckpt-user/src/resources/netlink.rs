//! Netlink sockets that the program asks the kernel through: routes, socket diagnostics, devices, generic families. They hold no state
//! between a question and its answer but the groups that they listen to. In other families the kernel may keep something for a port (the
//! audit daemon is known by its own, say); their sockets are saved as long as they have none, since whatever is sent gives them one.

use std::os::fd::{AsFd, OwnedFd};

use nix::poll::PollFlags;
use serde::{Deserialize, Serialize};

use super::file::{Descriptor, FileKind, OpenFile};
use super::socket::{self, SocketType};
use super::socket_options::SocketOptions;
use super::{Collector, Restorer};
use crate::error::{Doing, Error, Result};
use crate::sys::{queue, socket as raw};

/// See the module.
#[derive(Debug)]
pub struct Netlink;

/// The state of a netlink socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetlinkRecord {
    /// With the netlink family as its protocol.
    pub socket: SocketType,
    /// Its port. 0: not bound.
    #[serde(default)]
    pub port: u32,
    /// The groups that it listens to.
    #[serde(default)]
    pub groups: Vec<u32>,
    /// What the program has set.
    #[serde(default)]
    pub options: SocketOptions,
}

const NETLINK_SOCK_DIAG: i32 = 4;
/// Families whose kernel side keeps nothing for a port.
const STATELESS: [i32; 4] = [libc::NETLINK_ROUTE, NETLINK_SOCK_DIAG, libc::NETLINK_KOBJECT_UEVENT, libc::NETLINK_GENERIC];
/// Bytes of the bitmap of groups: more than any family has.
const GROUPS_ROOM: usize = 4096;

/// struct sockaddr_nl.
#[repr(C)]
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
struct Address {
    family: u16,
    pad: u16,
    port: u32,
    groups: u32,
}

impl FileKind for Netlink {
    const KIND: &'static str = "netlink";
    type Record = NetlinkRecord;

    fn matches(d: &Descriptor<'_>) -> bool {
        d.socket.is_some_and(|s| s.domain == libc::AF_NETLINK)
    }

    fn collect(cx: &mut Collector<'_>, d: &Descriptor<'_>) -> Result<NetlinkRecord> {
        let socket = d.socket.ok_or_else(|| Error::Unexpected(format!("descriptor {} of pid {} is no socket", d.fd, d.pid)))?;
        socket::check_namespace(cx, d, socket)?;
        if queue::poll_now(d.own).doing(|| socket::looking(d))?.contains(PollFlags::POLLIN) {
            let reason = "has messages of the kernel that the program has not read yet";
            return cx.refuse(d.pid, socket::name(d), reason, "try again at a quieter moment");
        }
        let bytes = raw::local_address(d.own).doing(|| socket::looking(d))?;
        let address: Address = bytemuck::try_pod_read_unaligned(&bytes).map_err(|_| {
            Error::Unexpected(format!("the netlink socket {} of pid {} has an address of {} bytes", d.fd, d.pid, bytes.len()))
        })?;
        let groups = groups(d)?;
        if socket.protocol == libc::NETLINK_GENERIC && !groups.is_empty() {
            let reason = "listens to groups of generic netlink, whose numbers change from boot to boot";
            return cx.refuse(d.pid, socket::name(d), reason, "let the program close it first");
        }
        if !is_plain(socket.protocol, address.port, &groups) {
            let reason = format!("is {socket} that was used, and what the kernel keeps for it cannot be told");
            return cx.refuse(d.pid, socket::name(d), reason, "let the program close it first");
        }
        let options = SocketOptions::collect(cx, d, socket)?;
        Ok(NetlinkRecord { socket, port: address.port, groups, options })
    }

    fn restore(_cx: &mut Restorer<'_>, _common: &OpenFile, record: &NetlinkRecord) -> Result<OwnedFd> {
        let is_plain = is_plain(record.socket.protocol, record.port, &record.groups);
        if record.socket.domain != libc::AF_NETLINK || !is_plain {
            return Err(Error::Restart(format!("the image holds {} as a netlink socket", record.socket)));
        }
        let fd = record.socket.create()?;
        record.options.restore(fd.as_fd())?;
        if record.port != 0 {
            let address = Address { family: libc::AF_NETLINK as u16, pad: 0, port: record.port, groups: 0 };
            raw::bind(fd.as_fd(), bytemuck::bytes_of(&address))
                .doing(|| format!("cannot have netlink port {} again (another socket may have it now)", record.port))?;
        }
        for &group in &record.groups {
            raw::set_option(fd.as_fd(), libc::SOL_NETLINK, libc::NETLINK_ADD_MEMBERSHIP, &group.to_ne_bytes())
                .doing(|| format!("cannot listen to netlink group {group} again"))?;
        }
        Ok(fd)
    }
}

/// Is that all there is to a socket?
fn is_plain(family: i32, port: u32, groups: &[u32]) -> bool {
    STATELESS.contains(&family) || (port == 0 && groups.is_empty())
}

/// The groups that the socket listens to: bit n - 1 stands for group n.
fn groups(d: &Descriptor<'_>) -> Result<Vec<u32>> {
    let bitmap =
        raw::option(d.own, libc::SOL_NETLINK, libc::NETLINK_LIST_MEMBERSHIPS, GROUPS_ROOM).doing(|| socket::looking(d))?;
    let bits = bitmap
        .iter()
        .enumerate()
        .flat_map(|(at, byte)| (0..8).filter(move |bit| byte >> bit & 1 != 0).map(move |bit| at * 8 + bit));
    Ok(bits.map(|bit| bit as u32 + 1).collect())
}

#[cfg(test)]
mod tests {
    use super::super::fd_trial::{collect, refusal};
    use super::*;

    #[test]
    fn ports_and_groups_come_back() {
        let old = raw::create(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_ROUTE).unwrap();
        let address = Address { family: libc::AF_NETLINK as u16, pad: 0, port: 0, groups: 1 | 1 << 4 };
        raw::bind(old.as_fd(), bytemuck::bytes_of(&address)).unwrap();
        raw::set_option(old.as_fd(), libc::SOL_NETLINK, libc::NETLINK_ADD_MEMBERSHIP, &33u32.to_ne_bytes()).unwrap();
        raw::set_int_option(old.as_fd(), libc::SOL_NETLINK, libc::NETLINK_EXT_ACK, 1).unwrap();
        let local = raw::local_address(old.as_fd()).unwrap();
        let cut = collect(&[old.as_fd()]).unwrap();
        assert!(cut.restore().unwrap_err().to_string().contains("netlink port"));
        drop(old);
        let new = cut.restore_soon().remove(0);
        assert_eq!(raw::local_address(new.as_fd()).unwrap(), local);
        assert_eq!(collect(&[new.as_fd()]).unwrap().record::<NetlinkRecord>(0), cut.record(0));
        let mut other = collect(&[new.as_fd()]).unwrap();
        other.edit(0, |record: &mut NetlinkRecord| {
            assert_eq!(record.groups, [1, 5, 33]);
            record.groups = vec![u32::MAX];
        });
        drop(new);
        assert!(other.restore().is_err());
    }

    #[test]
    fn a_fresh_one_and_an_unknown_family() {
        let old = raw::create(libc::AF_NETLINK, libc::SOCK_DGRAM, libc::NETLINK_GENERIC).unwrap();
        collect(&[old.as_fd()]).unwrap().restore().unwrap();
        let audit = raw::create(libc::AF_NETLINK, libc::SOCK_RAW, libc::NETLINK_AUDIT).unwrap();
        let mut cut = collect(&[audit.as_fd()]).unwrap();
        let new = cut.restore().unwrap().remove(0);
        assert_eq!(collect(&[new.as_fd()]).unwrap().record::<NetlinkRecord>(0), cut.record(0));
        cut.edit(0, |record: &mut NetlinkRecord| record.port = 1);
        assert!(cut.restore().is_err());
        let address = Address { family: libc::AF_NETLINK as u16, pad: 0, port: 0, groups: 0 };
        raw::bind(audit.as_fd(), bytemuck::bytes_of(&address)).unwrap();
        let refused = refusal(&audit);
        assert!(refused.contains("a netlink raw socket (protocol 9)"), "{refused}");
    }
}
