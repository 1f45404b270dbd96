//! A file that stays where it is and is opened again by name: is it still the one that the program knew?

use std::ffi::OsString;
use std::fs::{File, OpenOptions, Permissions};
use std::io::{Seek, SeekFrom};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use nix::sys::stat::FileStat;
use serde::{Deserialize, Serialize};

use super::Restorer;
use super::build_id;
use super::restorer::FilesPolicy;
use crate::error::{Doing, Error, Result};

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
    /// What it held, where that is a small part of the program's memory.
    #[serde(with = "serde_bytes")]
    pub contents: Option<Vec<u8>>,
}

/// Up to this size, the contents of a file that is mapped to be written are saved, too.
const SMALL: u64 = 1 << 20;

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
        NamedFile {
            path: link.as_bytes().to_vec(),
            size: stat.st_size as u64,
            mtime: (stat.st_mtime, stat.st_mtime_nsec),
            mode: stat.st_mode,
            inode: (stat.st_dev, stat.st_ino),
            build_id: build_id::of(own).unwrap_or_default(),
            owner: (stat.st_uid, stat.st_gid),
            contents: None,
        }
    }

    /// Takes down its contents, too, if they are few: a file that a program maps to share or to publish something (as Java does in
    /// /tmp) is easily cleaned away before the restart.
    pub fn with_contents(mut self, own: BorrowedFd<'_>) -> Result<NamedFile> {
        if self.size <= SMALL {
            let doing = || format!("cannot read {}", self.path().display());
            let mut contents = vec![0; self.size as usize];
            let file = File::from(own.try_clone_to_owned().doing(doing)?);
            file.read_exact_at(&mut contents, 0).doing(doing)?;
            self.contents = Some(contents);
        }
        Ok(self)
    }

    /// The path.
    pub fn path(&self) -> PathBuf {
        PathBuf::from(OsString::from_vec(self.path.clone()))
    }

    /// Does the path still name the inode that is open?
    pub fn is_current(&self) -> bool {
        std::fs::symlink_metadata(self.path()).is_ok_and(|m| (m.dev(), m.ino()) == self.inode)
    }

    /// Opens it again with `flags`, if it is what it was, or what `--files` allows.
    pub fn open(&self, cx: &mut Restorer<'_>, flags: i32) -> Result<OwnedFd> {
        let path = self.path();
        let file = match (open(&path, flags), &self.contents) {
            (Err(error), Some(contents)) if error.kind() == std::io::ErrorKind::NotFound => self.make_again(&path, contents)?,
            (opened, _) => opened.doing(|| format!("cannot open {} again", path.display()))?,
        };
        if self.mode & libc::S_IFMT == libc::S_IFREG && flags & libc::O_PATH == 0 {
            self.check(cx, &path, &file, flags)?;
        }
        Ok(file.into())
    }

    fn make_again(&self, path: &Path, contents: &[u8]) -> Result<File> {
        let doing = || format!("cannot make {} again, which is gone", path.display());
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).doing(doing)?;
        }
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path).doing(doing)?;
        file.write_all_at(contents, 0).doing(doing)?;
        // Only root may give files away; whoever restarts a program as another user has it as one of their own.
        if let Err(error) = fchown(&file, Some(self.owner.0), Some(self.owner.1)) {
            tracing::warn!("{} belongs to another user than before: {error}", path.display());
        }
        file.set_permissions(Permissions::from_mode(self.mode & 0o7777)).doing(doing)?;
        let time = UNIX_EPOCH + Duration::new(self.mtime.0.max(0) as u64, self.mtime.1.clamp(0, 999_999_999) as u32);
        file.set_modified(time).doing(doing)?;
        tracing::warn!("{} was gone; it is there again as it was at the checkpoint", path.display());
        Ok(file)
    }

    fn check(&self, cx: &mut Restorer<'_>, path: &Path, file: &File, flags: i32) -> Result<()> {
        let now = file.metadata().doing(|| format!("cannot look at {}", path.display()))?;
        if now.mode() & libc::S_IFMT != self.mode & libc::S_IFMT {
            return Err(Error::Restart(format!("{} is no regular file any more", path.display())));
        }
        let same_time = (now.mtime(), now.mtime_nsec()) == self.mtime;
        if now.size() == self.size && same_time || cx.options.files == FilesPolicy::Keep {
            return Ok(());
        }
        if now.size() == self.size && !self.build_id.is_empty() && build_id::of(file).as_ref() == Some(&self.build_id) {
            return Ok(());
        }
        let grown = now.size() > self.size && flags & libc::O_ACCMODE != libc::O_RDONLY;
        if grown && cx.options.files == FilesPolicy::Rollback {
            let (path, size) = (path.to_owned(), self.size);
            cx.defer(move || cut_back(&path, size));
            return Ok(());
        }
        if let (Some(contents), FilesPolicy::Rollback) = (&self.contents, cx.options.files) {
            let (path, contents) = (path.to_owned(), contents.clone());
            cx.defer(move || put_back(&path, &contents));
            return Ok(());
        }
        let what = match now.size().cmp(&self.size) {
            std::cmp::Ordering::Equal => format!("was written to after the checkpoint (its size is still {} bytes)", self.size),
            _ => format!("had {} bytes at the checkpoint and has {} now", self.size, now.size()),
        };
        let advice = match (&self.contents, grown) {
            (Some(_), _) => "--files rollback puts back what it held, --files keep takes it as it is",
            (None, true) => "--files rollback cuts it back, --files keep takes it as it is",
            (None, false) => "--files keep takes it as it is",
        };
        Err(Error::Restart(format!("the file {} {what}; {advice}", path.display())))
    }
}

