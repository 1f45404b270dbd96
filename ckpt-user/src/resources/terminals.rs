//! Who in the cut holds which pseudoterminal. Decides whether the other side of one is inside the cut.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::path::Path;
use std::sync::Arc;

use nix::sys::stat::{FileStat, SFlag, fstat, major, minor, stat};

use super::Collector;
use super::descriptors::{self, Descriptors, Inode, Seen};
use super::file::FdInfo;
use super::holders::{Holder, Holders};
use super::in_flight::{self, InFlight};
use crate::error::{Doing, Result};
use crate::ids::Pid;
use crate::sys::procfs;
use crate::track::ebpf::prepare_for_ptys;

/// Which pseudoterminal: the devpts file system (st_dev) that it belongs to, and its number there.
pub type PtyId = (u64, u32);

/// What a descriptor is of a pseudoterminal, by its device number (Documentation/admin-guide/devices.txt).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// /dev/ptmx.
    Master,
    /// /dev/pts/N.
    Slave(u32),
    /// /dev/tty, the controlling terminal of whoever has opened it.
    Controlling,
}

impl Part {
    /// `None`: none of these.
    pub fn of(stat: &FileStat) -> Option<Part> {
        if SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT != SFlag::S_IFCHR {
            return None;
        }
        Part::of_device(major(stat.st_rdev), minor(stat.st_rdev))
    }

    fn of_inode(inode: &Inode) -> Option<Part> {
        if inode.kind == SFlag::S_IFCHR { Part::of_device(major(inode.special), minor(inode.special)) } else { None }
    }

    /// The same by device number.
    pub fn of_device(major: u64, minor: u64) -> Option<Part> {
        match (major, minor) {
            (5, 0) => Some(Part::Controlling),
            (5, 2) => Some(Part::Master),
            (136, number) => u32::try_from(number).ok().map(Part::Slave),
            _ => None,
        }
    }
}

/// Every pseudoterminal of which the cut holds a part.
#[derive(Debug, Default)]
pub struct Terminals {
    masters: HashMap<PtyId, Holder>,
    slaves: HashMap<PtyId, usize>,
}

impl Terminals {
    /// Those in the cut of `cx`.
    pub fn of(cx: &mut Collector<'_>) -> Result<Arc<Terminals>> {
        let (all, holders) = (Descriptors::of(cx)?, Holders::of(cx)?);
        cx.fact(|pids| Terminals::among(&all, holders.in_flight(), pids))
    }

    /// Who holds the master, if nobody outside of the cut does.
    pub fn master(&self, id: PtyId) -> Option<&Holder> {
        self.masters.get(&id)
    }

    /// Has anybody in the cut the slave open?
    pub fn has_slave(&self, id: PtyId) -> bool {
        self.slaves.contains_key(&id)
    }

