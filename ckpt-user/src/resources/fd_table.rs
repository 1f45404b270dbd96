//! Descriptor tables: which number refers to which open file.
//!
//! Collected from outside through duplicates. Restored in two steps: [`open`] makes every open file in ckpt, at numbers that no
//! table uses; [`place`] has the new task, which inherited them all, put each where it belongs and close the rest.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};
use nix::sys::stat::fstat;
use serde::{Deserialize, Serialize};

use super::collector::ObjectKey;
use super::descriptors::{Descriptors, Seen};
use super::file::{self, Descriptor, FdInfo, OpenFile};
use super::lock::{self, Lock};
use super::{Collector, Restorer, external, in_flight, process_file};
use crate::error::{Doing, Error, Result};
use crate::ids::{ObjRef, Pid};
use crate::image::model::Section;
use crate::sys::{fcntl as own, kcmp};
use crate::tracee::batch::Batch;
use crate::tracee::remote::RemoteTask;

/// The kind of the object.
pub const KIND: &str = "descriptors";

/// A descriptor table (SEED: CLONE_FILES shares it).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FdTable {
    /// Every descriptor, in order of number.
    pub slots: Vec<FdSlot>,
}

/// One row of a descriptor table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FdSlot {
    /// The number.
    pub fd: RawFd,
    /// The open file.
    pub file: ObjRef,
    /// FD_CLOEXEC.
    pub cloexec: bool,
    /// Locks of the process itself on the file, where the file was collected from another process.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub locks: Vec<Lock>,
}

/// Collects the descriptor table of a process. `descriptions`: the open files met so far in the cut.
pub fn collect(cx: &mut Collector<'_>, pid: Pid, descriptions: &mut Descriptions) -> Result<ObjRef> {
    let key = ObjectKey::Task(KIND, pid);
    if let Some(known) = cx.lookup(&key) {
        return Ok(known);
    }
    let all = Descriptors::of(cx)?;
    cx.intern(key, |cx, _| {
        let mut slots = Vec::new();
        // An epoll instance refers to other files, which must stand before it.
        let (last, first): (Vec<&Seen>, Vec<&Seen>) = all.get(pid)?.iter().partition(|s| s.link == "anon_inode:[eventpoll]");
        for seen in first.into_iter().chain(last) {
            let found = cx.attempt(|cx| collect_one(cx, descriptions, pid, seen, || all.duplicate(pid, seen.fd)))?;
            let Some((file, from)) = found else { continue };
            let locks = if from == pid { Vec::new() } else { lock::of_process(lock::parse(&seen.info)?) };
            slots.push(FdSlot { fd: seen.fd, file, cloexec: seen.info.flags & libc::O_CLOEXEC != 0, locks });
        }
        slots.sort_by_key(|slot| slot.fd);
        Ok(Section::encode(KIND, &FdTable { slots })?)
    })
}

/// Two descriptors that differ in this cannot share one open file description: the path, offset, flags and mount, and the number that the kernel gives
/// each eventfd (a busy program has many, that look the same otherwise).
type Look = (OsString, i64, i32, i32, Option<String>);

/// The first descriptor of every open file description met so far.
#[derive(Debug, Default)]
pub struct Descriptions {
    /// Among those that look the same, in the kernel's order.
    by_look: HashMap<Look, Vec<(Pid, RawFd)>>,
}

impl Descriptions {
    /// The first descriptor with the same description as this one of `pid`, which is itself if it is new.
    fn first_of(&mut self, pid: Pid, seen: &Seen) -> Result<(Pid, RawFd)> {
        // Names below /proc/PID/net are lost as soon as somebody else uses them.
        let link = without_deleted(&seen.link).to_owned();
        let eventfd = seen.info.get("eventfd-id").map(str::to_owned);
        let look = (link, seen.info.pos, seen.info.flags & !libc::O_CLOEXEC, seen.info.mnt_id, eventfd);
        let candidates = self.by_look.entry(look).or_default();
        let (mut low, mut high) = (0, candidates.len());
        while low < high {
            let middle = low + (high - low) / 2;
            let (of, fd) = candidates[middle];
            let order = kcmp::files(pid, seen.fd, of, fd);
            match order.doing(|| format!("cannot compare the descriptors of pid {pid} and pid {of}"))? {
                Ordering::Equal => return Ok((of, fd)),
                Ordering::Less => high = middle,
                Ordering::Greater => low = middle + 1,
            }
        }
        candidates.insert(low, (pid, seen.fd));
        Ok((pid, seen.fd))
    }
}

