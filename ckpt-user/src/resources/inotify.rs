//! inotify(7): what an instance watches. Watches come back on the files that have these names then, under the same watch descriptors.
//!
//! The kernel tells which inode is watched, not its name: see [`super::inode_name`].

use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::file::{Descriptor, FileKind, OpenFile};
use super::inode_name::{self, Inode};
use super::{Collector, Restorer};
use crate::error::{Doing, Error, Result};
use crate::sys::{inotify, queue};

/// See the module.
#[derive(Debug)]
pub struct Inotify;

/// The state of an inotify instance.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct InotifyRecord {
    /// By watch descriptor.
    pub watches: Vec<Watch>,
}

/// One watch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watch {
    /// The watch descriptor.
    pub wd: i32,
    /// IN_MODIFY, ...
    pub mask: u32,
    /// The file or directory.
    #[serde(with = "serde_bytes")]
    pub path: Vec<u8>,
}

/// A watch as fdinfo tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    wd: i32,
    mask: u32,
    inode: Inode,
}

/// What inotify_add_watch takes: events, IN_EXCL_UNLINK and IN_ONESHOT.
const MASK: u32 = libc::IN_ALL_EVENTS | libc::IN_EXCL_UNLINK | libc::IN_ONESHOT;
impl FileKind for Inotify {
    const KIND: &'static str = "inotify";
    type Record = InotifyRecord;

    fn matches(d: &Descriptor<'_>) -> bool {
        d.link == "anon_inode:inotify"
    }

    fn collect(cx: &mut Collector<'_>, d: &Descriptor<'_>) -> Result<InotifyRecord> {
        let name = || format!("descriptor {} (inotify)", d.fd);
        if queue::readable(d.own).doing(|| format!("cannot look at {} of pid {}", name(), d.pid))? != 0 {
            let advice = "let the program read them, or try again at a quieter moment";
            return cx.refuse(
                d.pid,
                name(),
                "has events that the program has not read yet, which the kernel does not hand out twice",
                advice,
            );
        }
        let mut seen = Vec::new();
        for line in d.info.all("inotify wd") {
            let watch = Seen::parse(line);
            seen.push(watch.ok_or_else(|| Error::Unexpected(format!("cannot understand '{line}' in the fdinfo of an inotify")))?);
        }
        let inodes: Vec<Inode> = seen.iter().map(|watch| watch.inode.clone()).collect();
        let mut found = inode_name::find(d.pid, &inodes)?;
        let mut record = InotifyRecord::default();
        for (n, watch) in seen.iter().enumerate() {
            let Some(path) = found.remove(&n) else {
                let (major, minor) = watch.inode.device;
                return cx.refuse(
                    d.pid,
                    name(),
                    format!(
                        "watches (as {}) the inode {} of device {major}:{minor}, for which no name can be found",
                        watch.wd, watch.inode.ino
                    ),
                    "let the program remove that watch if the file was deleted; else list the file's directory, and try again",
                );
            };
            record.watches.push(Watch { wd: watch.wd, mask: watch.mask & MASK, path: path.into_os_string().into_vec() });
        }
        record.watches.sort_by_key(|watch| watch.wd);
        Ok(record)
    }

    fn restore(_cx: &mut Restorer<'_>, _common: &OpenFile, record: &InotifyRecord) -> Result<OwnedFd> {
        let fd = inotify::create().doing(|| "cannot make an inotify instance")?;
        for watch in &record.watches {
            let path = PathBuf::from(OsString::from_vec(watch.path.clone()));
            let doing = || format!("cannot watch {} again", path.display());
            match inotify::set_next_wd(fd.as_fd(), watch.wd) {
                // An older kernel, or one without CONFIG_CHECKPOINT_RESTORE: it may still give the right number.
                Err(error) if error.raw_os_error() == Some(libc::ENOTTY) => {}
                other => other.doing(doing)?,
            }
            let wd = inotify::add_watch(fd.as_fd(), &path, watch.mask & MASK).doing(doing)?;
            if wd != watch.wd {
                return Err(Error::Restart(format!(
                    "the kernel gave the watch of {} the number {wd} instead of {} (two watches of one file, or a kernel without CONFIG_CHECKPOINT_RESTORE)",
                    path.display(),
                    watch.wd
                )));
            }
        }
        Ok(fd)
    }
}

