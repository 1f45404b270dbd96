//! Working directory, root directory and umask. Threads share them as a rule (CLONE_FS); one that does not has its own record.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::task::{Subject, TaskResource};
use super::{Collector, Restorer};
use crate::error::{Doing, Error, Result};
use crate::sys::{kcmp, task_file};
use crate::tracee::batch::{Answers, Batch};
use crate::tracee::remote::RemoteTask;

/// See the module.
#[derive(Debug, Clone, Copy)]
pub struct FsState;

/// What one thread has, or that it shares the main thread's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FsRecord {
    /// `None`: the thread shares the main thread's.
    pub own: Option<FsPaths>,
}

/// Paths as ckpt sees them, from its own root directory.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FsPaths {
    /// The working directory.
    pub cwd: ByteBuf,
    /// The root directory. `None`: the same as ckpt's.
    pub root: Option<ByteBuf>,
    /// Permissions that new files do not get.
    pub umask: u32,
}

fn identity(path: &str) -> io::Result<(u64, u64)> {
    fs::metadata(path).map(|m| (m.dev(), m.ino()))
}

/// Where a link of /proc leads, if that path leads there indeed.
fn directory(cx: &Collector<'_>, who: &Subject<'_>, name: &str, object: &str) -> Result<OsString> {
    let link = task_file::path(who.pid, who.tid, name);
    let advice = "let it change to a directory that has a name";
    let path = match fs::read_link(&link) {
        Err(e) if e.raw_os_error() == Some(libc::ENAMETOOLONG) => {
            return cx.refuse(who.pid, object, "has a path that is longer than the kernel can tell", advice);
        }
        other => other.doing(|| format!("cannot read {link}"))?.into_os_string(),
    };
    let real = fs::metadata(&link).doing(|| format!("cannot look at {link}"))?;
    if real.nlink() == 0 {
        return cx.refuse(who.pid, format!("{object} {path:?}"), "has been deleted", advice);
    }
    match fs::metadata(&path) {
        Ok(found) if (found.dev(), found.ino()) == (real.dev(), real.ino()) => Ok(path),
        Err(e)
            if !matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::PermissionDenied) =>
        {
            Err(e).doing(|| format!("cannot look at {path:?}"))
        }
        _ => {
            let reason = "cannot be reached by that path: it lies in another mount namespace, below a mount, or was deleted";
            cx.refuse(who.pid, format!("{object} {path:?}"), reason, advice)
        }
    }
}

/// Does the thread share its leader's directories? Where the kernel does not say, equal ones count as shared.
fn is_shared(who: &Subject<'_>) -> Result<bool> {
    let leader = who.pid.leader();
    if who.tid == leader {
        return Ok(false);
    }
    let doing = || format!("cannot compare threads {leader} and {}", who.tid);
    if let Some(shared) = kcmp::share_fs(leader, who.tid).doing(doing)? {
        return Ok(shared);
    }
    let same = |name: &str| -> Result<bool> {
        let of = |tid| identity(&task_file::path(who.pid, tid, name)).doing(doing);
        Ok(of(leader)? == of(who.tid)?)
    };
    let umask = crate::sys::procfs::status(who.pid, leader)?.umask;
    Ok(same("cwd")? && same("root")? && umask == who.status.umask)
}

/// The thread's own paths. `None`: it shares the main thread's.
fn own_paths(cx: &Collector<'_>, who: &Subject<'_>) -> Result<Option<FsPaths>> {
    if is_shared(who)? {
        return Ok(None);
    }
    let umask = who.status.umask.ok_or_else(|| Error::Unexpected(format!("no umask in the status of pid {}", who.pid)))?;
    let ours = identity("/proc/self/root").doing(|| "cannot look at our own root directory".to_owned())?;
    let link = task_file::path(who.pid, who.tid, "root");
    let theirs = identity(&link).doing(|| format!("cannot look at {link}"))?;
    let root = if ours == theirs { None } else { Some(directory(cx, who, "root", "its root directory")?) };
    let cwd = directory(cx, who, "cwd", "its working directory")?;
    let bytes = |path: OsString| ByteBuf::from(path.into_vec());
    Ok(Some(FsPaths { cwd: bytes(cwd), root: root.map(bytes), umask }))
}

/// Can the directories of the thread be found again? To be known before anything is planted in the process.
pub fn check(cx: &Collector<'_>, who: &Subject<'_>) -> Result<()> {
    own_paths(cx, who).map(drop)
}

impl TaskResource for FsState {
    const KIND: &'static str = "fs";
    type Record = FsRecord;
    type Asked = ();

    fn ask(_who: &Subject<'_>, _batch: &mut Batch) -> Result<()> {
        Ok(())
    }

    fn collect(cx: &mut Collector<'_>, who: &Subject<'_>, (): (), _answers: &Answers) -> Result<FsRecord> {
        Ok(FsRecord { own: own_paths(cx, who)? })
    }