fn collect_one(
    cx: &mut Collector<'_>,
    found: &mut Descriptions,
    pid: Pid,
    seen: &Seen,
    duplicate: impl FnOnce() -> Result<OwnedFd>,
) -> Result<(ObjRef, Pid)> {
    let first = found.first_of(pid, seen)?;
    if first != (pid, seen.fd)
        && let Some(known) = cx.lookup(&ObjectKey::File(first.0, first.1))
    {
        if first.1 == seen.fd || !external::is_standard(cx, known, seen.fd) {
            return Ok((known, first.0));
        }
        // Another process may have it under the same number.
        let (of, number) = (first.0, seen.fd);
        if of != pid
            && kcmp::files(pid, number, of, number).is_ok_and(Ordering::is_eq)
            && let Some(known) = cx.lookup(&ObjectKey::File(of, number))
        {
            return Ok((known, of));
        }
    }
    let own = duplicate()?;
    let stat = match fstat(&own) {
        Err(Errno::ENOENT) if process_file::names_a_process(&seen.link) => {
            return process_file::refuse_gone(cx, pid, seen.fd, &seen.link);
        }
        other => other.doing(|| format!("cannot look at descriptor {} of pid {pid}", seen.fd))?,
    };
    let d = Descriptor::new((pid, seen.fd), &seen.link, &seen.info, &stat, own.as_fd());
    let file = cx.intern(ObjectKey::File(pid, seen.fd), |cx, objref| {
        let section = file::collect(cx, &d, common(&d)?)?;
        if section.kind == external::KIND {
            external::note(cx, objref);
        }
        Ok(section)
    })?;
    Ok((file, pid))
}

/// Collects an open file of which nobody but ckpt may have a descriptor, `own`.
pub fn collect_ours(
    cx: &mut Collector<'_>,
    met: &mut Descriptions,
    own: BorrowedFd<'_>,
    link: &OsStr,
    info: FdInfo,
) -> Result<ObjRef> {
    let us = Pid(std::process::id() as i32);
    let seen = Seen { fd: own.as_raw_fd(), link: link.to_owned(), info, inode: None };
    let duplicate = || own.try_clone_to_owned().doing(|| "cannot duplicate a descriptor of ckpt's own");
    Ok(collect_one(cx, met, us, &seen, duplicate)?.0)
}

/// The path in what /proc/PID/fd/N points to.
pub fn without_deleted(link: &OsStr) -> &OsStr {
    OsStr::from_bytes(link.as_bytes().strip_suffix(b" (deleted)").unwrap_or(link.as_bytes()))
}

fn common(d: &Descriptor<'_>) -> Result<OpenFile> {
    let (owner, owner_signal) = if d.info.flags & libc::O_PATH != 0 {
        (None, 0)
    } else {
        own::owner(d.own).doing(|| format!("cannot look at descriptor {} of pid {}", d.fd, d.pid))?
    };
    Ok(OpenFile {
        flags: d.info.flags & !libc::O_CLOEXEC,
        pos: d.info.pos,
        owner,
        owner_signal,
        link: d.link.to_string_lossy().into_owned(),
        locks: lock::parse(d.info)?,
    })
}

/// Every open file of an image's tables, made in ckpt.
#[derive(Debug, Default)]
pub struct OpenFiles {
    files: BTreeMap<ObjRef, OwnedFd>,
}

/// Numbers for ckpt's own use: no table has them, so nothing is overwritten while descriptors are placed.
///
/// They may lie anywhere between those of the tables: some programs keep descriptors just below their limit.
struct SpareNumbers {
    taken: BTreeSet<RawFd>,
    next: RawFd,
}

impl SpareNumbers {
    fn of(tables: &[&FdTable]) -> SpareNumbers {
        // Standard input, output and error are never spare: messages go there.
        SpareNumbers { taken: numbers(tables).collect(), next: 3 }
    }

    fn lift(&mut self, fd: OwnedFd) -> Result<OwnedFd> {
        loop {
            while self.taken.contains(&self.next) {
                self.next += 1;
            }
            let lifted = own::duplicate_above(fd.as_fd(), self.next)
                .doing(|| format!("cannot have a descriptor above {}; raise the limit on open files (ulimit -n)", self.next))?;
            let number = lifted.as_raw_fd();
            self.next = number.saturating_add(1);
            if !self.taken.contains(&number) {
                return Ok(lifted);
            }
        }
    }
}

fn numbers(tables: &[&FdTable]) -> impl Iterator<Item = RawFd> {
    tables.iter().flat_map(|table| &table.slots).map(|slot| slot.fd)
}

/// Takes descriptors to numbers that no table uses, so that none is overwritten while others are placed.
pub fn move_up(fds: HashMap<ObjRef, OwnedFd>, tables: &[&FdTable]) -> Result<HashMap<ObjRef, OwnedFd>> {
    let mut spare = SpareNumbers::of(tables);
    fds.into_iter().map(|(objref, fd)| Ok((objref, spare.lift(fd)?))).collect()
}

