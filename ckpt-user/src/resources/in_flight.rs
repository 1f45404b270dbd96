//! Descriptors in flight: sent over a unix socket (SCM_RIGHTS, unix(7)), and not received yet.
//!
//! Whoever looks into the queue gets duplicates. So for the time of the collection ckpt itself is one more holder of these files: they are looked
//! at as descriptors of ckpt, compared by kcmp(2) with those of the processes, and looked into in turn, if they are unix sockets. Which of them
//! travel with a queue stands in an object of its own, at the end of the table: a socket may be in its own queue.
//!
//! A restart sends them again once every file is open.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::{SFlag, fstat};
use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use super::collector::ObjectKey;
use super::external;
use super::fd_table::{self, Descriptions, FdSlot, FdTable, OpenFiles};
use super::file::{FdInfo, FileBody, FileKind};
use super::holders::{Holder, Holders};
use super::pidfd::{PidFd, PidFdRecord};
use super::process_file::{ProcessFile, ProcessFileRecord};
use super::unix::Unix;
use super::unix_peek::{self, Peeked};
use super::unix_queue::Message;
use super::{Collector, Restorer};
use crate::error::{Doing, Error, Refusal, Result};
use crate::ids::{ObjRef, Pid};
use crate::image::model::Section;
use crate::sys::unix_diag::UnixDiag;
use crate::sys::{procfs, socket as raw};
use crate::tracee::remote::RemoteTask;

/// The kind of the object.
pub const KIND: &str = "in-flight";

/// The descriptors that wait in a unix socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Flight {
    /// The inode of the socket, by which its record calls it.
    pub inode: u32,
    /// The open files, in the order of its messages.
    pub files: Vec<ObjRef>,
}

/// Kinds of open files that ckpt can make again by itself, without a process that has them. Two of them only once the processes are there: [`Late`].
const KINDS: &[&str] = &[
    "deleted",
    "device",
    "directory",
    "eventfd",
    "fifo",
    "inotify",
    "memfd",
    "mqueue",
    PidFd::KIND,
    "pipe",
    ProcessFile::KIND,
    "pty",
    "regular",
    "signalfd",
    "tcp",
    "timerfd",
    "udp",
    "unix",
    "view",
    external::KIND,
];

/// What waits in one socket.
#[derive(Debug)]
pub struct Queue {
    /// The messages, or why they cannot be had.
    pub messages: Result<Vec<Message>, Refusal>,
    /// Duplicates of the descriptors that travel with them, in order.
    files: Vec<OwnedFd>,
    /// Whose socket it is.
    holder: Holder,
}

/// Every queue of the cut with descriptors, by the inode of its socket.
#[derive(Debug, Default)]
pub struct InFlight {
    queues: BTreeMap<u32, Queue>,
}

/// ckpt as a holder.
fn ourselves() -> Pid {
    Pid(std::process::id() as i32)
}

pub(super) fn info_of(fd: BorrowedFd<'_>) -> Result<FdInfo> {
    let path = format!("/proc/self/fdinfo/{}", fd.as_raw_fd());
    let info = FdInfo::parse(&procfs::read_text(&path).doing(|| format!("cannot read {path}"))?);
    info.ok_or_else(|| Error::Unexpected(format!("cannot understand {path}")))
}

/// How many descriptors wait in the queue of a socket (Linux 5.6).
pub fn count(info: &FdInfo) -> usize {
    info.get("scm_fds").and_then(|count| count.parse().ok()).unwrap_or(0)
}

impl InFlight {
    /// Looks into the sockets of processes in which descriptors wait, and into those that wait there.
    pub fn gather(sockets: impl IntoIterator<Item = (u64, Holder)>) -> Result<InFlight> {
        let mut found = InFlight::default();
        let mut waiting: VecDeque<(u64, Holder)> = sockets.into_iter().collect();
        if waiting.is_empty() {
            return Ok(found);
        }
        raise_limit()?;
        let diag = UnixDiag::open().doing(|| "cannot ask the kernel about unix sockets (NETLINK_SOCK_DIAG)")?;
        while let Some((inode, holder)) = waiting.pop_front() {
            let inode = inode as u32;
            if found.queues.contains_key(&inode) {
                continue;
            }
            let Some(queue) = Queue::look(inode, holder, &diag)? else { continue };
            for (file, (_, inode), within) in queue.holders()? {
                if count(&info_of(file)?) > 0 {
                    waiting.push_back((inode, within));
                }
            }
            found.queues.insert(inode, queue);
        }
        Ok(found)
    }

    /// What waits in the socket with this inode, if descriptors do.
    pub fn get(&self, inode: u32) -> Option<&Queue> {
        self.queues.get(&inode)
    }

    /// Every descriptor in flight, and ckpt as its holder.
    pub fn each(&self) -> impl Iterator<Item = (BorrowedFd<'_>, Holder)> {
        self.queues.values().flat_map(|queue| {
            let via = queue.via();
            queue.files.iter().map(move |file| (file.as_fd(), Holder { via, ..Holder::new(ourselves(), file.as_raw_fd(), 0) }))
        })
    }