impl Seen {
    /// "6 ino:e49 sdev:16 mask:2 ignored_mask:0 fhandle-bytes:c fhandle-type:81 f_handle:490e..."
    fn parse(line: &str) -> Option<Seen> {
        let wd = i32::from_str_radix(line.split_whitespace().next()?, 16).ok()?;
        Some(Seen { wd, mask: inode_name::number(line, "mask")? as u32, inode: Inode::parse(line)? })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::fd::AsRawFd;
    use std::path::Path;

    use nix::unistd::read;

    use super::super::fd_trial::{again, flags, refusal, refusal_for_a_deleted_file};
    use super::*;

    const EVENTS: u32 = libc::IN_MODIFY | libc::IN_CREATE | libc::IN_ONESHOT | libc::IN_EXCL_UNLINK;

    fn events(fd: &OwnedFd) -> Vec<(i32, u32)> {
        let mut buf = [0; 4096];
        let n = queue::readable(fd.as_fd()).unwrap();
        let n = if n == 0 { 0 } else { read(fd, &mut buf).unwrap() };
        let word = |at: usize| u32::from_ne_bytes(buf[at..at + 4].try_into().unwrap());
        let mut all = Vec::new();
        let mut at = 0;
        while at < n {
            all.push((word(at) as i32, word(at + 4)));
            at += 16 + word(at + 12) as usize;
        }
        all
    }

    #[test]
    fn watches_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a file");
        fs::write(&file, "").unwrap();
        let old = inotify::create().unwrap();
        let watch = |path: &Path, mask| inotify::add_watch(old.as_fd(), path, mask).unwrap();
        watch(Path::new("/"), libc::IN_DELETE_SELF);
        watch(folder.path(), libc::IN_CREATE);
        inotify::set_next_wd(old.as_fd(), 1000).unwrap();
        let wd = watch(&file, EVENTS);
        assert_eq!(wd, 1000);
        let [new] = again([old.as_fd()]);
        assert_eq!(flags(&new), flags(&old));
        let lines = |fd: &OwnedFd| {
            let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).unwrap();
            let mut watches: Vec<String> = text.lines().filter(|l| l.starts_with("inotify")).map(str::to_owned).collect();
            watches.sort();
            watches
        };
        assert_eq!(lines(&new), lines(&old));
        fs::write(folder.path().join("another"), "").unwrap();
        fs::write(&file, "x").unwrap();
        assert_eq!(events(&new), [(2, libc::IN_CREATE), (1000, libc::IN_MODIFY), (1000, libc::IN_IGNORED)]);
    }

    #[test]
    fn events_that_wait_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let fd = inotify::create().unwrap();
        inotify::add_watch(fd.as_fd(), folder.path(), EVENTS).unwrap();
        fs::write(folder.path().join("x"), "").unwrap();
        let refused = refusal(&fd);
        assert!(refused.contains("events") && refused.contains("try again"), "{refused}");
    }

    #[test]
    fn a_deleted_file_is_refused() {
        let refused = refusal_for_a_deleted_file(|path| {
            let fd = inotify::create().unwrap();
            inotify::add_watch(fd.as_fd(), path, libc::IN_MODIFY).unwrap();
            Some(fd)
        });
        assert!(refused.as_ref().is_some_and(|refused| refused.contains("no name can be found")), "{refused:?}");
    }

    #[test]
    fn hostile_records_are_errors() {
        let options = super::super::restorer::RestoreOptions::default();
        let mut cx = Restorer::new(&options, Vec::new());
        let watch = |wd, mask, path: &[u8]| Watch { wd, mask, path: path.to_vec() };
        for watches in [
            vec![watch(-1, 2, b"/")],
            vec![watch(0, 2, b"/")],
            vec![watch(1, 0, b"/")],
            vec![watch(1, 2, b"/no\0name")],
            vec![watch(1, 2, b"/"), watch(2, 2, b"/")],
            vec![watch(5, 2, b"/"), watch(5, 2, b"/tmp")],
        ] {
            assert!(Inotify::restore(&mut cx, &OpenFile::default(), &InotifyRecord { watches }).is_err());
        }
    }
}