/// The new task begins with ckpt's own limit, and gets the one of the image once its descriptors are in their places.
fn raise_limit(tables: &[&FdTable]) -> Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).doing(|| "cannot read the limit on open files")?;
    let last = numbers(tables).max().unwrap_or(0);
    let needed = rlim_t::try_from(last)
        .map_err(|_| Error::Restart(format!("the image has a descriptor with the number {last}")))?
        // As many again for ckpt's own numbers.
        .saturating_add(1 + numbers(tables).count() as rlim_t);
    if needed > hard && setrlimit(Resource::RLIMIT_NOFILE, needed, needed).is_ok() {
        return Ok(());
    }
    // Where that is not allowed, the descriptors may fit nevertheless.
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).doing(|| "cannot raise the limit on open files")?;
    }
    Ok(())
}

/// Makes every open file that the tables refer to, each once, in the order of their numbers.
pub fn open(cx: &mut Restorer<'_>, tables: &[&FdTable]) -> Result<OpenFiles> {
    raise_limit(tables)?;
    let mut spare = SpareNumbers::of(tables);
    let of_tables = tables.iter().flat_map(|t| &t.slots).map(|slot| slot.file);
    let wanted: BTreeSet<ObjRef> = of_tables.chain(in_flight::files_of(cx)?).collect();
    let mut files = BTreeMap::new();
    for objref in wanted {
        let section = cx.section(objref)?;
        let (fd, common) = (file::kind_of(&section)?.restore)(cx, &section)?;
        set_common(fd.as_fd(), &common)?;
        lock::restore(fd.as_fd(), &common)?;
        files.insert(objref, spare.lift(fd)?);
    }
    Ok(OpenFiles { files })
}

/// Flags that fcntl can set, and the offset.
pub fn set_common(fd: BorrowedFd<'_>, common: &OpenFile) -> Result<()> {
    if common.flags & libc::O_PATH != 0 {
        return Ok(());
    }
    let settable = OFlag::O_APPEND | OFlag::O_NONBLOCK | OFlag::O_DIRECT | OFlag::O_NOATIME;
    let doing = || format!("cannot set the flags of {}", common.link);
    let now = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL).doing(doing)?);
    let wanted = (now & !settable) | (OFlag::from_bits_retain(common.flags) & settable);
    if now != wanted {
        fcntl(fd, FcntlArg::F_SETFL(wanted)).doing(doing)?;
    }
    if common.pos != 0 {
        match own::seek_to(fd, common.pos) {
            // Some devices count what was read; nobody can ask them.
            Err(error) if error.raw_os_error() == Some(libc::ESPIPE) => {}
            other => other.doing(|| format!("cannot set the offset of {}", common.link))?,
        }
    }
    Ok(())
}

/// Puts every descriptor of the table in its place in the new task, and closes all others there.
pub fn place(task: &mut RemoteTask<'_>, table: &FdTable, files: &OpenFiles) -> Result<()> {
    let gaps = gaps(table)?;
    for part in table.slots.chunks(512) {
        let mut batch = Batch::new();
        let mut asked = Vec::new();
        for slot in part {
            let file = files.get(slot.file)?;
            let flags = if slot.cloexec { libc::O_CLOEXEC } else { 0 };
            asked.push((batch.call(libc::SYS_dup3, [file.as_raw_fd().into(), slot.fd.into(), flags.into()]), slot.fd));
        }
        let answers = task.run(batch)?;
        for (id, fd) in asked {
            answers.ret(id).doing(|| format!("cannot place descriptor {fd} in pid {}", task.pid()))?;
        }
    }
    // Only now: what was to be placed lay between.
    for part in gaps.chunks(512) {
        let mut batch = Batch::new();
        let asked: Vec<_> =
            part.iter().map(|&(first, last)| batch.call(libc::SYS_close_range, [first.into(), last.into(), 0.into()])).collect();
        let answers = task.run(batch)?;
        for id in asked {
            answers.ret(id).doing(|| "cannot close the other descriptors")?;
        }
    }
    Ok(())
}

/// First and last of every range of numbers that the table does not use.
fn gaps(table: &FdTable) -> Result<Vec<(u32, u32)>> {
    let mut gaps = Vec::new();
    let mut next = 0;
    for slot in &table.slots {
        let fd = u32::try_from(slot.fd).ok().filter(|&fd| fd >= next);
        let fd = fd.ok_or_else(|| Error::Restart(format!("the image's descriptor table is out of order at {}", slot.fd)))?;
        if fd > next {
            gaps.push((next, fd - 1));
        }
        next = fd + 1;
    }
    gaps.push((next, u32::MAX));
    Ok(gaps)
}

impl OpenFiles {
    /// One of them.
    pub fn get(&self, objref: ObjRef) -> Result<BorrowedFd<'_>> {
        let file = self.files.get(&objref).map(AsFd::as_fd);
        file.ok_or_else(|| Error::Restart(format!("the descriptor table refers to object {objref}, which is not open")))
    }
}

