//! Who in the cut holds which pseudoterminal: read once from /proc/PID/fd of every process. Decides whether the other side of one is
//! inside the cut.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::fd::RawFd;
use std::path::Path;
use std::sync::Arc;

use nix::sys::stat::{FileStat, SFlag, major, minor, stat};

use super::Collector;
use super::file::FdInfo;
use super::holders::Holder;
use crate::error::{Doing, Error, Result};
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
        cx.fact(Terminals::find)
    }

    /// Who holds the master, if nobody outside of the cut does.
    pub fn master(&self, id: PtyId) -> Option<&Holder> {
        self.masters.get(&id)
    }

    /// Has anybody in the cut the slave open?
    pub fn has_slave(&self, id: PtyId) -> bool {
        self.slaves.contains_key(&id)
    }

    fn find(pids: &[Pid]) -> Result<Terminals> {
        let mut found = Terminals::default();
        for &pid in pids {
            let doing = || format!("cannot list the descriptors of pid {pid}");
            for entry in fs::read_dir(format!("/proc/{pid}/fd")).doing(doing)? {
                let entry = entry.doing(doing)?;
                let fd = entry.file_name().to_str().and_then(|s| s.parse::<RawFd>().ok());
                let fd = fd.ok_or_else(|| Error::Unexpected(format!("/proc/{pid}/fd holds {:?}", entry.file_name())))?;
                match found.look(pid, fd) {
                    Ok(()) => {}
                    // Closed meanwhile: `ckpt check` looks at running processes.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(error).doing(|| format!("cannot look at descriptor {fd} of pid {pid}")),
                }
            }
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
            for fd in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
                if let Some(id) = master_at(pid, &fd.file_name().to_string_lossy()) {
                    self.masters.remove(&id);
                }
            }
        }
        Ok(())
    }

    fn look(&mut self, pid: Pid, fd: RawFd) -> io::Result<()> {
        let link = format!("/proc/{pid}/fd/{fd}");
        let seen = stat(link.as_str())?;
        let Some(part) = Part::of(&seen) else { return Ok(()) };
        let info = FdInfo::parse(&procfs::read_text(format!("/proc/{pid}/fdinfo/{fd}"))?);
        let info = info.ok_or_else(|| io::Error::other("cannot understand its fdinfo"))?;
        if info.flags & libc::O_PATH != 0 {
            return Ok(());
        }
        match part {
            Part::Master => {
                let number = info.get("tty-index").and_then(|number| number.parse().ok());
                let number = number.ok_or_else(|| io::Error::other("its fdinfo does not tell which pseudoterminal it is"))?;
                let id = (file_system_of(&fs::read_link(&link)?, seen.st_dev)?, number);
                self.masters.entry(id).or_insert(Holder::new(pid, fd, info.flags));
            }
            Part::Slave(number) => *self.slaves.entry((seen.st_dev, number)).or_default() += 1,
            // It is open as long as its session has it, and that is by another descriptor, or none.
            Part::Controlling => {}
        }
        Ok(())
    }
}

/// Has what looks into pseudoterminals loaded, if the process has a master, so that a freeze need not wait for it.
pub fn prepare(pid: Pid) {
    // What cannot be looked at is told when it is collected.
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten();
    let mut links = entries.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    if links.any(|link| link.ends_with("ptmx"))
        && let Err(error) = prepare_for_ptys()
    {
        tracing::info!("what waits in pseudoterminals cannot be looked at: {error}");
    }
}

/// Which master the descriptor is, if it is one and still open.
fn master_at(pid: Pid, fd: &str) -> Option<PtyId> {
    let link = format!("/proc/{pid}/fd/{fd}");
    let path = fs::read_link(&link).ok().filter(|path| path.ends_with("ptmx"))?;
    let seen = stat(link.as_str()).ok().filter(|seen| Part::of(seen) == Some(Part::Master))?;
    let info = FdInfo::parse(&procfs::read_text(format!("/proc/{pid}/fdinfo/{fd}")).ok()?)?;
    Some((file_system_of(&path, seen.st_dev).ok()?, info.get("tty-index")?.parse().ok()?))
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
    use std::os::fd::AsRawFd;

    use nix::pty::openpty;
    use nix::sys::stat::fstat;

    use super::*;

    #[test]
    fn both_sides_are_found() {
        let me = Pid(std::process::id() as i32);
        let pair = openpty(None, None).unwrap();
        let slave = fstat(&pair.slave).unwrap();
        let Some(Part::Slave(number)) = Part::of(&slave) else { panic!("{slave:?}") };
        let found = Terminals::find(&[me]).unwrap();
        assert_eq!(found.master((slave.st_dev, number)).unwrap().fd, pair.master.as_raw_fd());
        assert!(found.has_slave((slave.st_dev, number)));
        assert!(!found.has_slave((slave.st_dev, u32::MAX)));
    }
}
