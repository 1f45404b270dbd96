//! A file that stays where it is and is opened again by name: is it still the one that the program knew?

use std::ffi::OsString;
use std::fs::{DirEntry, File, OpenOptions};
use std::io::ErrorKind;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirEntryExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::sys::stat::FileStat;
use serde::{Deserialize, Serialize};

use super::Restorer;
use super::build_id;
use super::restorer::FilesPolicy;
use crate::error::{Doing, FileChange, Result};

/// What is recorded of a file by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NamedFile {
    /// The path, as bytes.
    #[serde(with = "serde_bytes")]
    pub path: Vec<u8>,
    /// Size in bytes.
    pub size: u64,
    /// Last change of the contents: seconds and nanoseconds since the epoch.
    pub mtime: (i64, i64),
    /// Type and permissions (st_mode).
    pub mode: u32,
    /// Device and inode.
    pub inode: (u64, u64),
    /// The build id of an ELF file: with it, a copy elsewhere counts as the same.
    #[serde(with = "serde_bytes")]
    pub build_id: Vec<u8>,
    /// Its user and group.
    pub owner: (u32, u32),
}

/// Flags that open(2) must be told again.
const OPEN_FLAGS: i32 = libc::O_ACCMODE
    | libc::O_APPEND
    | libc::O_NONBLOCK
    | libc::O_DIRECT
    | libc::O_SYNC
    | libc::O_DSYNC
    | libc::O_NOATIME
    | libc::O_PATH
    | libc::O_DIRECTORY
    | libc::O_NOFOLLOW;

impl NamedFile {
    /// Takes down what is known of the file behind `link` (what /proc/PID/fd/N points to).
    pub fn new(link: &OsString, stat: &FileStat, own: BorrowedFd<'_>) -> NamedFile {
        NamedFile { build_id: build_id::of(own).unwrap_or_default(), ..NamedFile::unread(link, stat) }
    }

    /// The same of a file that cannot be read.
    pub fn unread(link: &OsString, stat: &FileStat) -> NamedFile {
        NamedFile {
            path: link.as_bytes().to_vec(),
            size: stat.st_size as u64,
            mtime: (stat.st_mtime, stat.st_mtime_nsec),
            mode: stat.st_mode,
            inode: (stat.st_dev, stat.st_ino),
            build_id: Vec::new(),
            owner: (stat.st_uid, stat.st_gid),
        }
    }

    /// The path.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(OsString::from_vec(self.path.clone()))
    }

    /// Does the path still name the inode that is open?
    pub fn is_current(&self) -> bool {
        std::fs::symlink_metadata(self.path()).is_ok_and(|m| (m.dev(), m.ino()) == self.inode)
    }

    /// Takes down another name that the file has in the folder where it was opened, if there is one: some make a file under a name that nobody
    /// knows, link(2) it to its own, and remove the first (sem_open(3)).
    pub fn find_name_beside(&mut self) -> bool {
        let path = self.path();
        let Some(Ok(entries)) = path.parent().map(std::fs::read_dir) else { return false };
        let is_it =
            |entry: &DirEntry| entry.ino() == self.inode.1 && entry.metadata().is_ok_and(|m| (m.dev(), m.ino()) == self.inode);
        let found = entries.filter_map(|entry| entry.ok().filter(is_it)).map(|entry| entry.path()).min();
        self.path = found.map_or_else(|| std::mem::take(&mut self.path), |path| path.into_os_string().into_vec());
        self.is_current()
    }

    /// Opens it again with `flags`. [`super::written::prepare`] has found it to be what it was, or what `--files` allows.
    pub fn open(&self, cx: &Restorer<'_>, flags: i32) -> Result<OwnedFd> {
        let path = self.path();
        let place = cx.rollback.place_of(self).unwrap_or(&path);
        open(place, flags).map(Into::into).doing(|| format!("cannot open {} again", path.display()))
    }

    /// What has become of a file that the program could only read, if that is not allowed.
    pub fn change(&self, policy: FilesPolicy) -> Result<Option<FileChange>> {
        let path = self.path();
        let changed = |what: String, advice: &str| Ok(Some(FileChange { path: path.clone(), what, advice: advice.to_owned() }));
        let now = match std::fs::metadata(&path) {
            Err(error) if is_absent(&error) => {
                return changed(format!("was deleted or renamed after the checkpoint ({error})"), "bring it back to its place");
            }
            other => other.doing(|| format!("cannot look at {}", path.display()))?,
        };
        if !now.is_file() {
            return changed("is no regular file any more".to_owned(), "bring it back to its place");
        }
        let same = now.size() == self.size && (now.mtime(), now.mtime_nsec()) == self.mtime;
        if same || policy == FilesPolicy::Keep || now.size() == self.size && self.is_same_build(&path)? {
            return Ok(None);
        }
        let what = if now.size() == self.size {
            format!("was written to after the checkpoint (its size is still {} bytes)", self.size)
        } else {
            format!("had {} bytes at the checkpoint and has {} now", self.size, now.size())
        };
        changed(what, "--files keep takes it as it is")
    }

    fn is_same_build(&self, path: &Path) -> Result<bool> {
        if self.build_id.is_empty() {
            return Ok(false);
        }
        let file = File::open(path).doing(|| format!("cannot open {}", path.display()))?;
        Ok(build_id::of(&file).as_ref() == Some(&self.build_id))
    }
}

/// Does the error say that no file has this path?
pub fn is_absent(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory)
}

/// Opens a path with the flags that open(2) must be told.
pub fn open(path: &Path, flags: i32) -> std::io::Result<File> {
    let access = flags & libc::O_ACCMODE;
    let mut options = OpenOptions::new();
    options.read(access != libc::O_WRONLY).write(access != libc::O_RDONLY);
    options.custom_flags(flags & OPEN_FLAGS & !libc::O_ACCMODE | libc::O_NOCTTY).open(path)
}
