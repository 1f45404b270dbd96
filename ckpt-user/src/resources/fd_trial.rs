//! For the tests of the kinds of open files: descriptors of the test's own process are collected, and made again in it.

use std::ffi::OsString;
use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use nix::poll::PollFlags;
use nix::sys::stat::fstat;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::collector::{CollectOptions, Collected, ObjectKey};
use super::fd_table::{self, FdSlot, FdTable};
use super::file::{self, Descriptor, FdInfo, FileBody, OpenFile};
use super::in_flight::Flights;
use super::restorer::RestoreOptions;
use super::{Collector, Restorer, written};
use crate::error::Result;
use crate::ids::{ObjRef, Pid};
use crate::image::model::{Object, Section};
use crate::sys::{pidfd, queue};
use crate::tracee::freeze::{FrozenProcess, Stragglers};
use crate::tracee::maps;
use crate::tracee::remote::{Injector, RemoteTask};
use crate::tracee::tree::FrozenTree;

/// What was collected of some descriptors.
pub struct Cut {
    pub objects: Vec<Object>,
    pub files: Vec<ObjRef>,
}

pub fn this_process() -> Pid {
    Pid(std::process::id() as i32)
}

/// Collects open files of this process.
pub fn collect(fds: &[BorrowedFd<'_>]) -> Result<Cut> {
    collect_with(&CollectOptions::default(), this_process(), &fds.iter().map(|fd| fd.as_raw_fd()).collect::<Vec<_>>())
}

/// Why an open file of this process is refused.
pub fn refusal(fd: &impl AsFd) -> String {
    collect(&[fd.as_fd()]).map(drop).unwrap_err().to_string()
}

/// Why one is refused that `mark` has made for a file, which is deleted since, though still open. `None`: it could not be made.
pub fn refusal_for_a_deleted_file(mark: impl FnOnce(&Path) -> Option<OwnedFd>) -> Option<String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x");
    let file = File::create(&path).unwrap();
    let fd = mark(&path)?;
    fs::remove_file(&path).unwrap();
    let refused = refusal(&fd);
    drop(file);
    Some(refused)
}

/// Collects descriptors of any process.
pub fn collect_with(options: &CollectOptions, pid: Pid, fds: &[i32]) -> Result<Cut> {
    let mut cx = Collector::new(options, vec![pid]);
    let mut files = Vec::new();
    for &fd in fds {
        let file = look_at(pid, fd, |d| {
            let link = d.link.to_string_lossy().into_owned();
            let common = OpenFile { flags: d.info.flags & !libc::O_CLOEXEC, pos: d.info.pos, link, ..OpenFile::default() };
            cx.intern(ObjectKey::File(pid, fd), |cx, _| file::collect(cx, d, common))
        });
        files.push(file?);
    }
    written::collect(&mut cx)?;
    let Collected { objects, .. } = cx.finish()?;
    Ok(Cut { objects, files })
}

/// A descriptor of any process as the kinds see it.
pub fn look_at<T>(pid: Pid, fd: i32, see: impl FnOnce(&Descriptor<'_>) -> T) -> T {
    let process = pidfd::open(pid).unwrap();
    let own = pidfd::get_fd(process.as_fd(), fd).unwrap();
    let link: OsString = fs::read_link(format!("/proc/{pid}/fd/{fd}")).unwrap().into();
    let info = FdInfo::parse(&fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}")).unwrap()).unwrap();
    let stat = fstat(&own).unwrap();
    see(&Descriptor::new((pid, fd), &link, &info, &stat, own.as_fd()))
}

/// A descriptor of this process as the kinds see it.
pub fn with_descriptor<T>(fd: BorrowedFd<'_>, see: impl FnOnce(&Descriptor<'_>) -> T) -> T {
    look_at(this_process(), fd.as_raw_fd(), see)
}

impl Cut {
    /// Makes the files again, in the order in which they were collected.
    pub fn restore(&self) -> Result<Vec<OwnedFd>> {
        self.restore_with(&RestoreOptions::default())
    }

    /// The same where the old files were just closed, and with them an address came free (a child of another test can hold a
    /// duplicate for an instant).
    pub fn restore_soon(&self) -> Vec<OwnedFd> {
        let until = Instant::now() + Duration::from_secs(10);
        loop {
            match self.restore() {
                Ok(files) => return files,
                Err(error) => assert!(Instant::now() < until, "{error}"),
            }
            std::thread::yield_now();
        }
    }

