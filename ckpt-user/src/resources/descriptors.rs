//! The descriptors of the processes of a cut, as /proc lists them: read once, for all who look for something among them.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use nix::fcntl::{AtFlags, readlinkat};
use nix::sys::stat::{FileStat, SFlag, fstatat};

use super::Collector;
use super::file::FdInfo;
use crate::error::{Doing, Error, Result};
use crate::ids::Pid;
use crate::sys::{parallel, pidfd, procfs};

/// So many descriptors are worth a thread to look at them: each takes some microseconds.
pub const LEAST: usize = 32;
/// The same of processes, each with a few.
const LEAST_PROCESSES: usize = 4;

/// What is known of a descriptor without a duplicate.
#[derive(Debug)]
pub struct Seen {
    /// The number.
    pub fd: RawFd,
    /// What /proc/PID/fd/N points to.
    pub link: OsString,
    /// /proc/PID/fdinfo/N.
    pub info: FdInfo,
    /// `None`: an anonymous inode, which says nothing.
    pub inode: Option<Inode>,
}

/// Which file is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inode {
    /// st_dev.
    pub device: u64,
    /// st_ino.
    pub number: u64,
    /// The type (S_IFIFO, ...) in st_mode.
    pub kind: SFlag,
    /// st_rdev.
    pub special: u64,
}

impl Inode {
    /// As fstat(2) tells it.
    pub fn of(stat: &FileStat) -> Inode {
        let kind = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT;
        Inode { device: stat.st_dev, number: stat.st_ino, kind, special: stat.st_rdev }
    }
}

/// The descriptors of some processes.
#[derive(Debug)]
pub struct Descriptors {
    /// In the order of the cut.
    processes: Vec<(Pid, Process)>,
    places: HashMap<Pid, usize>,
}

#[derive(Debug)]
struct Process {
    handle: OwnedFd,
    seen: Vec<Seen>,
}

impl Descriptors {
    /// Those in the cut of `cx`.
    pub fn of(cx: &mut Collector<'_>) -> Result<Arc<Descriptors>> {
        cx.fact(Descriptors::read)
    }

