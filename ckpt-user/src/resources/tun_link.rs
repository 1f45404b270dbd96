//! Network devices that go away with the last descriptor that is attached to them (TUN and TAP devices that are not persistent): made again under their
//! names and numbers, before anything else that may use them.
//!
//! With them go what the kernel keeps with a device: its hardware address, MTU and flags, addresses and routes, and the settings below /proc/sys/net.
//! (Queueing disciplines, filters of packets and neighbours are not among them.) Packets that wait in its queues are dropped, as a network may do.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::collector::ObjectKey;
use super::file::Descriptor;
use super::tun::{PATH, Told, told};
use super::{Collector, Restorer, named_file};
use crate::error::{Doing, Error, Result};
use crate::ids::ObjRef;
use crate::image::model::Section;
use crate::sys::ethtool;
use crate::sys::rtnetlink::{Kind, Message, Netlink};
use crate::sys::tun::{self, Setting};

/// What the image calls it.
pub const KIND: &str = "tun-link";

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LinkRecord {
    /// Its name.
    pub name: String,
    /// What sysfs tells of it.
    pub told: Told,
    /// Its number.
    pub index: u32,
    /// ARPHRD_...
    pub link_type: u16,
    /// IFF_UP, ...
    pub flags: u32,
    /// TUNSETVNETHDRSZ.
    pub header_size: Option<i32>,
    /// TUNSETVNETLE.
    pub little_endian: Option<i32>,
    /// TUNSETVNETBE.
    pub big_endian: Option<i32>,
    /// TUN_F_CSUM, ...
    pub offload: u32,
    /// Hardware address, MTU, ...
    pub link: Vec<(u16, Vec<u8>)>,
    /// IPv4 and IPv6.
    pub addresses: Vec<Message>,
    /// But for those that come with the addresses.
    pub routes: Vec<Message>,
    /// Files below /proc/sys/net, and what they hold.
    pub settings: BTreeMap<String, String>,
}

// linux/if_link.h, linux/if_addr.h, linux/rtnetlink.h
const IFLA_ADDRESS: u16 = 1;
const IFLA_BROADCAST: u16 = 2;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_TXQLEN: u16 = 13;
const IFLA_IFALIAS: u16 = 20;
const IFLA_GROUP: u16 = 27;
const IFLA_XDP: u16 = 43;
/// What a device can be given.
const OF_LINK: [u16; 6] = [IFLA_ADDRESS, IFLA_BROADCAST, IFLA_MTU, IFLA_TXQLEN, IFLA_IFALIAS, IFLA_GROUP];
const IFA_FLAGS: u16 = 8;
/// IFA_ADDRESS, IFA_LOCAL, IFA_LABEL, IFA_BROADCAST, IFA_CACHEINFO, IFA_RT_PRIORITY, IFA_PROTO.
const OF_ADDRESS: [u16; 7] = [1, 2, 3, 4, 6, 9, 11];
const IFA_F_NODAD: u32 = 0x02;
/// The flags that somebody has set: IFA_F_NODAD, IFA_F_HOMEADDRESS, IFA_F_MANAGETEMPADDR, IFA_F_NOPREFIXROUTE, IFA_F_MCAUTOJOIN.
const KEPT_FLAGS: u32 = IFA_F_NODAD | 0x10 | 0x100 | 0x200 | 0x400;
const RTA_OIF: u16 = 4;
const RTA_MULTIPATH: u16 = 9;
/// RTA_DST, RTA_SRC, RTA_GATEWAY, RTA_PRIORITY, RTA_PREFSRC, RTA_METRICS, RTA_TABLE, RTA_VIA, RTA_PREF.
const OF_ROUTE: [u16; 9] = [1, 2, 5, 6, 7, 8, 15, 18, 20];
/// RTA_CACHEINFO, which tells what has come of a route.
const TOLD_OF_ROUTE: u16 = 12;
const RTPROT_KERNEL: u8 = 2;
const RTM_F_CLONED: u32 = 0x200;
/// Where the flags of a link stand, and which of them are to be set.
const FLAGS_AT: usize = 8;
const CHANGE_AT: usize = 12;
/// Where the number of a device stands.
const INDEX_AT: usize = 4;
/// What a user sets.
const KEPT_LINK_FLAGS: u32 = (libc::IFF_UP
    | libc::IFF_DEBUG
    | libc::IFF_NOTRAILERS
    | libc::IFF_NOARP
    | libc::IFF_PROMISC
    | libc::IFF_ALLMULTI
    | libc::IFF_MULTICAST
    | libc::IFF_DYNAMIC) as u32;