    pub fn restore_with(&self, options: &RestoreOptions) -> Result<Vec<OwnedFd>> {
        let mut cx = Restorer::new(options, self.objects.clone());
        let slots =
            self.files.iter().enumerate().map(|(n, &file)| FdSlot { fd: n as i32, file, cloexec: false, locks: Vec::new() });
        written::prepare(&mut cx)?;
        let files = fd_table::open(&mut cx, &[&FdTable { slots: slots.collect() }])?;
        cx.settle()?;
        fd_table::finish(&mut cx, files.iter())?;
        cx.once_open().into_iter().try_for_each(|fill| fill(&Flights::default()))?;
        let find = |wanted| files.iter().find(|(objref, _)| *objref == wanted).unwrap().1;
        Ok(self.files.iter().map(|&objref| find(objref).try_clone_to_owned().unwrap()).collect())
    }

    /// The record of the file collected as number `n`.
    pub fn record<R: DeserializeOwned>(&self, n: usize) -> R {
        let object = self.objects.iter().find(|o| o.objref == self.files[n]).unwrap();
        object.section.decode::<FileBody<R>>().unwrap().record
    }

    /// Changes the record of the file collected as number `n`.
    pub fn edit<R: Serialize + DeserializeOwned>(&mut self, n: usize, change: impl FnOnce(&mut R)) {
        let objref = self.files[n];
        let object = self.objects.iter_mut().find(|o| o.objref == objref).unwrap();
        let mut body: FileBody<R> = object.section.decode().unwrap();
        change(&mut body.record);
        object.section = Section::encode(&object.section.kind, &body).unwrap();
    }

    /// What `attach` does with the file collected as number `n`, in a task that has it as descriptor `fd`.
    pub fn attach(&self, n: usize, task: &mut RemoteTask<'_>, fd: i32) -> Result<()> {
        let options = RestoreOptions::default();
        let mut cx = Restorer::new(&options, self.objects.clone());
        let section = cx.section(self.files[n])?;
        (file::kind_of(&section)?.attach)(&mut cx, task, self.files[n], fd, &section)
    }
}

/// Collects descriptors of this process and makes them again.
pub fn again<const N: usize>(fds: [BorrowedFd<'_>; N]) -> [OwnedFd; N] {
    collect(&fds).unwrap().restore().unwrap().try_into().unwrap()
}

pub fn flags(fd: impl AsFd) -> i32 {
    nix::fcntl::fcntl(fd, nix::fcntl::FcntlArg::F_GETFL).unwrap()
}

/// A stopped program with three descriptors of the test's: 0, 1 and 2. It is killed in the end.
pub struct Heir {
    child: Child,
    frozen: FrozenProcess,
    injector: Injector,
}

impl Heir {
    pub fn of([a, b, c]: [&OwnedFd; 3]) -> Heir {
        let give = |fd: &OwnedFd| fd.try_clone().unwrap();
        let child = Command::new("sleep").arg("1000").stdin(give(a)).stdout(give(b)).stderr(give(c)).spawn().unwrap();
        let pid = Pid(child.id() as i32);
        let mut tree = FrozenTree::freeze(pid, Duration::from_secs(10), &Stragglers::default()).unwrap();
        let frozen = tree.processes.remove(0);
        let (injector, _) = Injector::new(pid, &maps::read(pid).unwrap()).unwrap();
        Heir { child, frozen, injector }
    }

    pub fn pid(&self) -> Pid {
        self.frozen.pid
    }

    pub fn task(&mut self) -> RemoteTask<'_> {
        RemoteTask::new(&mut self.injector, self.frozen.leader())
    }
}

impl Drop for Heir {
    fn drop(&mut self) {
        // It may be gone already, and nothing can be done about it here.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until poll says all of `wanted` (a child of another test can hold a duplicate for an instant).
pub fn wait_for(fd: impl AsFd, wanted: PollFlags) {
    let until = Instant::now() + Duration::from_secs(10);
    while !queue::poll_now(fd.as_fd()).unwrap().contains(wanted) {
        assert!(Instant::now() < until, "poll never says {wanted:?}");
        std::thread::yield_now();
    }
}
