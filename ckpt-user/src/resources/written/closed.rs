//! At a cut: what lies beside a file that is saved and belongs to it, and that nobody of the job has open.
//!
//! A program may close a journal before it removes it, as sqlite does, or leave it for the next time. Whoever opens the database goes by
//! that there is a journal, and by what it holds. So at a restart there must be the same in it as at the cut, and not what a later transaction
//! has put into a file of the same name.
//!
//! Journals are known by their names, and are saved however long they are. What else has such a name may be many things, old logs for one, which are
//! many and large and of which nothing changes: of these the newest are saved, as long as they are small together, and of the others it is recorded what
//! tells whether they are still the same.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use nix::sys::stat::{FileStat, SFlag, fstat, lstat};
use serde_bytes::ByteBuf;

use super::{collect, siblings};
use crate::error::{Doing, Result};
use crate::resources::collector::FileId;
use crate::resources::named_file::NamedFile;

/// So many bytes of files that are no journals are saved, of those beside one file.
const ROOM: u64 = 16 << 20;

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
    /// Are its contents to be saved?
    pub is_saved: bool,
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
        choose(&mut found);
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
    let closed = |stat, file, source, is_saved| Some(Closed { of: of.to_owned(), file, stat, source, is_saved });
    match collect::open_unnoticed(&path, libc::O_NONBLOCK) {
        Ok(source) => {
            let stat = fstat(&source)?;
            if !is_file(&stat) || is_open(&id_of(&stat)) || siblings::is_image(&source) {
                return Ok(None);
            }
            let file = NamedFile::new(&link, &stat, source.as_fd());
            Ok(closed(stat, file, Some(source), siblings::is_journal(of, name)))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        // Another has a lease on it, and is asked to give that up; nobody waits for that with the job stopped.
        Err(error) if matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::WouldBlock) => {
            tracing::info!("{} lies beside {} and is not saved: {error}", path.display(), of.display());
            let file = NamedFile::unread(&link, &stat);
            Ok(closed(stat, file, None, false))
        }
        Err(error) => Err(error),
    }
}

/// Has the newest of those saved that are no journals, as far as there is room.
fn choose(found: &mut [Closed]) {
    let mut others: Vec<&mut Closed> = found.iter_mut().filter(|closed| !closed.is_saved && closed.source.is_some()).collect();
    others.sort_by_key(|closed| std::cmp::Reverse(closed.file.mtime));
    let mut room = ROOM;
    for closed in others {
        if let Some(left) = room.checked_sub(closed.file.size) {
            room = left;
            closed.is_saved = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;
    use crate::image::wire::MAGIC;

    /// Files in a folder, each older than the one before, and which of them are found beside "db" and saved. Those in `open` are open.
    fn found(files: &[(&str, u64)], open: &[&str]) -> Vec<(String, bool)> {
        let folder = tempfile::tempdir().unwrap();
        let db = folder.path().join("db");
        fs::write(&db, "db").unwrap();
        for (n, (name, size)) in files.iter().enumerate() {
            let file = File::create(folder.path().join(name)).unwrap();
            file.set_len(*size).unwrap();
            file.set_modified(UNIX_EPOCH + Duration::from_secs(1000 - n as u64)).unwrap();
        }
        fs::write(folder.path().join("db.image"), MAGIC).unwrap();
        symlink("db", folder.path().join("db.link")).unwrap();
        let inode = |name: &str| fs::metadata(folder.path().join(name)).unwrap().ino();
        let open: Vec<u64> = open.iter().map(|name| inode(name)).collect();
        let mut names = siblings::beside(&db).unwrap();
        names.push(ByteBuf::from("db.gone"));
        let all = beside(&[(db, names)], |id| open.contains(&id.inode)).unwrap();
        let name = |path: PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
        all.into_iter().map(|closed| (name(closed.file.path()), closed.is_saved)).collect()
    }

    #[test]
    fn journals_are_saved_and_the_newest_of_others() {
        let files =
            [("db.1", 9 << 20), ("db.2", 8 << 20), ("db.3", 7 << 20), ("db.4", 1), ("db-journal", 1 << 30), ("db-wal", 1)];
        let expected = [("db-journal", true), ("db.1", true), ("db.2", false), ("db.3", true), ("db.4", false)];
        assert_eq!(found(&files, &["db-wal"]), expected.map(|(name, saved)| (name.to_owned(), saved)));
        assert_eq!(found(&[], &[]), []);
    }
}