const IFF_LOWER_UP: u32 = 0x10000;

/// TUN_F_CSUM, TUN_F_TSO4, TUN_F_TSO6, TUN_F_TSO_ECN, TUN_F_USO4 with TUN_F_USO6, TUN_F_UDP_TUNNEL_GSO, TUN_F_UDP_TUNNEL_GSO_CSUM, as features of the device.
const OFFLOADS: [(&str, u32); 7] = [
    ("tx-checksum-ip-generic", 0x01),
    ("tx-tcp-segmentation", 0x02),
    ("tx-tcp6-segmentation", 0x04),
    ("tx-tcp-ecn-segmentation", 0x08),
    ("tx-udp-segmentation", 0x60),
    ("tx-udp_tnl-segmentation", 0x80),
    ("tx-udp_tnl-csum-segmentation", 0x100),
];

/// The device that a descriptor is attached to, once for all that are.
pub(super) fn collect(cx: &mut Collector<'_>, d: &Descriptor<'_>, name: &str, told: &Told) -> Result<ObjRef> {
    let doing = || format!("cannot look at the network device {name}");
    let netlink = Netlink::open().doing(doing)?;
    let links = netlink.all(Kind::Link, libc::AF_UNSPEC).doing(doing)?;
    let is_it =
        |link: &&Message| link.get(libc::IFLA_IFNAME).is_some_and(|other| other.strip_suffix(b"\0") == Some(name.as_bytes()));
    let link = links.iter().find(is_it).ok_or_else(|| Error::Unexpected(format!("there is no network device {name}")))?;
    let index = link.header_u32(INDEX_AT);
    let key = ObjectKey::Inode(KIND, 0, index.into());
    cx.intern(key, |cx, _| {
        let refuse = |cx: &mut Collector<'_>, reason: &str| {
            let object = format!("descriptor {} (the network device {name})", d.fd);
            cx.refuse(d.pid, object, reason, "undo that, make the device persistent before, or let the program close it")
        };
        if link.get(IFLA_MASTER).is_some() {
            return refuse(cx, "is a port of another device (a bridge, say), which would lose it");
        }
        if links.iter().any(|other| other.number(IFLA_LINK) == Some(index) && other.header_u32(INDEX_AT) != index) {
            return refuse(cx, "has other devices on top of it, which would go away with it");
        }
        // A nested attribute: how it is attached (IFLA_XDP_ATTACHED), if not 0.
        if link.get(IFLA_XDP).and_then(|xdp| xdp.get(4)).is_some_and(|&attached| attached != 0) {
            return refuse(cx, "has an eBPF program (XDP)");
        }
        let mut record = LinkRecord { name: name.to_owned(), told: told.clone(), index, ..LinkRecord::default() };
        record.link_type = u16::from_ne_bytes([link.header[2], link.header[3]]);
        record.flags = link.header_u32(FLAGS_AT);
        record.link = link.attributes.iter().filter(|(kind, _)| OF_LINK.contains(kind)).cloned().collect();
        [record.header_size, record.little_endian, record.big_endian] = [
            tun::get(d.own, Setting::HeaderSize).doing(doing)?,
            tun::get(d.own, Setting::LittleEndian).doing(doing)?,
            tun::get(d.own, Setting::BigEndian).doing(doing)?,
        ];
        if let Some(name) = tun::name(name) {
            let features = ethtool::features(name).doing(doing)?;
            let on = |(feature, _): &&(&str, u32)| features.iter().any(|on| on == feature);
            record.offload = OFFLOADS.iter().filter(on).fold(0, |all, (_, flag)| all | flag);
        }
        record.addresses = addresses(&netlink, index).doing(doing)?;
        for family in [libc::AF_INET, libc::AF_INET6] {
            for route in netlink.all(Kind::Route, family).doing(doing)? {
                let several = route.get(RTA_MULTIPATH).is_some_and(|hops| leads_through(hops, index));
                let is_made = route.header[5] != RTPROT_KERNEL && route.header_u32(8) & RTM_F_CLONED == 0;
                if several || is_made && route.number(RTA_OIF) == Some(index) {
                    let plain = |kind: u16| OF_ROUTE.contains(&kind) || kind == RTA_OIF || kind == TOLD_OF_ROUTE;
                    if several || !route.attributes.iter().all(|(kind, _)| plain(*kind)) {
                        return refuse(cx, "has a route of several ways, or with a tunnel, which would be lost");
                    }
                    record.routes.push(route);
                }
            }
        }
        record.settings = settings(name).doing(doing)?;
        Ok(Section::encode(KIND, &record)?)
    })
}

