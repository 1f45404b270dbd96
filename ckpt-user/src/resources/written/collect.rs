//! At a cut, with the job stopped: what is recorded of the files that it could write to.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::FileStat;

use serde_bytes::ByteBuf;

use super::closed::{self, Closed};
use super::evidence::{self, Evidence};
use super::{KIND, Saved, Stamp, WrittenFile, posix_memory, siblings};
use crate::error::{Doing, Result};
use crate::ids::Pid;
use crate::image::model::Section;
use crate::resources::collector::{Collector, Content, FileId, ObjectKey};
use crate::resources::file::Descriptor;
use crate::resources::lock::{self, LockKind};
use crate::resources::named_file::NamedFile;
use crate::resources::{content, machine};
use crate::sys::{fcntl, sparse};

/// Every file of the cut that could be written to, by device and inode.
#[derive(Debug, Default)]
pub struct Written {
    files: BTreeMap<FileId, Seen>,
    /// Those that are open, and not for writing.
    read: BTreeSet<FileId>,
}

#[derive(Debug)]
struct Seen {
    pid: Pid,
    file: NamedFile,
    stat: FileStat,
    appended: bool,
    mapped: bool,
    /// It is POSIX shared memory.
    memory: bool,
    /// Whoever opens it breaks a lease of the job.
    leased: bool,
}

impl Written {
    /// Takes note of a regular file that is open for writing, or mapped so (then its number is negative).
    pub fn note(&mut self, d: &Descriptor<'_>, file: &NamedFile) -> Result<()> {
        let id = FileId { device: d.stat.st_dev, inode: d.stat.st_ino };
        let mapped = d.fd < 0;
        let at_its_end = d.info.flags & libc::O_APPEND != 0 || d.info.pos >= d.stat.st_size;
        let memory = posix_memory::is_memory(&file.path(), d.own);
        let new = || Seen { pid: d.pid, file: file.clone(), stat: *d.stat, appended: true, mapped: false, memory, leased: false };
        let seen = self.files.entry(id).or_insert_with(new);
        seen.appended &= at_its_end && !mapped;
        seen.mapped |= mapped;
        seen.leased |= lock::parse(d.info)?.iter().any(|lock| lock.kind == LockKind::Lease && lock.write);
        Ok(())
    }

    /// Takes note of a regular file that is open, and not for writing.
    pub fn note_reader(&mut self, d: &Descriptor<'_>) {
        self.read.insert(FileId { device: d.stat.st_dev, inode: d.stat.st_ino });
    }
}

/// Makes an object of each file that was noted, and has its contents saved where that is wanted.
pub fn collect(cx: &mut Collector<'_>) -> Result<()> {
    let now = machine::wall_clock()?.0;
    let Written { files, read } = std::mem::take(&mut cx.written);
    if cx.options.save_files {
        raise_limit(files.len() as u64)?;
    }
    let mut siblings = Vec::new();
    for (&id, seen) in &files {
        if let Some(names) = cx.attempt(|cx| record(cx, id, seen, now))?
            && cx.options.save_files
        {
            siblings.push((seen.file.path(), names));
        }
    }
    let is_open = |id: &FileId| files.contains_key(id) || read.contains(id);
    let names: usize = siblings.iter().map(|(_, names)| names.len()).sum();
    if names > 0 {
        raise_limit((files.len() + names) as u64)?;
    }
    for sibling in closed::beside(&siblings, is_open)? {
        record_closed(cx, sibling, now)?;
    }
    Ok(())
}

/// Files whose contents are saved stay open until they are.
fn raise_limit(files: u64) -> Result<()> {
    /// What ckpt needs beside them, by far.
    const OTHERS: u64 = 512;
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).doing(|| "cannot read the limit on open files")?;
    if files + OTHERS > soft && soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).doing(|| "cannot raise the limit on open files")?;
    }
    Ok(())
}

