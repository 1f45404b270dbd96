//! Files that nobody outside will hold: deleted ones, and memfds. Their contents travel in the image, once for however many openings
//! and mappings they have.

use std::ffi::{CString, OsString};
use std::fs::{File, OpenOptions, Permissions};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, fchown};
use std::path::PathBuf;

use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use serde::{Deserialize, Serialize};

use super::collector::{Content, FileId, ObjectKey};
use super::file::{Descriptor, FileKind, OpenFile};
use super::{Collector, Restorer, named_file, regular};
use crate::error::{Doing, Error, Result};
use crate::ids::{ObjRef, PAGE_SIZE, PageRange};
use crate::image::model::Section;
use crate::sys::sparse;

/// A file without a name that still has contents.
#[derive(Debug)]
pub struct Deleted;

/// A file of memfd_create(2).
#[derive(Debug)]
pub struct Memfd;

/// An opening of such a file: which contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContentRef {
    /// The object of kind "content".
    pub content: ObjRef,
}

/// The file behind the openings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContentRecord {
    /// The path that it had, or the name of the memfd.
    #[serde(with = "serde_bytes")]
    pub name: Vec<u8>,
    /// Length in bytes.
    pub size: u64,
    /// Permissions.
    pub mode: u32,
    /// Owner and group.
    pub owner: (u32, u32),
    /// A memfd, with these seals (F_GET_SEALS).
    pub seals: Option<i32>,
    /// Bytes of a huge page, where a memfd has them.
    pub huge: Option<u64>,
}

const KIND: &str = "content";

fn is_memfd(d: &Descriptor<'_>) -> bool {
    d.link.as_bytes().starts_with(b"/memfd:") && d.info.flags & libc::O_PATH == 0
}

/// Numbers the contents behind a descriptor, and has them saved.
fn collect(cx: &mut Collector<'_>, d: &Descriptor<'_>, memfd: bool) -> Result<ContentRef> {
    let doing = || format!("cannot read the contents of {}", d.link.display());
    let content = cx.intern(ObjectKey::Inode(KIND, d.stat.st_dev, d.stat.st_ino), |cx, owner| {
        let source = File::open(format!("/proc/self/fd/{}", d.own.as_raw_fd())).doing(doing)?;
        let size = d.stat.st_size as u64;
        let data = sparse::data_ranges(source.as_fd(), 0..size).doing(doing)?;
        let id = FileId { device: d.stat.st_dev, inode: d.stat.st_ino };
        cx.add_content(Content { owner, source: source.into(), pages: pages_of(&data), size, id, stamp: None, is_copy: false });
        let seals = if memfd { Some(fcntl(d.own, FcntlArg::F_GET_SEALS).doing(doing)?) } else { None };
        let name = d.link.as_bytes();
        let name = name.strip_suffix(b" (deleted)").unwrap_or(name);
        let name = if memfd { name.strip_prefix(b"/memfd:").unwrap_or(name) } else { name };
        let huge = (memfd && d.stat.st_blksize as u64 > PAGE_SIZE).then_some(d.stat.st_blksize as u64);
        let mode = d.stat.st_mode & 0o7777;
        let record = ContentRecord { name: name.to_vec(), size, mode, owner: (d.stat.st_uid, d.stat.st_gid), seals, huge };
        Ok(Section::encode(KIND, &record)?)
    })?;
    Ok(ContentRef { content })
}

/// The pages that byte ranges touch, in order, each once.
pub fn pages_of(data: &[std::ops::Range<u64>]) -> Vec<PageRange> {
    let mut pages: Vec<PageRange> = Vec::new();
    for range in data {
        let (mut start, end) = (range.start / PAGE_SIZE, range.end.div_ceil(PAGE_SIZE));
        if let Some(last) = pages.last_mut().filter(|last| last.end() >= start) {
            start = last.end();
            last.count += end.saturating_sub(start);
        } else if end > start {
            pages.push(PageRange { start, count: end - start });
        }
    }
    pages
}

/// The file, made anew, to which the contents will be written.
struct Made {
    file: OwnedFd,
}

fn restore(cx: &mut Restorer<'_>, common: &OpenFile, record: ContentRef) -> Result<OwnedFd> {
    let owner = record.content;
    let made = cx.shared(owner, |cx| {
        let record: ContentRecord = cx.record(owner, KIND)?;
        let file = if record.seals.is_some() { make_memfd(&record)? } else { make_unnamed(&record)? };
        let doing = || format!("cannot make {} again", String::from_utf8_lossy(&record.name));
        let mut file = File::from(file);
        file.set_len(record.size).doing(doing)?;
        fchown(&file, Some(record.owner.0), Some(record.owner.1)).or_else(only_root).doing(doing)?;
        file.set_permissions(Permissions::from_mode(record.mode)).doing(doing)?;
        cx.expect_content(owner, file.try_clone().doing(doing)?.into());
        std::io::Seek::rewind(&mut file).doing(doing)?;
        Ok(Made { file: file.into() })
    })?;
    let path = PathBuf::from(format!("/proc/self/fd/{}", made.file.as_raw_fd()));
    // O_TMPFILE, with which it may have been made, includes O_DIRECTORY.
    named_file::open(&path, common.flags & !libc::O_NOFOLLOW & !libc::O_DIRECTORY)
        .map(Into::into)
        .doing(|| format!("cannot open {} again", common.link))
}

