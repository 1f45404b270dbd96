//! What lies beside a file and belongs to it by its name: the journals of a database (`db-journal`, `db-wal`, `db.wal`).
//!
//! A journal that is newer than the database it lies beside would be applied to it by whoever opens that, and spoil it. So for a file
//! whose contents are saved it is recorded which of these there were; others that are there at the restart were made since. (What those held
//! that were there, and that nobody had open, is recorded as well: see [`super::closed`].)

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use serde_bytes::ByteBuf;

/// What is put behind the name of a file that was kept, before a number.
pub const KEPT: &str = ".ckpt-kept-";

/// Names of the files beside `path` that belong to it, in order.
pub fn beside(path: &Path) -> io::Result<Vec<ByteBuf>> {
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if belongs(name, &entry.file_name()) && entry.file_type()?.is_file() {
            found.push(ByteBuf::from(entry.file_name().into_vec()));
        }
    }
    found.sort();
    Ok(found)
}

/// Those beside `path` that are not among `then`. A folder that is gone has none.
pub fn newer(path: &Path, then: &[ByteBuf]) -> io::Result<Vec<PathBuf>> {
    let now = match beside(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        other => other?,
    };
    Ok(now
        .into_iter()
        .filter(|name| !then.contains(name))
        .map(|name| path.with_file_name(OsString::from_vec(name.into_vec())))
        .collect())
}

/// Is `other` a journal of `name` by its name, of sqlite or the like? Anything else that only begins with the same name may be somebody else's.
fn belongs(name: &OsStr, other: &OsStr) -> bool {
    let Some(rest) = other.as_bytes().strip_prefix(name.as_bytes()) else { return false };
    let is_kept = rest.windows(KEPT.len()).any(|part| part == KEPT.as_bytes());
    matches!(rest, b"-journal" | b"-wal" | b"-shm" | b".journal" | b".wal") || rest.starts_with(b"-mj") && !is_kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_belong_to_a_file() {
        let of_db = |other: &str| belongs(OsStr::new("db"), OsStr::new(other));
        assert!(["db-journal", "db-wal", "db-shm", "db.wal", "db-mj0A1B2C3D"].into_iter().all(of_db));
        assert!(
            ![
                "db",
                "db-",
                "db2",
                "db2-journal",
                "dbs",
                "a-db-wal",
                "db.ckpt-kept-1",
                "db-wal.ckpt-kept-2",
                "db-mj1.ckpt-kept-1",
                "db.py",
                "db-2"
            ]
            .into_iter()
            .any(of_db)
        );
    }

    #[test]
    fn what_is_newer() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("db");
        for name in ["db", "db-wal", "other", "other-wal"] {
            fs::write(folder.path().join(name), "").unwrap();
        }
        fs::create_dir(folder.path().join("db.d")).unwrap();
        let then = beside(&path).unwrap();
        assert_eq!(then, ["db-wal"]);
        fs::write(folder.path().join("db-journal"), "").unwrap();
        fs::write(folder.path().join("db.image"), "").unwrap();
        assert_eq!(newer(&path, &then).unwrap(), [folder.path().join("db-journal")]);
        assert!(newer(&folder.path().join("gone/db"), &then).unwrap().is_empty());
    }
}
