//! Changes of files that were made, and what it takes to undo them.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::copy::{copy_from, copy_ranges, differences};
use super::rollback::Temporary;
use super::siblings::KEPT;
use crate::resources::named_file::NamedFile;

/// A rollback that was done. It is undone when this is dropped, unless it is settled.
#[derive(Debug, Default)]
pub struct Applied {
    done: Vec<Done>,
}

/// One change, and what it takes to undo it.
#[derive(Debug)]
enum Done {
    /// The bytes from here on are in another file.
    Cut {
        path: PathBuf,
        size: u64,
        kept: PathBuf,
        modified: SystemTime,
    },
    /// All of it is in another file.
    Overwritten {
        path: PathBuf,
        kept: PathBuf,
        before: fs::Metadata,
        worth: Worth,
    },
    Renamed {
        path: PathBuf,
        to: PathBuf,
    },
    Made {
        path: PathBuf,
        worth: Worth,
    },
}

/// Is there anything in what a file has become?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Worth {
    /// It is kept, and the user is told.
    File,
    /// It is shared memory of a job that is no more, of which nobody wants to know.
    Memory,
}

impl Applied {
    pub(super) fn move_aside(&mut self, path: &Path) -> io::Result<()> {
        let (to, reserved) = create_beside(path)?;
        drop(reserved);
        // Takes the place of the empty file that has reserved the name.
        fs::rename(path, &to)?;
        self.done.push(Done::Renamed { path: path.to_owned(), to });
        sync_folder(path)
    }

    pub(super) fn cut_back(&mut self, file: &NamedFile) -> io::Result<()> {
        let path = file.path();
        let opened = open(&path)?;
        let before = opened.metadata()?;
        if before.size() < file.size {
            return Err(io::Error::other("it was changed just now"));
        }
        if before.size() > file.size {
            let kept = keep(&path, &opened, file.size)?;
            let modified = before.modified()?;
            self.done.push(Done::Cut { path, size: file.size, kept, modified });
            opened.set_len(file.size)?;
        }
        opened.set_modified(time_of(file))?;
        opened.sync_all()
    }

    pub(super) fn put_back(&mut self, file: &NamedFile, contents: &File, worth: Worth) -> io::Result<()> {
        let path = file.path();
        let opened = open(&path)?;
        let before = opened.metadata()?;
        let different = differences(&opened, contents, file.size)?;
        if !different.is_empty() || before.size() != file.size {
            let kept = keep(&path, &opened, 0)?;
            self.done.push(Done::Overwritten { path, kept, before, worth });
            opened.set_len(file.size)?;
            copy_ranges(contents, &opened, &different)?;
        }
        give_attributes(&opened, file)?;
        opened.sync_all()
    }

    pub(super) fn make_again(
        &mut self,
        file: &NamedFile,
        contents: &File,
        mut temporary: Temporary,
        worth: Worth,
    ) -> io::Result<()> {
        let path = file.path();
        give_attributes(contents, file)?;
        contents.sync_all()?;
        if fs::symlink_metadata(&path).is_ok() {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "it has come back just now"));
        }
        if let Some(place) = &temporary.0 {
            fs::rename(place, &path)?;
        }
        temporary.0 = None;
        self.done.push(Done::Made { path: path.clone(), worth });
        sync_folder(&path)
    }

    /// It stays so. `discard`: what was taken from the files is not kept.
    pub fn settle(mut self, discard: bool) {
        for done in std::mem::take(&mut self.done) {
            let (text, kept, worth) = match done {
                Done::Cut { path, size, kept, .. } => {
                    (format!("{} was cut back to {size} bytes; what was cut off", path.display()), kept, Worth::File)
                }
                Done::Overwritten { path, kept, worth, .. } => {
                    (format!("{} holds again what it held; what it had become", path.display()), kept, worth)
                }
                Done::Renamed { path, to } => (format!("{} was made after the checkpoint; it", path.display()), to, Worth::File),
                Done::Made { worth: Worth::Memory, .. } => continue,
                Done::Made { path, .. } => {
                    tracing::warn!("{} was gone; it is there again as it was at the checkpoint", path.display());
                    continue;
                }
            };
            if !discard && worth == Worth::File {
                tracing::warn!("{text} is in {}", kept.display());
            } else if let Err(error) = fs::remove_file(&kept) {
                tracing::warn!("{text} is in {}, which cannot be removed: {error}", kept.display());
            } else {
                tracing::info!("{text} was removed");
            }
        }
    }
}

impl Drop for Applied {
    fn drop(&mut self) {
        for done in self.done.drain(..).rev() {
            if let Err(error) = undo(&done) {
                tracing::error!("the restart has failed, and this change of a file cannot be undone ({error}): {done:?}");
            }
        }
    }
}

fn undo(done: &Done) -> io::Result<()> {
    match done {
        Done::Cut { path, size, kept, modified } => {
            let file = open(path)?;
            put_tail(&file, *size, kept)?;
            file.set_modified(*modified)?;
            fs::remove_file(kept)
        }
        Done::Overwritten { path, kept, before, .. } => {
            let file = open(path)?;
            put_tail(&file, 0, kept)?;
            fchown(&file, Some(before.uid()), Some(before.gid()))?;
            file.set_permissions(before.permissions())?;
            file.set_modified(before.modified()?)?;
            fs::remove_file(kept)
        }
        Done::Renamed { path, to } => fs::rename(to, path),
        Done::Made { path, .. } => fs::remove_file(path),
    }
}

/// From the byte `at` on a file is what `kept` holds.
fn put_tail(file: &File, at: u64, kept: &Path) -> io::Result<()> {
    file.set_len(at)?;
    copy_from(&File::open(kept)?, 0, file, at)
}

/// For reading and writing, and nothing but the file itself. Does not wait for somebody who has a lease on it.
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)
}

fn time_of(file: &NamedFile) -> SystemTime {
    UNIX_EPOCH + Duration::new(file.mtime.0.max(0) as u64, file.mtime.1.clamp(0, 999_999_999) as u32)
}

/// Owner, permissions and time.
fn give_attributes(file: &File, wanted: &NamedFile) -> io::Result<()> {
    let now = file.metadata()?;
    if (now.uid(), now.gid()) != wanted.owner
        && let Err(error) = fchown(file, Some(wanted.owner.0), Some(wanted.owner.1))
    {
        // Only root may give files away; whoever restarts a program as another user has it as one of their own.
        tracing::warn!("{} belongs to another user than before: {error}", wanted.path().display());
    }
    file.set_permissions(Permissions::from_mode(wanted.mode & 0o7777))?;
    file.set_modified(time_of(wanted))
}

/// Copies what the file at `path` holds from the byte `from` on to a file beside it, and brings that to disk.
fn keep(path: &Path, file: &File, from: u64) -> io::Result<PathBuf> {
    let (kept_path, kept) = create_beside(path)?;
    let mut unfinished = Temporary(Some(kept_path.clone()));
    copy_from(file, from, &kept, 0)?;
    kept.sync_all()?;
    sync_folder(path)?;
    unfinished.0 = None;
    Ok(kept_path)
}

/// "NAME.ckpt-kept-1", or the first number that is free.
fn create_beside(path: &Path) -> io::Result<(PathBuf, File)> {
    let mut n = 1;
    loop {
        let mut name = path.as_os_str().to_owned();
        name.push(format!("{KEPT}{n}"));
        match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&name) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => n += 1,
            other => return other.map(|file| (name.into(), file)),
        }
    }
}

fn sync_folder(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
}