    /// ckpt as a holder of every pipe and socket in flight: device and inode.
    pub fn holders(&self) -> Result<Vec<((u64, u64), Holder)>> {
        let mut all = Vec::new();
        for queue in self.queues.values() {
            all.extend(queue.holders()?.into_iter().map(|(_, inode, holder)| (inode, holder)));
        }
        Ok(all)
    }
}

/// One of our descriptors, its device and inode, and ckpt as its holder.
type Held<'q> = (BorrowedFd<'q>, (u64, u64), Holder);

impl Queue {
    /// `None`: it listens, and the descriptors wait in connections that were not accepted yet.
    fn look(inode: u32, holder: Holder, diag: &UnixDiag) -> Result<Option<Queue>> {
        let doing = || format!("cannot look at the socket {} of pid {}", holder.fd, holder.pid);
        let own = match holder.duplicate() {
            // Closed meanwhile, likewise.
            Err(Error::Os { source, .. }) if matches!(source.raw_os_error(), Some(libc::EBADF | libc::ESRCH)) => return Ok(None),
            other => other?,
        };
        let found = fstat(&own).doing(doing)?;
        if SFlag::from_bits_truncate(found.st_mode) & SFlag::S_IFMT != SFlag::S_IFSOCK || found.st_ino as u32 != inode {
            // Its number is that of another file by now.
            return Ok(None);
        }
        let option = |name| raw::int_option(own.as_fd(), libc::SOL_SOCKET, name).doing(doing);
        if option(libc::SO_ACCEPTCONN)? != 0 {
            return Ok(None);
        }
        let kind = option(libc::SO_TYPE)?;
        // One that is of another network namespace is refused later.
        let shutdown = diag.look(inode).map_or(0, |seen| seen.shutdown);
        let peeked = match unix_peek::peek(&holder, own.as_fd(), kind, shutdown) {
            Ok(peeked) if peeked.files.len() != count(&info_of(own.as_fd())?) => {
                let reason = "holds descriptors that were not received yet, and does not show all of them";
                holder.refuse_for_now(reason, "try again at a quieter moment")
            }
            other => other,
        };
        let (messages, files) = match peeked {
            Ok(Peeked { messages, files }) => (Ok(messages), files),
            Err(Error::Refused(refusal)) => (Err(refusal), Vec::new()),
            // The process runs (`ckpt check`), and has received it meanwhile.
            Err(Error::Os { source, .. }) if source.kind() == std::io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error),
        };
        Ok(Some(Queue { messages, files, holder }))
    }

    /// Where a process has what leads there.
    fn via(&self) -> Option<(Pid, RawFd)> {
        self.holder.via.or(Some((self.holder.pid, self.holder.fd)))
    }

    /// ckpt as a holder of those of its descriptors that have another end.
    fn holders(&self) -> Result<Vec<Held<'_>>> {
        let mut held = Vec::new();
        for file in &self.files {
            let stat = fstat(file).doing(|| "cannot look at a descriptor in flight")?;
            let kind = SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT;
            if kind == SFlag::S_IFIFO || kind == SFlag::S_IFSOCK {
                let mut holder = Holder::new(ourselves(), file.as_raw_fd(), info_of(file.as_fd())?.flags);
                holder.via = self.via();
                held.push((file.as_fd(), (stat.st_dev, stat.st_ino), holder));
            }
        }
        Ok(held)
    }
}

/// Every descriptor in flight becomes one of ours.
fn raise_limit() -> Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).doing(|| "cannot read the limit on open files")?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).doing(|| "cannot raise the limit on open files")?;
    }
    Ok(())
}

/// Makes objects of the files in flight, after those of the processes: of every queue that belongs to an object (and those come to be more).
pub fn collect(cx: &mut Collector<'_>, met: &mut Descriptions) -> Result<()> {
    let mut done = 0;
    while let Some(&inode) = cx.in_flight().get(done) {
        done += 1;
        cx.attempt(|cx| collect_queue(cx, met, inode))?;
    }
    Ok(())
}

fn collect_queue(cx: &mut Collector<'_>, met: &mut Descriptions, inode: u32) -> Result<()> {
    let all = Holders::of(cx)?;
    let Some(queue) = all.in_flight().get(inode) else { return Ok(()) };
    let mut files = Vec::new();
    for file in &queue.files {
        let link = format!("/proc/self/fd/{}", file.as_raw_fd());
        let link = std::fs::read_link(&link).doing(|| format!("cannot read {link}"))?.into_os_string();
        let refuse = |reason: String, advice: String| {
            let (pid, fd) = queue.holder.via.unwrap_or((queue.holder.pid, queue.holder.fd));
            let object = format!("{}, which is in flight to descriptor {fd} (unix socket),", link.display());
            Err(Error::Refused(Refusal { pid, object, reason, advice, passing: true }))
        };
        let objref = match fd_table::collect_ours(cx, met, file.as_fd(), &link, info_of(file.as_fd())?) {
            Err(Error::Refused(refusal)) if refusal.pid == ourselves() => return refuse(refusal.reason, refusal.advice),
            other => other?,
        };
        if !cx.kind_of(objref).is_some_and(|kind| KINDS.contains(&kind)) {
            let reason = "can be saved as a descriptor of a process, and not while it is in flight".to_owned();
            return refuse(reason, "let the program receive it, or try again at a quieter moment".to_owned());
        }
        files.push(objref);
    }
    cx.intern(ObjectKey::Inode(KIND, 0, inode.into()), |_, _| Ok(Section::encode(KIND, &Flight { inode, files })?)).map(drop)
}

