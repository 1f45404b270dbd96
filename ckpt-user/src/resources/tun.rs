//! Descriptors of /dev/net/tun that are attached to a device, or to none. A persistent device keeps its addresses, owner and queues while nobody
//! is attached, so that it only has to be there at the restart. One that is not goes away with the last that is attached, and is made again
//! ([`super::tun_link`]). Packets that wait in it are dropped, as a network may do.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use nix::sys::stat::{SFlag, major, minor};
use serde::{Deserialize, Serialize};

use super::file::{Descriptor, FileKind, OpenFile};
use super::{Collector, Restorer, named_file, tun_link};
use crate::error::{Doing, Error, Result};
use crate::ids::ObjRef;
use crate::sys::tun::{self, Setting};

/// See the module.
#[derive(Debug)]
pub struct Tun;

/// What it is attached to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TunRecord {
    /// `None`: to no device yet.
    pub device: Option<Attached>,
}

/// A device.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attached {
    /// Its name.
    pub name: String,
    /// What sysfs tells of it.
    pub told: Told,
    /// TUNGETSNDBUF.
    pub send_buffer: i32,
    /// The queue of the descriptor is switched off.
    #[serde(default)]
    pub detached: bool,
    /// Of one that is not persistent: what is to be made again.
    #[serde(default)]
    pub link: Option<ObjRef>,
}

/// /sys/class/net/NAME.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// IFF_TUN or IFF_TAP, IFF_NO_PI, IFF_VNET_HDR, IFF_MULTI_QUEUE, IFF_PERSIST, ...
    pub flags: u16,
    /// The user that may attach to it; -1: nobody in particular.
    pub owner: i64,
    /// The group.
    pub group: i64,
}

/// Major and minor number (Documentation/admin-guide/devices.txt).
const NUMBER: (u64, u64) = (10, 200);
pub(super) const PATH: &str = "/dev/net/tun";
/// linux/if_tun.h: the queue of the descriptor is switched off.
const IFF_DETACH_QUEUE: u16 = 0x0400;
/// The device outlives those who are attached.
const IFF_PERSIST: u16 = 0x0800;

impl FileKind for Tun {
    const KIND: &'static str = "tun";
    type Record = TunRecord;

    fn matches(d: &Descriptor<'_>) -> bool {
        let character = SFlag::from_bits_truncate(d.stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFCHR;
        character && (major(d.stat.st_rdev), minor(d.stat.st_rdev)) == NUMBER && d.info.flags & libc::O_PATH == 0
    }

    fn collect(cx: &mut Collector<'_>, d: &Descriptor<'_>) -> Result<TunRecord> {
        let doing = || format!("cannot look at descriptor {} (tun) of pid {}", d.fd, d.pid);
        let Some(request) = tun::attached_to(d.own).doing(doing)? else { return Ok(TunRecord::default()) };
        let name = String::from_utf8_lossy(&request.name).trim_end_matches('\0').to_owned();
        let refuse = |reason: &str, advice: &str| {
            cx.refuse(d.pid, format!("descriptor {} (the network device {name})", d.fd), reason, advice)
        };
        let Some(told) = told(&name).doing(doing)? else {
            return refuse("is in another network namespace", "let the program close it first");
        };
        let close = "let the program take it away, or close the device, first";
        if tun::has_filter(d.own).doing(doing)? {
            return refuse("has a packet filter, which the kernel does not hand out", close);
        }
        let send_buffer = tun::get(d.own, Setting::SendBuffer).doing(doing)?;
        let send_buffer =
            send_buffer.ok_or_else(|| Error::Unexpected(format!("the network device {name} has no send buffer")))?;
        let detached = request.flags & IFF_DETACH_QUEUE != 0;
        let link = if told.flags & IFF_PERSIST == 0 { Some(tun_link::collect(cx, d, &name, &told)?) } else { None };
        Ok(TunRecord { device: Some(Attached { name, told, send_buffer, detached, link }) })
    }

    fn restore(cx: &mut Restorer<'_>, common: &OpenFile, record: &TunRecord) -> Result<OwnedFd> {
        let open = || {
            Ok::<_, Error>(OwnedFd::from(
                named_file::open(Path::new(PATH), common.flags).doing(|| format!("cannot open {PATH} again"))?,
            ))
        };
        let Some(device) = &record.device else { return open() };
        let fd = match device.link {
            Some(link) => tun_link::attach(cx, link, common.flags)?,
            None => {
                let fd = open()?;
                device.attach(&fd)?;
                fd
            }
        };
        device.clone().finish(cx, &fd)?;
        Ok(fd)
    }
}

impl Attached {
    fn attach(&self, fd: &OwnedFd) -> Result<()> {
        let name = &self.name;
        let doing = || format!("cannot attach to the network device {name} again");
        let bytes = tun::name(name).ok_or_else(|| Error::Restart(format!("no network device can be named {name:?}")))?;
        // Else a new one would be made, which is not persistent.
        match told(name).doing(doing)? {
            Some(now) if now == self.told => {}
            Some(now) => {
                let was = &self.told;
                return Err(Error::Restart(format!(
                    "the network device {name} is another one now: {now:x?} instead of {was:x?}"
                )));
            }
            None => {
                let advice = "make it again as it was (ip tuntap add, ip address add)";
                return Err(Error::Restart(format!("the network device {name} is not there any more; {advice}")));
            }
        }
        tun::attach(fd.as_fd(), bytes, self.told.flags).doing(doing)
    }

    /// Sets up its queue.
    fn finish(self, cx: &mut Restorer<'_>, fd: &OwnedFd) -> Result<()> {
        let doing = format!("cannot set up a queue of the network device {}", self.name);
        if self.detached {
            tun::set(fd.as_fd(), Setting::SendBuffer, self.send_buffer).doing(|| doing.clone())?;
            return tun::set_queue(fd.as_fd(), false).doing(|| doing);
        }
        // Once those that are switched off are: it is set for all queues that are on.
        let own = fd.try_clone().doing(|| "cannot duplicate a descriptor")?;
        cx.when_open(move |_| tun::set(own.as_fd(), Setting::SendBuffer, self.send_buffer).doing(|| doing));
        Ok(())
    }
}

/// What sysfs tells of a device of this kind. `None`: there is none of this name.
pub(super) fn told(name: &str) -> io::Result<Option<Told>> {
    let read = |file: &str| fs::read_to_string(Path::new("/sys/class/net").join(name).join(file));
    let flags = match read("tun_flags") {
        Err(error) if named_file::is_absent(&error) => return Ok(None),
        other => other?,
    };
    let flags = flags.trim().strip_prefix("0x").and_then(|hex| u16::from_str_radix(hex, 16).ok());
    let id = |file: &str| Ok::<_, io::Error>(read(file)?.trim().parse::<i64>().ok());
    match (flags, id("owner")?, id("group")?) {
        (Some(flags), Some(owner), Some(group)) => Ok(Some(Told { flags, owner, group })),
        _ => Err(io::Error::other(format!("cannot understand /sys/class/net/{name}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_records_are_errors() {
        let options = super::super::restorer::RestoreOptions::default();
        let mut cx = Restorer::new(&options, Vec::new());
        for name in ["", "lo", "no such device", "..", "a/b", "a name that is far too long"] {
            let device = Some(Attached { name: name.to_owned(), ..Attached::default() });
            let common = OpenFile { flags: libc::O_RDWR, ..OpenFile::default() };
            assert!(Tun::restore(&mut cx, &common, &TunRecord { device }).is_err(), "{name}");
        }
    }
}
