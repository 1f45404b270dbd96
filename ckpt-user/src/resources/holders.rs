//! Who in the cut holds which pipe, FIFO or socket. Decides whether the other end of
//! something is inside the cut or outside of it, and finds a descriptor to look at the other end through.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::sync::Arc;

use nix::sys::stat::SFlag;

use super::Collector;
use super::collector::ObjectKey;
use super::descriptors::Descriptors;
use super::external::{self, ExternalRecord};
use super::file::Descriptor;
use super::in_flight::{self, InFlight};
use crate::error::{Doing, Error, Refusal, Result};
use crate::ids::Pid;
use crate::sys::pidfd;

/// One descriptor in the cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The process.
    pub pid: Pid,
    /// The number.
    pub fd: RawFd,
    /// The open flags: access mode, O_DIRECT, ...
    pub flags: i32,
    /// Descriptors wait in its queue.
    pub carries: bool,
    /// It is in flight, and the descriptor is ckpt's own duplicate: the process and the number of the socket in whose queue it is, or that leads there.
    pub via: Option<(Pid, RawFd)>,
}

impl Holder {
    /// A descriptor of a process.
    pub fn new(pid: Pid, fd: RawFd, flags: i32) -> Holder {
        Holder { pid, fd, flags, carries: false, via: None }
    }

    /// Refuses the unix socket behind it, for the moment.
    pub fn refuse_for_now<T>(&self, reason: &str, advice: &str) -> Result<T> {
        let (pid, object) = match self.via {
            None => (self.pid, format!("descriptor {} (unix socket)", self.fd)),
            Some((pid, fd)) => (pid, format!("a unix socket in flight to descriptor {fd} (unix socket)")),
        };
        let (reason, advice) = (reason.to_owned(), advice.to_owned());
        Err(Error::Refused(Refusal { pid, object, reason, advice, passing: true }))
    }

    /// Can it be read from?
    pub fn reads(&self) -> bool {
        // O_PATH opens the name, not the pipe.
        self.flags & libc::O_PATH == 0 && self.flags & libc::O_ACCMODE != libc::O_WRONLY
    }

    /// Can it be written to?
    pub fn writes(&self) -> bool {
        self.flags & libc::O_PATH == 0 && self.flags & libc::O_ACCMODE != libc::O_RDONLY
    }

    /// A duplicate of it, for us: the same open file description.
    pub fn duplicate(&self) -> Result<OwnedFd> {
        let doing = || format!("cannot duplicate descriptor {} of pid {}", self.fd, self.pid);
        let process = pidfd::open(self.pid).doing(doing)?;
        pidfd::get_fd(process.as_fd(), self.fd).doing(doing)
    }
}

/// Every pipe, FIFO and socket of the cut, by device and inode, and who holds it.
#[derive(Debug, Default)]
pub struct Holders {
    by_inode: HashMap<(u64, u64), Vec<Holder>>,
    in_flight: InFlight,
}

impl Holders {
    /// The holders in the cut of `cx`.
    pub fn of(cx: &mut Collector<'_>) -> Result<Arc<Holders>> {
        let all = Descriptors::of(cx)?;
        cx.fact(|_| Holders::among(&all))
    }

    /// Who holds the inode `ino` of device `dev`.
    pub fn get(&self, dev: u64, ino: u64) -> &[Holder] {
        self.by_inode.get(&(dev, ino)).map_or(&[], Vec::as_slice)
    }

    /// The holder that is this descriptor.
    pub fn holder_of(&self, d: &Descriptor<'_>) -> Holder {
        let found = self.get(d.stat.st_dev, d.stat.st_ino).iter().find(|holder| (holder.pid, holder.fd) == (d.pid, d.fd));
        found.copied().unwrap_or_else(|| Holder::new(d.pid, d.fd, d.info.flags))
    }

    /// What is in flight in the cut.
    pub fn in_flight(&self) -> &InFlight {
        &self.in_flight
    }

    /// Every inode of a device that is held.
    pub fn inodes(&self, device: u64) -> impl Iterator<Item = u64> {
        self.by_inode.keys().filter(move |(dev, _)| *dev == device).map(|(_, inode)| *inode)
    }

    fn among(all: &Descriptors) -> Result<Holders> {
        let mut holders = Holders::default();
        for (pid, seen) in all.iter() {
            let with_ends = seen.inode.filter(|inode| inode.kind == SFlag::S_IFIFO || inode.kind == SFlag::S_IFSOCK);
            if let Some(inode) = with_ends {
                let carries = in_flight::count(&seen.info) > 0;
                let holder = Holder { carries, ..Holder::new(pid, seen.fd, seen.info.flags) };
                holders.by_inode.entry((inode.device, inode.number)).or_default().push(holder);
            }
        }
        holders.add_in_flight()?;
        Ok(holders)
    }

    /// ckpt holds what is in flight.
    fn add_in_flight(&mut self) -> Result<()> {
        let all = self.by_inode.iter().flat_map(|((_, inode), holders)| holders.iter().map(|holder| (*inode, *holder)));
        let mut carriers: Vec<(u64, Holder)> = all.filter(|(_, holder)| holder.carries).collect();
        carriers.sort_by_key(|(_, holder)| (holder.pid, holder.fd));
        self.in_flight = InFlight::gather(carriers)?;
        for (inode, holder) in self.in_flight.holders()? {
            self.by_inode.entry(inode).or_default().push(holder);
        }
        Ok(())
    }
}

/// Hands a descriptor of class `class` ("pipe", ...), whose other end is outside of the cut, over to whoever restarts.
pub fn outside(cx: &mut Collector<'_>, d: &Descriptor<'_>, class: &str) -> Result<ExternalRecord> {
    let record = external::collect(cx, d, class)?;
    if let Some(objref) = cx.lookup(&ObjectKey::File(d.pid, d.fd)) {
        external::note(cx, objref);
    }
    Ok(record)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use nix::sys::stat::fstat;
    use nix::unistd::pipe;

    use super::*;

    #[test]
    fn both_ends_are_found() {
        let me = Pid(std::process::id() as i32);
        let (read, write) = pipe().unwrap();
        let holders = Holders::among(&Descriptors::read(&[me]).unwrap()).unwrap();
        let stat = fstat(&read).unwrap();
        let mine = holders.get(stat.st_dev, stat.st_ino);
        let find = |fd: &OwnedFd| mine.iter().find(|h| h.fd == fd.as_raw_fd()).copied().unwrap();
        assert_eq!((find(&read).reads(), find(&read).writes()), (true, false));
        assert_eq!((find(&write).reads(), find(&write).writes()), (false, true));
        assert_eq!(fstat(find(&write).duplicate().unwrap()).unwrap().st_ino, stat.st_ino);
        assert!(holders.get(stat.st_dev, u64::MAX).is_empty());
    }
}
