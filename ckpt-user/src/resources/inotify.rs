//! inotify(7): what an instance watches. Watches come back on the files that have these names then, under the same watch descriptors.
//!
//! The kernel tells the inode and, on most file systems, the file handle of what is watched, not its name. The handle leads to a name
//! while the kernel remembers one; else the inode is looked for near the program: below its working directory, the directories
//! that it watches, and those of its open files.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::ffi::OsString;
use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::sys::stat::makedev;
use serde::{Deserialize, Serialize};

use super::file::{Descriptor, FileKind, OpenFile};
use super::{Collector, Restorer};
use crate::error::{Doing, Error, Result};
use crate::ids::Pid;
use crate::sys::{handle, inotify, mounts, queue};

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
    ino: u64,
    /// Major and minor number of the file system.
    device: (u64, u64),
    mask: u32,
    /// Type and contents of the file handle.
    handle: Option<(i32, Vec<u8>)>,
}

/// What inotify_add_watch takes: events, IN_EXCL_UNLINK and IN_ONESHOT.
const MASK: u32 = libc::IN_ALL_EVENTS | libc::IN_EXCL_UNLINK | libc::IN_ONESHOT;
/// Directory entries that are looked at while searching for a watched file.
const SEARCH_LIMIT: usize = 50_000;

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
        let mut found = BTreeMap::new();
        for watch in &seen {
            found.extend(watch.find_by_handle(d.pid)?.map(|path| (watch.wd, path)));
        }
        let missing: Vec<&Seen> = seen.iter().filter(|watch| !found.contains_key(&watch.wd)).collect();
        if !missing.is_empty() {
            found.extend(search(&missing, places(d.pid, found.values())));
        }
        let mut record = InotifyRecord::default();
        for watch in &seen {
            let Some(path) = found.remove(&watch.wd) else {
                let (major, minor) = watch.device;
                return cx.refuse(
                    d.pid,
                    name(),
                    format!(
                        "watches (as {}) the inode {} of device {major}:{minor}, for which no name can be found",
                        watch.wd, watch.ino
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
        let mut words = line.split_whitespace();
        let wd = i32::from_str_radix(words.next()?, 16).ok()?;
        let field = |key: &str| line.split_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix(':'));
        let number = |key| u64::from_str_radix(field(key)?, 16).ok();
        // The kernel's own form of a device number: 20 bits of minor.
        let device = number("sdev")?;
        let handle = match (number("fhandle-type"), field("f_handle").and_then(from_hex)) {
            (Some(kind), Some(contents)) => Some((kind as i32, contents)),
            _ => None,
        };
        Some(Seen { wd, ino: number("ino")?, device: (device >> 20, device & 0xf_ffff), mask: number("mask")? as u32, handle })
    }

    /// The name that the file handle leads to, if it does and that name is the file's.
    fn find_by_handle(&self, pid: Pid) -> Result<Option<PathBuf>> {
        let Some((kind, contents)) = &self.handle else { return Ok(None) };
        let (major, minor) = self.device;
        let mounted = mounts::of_device(pid, major, minor).doing(|| format!("cannot read the mounts of pid {pid}"))?;
        for point in mounted {
            let path = name_by_handle(&point, *kind, contents);
            match path {
                Ok(Some(path)) => return Ok(Some(path)),
                Ok(None) => {}
                // No right to use handles, or this mount does not lead there: the search may find it.
                Err(error) => tracing::debug!("the handle of watch {} leads nowhere below {}: {error}", self.wd, point.display()),
            }
        }
        Ok(None)
    }
}

fn name_by_handle(point: &Path, kind: i32, contents: &[u8]) -> std::io::Result<Option<PathBuf>> {
    if !fs::metadata(point)?.is_dir() {
        return Ok(None);
    }
    let mount = File::open(point)?;
    let file = File::from(handle::open(mount.as_fd(), kind, contents)?);
    let path = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    let (opened, named) = (file.metadata()?, fs::symlink_metadata(&path)?);
    Ok(((opened.dev(), opened.ino()) == (named.dev(), named.ino())).then_some(path))
}

fn from_hex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    let pairs = digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok());
    if digits.len().is_multiple_of(2) { pairs.collect() } else { None }
}