    fn among(all: &Descriptors, in_flight: &InFlight, pids: &[Pid]) -> Result<Terminals> {
        let mut found = Terminals::default();
        let mut note = |holder: Holder, seen: &Seen| {
            if seen.info.flags & libc::O_PATH != 0 {
                return Ok(());
            }
            found.note(holder, seen).doing(|| format!("cannot look at descriptor {} of pid {}", holder.fd, holder.pid))
        };
        for (pid, seen) in all.iter() {
            note(Holder::new(pid, seen.fd, seen.info.flags), seen)?;
        }
        for (fd, holder) in in_flight.each() {
            let doing = || "cannot look at a descriptor in flight";
            let link = fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).doing(doing)?.into_os_string();
            let inode = Some(Inode::of(&fstat(fd).doing(doing)?));
            note(holder, &Seen { fd: holder.fd, link, info: in_flight::info_of(fd)?, inode })?;
        }
        if !found.masters.is_empty() {
            found.forget_masters_of_others(pids).doing(|| "cannot list the processes")?;
        }
        Ok(found)
    }

    /// A terminal emulator may have left the master of its terminal open in its job: it is the emulator's all the same.
    fn forget_masters_of_others(&mut self, pids: &[Pid]) -> io::Result<()> {
        for entry in fs::read_dir("/proc")? {
            let name = entry?.file_name();
            let Some(pid) = name.to_str().and_then(|name| name.parse().ok()).map(Pid) else { continue };
            if pids.contains(&pid) || pid.0 == std::process::id() as i32 {
                continue;
            }
            // Of what has ended, and of what we may not look at, nothing can be said.
            for id in descriptors::numbers(pid).into_iter().flatten().filter_map(|fd| master_at(pid, fd)) {
                self.masters.remove(&id);
            }
        }
        Ok(())
    }

    fn note(&mut self, holder: Holder, seen: &Seen) -> io::Result<()> {
        let Some((inode, part)) = seen.inode.and_then(|inode| Some((inode, Part::of_inode(&inode)?))) else { return Ok(()) };
        match part {
            Part::Master => {
                let number = index(&seen.info);
                let number = number.ok_or_else(|| io::Error::other("its fdinfo does not tell which pseudoterminal it is"))?;
                let id = (file_system_of(Path::new(&seen.link), inode.device)?, number);
                self.masters.entry(id).or_insert(holder);
            }
            Part::Slave(number) => *self.slaves.entry((inode.device, number)).or_default() += 1,
            // It is open as long as its session has it, and that is by another descriptor, or none.
            Part::Controlling => {}
        }
        Ok(())
    }
}

/// The number of the pseudoterminal that a master is of.
fn index(info: &FdInfo) -> Option<u32> {
    info.get("tty-index")?.parse().ok()
}

/// Has what looks into pseudoterminals loaded, if the process has a master, so that a freeze need not wait for it.
pub fn prepare(pid: Pid) {
    // What cannot be looked at is told when it is collected.
    let numbers = descriptors::numbers(pid).into_iter().flatten();
    let mut links = numbers.filter_map(|fd| descriptors::link(pid, fd).ok()?);
    if links.any(|link| link.ends_with("ptmx"))
        && let Err(error) = prepare_for_ptys()
    {
        tracing::info!("what waits in pseudoterminals cannot be looked at: {error}");
    }
}

/// Which master the descriptor is, if it is one and still open.
fn master_at(pid: Pid, fd: RawFd) -> Option<PtyId> {
    let path = descriptors::link(pid, fd).ok()?.filter(|path| path.ends_with("ptmx"))?;
    let seen = stat(format!("/proc/{pid}/fd/{fd}").as_str()).ok().filter(|seen| Part::of(seen) == Some(Part::Master))?;
    let info = FdInfo::parse(&procfs::read_text(format!("/proc/{pid}/fdinfo/{fd}")).ok()?)?;
    Some((file_system_of(&path, seen.st_dev).ok()?, index(&info)?))
}

/// The devpts that a master opened as `path`, on the device `device`, belongs to (devpts_acquire() in the kernel): the one that the file is in, or
/// the folder "pts" beside it.
pub fn file_system_of(path: &Path, device: u64) -> io::Result<u64> {
    let folder = path.parent().unwrap_or(Path::new("/"));
    let beside = stat(&folder.join("pts"));
    Ok(beside.map_or(device, |stat| stat.st_dev))
}

#[cfg(test)]
mod tests {
    use nix::pty::openpty;

    use super::*;

    #[test]
    fn both_sides_are_found() {
        let me = Pid(std::process::id() as i32);
        let pair = openpty(None, None).unwrap();
        let slave = fstat(&pair.slave).unwrap();
        let Some(Part::Slave(number)) = Part::of(&slave) else { panic!("{slave:?}") };
        let found = Terminals::among(&Descriptors::read(&[me]).unwrap(), &InFlight::default(), &[me]).unwrap();
        assert_eq!(found.master((slave.st_dev, number)).unwrap().fd, pair.master.as_raw_fd());
        assert!(found.has_slave((slave.st_dev, number)));
        assert!(!found.has_slave((slave.st_dev, u32::MAX)));
    }
}
