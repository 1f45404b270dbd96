//! epoll(7): which files an instance watches, for what, and what it answers with.
//!
//! The kernel files an interest under the open file *and* the number it was registered by. The descriptor of that number may have
//! been closed since, or used again for something else, while a duplicate keeps the file open; kcmp(2) tells which file it is.
//! Interests come back in the task itself, under the right numbers: a signalfd, for one, is ready for whom registered it. A file that
//! another process has registered in an instance that they share, and that this one does not have, is fetched from there for the moment.
//!
//! An interest that was reported once and waits to be armed again (EPOLLONESHOT) can be made only by having it reported: where its file
//! is not ready at the restart, it differs from what it was in that a hang-up would still be reported.

use std::collections::HashMap;
use std::os::fd::{OwnedFd, RawFd};

use nix::sys::epoll::{Epoll as NixEpoll, EpollCreateFlags};
use serde::{Deserialize, Serialize};

use super::file::{Descriptor, FileKind, OpenFile, Place};
use super::{Collector, Restorer, descriptors};
use crate::error::{Doing, Error, Result};
use crate::ids::Pid;
use crate::sys::kcmp;
use crate::tracee::batch::Batch;
use crate::tracee::remote::RemoteTask;

/// See the module.
#[derive(Debug)]
pub struct Epoll;

/// The state of an epoll instance.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EpollRecord {
    /// Everything it watches, in the order of fdinfo.
    pub interests: Vec<Interest>,
}

/// One file that is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interest {
    /// The number it was registered by.
    pub number: RawFd,
    /// A number that the task has the file under: the same one, as a rule.
    pub at: RawFd,
    /// EPOLLIN, EPOLLET, ...
    pub events: u32,
    /// What the program wants to be told.
    pub data: u64,
    /// Whose number `at` is, if the process that the instance was collected from does not have the file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of: Option<Pid>,
}

const IN_OUT: u32 = (libc::EPOLLIN | libc::EPOLLOUT | libc::EPOLLPRI | libc::EPOLLRDHUP) as u32;
const ONESHOT: u32 = libc::EPOLLONESHOT as u32;
/// What says how to report, not what (EP_PRIVATE_BITS of the kernel).
const MANNERS: u32 = ONESHOT | libc::EPOLLET as u32 | libc::EPOLLWAKEUP as u32 | libc::EPOLLEXCLUSIVE as u32;
/// Interests per batch of remote calls.
const PER_BATCH: usize = 256;

impl Interest {
    /// Was it reported, and not armed again since?
    fn is_spent(&self) -> bool {
        self.events & ONESHOT != 0 && self.events & !MANNERS == 0
    }

    /// "       5 events:       19 data:                5  pos:0 ino:30a7 sdev:8"
    fn parse(line: &str) -> Option<Interest> {
        let mut words = line.split_whitespace();
        let number = words.next()?.parse().ok()?;
        let mut events = None;
        let mut data = None;
        while let Some(word) = words.next() {
            match word {
                "events:" => events = u32::from_str_radix(words.next()?, 16).ok(),
                "data:" => data = u64::from_str_radix(words.next()?, 16).ok(),
                _ => {}
            }
        }
        Some(Interest { number, at: number, events: events?, data: data?, of: None })
    }

    /// Is the file under the number that it was registered by, in the process that registers it again?
    fn is_in_place(&self) -> bool {
        self.at == self.number && self.of.is_none()
    }
}

/// struct epoll_event, which is packed on x86-64.
#[repr(C, packed)]
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
struct Event {
    events: u32,
    data: u64,
}

const _: () = assert!(size_of::<Event>() == size_of::<libc::epoll_event>());

impl FileKind for Epoll {
    const KIND: &'static str = "epoll";
    type Record = EpollRecord;

    fn matches(d: &Descriptor<'_>) -> bool {
        d.link == "anon_inode:[eventpoll]"
    }

    fn collect(cx: &mut Collector<'_>, d: &Descriptor<'_>) -> Result<EpollRecord> {
        let mut interests = Vec::new();
        let mut met = HashMap::<RawFd, u32>::new();
        let numbers = numbers_of(d.pid)?;
        for line in d.info.all("tfd") {
            let interest = Interest::parse(line);
            let mut interest =
                interest.ok_or_else(|| Error::Unexpected(format!("cannot understand '{line}' in the fdinfo of an epoll")))?;
            let nth = met.entry(interest.number).or_default();
            let found = match find(d, &interest, *nth, d.pid, &numbers)? {
                None => find_elsewhere(&cx.pids, d, &interest, *nth)?,
                here => here.map(|at| (at, None)),
            };
            let Some((at, of)) = found else {
                return cx.refuse(
                    d.pid,
                    format!("descriptor {} (epoll)", d.fd),
                    format!(
                        "watches a file that was registered as descriptor {} and that no process being checkpointed has open any more",
                        interest.number
                    ),
                    "let the program take it out of the epoll (EPOLL_CTL_DEL) before it closes it",
                );
            };
            (interest.at, interest.of) = (at, of);
            *nth += 1;
            interests.push(interest);
        }
        Ok(EpollRecord { interests })
    }

