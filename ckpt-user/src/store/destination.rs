//! The place that one image goes to. A file has no name until it is whole and on disk, so nothing is left behind by a failure, a
//! full disk, or SIGKILL; the name then appears (or changes hands) in one step.

use std::ffi::{CString, OsString};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::error::{Doing, Result};
use crate::image::ImageError;

/// See the module.
#[derive(Debug)]
pub struct Destination {
    file: File,
    place: Option<Place>,
}

#[derive(Debug)]
struct Place {
    folder: PathBuf,
    path: PathBuf,
    /// The name that the file has meanwhile, on file systems without O_TMPFILE.
    temporary: Option<PathBuf>,
}

impl Destination {
    /// A file that will be named `path`, readable by its owner only.
    pub fn file(path: &Path) -> Result<Destination> {
        let folder = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        let doing = || format!("cannot create an image in {}", folder.display());
        if path.file_name().is_none() || path.is_dir() {
            return Err(io::Error::from_raw_os_error(libc::EISDIR))
                .doing(|| format!("cannot write the image {}", path.display()));
        }
        let options = |flags: i32| {
            let mut options = OpenOptions::new();
            options.read(true).write(true).mode(0o600).custom_flags(flags);
            options
        };
        let unnamed = options(libc::O_TMPFILE).open(&folder);
        let (file, temporary) = match unnamed {
            Ok(file) => (file, None),
            Err(e) if matches!(e.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EISDIR | libc::EINVAL)) => {
                let name = beside(path, "partial");
                (options(0).create_new(true).open(&name).doing(doing)?, Some(name))
            }
            Err(e) => return Err(e).doing(doing),
        };
        Ok(Destination { file, place: Some(Place { folder, path: path.to_owned(), temporary }) })
    }

    /// Standard output.
    pub fn stdout() -> Result<Destination> {
        // A duplicate, so that closing it leaves standard output as it was.
        // SAFETY: the descriptor comes from dup and is owned by nobody else.
        let fd = unsafe { libc::fcntl(libc::STDOUT_FILENO, libc::F_DUPFD_CLOEXEC, 3) };
        if fd < 0 {
            return Err(io::Error::last_os_error()).doing(|| "cannot write to standard output");
        }
        // SAFETY: as above.
        Ok(Destination { file: unsafe { File::from_raw_fd(fd) }, place: None })
    }

    /// Where to write.
    pub fn writer(&self) -> &File {
        &self.file
    }

    /// Can what was written be taken back? Not from a stream.
    pub fn can_begin_again(&self) -> bool {
        self.place.is_some()
    }

    /// Takes back everything that was written. Only where that can be done.
    pub fn begin_again(&self) -> Result<()> {
        let rewound = self.file.set_len(0).and_then(|()| io::Seek::rewind(&mut &self.file));
        rewound.doing(|| "cannot write an image again from its beginning")
    }

    /// The image is whole: brings it to disk, and gives it its name. Replaces what had the name before.
    pub fn commit(mut self) -> Result<()> {
        let Some(mut place) = self.place.take() else { return Ok(()) };
        let result = self.name(&mut place);
        if let (Err(_), Some(temporary)) = (&result, &place.temporary) {
            remove(temporary);
        }
        result
    }

    fn name(&self, place: &mut Place) -> Result<()> {
        let doing = || format!("cannot bring the image {} to disk", place.path.display());
        // An error here may be the first that the kernel tells of a write that failed long ago.
        self.file.sync_all().map_err(|source| ImageError::Write { offset: 0, source })?;
        let temporary = match place.temporary.take() {
            Some(name) => name,
            None => {
                let name = beside(&place.path, "partial");
                link(&self.file, &name).doing(doing)?;
                name
            }
        };
        place.temporary = Some(temporary.clone());
        std::fs::rename(&temporary, &place.path).doing(doing)?;
        place.temporary = None;
        File::open(&place.folder).and_then(|folder| folder.sync_all()).doing(doing)
    }
}

impl Drop for Destination {
    fn drop(&mut self) {
        if let Some(temporary) = self.place.as_ref().and_then(|place| place.temporary.as_ref()) {
            remove(temporary);
        }
    }
}

fn remove(temporary: &Path) {
    if let Err(error) = std::fs::remove_file(temporary) {
        tracing::warn!("cannot remove the unfinished image {}: {error}", temporary.display());
    }
}

/// ".NAME.WORD-PID" in the same folder.
fn beside(path: &Path, word: &str) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{word}-{}", std::process::id()));
    path.with_file_name(name)
}

/// Gives a file without a name one.
fn link(file: &File, name: &Path) -> io::Result<()> {
    let from = CString::new(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    let to = CString::new(name.as_os_str().as_bytes())?;
    // SAFETY: both strings outlive the call.
    let result = unsafe { libc::linkat(libc::AT_FDCWD, from.as_ptr(), libc::AT_FDCWD, to.as_ptr(), libc::AT_SYMLINK_FOLLOW) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_name_appears_only_at_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        std::fs::write(&path, "old").unwrap();
        let destination = Destination::file(&path).unwrap();
        destination.writer().write_all(b"new").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        destination.commit().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 1);
    }

    #[test]
    fn nothing_is_left_of_what_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        drop(Destination::file(&folder.path().join("image")).unwrap());
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0);
    }
}
