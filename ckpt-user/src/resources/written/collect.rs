//! At a cut, with the job stopped: what is recorded of the files that it could write to.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::FileStat;

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
pub struct Written(BTreeMap<FileId, Seen>);

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
        let seen = self.0.entry(id).or_insert_with(new);
        seen.appended &= at_its_end && !mapped;
        seen.mapped |= mapped;
        seen.leased |= lock::parse(d.info)?.iter().any(|lock| lock.kind == LockKind::Lease && lock.write);
        Ok(())
    }
}

/// Makes an object of each file that was noted, and has its contents saved where that is wanted.
pub fn collect(cx: &mut Collector<'_>) -> Result<()> {
    let now = machine::wall_clock()?.0;
    if cx.options.save_files {
        raise_limit(cx.written.0.len() as u64)?;
    }
    for (id, seen) in std::mem::take(&mut cx.written).0 {
        cx.attempt(|cx| record(cx, id, &seen, now))?;
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

fn record(cx: &mut Collector<'_>, id: FileId, seen: &Seen, now: i64) -> Result<()> {
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
    cx.intern(ObjectKey::Inode(KIND, id.device, id.inode), |cx, owner| {
        let mut record = WrittenFile { file: seen.file.clone(), appended: seen.appended, ..WrittenFile::default() };
        let size = record.file.size;
        match source {
            Some(source) if saved != Saved::No => {
                record.saved = saved;
                if saved != Saved::Memory {
                    let doing = || format!("cannot list what lies beside {}", path.display());
                    record.siblings = siblings::beside(&path).doing(doing)?;
                }
                let data = sparse::data_ranges(source.as_fd(), 0..size).doing(doing)?;
                let stamp = if seen.mapped { None } else { Stamp::of(&source, &seen.stat, now) };
                let copy = if saved == Saved::Asked { copy_of(&source, &path) } else { None };
                let is_copy = copy.is_some();
                let (pages, source) = (content::pages_of(&data), copy.unwrap_or(source).into());
                cx.add_content(Content { owner, pages, source, size, id, stamp, is_copy });
            }
            Some(source) => record.evidence = Some(Evidence::take(&source, size).doing(doing)?),
            None => {}
        }
        if saved == Saved::No && !seen.appended && !evidence::is_whole(size) {
            tracing::info!("{} can be written anywhere: if it grows, no restart can tell whether it only grew", path.display());
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
    let open = |flags: i32| File::options().read(true).custom_flags(libc::O_NOFOLLOW | flags).open(seen.file.path());
    // Only its owner may read it without a trace.
    let file =
        open(libc::O_NOATIME).or_else(|error| if error.raw_os_error() == Some(libc::EPERM) { open(0) } else { Err(error) })?;
    let found = file.metadata()?;
    if (found.dev(), found.ino()) == seen.file.inode {
        Ok(file)
    } else {
        Err(io::Error::other("it was renamed or replaced just now"))
    }
}