/// The names of the files that belong to it are returned.
fn record(cx: &mut Collector<'_>, id: FileId, seen: &Seen, now: i64) -> Result<Vec<ByteBuf>> {
    let path = seen.file.path();
    let doing = || format!("cannot read {}", path.display());
    let saved = match () {
        () if seen.memory => Saved::Memory,
        () if cx.options.save_files => Saved::Asked,
        () if seen.mapped && evidence::is_whole(seen.file.size) => Saved::Mapped,
        () => Saved::No,
    };
    let opened = if seen.leased { Err(io::ErrorKind::PermissionDenied.into()) } else { open(seen) };
    let source = match opened {
        Err(error) if matches!(saved, Saved::Asked | Saved::Memory) && error.kind() == io::ErrorKind::PermissionDenied => {
            let why =
                if seen.leased { "is under a lease, which ckpt would break by reading it" } else { "may not be read by ckpt" };
            let advice = if saved == Saved::Asked { "leave out --save-files" } else { "run ckpt as root" };
            return cx.refuse(seen.pid, format!("the file {}", path.display()), why, advice);
        }
        // Nothing is known of its contents then.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => None,
        other => Some(other.doing(doing)?),
    };
    let mut record = WrittenFile { file: seen.file.clone(), appended: seen.appended, ..WrittenFile::default() };
    let contents = match source {
        Some(source) if saved != Saved::No => {
            record.saved = saved;
            if saved != Saved::Memory {
                let doing = || format!("cannot list what lies beside {}", path.display());
                record.siblings = siblings::beside(&path).doing(doing)?;
            }
            let stamp = if seen.mapped { None } else { Stamp::of(&source, &seen.stat, now) };
            Some((source, stamp))
        }
        Some(source) => {
            record.evidence = Some(Evidence::take(&source, record.file.size).doing(doing)?);
            None
        }
        None => None,
    };
    if saved == Saved::No && !seen.appended && !evidence::is_whole(record.file.size) {
        tracing::info!("{} can be written anywhere: if it grows, no restart can tell whether it only grew", path.display());
    }
    let names = record.siblings.clone();
    add(cx, id, record, contents)?;
    Ok(names)
}

/// Makes an object of a file that nobody has open.
fn record_closed(cx: &mut Collector<'_>, sibling: Closed, now: i64) -> Result<()> {
    let Closed { of, file, stat, source } = sibling;
    let id = FileId { device: stat.st_dev, inode: stat.st_ino };
    let saved = if source.is_some() { Saved::Asked } else { Saved::No };
    let record = WrittenFile { file, of: of.as_os_str().as_bytes().to_vec(), saved, ..WrittenFile::default() };
    let contents = source.map(|source| {
        let stamp = Stamp::of(&source, &stat, now);
        (source, stamp)
    });
    add(cx, id, record, contents)
}

/// Makes the object, and has the contents saved that it says are.
fn add(cx: &mut Collector<'_>, id: FileId, record: WrittenFile, contents: Option<(File, Option<Stamp>)>) -> Result<()> {
    let (path, size, saved) = (record.file.path(), record.file.size, record.saved);
    cx.intern(ObjectKey::Inode(KIND, id.device, id.inode), |cx, owner| {
        if let Some((source, stamp)) = contents {
            let data = sparse::data_ranges(source.as_fd(), 0..size).doing(|| format!("cannot read {}", path.display()))?;
            let copy = if saved == Saved::Asked { copy_of(&source, &path) } else { None };
            let is_copy = copy.is_some();
            let (pages, source) = (content::pages_of(&data), copy.unwrap_or(source).into());
            cx.add_content(Content { owner, pages, source, size, id, stamp, is_copy });
        }
        Ok(Section::encode(KIND, &record)?)
    })?;
    Ok(())
}

/// A copy without a name that shares the blocks of the file, where its file system can do that.
fn copy_of(file: &File, path: &Path) -> Option<File> {
    let folder = path.parent()?;
    let copy = File::options().read(true).write(true).mode(0o600).custom_flags(libc::O_TMPFILE).open(folder).ok()?;
    let shared = fcntl::share_blocks(file.as_fd(), copy.as_fd());
    shared.inspect_err(|error| tracing::debug!("{} is read during the pause: {error}", path.display())).ok()?;
    Some(copy)
}

/// The file, for reading: a duplicate of the job's descriptor may be for writing alone.
fn open(seen: &Seen) -> io::Result<File> {
    let file = open_unnoticed(&seen.file.path(), 0)?;
    let found = file.metadata()?;
    if (found.dev(), found.ino()) == seen.file.inode {
        Ok(file)
    } else {
        Err(io::Error::other("it was renamed or replaced just now"))
    }
}

/// For reading, without a trace if that is possible: only the owner of a file may have that.
pub(super) fn open_unnoticed(path: &Path, flags: i32) -> io::Result<File> {
    let open = |more: i32| File::options().read(true).custom_flags(libc::O_NOFOLLOW | flags | more).open(path);
    open(libc::O_NOATIME).or_else(|error| if error.raw_os_error() == Some(libc::EPERM) { open(0) } else { Err(error) })
}