/// struct rtnexthop for each: length, flags, hops, number of the device.
fn leads_through(mut hops: &[u8], index: u32) -> bool {
    while let Some((&[len_low, len_high, _, _, a, b, c, d], _)) = hops.split_first_chunk::<8>() {
        if u32::from_ne_bytes([a, b, c, d]) == index {
            return true;
        }
        let len = usize::from(u16::from_ne_bytes([len_low, len_high])).max(8);
        hops = hops.get(len.next_multiple_of(4)..).unwrap_or(&[]);
    }
    false
}

fn addresses(netlink: &Netlink, index: u32) -> io::Result<Vec<Message>> {
    let mut all = netlink.all(Kind::Address, libc::AF_INET)?;
    all.extend(netlink.all(Kind::Address, libc::AF_INET6)?);
    all.retain(|address| {
        address.header_u32(INDEX_AT) == index && matches!(i32::from(address.header[0]), libc::AF_INET | libc::AF_INET6)
    });
    Ok(all)
}

/// The folders of settings of a device.
fn folders(name: &str) -> impl Iterator<Item = PathBuf> {
    ["ipv4/conf", "ipv4/neigh", "ipv6/conf", "ipv6/neigh"].into_iter().map(move |folder| Path::new(folder).join(name))
}

const SETTINGS: &str = "/proc/sys/net";

