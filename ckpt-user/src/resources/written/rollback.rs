//! Files are changed back to what they were, and, if the restart fails nevertheless, to what they had become.
//!
//! Whatever is taken from a file is copied beside it first (a file system that can shares the blocks), and brought to disk; the copy is what
//! a failed rollback is undone with. A file that is there keeps its inode: programs and kernel know files by it (sqlite takes a
//! database with another inode for one that was moved away).

use std::collections::HashMap;
use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Seek, SeekFrom};
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::siblings::KEPT;
use crate::error::{Doing, Result};
use crate::resources::named_file::NamedFile;

/// What is to be done, in this order. Nothing is left of one that is dropped.
#[derive(Debug, Default)]
pub struct Rollback {
    aside: Vec<PathBuf>,
    steps: Vec<Step>,
    /// Where files that are made again are until they have their names, by the inodes that they had.
    made: HashMap<(u64, u64), PathBuf>,
}

#[derive(Debug)]
enum Step {
    CutBack(NamedFile),
    PutBack(NamedFile, File),
    MakeAgain(NamedFile, File, Temporary),
}

/// A file with a name that is not to stay. It is removed when this is dropped.
#[derive(Debug)]
struct Temporary(Option<PathBuf>);

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Some(path) = self.0.take()
            && let Err(error) = fs::remove_file(&path)
        {
            tracing::warn!("cannot remove {}: {error}", path.display());
        }
    }
}

impl Rollback {
    /// Has a file that only grew cut back.
    pub fn cut_back(&mut self, file: &NamedFile) {
        self.steps.push(Step::CutBack(file.clone()));
    }

    /// Has a file given the contents that will be in the returned one.
    pub fn put_back(&mut self, file: &NamedFile) -> Result<File> {
        let (temporary, contents) = new_beside(file)?;
        // It needs no name.
        drop(temporary);
        self.steps.push(Step::PutBack(file.clone(), contents.try_clone().doing(|| "cannot duplicate a descriptor")?));
        Ok(contents)
    }

    /// Makes a file again that is gone: the returned one, which gets its contents, and then its name.
    pub fn make_again(&mut self, file: &NamedFile) -> Result<File> {
        let path = file.path();
        let doing = || format!("cannot make {} again, which is gone", path.display());
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).doing(doing)?;
        }
        let (temporary, contents) = new_beside(file)?;
        self.made.extend(temporary.0.clone().map(|path| (file.inode, path)));
        self.steps.push(Step::MakeAgain(file.clone(), contents.try_clone().doing(doing)?, temporary));
        Ok(contents)
    }

    /// Has a file renamed that is newer than those it belongs to.
    pub fn move_aside(&mut self, path: PathBuf) {
        // It may belong to two: "db-wal-index" to "db" and to "db-wal".
        if !self.aside.contains(&path) {
            self.aside.push(path);
        }
    }

    /// Where the file is, until it has its name, that has this one's place.
    pub fn place_of(&self, file: &NamedFile) -> Option<&Path> {
        self.made.get(&file.inode).map(PathBuf::as_path)
    }

    /// Does it. What was done is undone if one of the steps fails.
    pub fn apply(self) -> Result<Applied> {
        let mut applied = Applied::default();
        // First: a journal that is newer must not lie beside a database that is older.
        for path in self.aside {
            applied.move_aside(&path).doing(|| format!("cannot move {} aside", path.display()))?;
        }
        for step in self.steps {
            match step {
                Step::CutBack(file) => {
                    let doing = || format!("cannot cut {} back to {} bytes", file.path().display(), file.size);
                    applied.cut_back(&file).doing(doing)?;
                }
                Step::PutBack(file, contents) => {
                    let doing = || format!("cannot put back the contents of {}", file.path().display());
                    applied.put_back(&file, &contents).doing(doing)?;
                }
                Step::MakeAgain(file, contents, temporary) => {
                    let doing = || format!("cannot make {} again, which is gone", file.path().display());
                    applied.make_again(&file, &contents, temporary).doing(doing)?;
                }
            }
        }
        Ok(applied)
    }
}

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
    },
    Renamed {
        path: PathBuf,
        to: PathBuf,
    },
    Made {
        path: PathBuf,
    },
}

impl Applied {
    fn move_aside(&mut self, path: &Path) -> io::Result<()> {
        let (to, reserved) = create_beside(path)?;
        drop(reserved);
        // Takes the place of the empty file that has reserved the name.
        fs::rename(path, &to)?;
        self.done.push(Done::Renamed { path: path.to_owned(), to });
        sync_folder(path)
    }