/// Where a program's files are likely to be.
fn places<'a>(pid: Pid, watched: impl Iterator<Item = &'a PathBuf>) -> Vec<PathBuf> {
    let mut places: Vec<PathBuf> =
        watched.flat_map(|path| [Some(path.clone()), path.parent().map(Path::to_owned)]).flatten().collect();
    places.extend(fs::read_link(format!("/proc/{pid}/cwd")));
    let open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let links =
        open.filter_map(|entry| fs::read_link(entry.path()).ok()).filter(|link| link.as_os_str().as_bytes().starts_with(b"/"));
    places.extend(links.filter_map(|link| link.parent().map(Path::to_owned)));
    places
}

/// Looks for the watched files below `places`, nearer ones first.
fn search(wanted: &[&Seen], places: Vec<PathBuf>) -> BTreeMap<i32, PathBuf> {
    let mut found = BTreeMap::new();
    let mut queue = VecDeque::from(places);
    let mut visited = HashSet::new();
    let mut left = SEARCH_LIMIT;
    while let Some(folder) = queue.pop_front() {
        let Ok(metadata) = fs::symlink_metadata(&folder) else { continue };
        if !visited.insert((metadata.dev(), metadata.ino())) {
            continue;
        }
        note(wanted, &mut found, &folder, metadata.ino());
        // What cannot be listed cannot be searched; the watch is then refused by name.
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            left = left.saturating_sub(1);
            if found.len() == wanted.len() || left == 0 {
                return found;
            }
            note(wanted, &mut found, &entry.path(), entry.ino());
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                queue.push_back(entry.path());
            }
        }
    }
    found
}

/// Is this one of the wanted files?
fn note(wanted: &[&Seen], found: &mut BTreeMap<i32, PathBuf>, path: &Path, ino: u64) {
    for watch in wanted.iter().filter(|watch| watch.ino == ino) {
        let (major, minor) = watch.device;
        let same = fs::symlink_metadata(path).is_ok_and(|m| m.ino() == ino && m.dev() == makedev(major, minor));
        if same {
            found.entry(watch.wd).or_insert_with(|| path.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use nix::unistd::read;

    use super::super::fd_trial::{again, collect, flags};
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
        let refused = collect(&[fd.as_fd()]).map(|_| ()).unwrap_err().to_string();
        assert!(refused.contains("events") && refused.contains("try again"), "{refused}");
    }

    #[test]
    fn a_deleted_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        let file = File::create(&path).unwrap();
        let fd = inotify::create().unwrap();
        inotify::add_watch(fd.as_fd(), &path, libc::IN_MODIFY).unwrap();
        fs::remove_file(&path).unwrap();
        let refused = collect(&[fd.as_fd()]).map(|_| ()).unwrap_err().to_string();
        assert!(refused.contains("no name can be found"), "{refused}");
        drop(file);
    }

    #[test]
    fn the_search_finds_what_is_near() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("a/b")).unwrap();
        let path = folder.path().join("a/b/file");
        fs::write(&path, "").unwrap();
        let metadata = fs::metadata(&path).unwrap();
        let device = (nix::sys::stat::major(metadata.dev()), nix::sys::stat::minor(metadata.dev()));
        let seen = Seen { wd: 7, ino: metadata.ino(), device, mask: 0, handle: None };
        assert_eq!(search(&[&seen], vec![folder.path().to_owned()]), [(7, path)].into());
        let elsewhere = Seen { device: (77, 7), ..seen };
        assert!(search(&[&elsewhere], vec![folder.path().to_owned()]).is_empty());
    }

    #[test]
    fn lines_of_fdinfo() {
        let line = "6 ino:e49 sdev:fe00001 mask:80000002 ignored_mask:0 fhandle-bytes:4 fhandle-type:81 f_handle:490e0001";
        let handle = Some((0x81, vec![0x49, 0x0e, 0, 1]));
        assert_eq!(Seen::parse(line), Some(Seen { wd: 6, ino: 0xe49, device: (254, 1), mask: 0x8000_0002, handle }));
        assert_eq!(Seen::parse("1f ino:1 sdev:2 mask:3 ").unwrap().handle, None);
        for bad in ["", "x", "1 ino:1", "1 ino:z sdev:1 mask:1"] {
            assert_eq!(Seen::parse(bad), None);
        }
        assert_eq!(from_hex("012"), None);
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
