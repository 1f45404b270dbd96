//! Files are changed back to what they were, and, if the restart fails nevertheless, to what they had become.
//!
//! Whatever is taken from a file is copied beside it first (a file system that can shares the blocks), and brought to disk; the copy is what
//! a failed rollback is undone with. A file that is there keeps its inode: programs and kernel know files by it (sqlite takes a
//! database with another inode for one that was moved away).

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::{Applied, Worth};
use crate::error::{Doing, Result};
use crate::ids::Pid;
use crate::resources::named_file::NamedFile;
use crate::sys::procfs;

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
    PutBack(NamedFile, File, Worth),
    MakeAgain(NamedFile, File, Temporary, Worth),
}

/// A file with a name that is not to stay. It is removed when this is dropped.
#[derive(Debug)]
pub struct Temporary(pub Option<PathBuf>);

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
    pub fn put_back(&mut self, file: &NamedFile, worth: Worth) -> Result<File> {
        let (temporary, contents) = new_beside(file)?;
        // It needs no name.
        drop(temporary);
        self.steps.push(Step::PutBack(file.clone(), contents.try_clone().doing(|| "cannot duplicate a descriptor")?, worth));
        Ok(contents)
    }

    /// Makes a file again that is gone: the returned one, which gets its contents, and then its name.
    pub fn make_again(&mut self, file: &NamedFile, worth: Worth) -> Result<File> {
        let path = file.path();
        let doing = || format!("cannot make {} again, which is gone", path.display());
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder).doing(doing)?;
        }
        let (temporary, contents) = new_beside(file)?;
        self.made.extend(temporary.0.clone().map(|path| (file.inode, path)));
        self.steps.push(Step::MakeAgain(file.clone(), contents.try_clone().doing(doing)?, temporary, worth));
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

    /// Does it. After an error, what was done until then is to be undone as well.
    pub fn apply(self, applied: &mut Applied) -> Result<()> {
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
                Step::PutBack(file, contents, worth) => {
                    let doing = || format!("cannot put back the contents of {}", file.path().display());
                    applied.put_back(&file, &contents, worth).doing(doing)?;
                }
                Step::MakeAgain(file, contents, temporary, worth) => {
                    let doing = || format!("cannot make {} again, which is gone", file.path().display());
                    applied.make_again(&file, &contents, temporary, worth).doing(doing)?;
                }
            }
        }
        Ok(())
    }
}

/// What follows on the name of a file that is being made again, before the pid of the ckpt that does it. A dot stands before the name.
const RESTART: &str = ".ckpt-restart-";

/// An empty file in the folder of `file`, as long as that was.
fn new_beside(file: &NamedFile) -> Result<(Temporary, File)> {
    let path = file.path();
    let doing = || format!("cannot make room for the contents of {}", path.display());
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(RESTART);
    remove_stale(&path, &name).doing(doing)?;
    name.push(std::process::id().to_string());
    let place = path.with_file_name(name);
    let made = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&place).doing(doing)?;
    let temporary = Temporary(Some(place));
    made.set_len(file.size).doing(doing)?;
    Ok((temporary, made))
}

/// Removes what a ckpt has left that was killed: files beside `path` with this beginning and the pid of nobody.
fn remove_stale(path: &Path, beginning: &OsStr) -> io::Result<()> {
    let Some(folder) = path.parent() else { return Ok(()) };
    for entry in fs::read_dir(folder)? {
        let name = entry?.file_name();
        let pid = name.as_bytes().strip_prefix(beginning.as_bytes()).and_then(|pid| str::from_utf8(pid).ok()?.parse().ok());
        if pid.is_some_and(|pid| procfs::thread_state(Pid(pid), Pid(pid).leader()).is_none()) {
            fs::remove_file(folder.join(name))?;
        }
    }
    Ok(())
}