    fn restore(_cx: &mut Restorer<'_>, _common: &OpenFile, _record: &EpollRecord) -> Result<OwnedFd> {
        Ok(NixEpoll::new(EpollCreateFlags::EPOLL_CLOEXEC).doing(|| "cannot make an epoll")?.0)
    }

    fn attach(_cx: &mut Restorer<'_>, task: &mut RemoteTask<'_>, at: &Place<'_>, record: &EpollRecord) -> Result<()> {
        let fd = at.fd;
        // These first: having one reported must not have another one reported.
        for interest in record.interests.iter().filter(|i| i.is_spent()) {
            under_number(task, fd, interest, |task, epoll| register_spent(task, epoll, interest))?;
        }
        let live = || record.interests.iter().filter(|i| !i.is_spent());
        let in_place: Vec<&Interest> = live().filter(|i| i.is_in_place()).collect();
        for part in in_place.chunks(PER_BATCH) {
            let mut batch = Batch::new();
            let calls: Vec<_> = part.iter().map(|i| control(&mut batch, fd, libc::EPOLL_CTL_ADD, i, i.events)).collect();
            let answers = task.run(batch)?;
            for (interest, call) in part.iter().zip(calls) {
                answers.ret(call).doing(|| cannot_register(task.pid(), interest))?;
            }
        }
        for interest in live().filter(|i| !i.is_in_place()) {
            under_number(task, fd, interest, |task, epoll| register(task, epoll, interest))?;
        }
        Ok(())
    }
}

/// The descriptors of a process.
fn numbers_of(pid: Pid) -> Result<Vec<RawFd>> {
    descriptors::numbers(pid).doing(|| format!("cannot list the descriptors of pid {pid}"))
}

/// Another process that has the watched file, and its number there.
fn find_elsewhere(pids: &[Pid], d: &Descriptor<'_>, interest: &Interest, nth: u32) -> Result<Option<(RawFd, Option<Pid>)>> {
    for &pid in pids.iter().filter(|&&pid| pid != d.pid) {
        if let Some(at) = find(d, interest, nth, pid, &numbers_of(pid)?)? {
            return Ok(Some((at, Some(pid))));
        }
    }
    Ok(None)
}

/// A number that the process `pid` has the watched file under. `nth`: which of the interests of this number.
fn find(d: &Descriptor<'_>, interest: &Interest, nth: u32, pid: Pid, numbers: &[RawFd]) -> Result<Option<RawFd>> {
    let own = std::iter::once(interest.number);
    for fd in own.chain(numbers.iter().copied().filter(|&fd| fd != interest.number)) {
        match kcmp::is_epoll_target((pid, fd), (d.pid, d.fd), interest.number, nth) {
            Ok(true) => return Ok(Some(fd)),
            Ok(false) => {}
            // There is no such descriptor, or (the process runs: `ckpt check`) no such interest any more.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EBADF | libc::ENOENT)) => {}
            Err(error) => return Err(error).doing(|| format!("cannot find out what epoll {} of pid {} watches", d.fd, d.pid)),
        }
    }
    Ok(None)
}

fn control(batch: &mut Batch, epoll: RawFd, operation: i32, interest: &Interest, events: u32) -> crate::tracee::batch::CallId {
    let event = batch.value(&Event { events, data: interest.data });
    batch.call(libc::SYS_epoll_ctl, [epoll.into(), operation.into(), interest.number.into(), event.into()])
}

fn cannot_register(pid: Pid, interest: &Interest) -> String {
    format!("cannot have an epoll of pid {pid} watch descriptor {} again", interest.number)
}

fn register(task: &mut RemoteTask<'_>, epoll: RawFd, interest: &Interest) -> Result<()> {
    let mut batch = Batch::new();
    let call = control(&mut batch, epoll, libc::EPOLL_CTL_ADD, interest, interest.events);
    task.run(batch)?.ret(call).doing(|| cannot_register(task.pid(), interest)).map(drop)
}