/// What had to wait until the contents of files were there.
pub fn finish<'f>(cx: &mut Restorer<'_>, files: impl IntoIterator<Item = (ObjRef, BorrowedFd<'f>)>) -> Result<()> {
    for (objref, fd) in files {
        let section = cx.section(objref)?;
        (file::kind_of(&section)?.finish)(cx, fd, &section)?;
    }
    Ok(())
}

impl OpenFiles {
    /// Every open file, for [`finish`].
    pub fn iter(&self) -> impl Iterator<Item = (ObjRef, BorrowedFd<'_>)> {
        self.files.iter().map(|(&objref, fd)| (objref, fd.as_fd()))
    }
}

/// What only a task with its descriptors in place can do: epoll interests, record locks, who gets SIGIO.
pub fn attach(cx: &mut Restorer<'_>, task: &mut RemoteTask<'_>, table: &FdTable) -> Result<()> {
    let mut first = BTreeMap::new();
    for slot in &table.slots {
        first.entry(slot.file).or_insert(slot.fd);
    }
    // In the order of their numbers: a file stands before the epoll instance that watches it.
    let mut here = BTreeMap::new();
    for (objref, fd) in first {
        let section = cx.section(objref)?;
        let kind = file::kind_of(&section)?;
        let is_first = cx.is_first_to_attach(objref);
        if is_first || kind.attaches_in_each {
            (kind.attach)(cx, task, objref, fd, &section)?;
        }
        if is_first {
            here.insert(objref, fd);
        }
    }
    // Locks only now: a process loses those on a file with whatever descriptor of the file it closes.
    for (objref, fd) in here {
        let common: file::FileBody<serde::de::IgnoredAny> = cx.section(objref)?.decode()?;
        restore_owner(task, fd, &common.common)?;
        lock::attach(task, fd, &common.common.locks, &common.common.link)?;
    }
    for slot in table.slots.iter().filter(|slot| !slot.locks.is_empty()) {
        lock::attach(task, slot.fd, &slot.locks, &format!("the file of descriptor {}", slot.fd))?;
    }
    Ok(())
}

fn restore_owner(task: &mut RemoteTask<'_>, fd: RawFd, common: &OpenFile) -> Result<()> {
    let doing = || format!("cannot set who is signalled for {}", common.link);
    if let Some((kind, id)) = common.owner {
        let mut batch = Batch::new();
        let owner = batch.value(&own::OwnerEx { kind, id });
        let call = batch.call(libc::SYS_fcntl, [fd.into(), own::F_SETOWN_EX.into(), owner.into()]);
        task.run(batch)?.ret(call).doing(doing)?;
    }
    if common.owner_signal != 0 {
        task.call(&doing(), libc::SYS_fcntl, [fd.into(), own::F_SETSIG.into(), common.owner_signal.into()])?;
    }
    if common.flags & libc::O_ASYNC != 0 {
        // From now on signals are sent, so only now.
        task.call(&doing(), libc::SYS_fcntl, [fd.into(), libc::F_SETFL.into(), common.flags.into()])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(numbers: impl IntoIterator<Item = RawFd>) -> FdTable {
        let slots = numbers.into_iter().map(|fd| FdSlot { fd, file: ObjRef(1), cloexec: false, locks: Vec::new() });
        FdTable { slots: slots.collect() }
    }

    #[test]
    fn numbers_are_spare_between_those_of_a_table() {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        let last = RawFd::try_from(hard).unwrap() - 1;
        let table = table((0..500).step_by(2).chain([last]));
        let mut spare = SpareNumbers::of(&[&table]);
        let mut lifted = Vec::new();
        for _ in 0..400 {
            let fd = spare.lift(std::fs::File::open("/dev/null").unwrap().into()).unwrap();
            assert!(!table.slots.iter().any(|slot| slot.fd == fd.as_raw_fd()), "{fd:?} is taken");
            assert!(fd.as_raw_fd() > 2);
            lifted.push(fd);
        }
    }

    #[test]
    fn what_a_table_does_not_use_is_closed() {
        assert_eq!(gaps(&table([])).unwrap(), [(0, u32::MAX)]);
        assert_eq!(gaps(&table([0, 1, 5, 9])).unwrap(), [(2, 4), (6, 8), (10, u32::MAX)]);
        for hostile in [&[1, 0][..], &[3, 3], &[-1], &[0, -5]] {
            assert!(gaps(&table(hostile.iter().copied())).is_err());
        }
        assert_eq!(gaps(&table([RawFd::MAX])).unwrap(), [(0, RawFd::MAX as u32 - 1), (RawFd::MAX as u32 + 1, u32::MAX)]);
    }
}