fn settings(name: &str) -> io::Result<BTreeMap<String, String>> {
    use std::os::unix::fs::PermissionsExt;
    let mut settings = BTreeMap::new();
    for folder in folders(name) {
        let entries = match fs::read_dir(Path::new(SETTINGS).join(&folder)) {
            // Without IPv6.
            Err(error) if named_file::is_absent(&error) => continue,
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            if entry.metadata()?.permissions().mode() & 0o600 != 0o600 {
                continue;
            }
            match fs::read_to_string(entry.path()) {
                Ok(value) => drop(settings.insert(folder.join(entry.file_name()).to_string_lossy().into_owned(), value)),
                // A secret that was never set.
                Err(error) if error.raw_os_error() == Some(libc::EIO) => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(settings)
}

/// A device that was made, and a descriptor that is attached to it and that nobody has taken yet.
#[derive(Debug)]
struct Made {
    name: String,
    flags: u16,
    spare: Option<OwnedFd>,
}

/// Makes all devices of the image.
pub fn make(cx: &mut Restorer<'_>) -> Result<()> {
    for (objref, record) in cx.all::<LinkRecord>(KIND)? {
        cx.shared(objref, |_| record.make())?;
    }
    Ok(())
}

/// A descriptor that is attached to the device `objref`: opened with `flags`.
pub(super) fn attach(cx: &mut Restorer<'_>, objref: ObjRef, flags: i32) -> Result<OwnedFd> {
    let made =
        cx.shared::<Made>(objref, |_| Err(Error::Restart(format!("the image uses object {objref} as a network device"))))?;
    let name = &made.name;
    if let Some(fd) = made.spare.take() {
        nix::fcntl::fcntl(&fd, nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::from_bits_truncate(flags)))
            .doing(|| format!("cannot set the flags of a descriptor of the network device {name}"))?;
        return Ok(fd);
    }
    let fd = OwnedFd::from(named_file::open(Path::new(PATH), flags).doing(|| format!("cannot open {PATH} again"))?);
    let bytes = tun::name(name).ok_or_else(|| Error::Restart(format!("no network device can be named {name:?}")))?;
    tun::attach(fd.as_fd(), bytes, made.flags).doing(|| format!("cannot attach to the network device {name} again"))?;
    Ok(fd)
}

impl LinkRecord {
    fn make(&self) -> Result<Made> {
        let name = &self.name;
        let bytes = tun::name(name).ok_or_else(|| Error::Restart(format!("no network device can be named {name:?}")))?;
        if Path::new("/sys/class/net").join(name).exists() {
            return Err(Error::Restart(format!(
                "there is a network device {name} already; take it away first (ip link delete {name}, or end who is attached to it)"
            )));
        }
        let fd = self.create(bytes)?;
        self.dress(fd.as_fd()).doing(|| format!("cannot make the network device {name} again"))?;
        let now = told(name).doing(|| format!("cannot look at the network device {name}"))?;
        if now.as_ref() != Some(&self.told) {
            return Err(Error::Restart(format!(
                "the network device {name} has come to be another one: {now:x?} instead of {:x?}",
                self.told
            )));
        }
        Ok(Made { name: name.clone(), flags: self.told.flags, spare: Some(fd) })
    }

    fn create(&self, name: [u8; tun::NAME]) -> Result<OwnedFd> {
        let doing = || format!("cannot make the network device {} again", self.name);
        let open = || {
            Ok::<_, Error>(OwnedFd::from(
                named_file::open(Path::new(PATH), libc::O_RDWR).doing(|| format!("cannot open {PATH} again"))?,
            ))
        };
        let fd = open()?;
        tun::set(fd.as_fd(), Setting::Index, self.index as i32).doing(doing)?;
        match tun::attach(fd.as_fd(), name, self.told.flags) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                tracing::warn!(
                    "the network device {} gets another number, since another one has {} by now",
                    self.name,
                    self.index
                );
                let fd = open()?;
                tun::attach(fd.as_fd(), name, self.told.flags).doing(doing)?;
                Ok(fd)
            }
            attached => attached.doing(doing).map(|()| fd),
        }
    }

    /// Gives it everything that it had.
    fn dress(&self, fd: BorrowedFd<'_>) -> io::Result<()> {
        let netlink = Netlink::open()?;
        let mut link = self.find(&netlink)?;
        let index = link.header_u32(INDEX_AT);
        if let Ok(owner) = u32::try_from(self.told.owner) {
            tun::set_owner(fd, owner)?;
        }
        if let Ok(group) = u32::try_from(self.told.group) {
            tun::set_group(fd, group)?;
        }
        if link.header.get(2..4) != Some(&self.link_type.to_ne_bytes()) {
            tun::set_link_type(fd, self.link_type)?;
        }
        for (setting, value) in [
            (Setting::HeaderSize, self.header_size),
            (Setting::LittleEndian, self.little_endian),
            (Setting::BigEndian, self.big_endian),
        ] {
            if let Some(value) = value
                && tun::get(fd, setting)? != Some(value)
            {
                tun::set(fd, setting, value)?;
            }
        }
        if self.offload != 0 {
            tun::set_offload(fd, self.offload)?;
        }
        link.attributes = self.link.clone();
        link.set_header_u32(FLAGS_AT, self.flags & KEPT_LINK_FLAGS);
        link.set_header_u32(CHANGE_AT, KEPT_LINK_FLAGS);
        netlink.set(Kind::Link, &link)?;
        if self.flags & libc::IFF_UP as u32 != 0 && self.flags & IFF_LOWER_UP == 0 {
            tun::set(fd, Setting::Carrier, 0)?;
        }
        let now = settings(&self.name)?;
        for (file, value) in self.settings.iter().filter(|(file, value)| now.get(*file) != Some(*value)) {
            let path = Path::new(file);
            if !folders(&self.name).any(|folder| path.parent() == Some(&folder)) {
                return Err(io::Error::other(format!("the image tells of a setting {file}, which is not one of the device")));
            }
            let told = |error: io::Error| io::Error::new(error.kind(), format!("cannot set {SETTINGS}/{file}: {error}"));
            fs::write(Path::new(SETTINGS).join(path), value).map_err(told)?;
        }
        // The kernel may have given it addresses of its own when it was switched on.
        for own in addresses(&netlink, index)? {
            netlink.remove(Kind::Address, &own)?;
        }
        for address in &self.addresses {
            netlink.set(Kind::Address, &as_made(address, index))?;
        }
        for route in &self.routes {
            let mut made = route.clone();
            made.attributes.retain(|(kind, _)| OF_ROUTE.contains(kind));
            made.attributes.push((RTA_OIF, index.to_ne_bytes().to_vec()));
            made.set_header_u32(8, 0);
            netlink.set(Kind::Route, &made)?;
        }
        Ok(())
    }

    fn find(&self, netlink: &Netlink) -> io::Result<Message> {
        let links = netlink.all(Kind::Link, libc::AF_UNSPEC)?;
        let is_it = |link: &Message| {
            link.get(libc::IFLA_IFNAME).is_some_and(|name| name.strip_suffix(b"\0") == Some(self.name.as_bytes()))
        };
        links.into_iter().find(is_it).ok_or_else(|| io::Error::other("it is not there"))
    }
}