/// The files of an image that are in flight.
pub fn files_of(cx: &Restorer<'_>) -> Result<impl Iterator<Item = ObjRef> + use<>> {
    Ok(cx.all::<Flight>(KIND)?.into_iter().flat_map(|(_, flight)| flight.files))
}

/// The files in flight of an image, open again.
#[derive(Debug, Default)]
pub struct Flights<'f> {
    by_inode: BTreeMap<u32, Vec<BorrowedFd<'f>>>,
}

impl Flights<'_> {
    /// Those that wait in the socket that had this inode.
    pub fn to(&self, inode: u32) -> &[BorrowedFd<'_>] {
        self.by_inode.get(&inode).map_or(&[], Vec::as_slice)
    }
}

/// Fills the queues that had to wait until every file was open. Then a task does with those files that no process has as a descriptor what only a
/// task can: it fetches them for the moment. It must not have any locks yet, since it would lose them.
pub fn restore(
    cx: &mut Restorer<'_>,
    files: &OpenFiles,
    task: &mut RemoteTask<'_>,
    is_placed: impl Fn(ObjRef) -> bool,
) -> Result<()> {
    let mut by_inode = BTreeMap::new();
    let mut homeless = BTreeSet::new();
    let flights = cx.all::<Flight>(KIND)?;
    let late = Late::open(cx, flights.iter().flat_map(|(_, flight)| flight.files.iter().copied()))?;
    for (_, flight) in flights {
        let open = flight.files.iter().map(|&file| late.0.get(&file).map_or_else(|| files.get(file), |fd| Ok(fd.as_fd())));
        by_inode.insert(flight.inode, open.collect::<Result<Vec<_>>>()?);
        homeless.extend(flight.files.into_iter().filter(|&file| !is_placed(file) && !late.0.contains_key(&file)));
    }
    let flights = Flights { by_inode };
    cx.once_open().into_iter().try_for_each(|fill| fill(&flights))?;
    for objref in homeless {
        let section = cx.section(objref)?;
        let common = section.decode::<FileBody<IgnoredAny>>()?.common;
        if section.kind == Unix::KIND || common.owner.is_some() || common.owner_signal != 0 || !common.locks.is_empty() {
            attach(cx, task, objref, files.get(objref)?)?;
        }
    }
    Ok(())
}

/// Open files in flight of which only something in their place could be had before the processes were there.
struct Late(BTreeMap<ObjRef, OwnedFd>);

impl Late {
    fn open(cx: &mut Restorer<'_>, files: impl Iterator<Item = ObjRef>) -> Result<Late> {
        let mut late = BTreeMap::new();
        for objref in files {
            let section = cx.section(objref)?;
            let fd = match section.kind.as_str() {
                PidFd::KIND => PidFd::open(&section.decode::<FileBody<PidFdRecord>>()?.record)?,
                ProcessFile::KIND => {
                    let body: FileBody<ProcessFileRecord> = section.decode()?;
                    let ours = ProcessFile::ours(cx, objref, &body.common, &body.record)?;
                    ours.try_clone().doing(|| "cannot duplicate a descriptor in flight")?
                }
                _ => continue,
            };
            late.entry(objref).or_insert(fd);
        }
        Ok(Late(late))
    }
}

fn attach(cx: &mut Restorer<'_>, task: &mut RemoteTask<'_>, objref: ObjRef, ours: BorrowedFd<'_>) -> Result<()> {
    fetched(task, ours, |task, fd| {
        let slot = FdSlot { fd, file: objref, cloexec: true, locks: Vec::new() };
        fd_table::attach(cx, task, &FdTable { slots: vec![slot] })
    })
}

/// Has a task take one of our descriptors, for as long as something is done with it there.
pub fn fetched<T>(
    task: &mut RemoteTask<'_>,
    ours: BorrowedFd<'_>,
    work: impl FnOnce(&mut RemoteTask<'_>, RawFd) -> Result<T>,
) -> Result<T> {
    let doing = "cannot have a process take an open file of ckpt for a moment";
    let taken = task.take_ours(doing, ours)?;
    let done = work(task, taken);
    task.call(doing, libc::SYS_close, [taken.into()])?;
    done
}
