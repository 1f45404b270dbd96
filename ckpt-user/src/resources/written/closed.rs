//! At a cut: what lies beside a file that is saved and belongs to it, and that nobody of the job has open.
//!
//! A program may close a journal before it removes it, as sqlite does, or leave it for the next time. Whoever opens the database goes by
//! that there is a journal, and by what it holds. So at a restart there must be the same in it as at the cut, and not what a later transaction
//! has put into a file of the same name.
//!
//! Journals are known by their names, and are saved however long they are. What else has a name that begins like that of the file may be somebody else's.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::sys::stat::{FileStat, SFlag, fstat, lstat};
use serde_bytes::ByteBuf;

use super::collect;
use crate::error::{Doing, Result};
use crate::resources::collector::FileId;
use crate::resources::named_file::NamedFile;

/// Such a file.
#[derive(Debug)]
pub struct Closed {
    /// The file that it belongs to.
    pub of: PathBuf,
    /// Name, size, time, identity.
    pub file: NamedFile,
    /// All that the kernel says of it.
    pub stat: FileStat,
    /// The file, opened for reading. `None`: it may not be read.
    pub source: Option<File>,
}

/// All files beside these, with the names that were found there, that are not open, each once. Those that have gone since are none.
pub fn beside(files: &[(PathBuf, Vec<ByteBuf>)], is_open: impl Fn(&FileId) -> bool) -> Result<Vec<Closed>> {
    let mut all: Vec<Closed> = Vec::new();
    for (path, names) in files {
        let mut found = Vec::new();
        for name in names {
            let doing = || format!("cannot look at {}, which lies beside {}", name.escape_ascii(), path.display());
            let sibling = open(path, OsStr::from_bytes(name), &is_open).doing(doing)?;
            found.extend(sibling.filter(|sibling| all.iter().all(|other| other.file.inode != sibling.file.inode)));
        }
        all.extend(found);
    }
    Ok(all)
}

fn open(of: &Path, name: &OsStr, is_open: impl Fn(&FileId) -> bool) -> io::Result<Option<Closed>> {
    let path = of.with_file_name(name);
    let stat = match lstat(&path) {
        Err(nix::Error::ENOENT) => return Ok(None),
        other => other?,
    };
    let is_file = |stat: &FileStat| SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFREG;
    let id_of = |stat: &FileStat| FileId { device: stat.st_dev, inode: stat.st_ino };
    // Looked at before it is opened: the job may have a lease on what it has open.
    if !is_file(&stat) || is_open(&id_of(&stat)) {
        return Ok(None);
    }
    let link = OsString::from_vec(path.as_os_str().as_bytes().to_vec());
    let closed = |stat, file, source| Some(Closed { of: of.to_owned(), file, stat, source });
    match collect::open_unnoticed(&path, libc::O_NONBLOCK) {
        Ok(source) => {
            let stat = fstat(&source)?;
            if !is_file(&stat) || is_open(&id_of(&stat)) {
                return Ok(None);
            }
            let file = NamedFile::new(&link, &stat, source.as_fd());
            Ok(closed(stat, file, Some(source)))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        // Another has a lease on it, and is asked to give that up; nobody waits for that with the job stopped.
        Err(error) if matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::WouldBlock) => {
            tracing::info!("{} lies beside {} and is not saved: {error}", path.display(), of.display());
            let file = NamedFile::unread(&link, &stat);
            Ok(closed(stat, file, None))
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::super::siblings;
    use super::*;

    #[test]
    fn journals_that_nobody_has_open() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        for name in ["db", "db-journal", "db-wal", "db.1"] {
            fs::write(path(name), name).unwrap();
        }
        symlink("db", path("db.wal")).unwrap();
        let open = fs::metadata(path("db-wal")).unwrap().ino();
        let mut names = siblings::beside(&path("db")).unwrap();
        names.push(ByteBuf::from("db-shm"));
        let all = beside(&[(path("db"), names)], |id| id.inode == open).unwrap();
        let found: Vec<_> = all.iter().map(|closed| (closed.file.path(), closed.source.is_some())).collect();
        assert_eq!(found, [(path("db-journal"), true)]);
    }
}