/// Without the right to give files away, a file that is the caller's own anyway stays so.
fn only_root(error: std::io::Error) -> std::io::Result<()> {
    if error.raw_os_error() == Some(libc::EPERM) { Ok(()) } else { Err(error) }
}

fn make_memfd(record: &ContentRecord) -> Result<OwnedFd> {
    let mut flags = MFdFlags::MFD_CLOEXEC;
    // A memfd that was made without this has the one seal that forbids others.
    flags.set(MFdFlags::MFD_ALLOW_SEALING, record.seals != Some(libc::F_SEAL_SEAL));
    if let Some(size) = record.huge.filter(|size| size.is_power_of_two()) {
        flags |= MFdFlags::MFD_HUGETLB | MFdFlags::from_bits_retain(size.trailing_zeros() << libc::MFD_HUGE_SHIFT);
    }
    let name = CString::new(record.name.clone()).map_err(|_| Error::Restart("the name of a memfd holds a NUL".into()))?;
    memfd_create(name.as_c_str(), flags).doing(|| format!("cannot make the memfd {}", name.to_string_lossy()))
}

/// A file at the path that it had, so that /proc shows the same; without a name again at once. Elsewhere if the path is taken.
fn make_unnamed(record: &ContentRecord) -> Result<OwnedFd> {
    let path = PathBuf::from(OsString::from_vec(record.name.clone()));
    let options = |flags: i32| {
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(0o600).custom_flags(flags);
        options
    };
    match options(0).create_new(true).open(&path) {
        Ok(file) => {
            std::fs::remove_file(&path).doing(|| format!("cannot remove {}", path.display()))?;
            return Ok(file.into());
        }
        Err(error) => tracing::warn!("the deleted file {} comes back without that path: {error}", path.display()),
    }
    let folder = path.parent().filter(|folder| folder.is_dir()).map_or_else(std::env::temp_dir, PathBuf::from);
    let file = options(libc::O_TMPFILE).open(&folder).doing(|| format!("cannot make a file in {}", folder.display()))?;
    Ok(file.into())
}

/// Seals go on once the contents are in.
fn seal(cx: &Restorer<'_>, fd: BorrowedFd<'_>, record: ContentRef) -> Result<()> {
    let record: ContentRecord = cx.record(record.content, KIND)?;
    let Some(wanted) = record.seals else { return Ok(()) };
    let doing = || format!("cannot seal the memfd {}", String::from_utf8_lossy(&record.name));
    let now = fcntl(fd, FcntlArg::F_GET_SEALS).doing(doing)?;
    if now == wanted {
        return Ok(());
    }
    // Sealing needs an opening for writing.
    let file = OpenOptions::new().read(true).write(true).open(format!("/proc/self/fd/{}", fd.as_raw_fd())).doing(doing)?;
    fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::from_bits_retain(wanted & !now))).doing(doing).map(drop)
}

impl FileKind for Deleted {
    const KIND: &'static str = "deleted";
    type Record = ContentRef;

    fn matches(d: &Descriptor<'_>) -> bool {
        regular::is_regular(d) && d.stat.st_nlink == 0
    }

    fn collect(cx: &mut Collector<'_>, d: &Descriptor<'_>) -> Result<ContentRef> {
        collect(cx, d, false)
    }

    fn restore(cx: &mut Restorer<'_>, common: &OpenFile, record: &ContentRef) -> Result<OwnedFd> {
        restore(cx, common, *record)
    }
}

impl FileKind for Memfd {
    const KIND: &'static str = "memfd";
    type Record = ContentRef;

    fn matches(d: &Descriptor<'_>) -> bool {
        is_memfd(d)
    }

    fn collect(cx: &mut Collector<'_>, d: &Descriptor<'_>) -> Result<ContentRef> {
        collect(cx, d, true)
    }

    fn restore(cx: &mut Restorer<'_>, common: &OpenFile, record: &ContentRef) -> Result<OwnedFd> {
        restore(cx, common, *record)
    }

    fn finish(cx: &mut Restorer<'_>, fd: BorrowedFd<'_>, record: &ContentRef) -> Result<()> {
        seal(cx, fd, *record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_bytes_become_pages_once() {
        let page = |start, count| PageRange { start, count };
        assert_eq!(pages_of(&[0..1, 100..200, 4096..8192, 20480..20481]), vec![page(0, 2), page(5, 1)]);
        assert_eq!(pages_of(&[]), vec![]);
    }
}