    fn cut_back(&mut self, file: &NamedFile) -> io::Result<()> {
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

    fn put_back(&mut self, file: &NamedFile, contents: &File) -> io::Result<()> {
        let path = file.path();
        let opened = open(&path)?;
        let before = opened.metadata()?;
        let different = differences(&opened, contents, file.size)?;
        if !different.is_empty() || before.size() != file.size {
            let kept = keep(&path, &opened, 0)?;
            self.done.push(Done::Overwritten { path, kept, before });
            opened.set_len(file.size)?;
            copy_ranges(contents, &opened, &different)?;
        }
        give_attributes(&opened, file)?;
        opened.sync_all()
    }

    fn make_again(&mut self, file: &NamedFile, contents: &File, mut temporary: Temporary) -> io::Result<()> {
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
        self.done.push(Done::Made { path: path.clone() });
        sync_folder(&path)
    }

    /// It stays so. `discard`: what was taken from the files is not kept.
    pub fn settle(mut self, discard: bool) {
        for done in std::mem::take(&mut self.done) {
            let (text, kept) = match done {
                Done::Cut { path, size, kept, .. } => {
                    (format!("{} was cut back to {size} bytes; what was cut off", path.display()), kept)
                }
                Done::Overwritten { path, kept, .. } => {
                    (format!("{} holds again what it held; what it had become", path.display()), kept)
                }
                Done::Renamed { path, to } => (format!("{} was made after the checkpoint; it", path.display()), to),
                Done::Made { path } => {
                    tracing::warn!("{} was gone; it is there again as it was at the checkpoint", path.display());
                    continue;
                }
            };
            if !discard {
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
        Done::Overwritten { path, kept, before } => {
            let file = open(path)?;
            put_tail(&file, 0, kept)?;
            fchown(&file, Some(before.uid()), Some(before.gid()))?;
            file.set_permissions(before.permissions())?;
            file.set_modified(before.modified()?)?;
            fs::remove_file(kept)
        }
        Done::Renamed { path, to } => fs::rename(to, path),
        Done::Made { path } => fs::remove_file(path),
    }
}

/// From the byte `at` on a file is what `kept` holds.
fn put_tail(mut file: &File, at: u64, kept: &Path) -> io::Result<()> {
    let mut kept = File::open(kept)?;
    file.set_len(at)?;
    file.seek(SeekFrom::Start(at))?;
    io::copy(&mut kept, &mut file).map(drop)
}

/// For reading and writing, and nothing but the file itself.
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOFOLLOW).open(path)
}

/// An empty file in the folder of `file`, as long as that was.
fn new_beside(file: &NamedFile) -> Result<(Temporary, File)> {
    let path = file.path();
    let mut name = std::ffi::OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".ckpt-restart-{}", std::process::id()));
    let place = path.with_file_name(name);
    let doing = || format!("cannot make room for the contents of {}", path.display());
    let made = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&place).doing(doing)?;
    let temporary = Temporary(Some(place));
    made.set_len(file.size).doing(doing)?;
    Ok((temporary, made))
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

/// Bytes that are compared, and copied, at once.
const PIECE: usize = 64 << 10;

/// The ranges of the first `size` bytes in which two files differ. What lies beyond the end of the first differs.
fn differences(one: &File, other: &File, size: u64) -> io::Result<Vec<Range<u64>>> {
    let (mut left, mut right) = (vec![0; PIECE], vec![0; PIECE]);
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for at in (0..size).step_by(PIECE) {
        let len = (size - at).min(PIECE as u64) as usize;
        other.read_exact_at(&mut right[..len], at)?;
        let same = match one.read_exact_at(&mut left[..len], at) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => false,
            other => other.map(|()| left[..len] == right[..len])?,
        };
        match ranges.last_mut() {
            _ if same => {}
            Some(last) if last.end == at => last.end += len as u64,
            _ => ranges.push(at..at + len as u64),
        }
    }
    Ok(ranges)
}

fn copy_ranges(from: &File, to: &File, ranges: &[Range<u64>]) -> io::Result<()> {
    let mut buffer = vec![0; PIECE];
    for range in ranges {
        for at in range.clone().step_by(PIECE) {
            let some = &mut buffer[..(range.end - at).min(PIECE as u64) as usize];
            from.read_exact_at(some, at)?;
            to.write_all_at(some, at)?;
        }
    }
    Ok(())
}

/// Copies what the file at `path` holds from the byte `from` on to a file beside it, and brings that to disk.
fn keep(path: &Path, mut file: &File, from: u64) -> io::Result<PathBuf> {
    let (kept_path, mut kept) = create_beside(path)?;
    let mut unfinished = Temporary(Some(kept_path.clone()));
    file.seek(SeekFrom::Start(from))?;
    io::copy(&mut file, &mut kept)?;
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
