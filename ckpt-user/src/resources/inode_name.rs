//! The names of inodes of which only numbers and a file handle are known, as the fdinfo of inotify and fanotify instances tells them.
//!
//! A handle leads to a name where ckpt may use handles. Else, what is near the program is searched: below its working directory, the directories
//! that it watches, and those of its open files.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::sys::stat::makedev;

use super::descriptors;
use crate::error::{Doing, Result};
use crate::ids::Pid;
use crate::sys::{handle, mounts};

/// An inode as fdinfo tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inode {
    /// Its number.
    pub ino: u64,
    /// Major and minor number of the file system.
    pub device: (u64, u64),
    /// Type and contents of the file handle.
    handle: Option<(i32, Vec<u8>)>,
}

/// Directory entries that are looked at while searching for a watched file.
const SEARCH_LIMIT: usize = 50_000;

/// The hexadecimal value of a word `key:VALUE`.
pub fn number(line: &str, key: &str) -> Option<u64> {
    u64::from_str_radix(field(line, key)?, 16).ok()
}

/// The device number of a word `sdev:VALUE`.
pub fn device(line: &str) -> Option<(u64, u64)> {
    // The kernel's own form: 20 bits of minor.
    number(line, "sdev").map(|device| (device >> 20, device & 0xf_ffff))
}

fn field<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    line.split_whitespace().find_map(|word| word.strip_prefix(key)?.strip_prefix(':'))
}

impl Inode {
    /// "... ino:e49 sdev:16 ... fhandle-bytes:c fhandle-type:81 f_handle:490e..."
    pub fn parse(line: &str) -> Option<Inode> {
        let handle = match (number(line, "fhandle-type"), field(line, "f_handle").and_then(from_hex)) {
            (Some(kind), Some(contents)) => Some((kind as i32, contents)),
            _ => None,
        };
        Some(Inode { ino: number(line, "ino")?, device: device(line)?, handle })
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
                Err(error) => {
                    tracing::debug!("the handle of inode {} leads nowhere below {}: {error}", self.ino, point.display())
                }
            }
        }
        Ok(None)
    }
}

/// The names of inodes that `pid` watches, by their place among `wanted`. One that is missing has none that could be found.
pub fn find(pid: Pid, wanted: &[Inode]) -> Result<BTreeMap<usize, PathBuf>> {
    let mut found = BTreeMap::new();
    for (n, inode) in wanted.iter().enumerate() {
        found.extend(inode.find_by_handle(pid)?.map(|path| (n, path)));
    }
    let missing: Vec<(usize, &Inode)> = wanted.iter().enumerate().filter(|(n, _)| !found.contains_key(n)).collect();
    if !missing.is_empty() {
        found.extend(search(&missing, places(pid, found.values())));
    }
    Ok(found)
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
    let open = descriptors::numbers(pid).into_iter().flatten().filter_map(|fd| descriptors::link(pid, fd).ok()?);
    let links = open.filter(|link| link.as_os_str().as_bytes().starts_with(b"/"));
    places.extend(links.filter_map(|link| link.parent().map(Path::to_owned)));
    places
}

/// Looks for the watched files below `places`, nearer ones first.
fn search(wanted: &[(usize, &Inode)], places: Vec<PathBuf>) -> BTreeMap<usize, PathBuf> {
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
fn note(wanted: &[(usize, &Inode)], found: &mut BTreeMap<usize, PathBuf>, path: &Path, ino: u64) {
    for (n, inode) in wanted.iter().filter(|(_, inode)| inode.ino == ino) {
        let (major, minor) = inode.device;
        let same = fs::symlink_metadata(path).is_ok_and(|m| m.ino() == ino && m.dev() == makedev(major, minor));
        if same {
            found.entry(*n).or_insert_with(|| path.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_search_finds_what_is_near() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("a/b")).unwrap();
        let path = folder.path().join("a/b/file");
        fs::write(&path, "").unwrap();
        let metadata = fs::metadata(&path).unwrap();
        let device = (nix::sys::stat::major(metadata.dev()), nix::sys::stat::minor(metadata.dev()));
        let inode = Inode { ino: metadata.ino(), device, handle: None };
        assert_eq!(search(&[(7, &inode)], vec![folder.path().to_owned()]), [(7, path)].into());
        let elsewhere = Inode { device: (77, 7), ..inode };
        assert!(search(&[(7, &elsewhere)], vec![folder.path().to_owned()]).is_empty());
    }

    #[test]
    fn lines_of_fdinfo() {
        let line = "6 ino:e49 sdev:fe00001 mask:80000002 ignored_mask:0 fhandle-bytes:4 fhandle-type:81 f_handle:490e0001";
        let handle = Some((0x81, vec![0x49, 0x0e, 0, 1]));
        assert_eq!(Inode::parse(line), Some(Inode { ino: 0xe49, device: (254, 1), handle }));
        assert_eq!(number(line, "mask"), Some(0x8000_0002));
        assert_eq!(Inode::parse("1f ino:1 sdev:2 mask:3 ").unwrap().handle, None);
        for bad in ["", "x", "1 ino:1", "1 ino:z sdev:1 mask:1"] {
            assert_eq!(Inode::parse(bad), None);
        }
        assert_eq!(from_hex("012"), None);
    }
}