/// Opens a path with the flags that open(2) must be told.
pub fn open(path: &Path, flags: i32) -> std::io::Result<File> {
    let access = flags & libc::O_ACCMODE;
    let mut options = OpenOptions::new();
    options.read(access != libc::O_WRONLY).write(access != libc::O_RDONLY);
    options.custom_flags(flags & OPEN_FLAGS & !libc::O_ACCMODE | libc::O_NOCTTY).open(path)
}

/// Cuts a file that has grown back to `size` bytes. What is cut off is kept beside it.
fn cut_back(path: &Path, size: u64) -> Result<()> {
    let doing = || format!("cannot cut {} back to {size} bytes", path.display());
    let file = OpenOptions::new().read(true).write(true).open(path).doing(doing)?;
    let now = file.metadata().doing(doing)?.size();
    if now <= size {
        return Ok(());
    }
    let kept = keep(path, &file, size).doing(doing)?;
    file.set_len(size).doing(doing)?;
    tracing::warn!("{} was cut back to {size} bytes; what was cut off is in {}", path.display(), kept.display());
    Ok(())
}

/// Gives a file the contents that it had. Those that it has are kept beside it.
fn put_back(path: &Path, contents: &[u8]) -> Result<()> {
    let doing = || format!("cannot put back the contents of {}", path.display());
    let file = OpenOptions::new().read(true).write(true).open(path).doing(doing)?;
    let kept = keep(path, &file, 0).doing(doing)?;
    file.set_len(contents.len() as u64).doing(doing)?;
    file.write_all_at(contents, 0).doing(doing)?;
    tracing::warn!("{} holds again what it held; what it had become is in {}", path.display(), kept.display());
    Ok(())
}

/// Copies what the file at `path` holds from the byte `from` on to a file beside it, and brings that to disk.
fn keep(path: &Path, mut file: &File, from: u64) -> std::io::Result<PathBuf> {
    let (kept_path, mut kept) = create_beside(path)?;
    file.seek(SeekFrom::Start(from))?;
    std::io::copy(&mut file, &mut kept)?;
    kept.sync_all()?;
    Ok(kept_path)
}

/// "NAME.ckpt-kept-1", or the first number that is free.
fn create_beside(path: &Path) -> std::io::Result<(PathBuf, File)> {
    let mut n = 1;
    loop {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".ckpt-kept-{n}"));
        match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&name) {
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => n += 1,
            other => return other.map(|file| (name.into(), file)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_small_file_that_is_gone_is_made_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("folder").join("figures");
        std::fs::create_dir(path.parent().unwrap()).unwrap();
        std::fs::write(&path, "mapped").unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        let file = File::open(&path).unwrap();
        let before = file.metadata().unwrap();
        let stat = nix::sys::stat::fstat(&file).unwrap();
        let record = NamedFile::new(&path.clone().into_os_string(), &stat, file.as_fd()).with_contents(file.as_fd()).unwrap();
        std::fs::remove_dir_all(path.parent().unwrap()).unwrap();
        record.make_again(&path, record.contents.as_deref().unwrap()).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"mapped");
        let after = std::fs::metadata(&path).unwrap();
        let facts = |m: &std::fs::Metadata| (m.mode(), m.uid(), m.gid(), m.mtime(), m.mtime_nsec());
        assert_eq!(facts(&after), facts(&before));
    }

    #[test]
    fn what_is_replaced_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("figures");
        std::fs::write(&path, "newer and longer").unwrap();
        put_back(&path, b"older").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"older");
        assert_eq!(std::fs::read(folder.path().join("figures.ckpt-kept-1")).unwrap(), b"newer and longer");
    }

    #[test]
    fn what_is_cut_off_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        std::fs::write(&path, "kept and cut").unwrap();
        cut_back(&path, 4).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"kept");
        assert_eq!(std::fs::read(folder.path().join("log.ckpt-kept-1")).unwrap(), b" and cut");
        cut_back(&path, 4).unwrap();
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 2, "nothing to cut, nothing kept");
    }
}