    /// Those of a process, in order of number. [`Error::Gone`]: it had ended when they were read.
    pub fn get(&self, pid: Pid) -> Result<&[Seen]> {
        Ok(&self.process(pid)?.seen)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (Pid, &Seen)> {
        self.processes.iter().flat_map(|(pid, process)| process.seen.iter().map(|seen| (*pid, seen)))
    }

    /// A duplicate of one, for us: the same open file description.
    pub fn duplicate(&self, pid: Pid, fd: RawFd) -> Result<OwnedFd> {
        let handle = self.process(pid)?.handle.as_fd();
        pidfd::get_fd(handle, fd).doing(|| format!("cannot duplicate descriptor {fd} of pid {pid}"))
    }

    fn process(&self, pid: Pid) -> Result<&Process> {
        self.places.get(&pid).map(|&place| &self.processes[place].1).ok_or(Error::Gone(pid))
    }

    /// Of those of `pids` that live.
    pub fn read(pids: &[Pid]) -> Result<Descriptors> {
        let anonymous = Anonymous::default();
        let some = |pids: &[Pid]| {
            let mut processes = Vec::with_capacity(pids.len());
            for &pid in pids {
                match read_process(pid, &anonymous) {
                    Ok(process) => processes.push((pid, process)),
                    Err(error) if procfs::is_gone(&error) => {}
                    Err(error) => return Err(error).doing(|| format!("cannot list the descriptors of pid {pid}")),
                }
            }
            Ok(processes)
        };
        let processes = parallel::gather(pids, LEAST_PROCESSES, some)?;
        let places = processes.iter().enumerate().map(|(place, (pid, _))| (*pid, place)).collect();
        Ok(Descriptors { processes, places })
    }
}

/// The numbers of the descriptors of a process, in order.
pub fn numbers(pid: Pid) -> io::Result<Vec<RawFd>> {
    let mut numbers = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.parse().ok());
        numbers.push(number.ok_or_else(|| io::Error::other(format!("/proc/{pid}/fd holds {name:?}")))?);
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// What a descriptor of a process points to. `None`: it has been closed.
pub fn link(pid: Pid, fd: RawFd) -> io::Result<Option<PathBuf>> {
    match fs::read_link(format!("/proc/{pid}/fd/{fd}")) {
        Err(error) if procfs::is_gone(&error) => Ok(None),
        other => other.map(Some),
    }
}

fn read_process(pid: Pid, anonymous: &Anonymous) -> io::Result<Process> {
    let handle = pidfd::open(pid)?;
    let links = File::open(format!("/proc/{pid}/fd"))?;
    let infos = File::open(format!("/proc/{pid}/fdinfo"))?;
    let some = |numbers: &[RawFd]| {
        let mut seen = Vec::with_capacity(numbers.len());
        for &fd in numbers {
            match look(links.as_fd(), infos.as_fd(), fd, anonymous) {
                Ok(one) => seen.push(one),
                // Closed meanwhile: the process runs (`ckpt check`).
                Err(error) if procfs::is_gone(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(seen)
    };
    Ok(Process { handle, seen: parallel::gather(&numbers(pid)?, LEAST, some)? })
}

fn look(links: BorrowedFd<'_>, infos: BorrowedFd<'_>, fd: RawFd, anonymous: &Anonymous) -> io::Result<Seen> {
    let name = fd.to_string();
    let link = readlinkat(links, name.as_str())?;
    let info = FdInfo::parse(&procfs::read_text_in(infos, &name)?);
    let info = info.ok_or_else(|| io::Error::other(format!("the fdinfo of descriptor {fd} makes no sense")))?;
    let stat = || Ok(Inode::of(&fstatat(links, name.as_str(), AtFlags::empty())?));
    let inode = anonymous.inode(&link, stat)?;
    Ok(Seen { fd, link, info, inode })
}

/// Pipes and sockets tell their inode in their name, and all of one sort are on one device: one of them need be asked for it.
#[derive(Debug, Default)]
struct Anonymous {
    pipe: OnceLock<Inode>,
    socket: OnceLock<Inode>,
}

impl Anonymous {
    fn inode(&self, link: &OsStr, stat: impl FnOnce() -> io::Result<Inode>) -> io::Result<Option<Inode>> {
        let (sort, number) = match link.as_bytes() {
            [b'/', ..] => {
                return match stat() {
                    // A file of /proc/PID whose process has ended; whether the descriptor is there, its link has told.
                    Err(error) if procfs::is_gone(&error) => Ok(None),
                    other => other.map(Some),
                };
            }
            [b'p', b'i', b'p', b'e', b':', b'[', number @ .., b']'] => (&self.pipe, number),
            [b's', b'o', b'c', b'k', b'e', b't', b':', b'[', number @ .., b']'] => (&self.socket, number),
            _ => return Ok(None),
        };
        let number = std::str::from_utf8(number).ok().and_then(|number| number.parse().ok());
        match (sort.get(), number) {
            (Some(like), Some(number)) => Ok(Some(Inode { number, ..*like })),
            _ => {
                let inode = stat()?;
                Ok(Some(*sort.get_or_init(|| inode)).map(|like| Inode { number: inode.number, ..like }))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    use nix::sys::stat::fstat;
    use nix::unistd::pipe;

    use super::*;

    #[test]
    fn what_is_seen_is_what_fstat_tells() {
        let me = Pid(std::process::id() as i32);
        let pipes = [pipe().unwrap(), pipe().unwrap()];
        let sockets: [_; 2] =
            std::array::from_fn(|_| socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::empty()).unwrap());
        let file: OwnedFd = File::open("/dev/null").unwrap().into();
        let fds = pipes.iter().chain(&sockets).flat_map(|(a, b)| [a, b]).chain([&file]);
        let seen = Descriptors::read(&[me]).unwrap();
        for fd in fds {
            let one = seen.get(me).unwrap().iter().find(|one| one.fd == fd.as_raw_fd()).unwrap();
            assert_eq!(one.inode, Some(Inode::of(&fstat(fd).unwrap())), "{one:?}");
            let again = seen.duplicate(me, one.fd).unwrap();
            assert_eq!(fstat(&again).unwrap().st_ino, fstat(fd).unwrap().st_ino);
        }
    }

    #[test]
    fn who_has_ended_has_none() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        let pid = Pid(child.id() as i32);
        let seen = Descriptors::read(&[pid]).unwrap();
        assert!(matches!(seen.get(pid), Err(Error::Gone(gone)) if gone == pid));
        assert!(matches!(seen.duplicate(pid, 0), Err(Error::Gone(_))));
    }
}