    fn restore(_cx: &mut Restorer<'_>, task: &mut RemoteTask<'_>, record: &FsRecord) -> Result<()> {
        let Some(paths) = &record.own else { return Ok(()) };
        if task.tid() != task.pid().leader() {
            task.call("cannot give a thread directories of its own", libc::SYS_unshare, [libc::CLONE_FS.into()])?;
        }
        // Both paths are ckpt's, whose root the task still has: the root changes last.
        change_to(task, libc::SYS_chdir, &paths.cwd, "the working directory")?;
        if let Some(root) = &paths.root {
            change_to(task, libc::SYS_chroot, root, "the root directory")?;
        }
        task.call("cannot set the umask", libc::SYS_umask, [paths.umask.into()]).map(drop)
    }
}

fn change_to(task: &mut RemoteTask<'_>, nr: libc::c_long, path: &[u8], what: &str) -> Result<()> {
    let shown = std::ffi::OsStr::from_bytes(path);
    if path.len() >= libc::PATH_MAX as usize || path.contains(&0) {
        return Err(Error::Restart(format!("the image holds a path that cannot be: {shown:?}")));
    }
    let mut batch = Batch::new();
    let slot = batch.c_string(path);
    let id = batch.call(nr, [slot.into()]);
    task.run(batch)?
        .ret(id)
        .doing(|| format!("cannot restart: {what} {shown:?} of pid {} cannot be entered", task.pid()))
        .map(drop)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::resources::trial::{self, Trial};

    fn go(program: &mut Trial, nr: libc::c_long, path: &std::path::Path) {
        change_to(&mut program.task(), nr, path.as_os_str().as_bytes(), "x").unwrap();
    }

    #[test]
    fn directories_with_odd_names_and_the_umask_return() {
        let dir = tempfile::tempdir().unwrap();
        let odd = dir.path().join(std::ffi::OsStr::from_bytes(b"odd \xff\n(deleted)"));
        fs::create_dir(&odd).unwrap();
        let (before, after) = trial::roundtrip::<FsState>(|program| {
            go(program, libc::SYS_chdir, &odd);
            program.task().call("umask", libc::SYS_umask, [0o137u64.into()]).unwrap();
        });
        assert_eq!(before, after);
        let own = before.own.unwrap();
        assert_eq!((own.cwd.as_ref(), own.root, own.umask), (odd.as_os_str().as_bytes(), None, 0o137));
    }

    #[test]
    fn a_root_and_a_working_directory_outside_of_it_return() {
        let (root, cwd) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let (before, after) = trial::roundtrip::<FsState>(|program| {
            go(program, libc::SYS_chdir, cwd.path());
            go(program, libc::SYS_chroot, root.path());
        });
        assert_eq!(before, after);
        let own = before.own.unwrap();
        assert_eq!(own.cwd.as_ref(), cwd.path().as_os_str().as_bytes());
        assert_eq!(own.root.unwrap().as_ref(), root.path().as_os_str().as_bytes());
    }

    #[test]
    fn a_deleted_working_directory_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let gone = dir.path().join("gone");
        fs::create_dir(&gone).unwrap();
        let mut program = Trial::sleep();
        go(&mut program, libc::SYS_chdir, &gone);
        fs::remove_dir(&gone).unwrap();
        let error = program.collect::<FsState>().unwrap_err();
        assert!(matches!(error, Error::Refused(_)), "{error}");
        assert!(error.to_string().contains("gone") && error.to_string().contains("deleted"), "{error}");
    }

    #[test]
    fn a_working_directory_that_is_missing_at_restart_is_named() {
        let own = FsPaths { cwd: ByteBuf::from(*b"/no/such/place"), ..FsPaths::default() };
        let error = Trial::sleep().restore::<FsState>(&FsRecord { own: Some(own) }).unwrap_err();
        assert!(error.to_string().contains("/no/such/place"), "{error}");
        let own = FsPaths { cwd: ByteBuf::from(vec![b'x'; 5000]), ..FsPaths::default() };
        assert!(Trial::sleep().restore::<FsState>(&FsRecord { own: Some(own) }).is_err());
    }

    #[test]
    fn threads_share_and_one_that_left_does_not() {
        let code =
            "import threading, time\nthreading.Thread(target=time.sleep, args=(1000,), daemon=True).start()\ntime.sleep(1000)";
        let mut program = Trial::of(Command::new("python3").args(["-c", code]));
        while program.tids().len() < 2 {
            program = Trial::of(Command::new("python3").args(["-c", code]));
        }
        assert!(program.collect_of::<FsState>(0).unwrap().own.is_some());
        assert_eq!(program.collect_of::<FsState>(1).unwrap(), FsRecord::default());
        program.thread(1).call("unshare", libc::SYS_unshare, [libc::CLONE_FS.into()]).unwrap();
        program.thread(1).call("umask", libc::SYS_umask, [0o7u64.into()]).unwrap();
        assert_eq!(program.collect_of::<FsState>(1).unwrap().own.unwrap().umask, 0o7);
        assert_ne!(program.collect_of::<FsState>(0).unwrap().own.unwrap().umask, 0o7);
    }
}