/// An address as it is asked for: without what the kernel tells of it, and valid at once.
fn as_made(address: &Message, index: u32) -> Message {
    let mut made = address.clone();
    made.set_header_u32(INDEX_AT, index);
    let mut flags = address.number(IFA_FLAGS).unwrap_or(0) & KEPT_FLAGS;
    if made.header.first().is_some_and(|&family| i32::from(family) == libc::AF_INET6) {
        flags |= IFA_F_NODAD;
    }
    made.attributes.retain(|(kind, _)| OF_ADDRESS.contains(kind));
    made.attributes.push((IFA_FLAGS, flags.to_ne_bytes().to_vec()));
    made
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_records_are_errors() {
        for name in ["", "lo", "..", "a/b", "a name that is far too long"] {
            assert!(LinkRecord { name: name.to_owned(), ..LinkRecord::default() }.make().is_err(), "{name}");
        }
        // What is left of it is gone with the descriptor, whatever fails.
        let name = "ckpthostile";
        let lo = ("ipv4/conf/lo/forwarding".to_owned(), "1".to_owned());
        let hostile = [
            LinkRecord { settings: [lo].into(), ..LinkRecord::default() },
            LinkRecord { addresses: vec![Message::default()], ..LinkRecord::default() },
            LinkRecord {
                routes: vec![Message { header: vec![0; 3], attributes: vec![(1, vec![0; 70000])] }],
                ..LinkRecord::default()
            },
            LinkRecord { link: vec![(IFLA_MTU, vec![1])], ..LinkRecord::default() },
        ];
        for record in hostile {
            let told = Told { flags: 0x1001, owner: -1, group: -1 };
            let record = LinkRecord { name: name.to_owned(), told, link_type: 65534, index: 0, ..record };
            assert!(record.make().is_err(), "{record:?}");
            assert!(!Path::new("/sys/class/net").join(name).exists());
        }
    }

    #[test]
    fn the_ways_of_a_route_are_found() {
        let way = |index: u32| [&[8u8, 0, 0, 0][..], &index.to_ne_bytes()].concat();
        assert!(leads_through(&[way(3), way(4)].concat(), 4));
        assert!(!leads_through(&[way(3), way(4)].concat(), 5));
        assert!(!leads_through(&[0, 0, 0], 0));
    }
}