/// Registers for anything at all, and has it reported if it can be.
fn register_spent(task: &mut RemoteTask<'_>, epoll: RawFd, interest: &Interest) -> Result<()> {
    let mut batch = Batch::new();
    let add = control(&mut batch, epoll, libc::EPOLL_CTL_ADD, interest, interest.events | IN_OUT);
    let report = batch.room(size_of::<Event>());
    let wait = batch.call(libc::SYS_epoll_wait, [epoll.into(), report.into(), 1.into(), 0.into()]);
    let answers = task.run(batch)?;
    answers.ret(add).doing(|| cannot_register(task.pid(), interest))?;
    if answers.ret(wait).doing(|| cannot_register(task.pid(), interest))? == 1 {
        return Ok(());
    }
    let mut batch = Batch::new();
    let modify = control(&mut batch, epoll, libc::EPOLL_CTL_MOD, interest, interest.events);
    task.run(batch)?.ret(modify).doing(|| cannot_register(task.pid(), interest)).map(drop)
}

/// Has the file under its number while `register` runs, which gets the number of the epoll; then everything is as it was.
fn under_number(
    task: &mut RemoteTask<'_>,
    epoll: RawFd,
    interest: &Interest,
    register: impl FnOnce(&mut RemoteTask<'_>, RawFd) -> Result<()>,
) -> Result<()> {
    if interest.is_in_place() {
        return register(task, epoll);
    }
    let doing = cannot_register(task.pid(), interest);
    let Some(of) = interest.of else { return under_number_from(task, epoll, interest.number, interest.at, &doing, register) };
    // One step beyond what is in use: the number itself may be free.
    let above = numbers_of(task.pid())?.into_iter().max().unwrap_or(0).max(interest.number) + 1;
    let process = task.call(&doing, libc::SYS_pidfd_open, [of.0.into(), 0.into()])?;
    let fetched = task.call(&doing, libc::SYS_pidfd_getfd, [process.into(), interest.at.into(), 0.into()])?;
    let aside = task.call(&doing, libc::SYS_fcntl, [fetched.into(), libc::F_DUPFD_CLOEXEC.into(), above.into()])?;
    for fd in [process, fetched] {
        task.call(&doing, libc::SYS_close, [fd.into()])?;
    }
    under_number_from(task, epoll, interest.number, aside as RawFd, &doing, register)?;
    task.call(&doing, libc::SYS_close, [aside.into()]).map(drop)
}

/// The same for a file that the task has under the number `at`.
fn under_number_from(
    task: &mut RemoteTask<'_>,
    epoll: RawFd,
    number: RawFd,
    at: RawFd,
    doing: &str,
    register: impl FnOnce(&mut RemoteTask<'_>, RawFd) -> Result<()>,
) -> Result<()> {
    if !numbers_of(task.pid())?.contains(&number) {
        task.call(doing, libc::SYS_dup3, [at.into(), number.into(), libc::O_CLOEXEC.into()])?;
        register(task, epoll)?;
        return task.call(doing, libc::SYS_close, [number.into()]).map(drop);
    }
    // Something else has the number now.
    let flags = task.call(doing, libc::SYS_fcntl, [number.into(), libc::F_GETFD.into()])?;
    let aside = task.call(doing, libc::SYS_fcntl, [number.into(), libc::F_DUPFD_CLOEXEC.into(), 0.into()])?;
    task.call(doing, libc::SYS_dup3, [at.into(), number.into(), libc::O_CLOEXEC.into()])?;
    register(task, if epoll == number { aside as RawFd } else { epoll })?;
    let cloexec = if flags & libc::FD_CLOEXEC as u64 != 0 { libc::O_CLOEXEC } else { 0 };
    task.call(doing, libc::SYS_dup3, [aside.into(), number.into(), cloexec.into()])?;
    task.call(doing, libc::SYS_close, [aside.into()]).map(drop)
}

#[cfg(test)]
mod tests {
    use nix::sys::eventfd::{EfdFlags, EventFd};
    use nix::unistd::{read, write};

    use super::super::collector::CollectOptions;
    use super::super::fd_trial::{Cut, Heir, collect_with, look_at};
    use super::super::restorer::RestoreOptions;
    use super::*;

    fn instance() -> OwnedFd {
        NixEpoll::new(EpollCreateFlags::EPOLL_CLOEXEC).unwrap().0
    }

    fn counter(n: u32) -> OwnedFd {
        EventFd::from_value_and_flags(n, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).unwrap().into()
    }

    fn interest(number: RawFd, events: i32, data: u64) -> Interest {
        Interest { number, at: number, events: events as u32, data, of: None }
    }

    fn sorted(mut record: EpollRecord) -> Vec<Interest> {
        record.interests.sort_by_key(|i| (i.number, i.at));
        record.interests
    }

    /// What is ready now: (data, events).
    fn ready(epoll: &OwnedFd) -> Vec<(u64, i32)> {
        let epoll = NixEpoll(epoll.try_clone().unwrap());
        let mut events = [nix::sys::epoll::EpollEvent::empty(); 8];
        let n = epoll.wait(&mut events, 0u8).unwrap();
        let mut all: Vec<_> = events[..n].iter().map(|e| (e.data(), e.events().bits())).collect();
        all.sort_unstable();
        all
    }

    /// `prepare` brings an epoll (0) and two more files into some state in one task; the same is made in another one.
    fn roundtrip(fds: [&OwnedFd; 3], prepare: impl FnOnce(&mut RemoteTask<'_>)) -> (Cut, [OwnedFd; 3]) {
        let mut old = Heir::of(fds);
        prepare(&mut old.task());
        let cut = collect_with(&CollectOptions::default(), old.pid(), &[0, 1, 2]).unwrap();
        let new: [OwnedFd; 3] = cut.restore().unwrap().try_into().unwrap();
        (cut, new)
    }

    fn register_all(task: &mut RemoteTask<'_>, interests: &[Interest]) {
        for i in interests {
            register(task, 0, i).unwrap();
        }
    }

    fn collect_again(heir: &Heir) -> Cut {
        collect_with(&CollectOptions::default(), heir.pid(), &[0, 1, 2]).unwrap()
    }

    #[test]
    fn interests_come_back() {
        let (epoll, silent, count) = (instance(), counter(0), counter(1));
        let before =
            [interest(1, libc::EPOLLIN | libc::EPOLLET, u64::MAX), interest(2, libc::EPOLLIN | libc::EPOLLEXCLUSIVE, 1 << 40)];
        let (cut, new) = roundtrip([&epoll, &silent, &count], |task| register_all(task, &before));
        let found: Vec<(RawFd, u64)> = sorted(cut.record(0)).iter().map(|i| (i.number, i.data)).collect();
        assert_eq!(found, [(1, u64::MAX), (2, 1 << 40)]);
        let mut heir = Heir::of([&new[0], &new[1], &new[2]]);
        cut.attach(0, &mut heir.task(), 0).unwrap();
        assert_eq!(sorted(collect_again(&heir).record(0)), sorted(cut.record(0)));
        assert_eq!(ready(&new[0]), [(1 << 40, libc::EPOLLIN)]);
        read(&new[2], &mut [0; 8]).unwrap();
        assert_eq!(ready(&new[0]), []);
        write(&new[2], &2u64.to_ne_bytes()).unwrap();
        assert_eq!(ready(&new[0]), [(1 << 40, libc::EPOLLIN)]);
    }

    #[test]
    fn a_number_that_was_closed_or_is_something_else_now() {
        for reused in [false, true] {
            let (epoll, a, b) = (instance(), counter(1), counter(0));
            let displace = |task: &mut RemoteTask<'_>| {
                if reused {
                    task.call("dup", libc::SYS_dup3, [2.into(), 5.into(), 0.into()]).unwrap();
                }
            };
            let (cut, new) = roundtrip([&epoll, &a, &b], |task| {
                task.call("dup", libc::SYS_dup3, [1.into(), 5.into(), 0.into()]).unwrap();
                register_all(task, &[interest(5, libc::EPOLLIN, 77), interest(2, libc::EPOLLIN, 78)]);
                task.call("close", libc::SYS_close, [5.into()]).unwrap();
                displace(task);
                if reused {
                    register_all(task, &[interest(5, libc::EPOLLOUT, 79)]);
                }
            });
            let displaced = cut.record::<EpollRecord>(0).interests.into_iter().find(|i| i.data == 77).unwrap();
            assert_eq!((displaced.number, displaced.at), (5, 1));
            let mut heir = Heir::of([&new[0], &new[1], &new[2]]);
            displace(&mut heir.task());
            let numbers = numbers_of(heir.pid()).unwrap();
            cut.attach(0, &mut heir.task(), 0).unwrap();
            let by_data = |record: EpollRecord| {
                let mut interests = record.interests;
                interests.sort_by_key(|i| i.data);
                interests
            };
            assert_eq!(by_data(collect_again(&heir).record(0)), by_data(cut.record(0)));
            assert_eq!(ready(&new[0])[0], (77, libc::EPOLLIN));
            assert_eq!(numbers_of(heir.pid()).unwrap(), numbers);
            if reused {
                assert!(kcmp::files(heir.pid(), 5, heir.pid(), 2).unwrap().is_eq());
            }
        }
    }

    #[test]
    fn reported_once_and_not_armed_again() {
        let (epoll, a, b) = (instance(), counter(1), counter(1));
        let (cut, new) = roundtrip([&epoll, &a, &b], |task| {
            register_all(task, &[interest(1, libc::EPOLLIN | libc::EPOLLONESHOT, 1)]);
            assert_eq!(ready(&epoll), [(1, libc::EPOLLIN)]);
            register_all(task, &[interest(2, libc::EPOLLIN | libc::EPOLLONESHOT, 2)]);
        });
        assert!(cut.record::<EpollRecord>(0).interests.iter().any(|i| i.number == 1 && i.is_spent()));
        let mut heir = Heir::of([&new[0], &new[1], &new[2]]);
        cut.attach(0, &mut heir.task(), 0).unwrap();
        assert_eq!(sorted(collect_again(&heir).record(0)), sorted(cut.record(0)));
        assert_eq!(ready(&new[0]), [(2, libc::EPOLLIN)]);
        assert_eq!(ready(&new[0]), []);
    }

    #[test]
    fn one_epoll_watches_another() {
        let (outer, inner, count) = (instance(), instance(), counter(0));
        let mut old = Heir::of([&outer, &inner, &count]);
        register(&mut old.task(), 0, &interest(1, libc::EPOLLIN, 10)).unwrap();
        register(&mut old.task(), 1, &interest(2, libc::EPOLLIN, 20)).unwrap();
        let cut = collect_again(&old);
        let new: [OwnedFd; 3] = cut.restore().unwrap().try_into().unwrap();
        let mut heir = Heir::of([&new[0], &new[1], &new[2]]);
        cut.attach(0, &mut heir.task(), 0).unwrap();
        cut.attach(1, &mut heir.task(), 1).unwrap();
        assert_eq!(ready(&new[0]), []);
        write(&new[2], &1u64.to_ne_bytes()).unwrap();
        assert_eq!(ready(&new[0]), [(10, libc::EPOLLIN)]);
        assert_eq!(ready(&new[1]), [(20, libc::EPOLLIN)]);
    }

    #[test]
    fn a_file_that_only_somebody_else_has() {
        let (epoll, a, b) = (instance(), counter(0), counter(0));
        let kept = b.try_clone().unwrap();
        let mut old = Heir::of([&epoll, &a, &b]);
        register_all(&mut old.task(), &[interest(2, libc::EPOLLIN, 1)]);
        old.task().call("close", libc::SYS_close, [2.into()]).unwrap();
        let refused = collect_with(&CollectOptions::default(), old.pid(), &[0]).map(|_| ()).unwrap_err().to_string();
        assert!(refused.contains("registered as descriptor 2"), "{refused}");
        // If that is in the cut as well, it is found, and fetched from there.
        let friend = Heir::of([&a, &kept, &a]);
        let options = CollectOptions::default();
        let mut cx = Collector::new(&options, vec![old.pid(), friend.pid()]);
        let record = look_at(old.pid(), 0, |d| Epoll::collect(&mut cx, d)).unwrap();
        let found: Vec<_> = record.interests.iter().map(|i| (i.number, i.at, i.of, i.data)).collect();
        assert_eq!(found, [(2, 1, Some(friend.pid()), 1)]);
        for number_is_free in [true, false] {
            let again = instance();
            let mut new = Heir::of([&again, &a, &a]);
            if number_is_free {
                new.task().call("close", libc::SYS_close, [2.into()]).unwrap();
            }
            let numbers = numbers_of(new.pid()).unwrap();
            let wishes = RestoreOptions::default();
            let at = Place { objref: crate::ids::ObjRef(1), fd: 0, common: &OpenFile::default() };
            Epoll::attach(&mut Restorer::new(&wishes, Vec::new()), &mut new.task(), &at, &record).unwrap();
            assert_eq!(numbers_of(new.pid()).unwrap(), numbers);
            assert_eq!(ready(&again), []);
            write(&kept, &1u64.to_ne_bytes()).unwrap();
            assert_eq!(ready(&again), [(1, libc::EPOLLIN)]);
            read(&kept, &mut [0; 8]).unwrap();
        }
    }

    #[test]
    fn lines_of_fdinfo() {
        let line = "       5 events:       19 data:                5  pos:0 ino:30a7 sdev:8";
        assert_eq!(Interest::parse(line), Some(Interest { number: 5, at: 5, events: 0x19, data: 5, of: None }));
        for bad in ["", "x events: 19 data: 5", "5 events: data: 5", "5", "99999999999 events: 1 data: 1"] {
            assert_eq!(Interest::parse(bad), None);
        }
    }
}
