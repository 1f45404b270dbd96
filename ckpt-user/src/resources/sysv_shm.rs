//! System V shared memory segments that processes of the cut have attached: one object each, with its contents, however often it is attached.
//!
//! A segment that nobody has removed outlives its processes. If the very same one is still there at a restart, and nobody has it attached,
//! it is taken again, with the contents of the image; else one with the same id and key is made.

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::fd::AsFd;

use nix::fcntl::{FallocateFlags, fallocate};
use serde::{Deserialize, Serialize};

use super::collector::{Content, FileId, ObjectKey};
use super::content::pages_of;
use super::vma::{Backing, VmaRecord};
use super::{Collector, Restorer};
use crate::error::{Doing, Error, Result};
use crate::ids::{Addr, ObjRef, PAGE_SIZE, Pid};
use crate::image::model::Section;
use crate::sys::sparse;
use crate::sys::sysv::{self, Attachment, Kind, SHM_DEST, SHM_LOCKED};
use crate::tracee::maps::{self, Mapping, VmFlags};
use crate::tracee::remote::RemoteTask;

/// The kind of the object.
pub const KIND: &str = "sysv-shm";

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SegmentRecord {
    /// Its id (shmid), which processes keep.
    pub id: i32,
    /// Its key. 0: none.
    pub key: i32,
    /// Bytes.
    pub size: u64,
    /// Permissions, and SHM_DEST and SHM_LOCKED.
    pub mode: u32,
    /// Owner and group.
    pub owner: (u32, u32),
    /// When it was made or last changed hands.
    pub changed: i64,
    /// The process that has made it.
    pub creator: i32,
}

/// Numbers the segment behind a mapping, and has its contents saved.
pub fn collect(cx: &mut Collector<'_>, pid: Pid, mapping: &Mapping) -> Result<ObjRef> {
    let doing = || format!("cannot read the segment behind {} of pid {pid}", mapping.describe());
    if mapping.page_size > PAGE_SIZE {
        return cx.refuse(
            pid,
            mapping.describe(),
            "is a System V shared memory segment of huge pages, which ckpt cannot save",
            "make it without SHM_HUGETLB",
        );
    }
    cx.intern(ObjectKey::Inode(KIND, 0, mapping.inode), |cx, owner| {
        let id = i32::try_from(mapping.inode).map_err(|_| Error::Unexpected(format!("{}: it has no id", doing())))?;
        let now = sysv::segment(id).doing(doing)?;
        let link = maps::file_of(pid, mapping.start, mapping.end);
        let source = File::open(&link).doing(doing)?;
        let data = sparse::data_ranges(source.as_fd(), 0..now.size).doing(doing)?;
        // No file has this device: the ids of segments are not numbers of files.
        let file = FileId { device: u64::MAX, inode: mapping.inode };
        cx.add_content(Content {
            owner,
            source: source.into(),
            pages: pages_of(&data),
            size: now.size,
            id: file,
            stamp: None,
            is_copy: false,
        });
        let record = SegmentRecord {
            id,
            key: now.key,
            size: now.size,
            mode: now.mode,
            owner: now.owner,
            changed: now.changed,
            creator: now.creator,
        };
        Ok(Section::encode(KIND, &record)?)
    })
}

/// A segment of a restart.
#[derive(Debug)]
struct Made {
    record: SegmentRecord,
    /// Keeps one that is to go with its last attachment until the processes have theirs.
    attachment: Attachment,
    /// If the restart fails, it goes.
    is_ours: bool,
}

impl Drop for Made {
    fn drop(&mut self) {
        if self.is_ours
            && let Err(error) = sysv::remove(Kind::Segment, self.record.id)
        {
            tracing::warn!("cannot remove the shared memory segment {}: {error}", self.record.id);
        }
    }
}

impl SegmentRecord {
    fn name(&self) -> String {
        format!("the System V shared memory segment {} (key {:#x})", self.id, self.key)
    }

    /// The same one, which was left behind when its processes ended.
    fn is_left(&self) -> Result<bool> {
        let Ok(now) = sysv::segment(self.id) else { return Ok(false) };
        let same = (now.key, now.size, now.changed, now.creator) == (self.key, self.size, self.changed, self.creator);
        if !same || now.attached > 0 {
            let reason = if same { "is attached by other processes" } else { "is another one here" };
            return Err(Error::Restart(format!(
                "{} {reason}, and the restarted program knows it by its id; end what uses it, or remove it (ipcrm -m {})",
                self.name(),
                self.id
            )));
        }
        Ok(true)
    }

    fn make_id(&self) -> Result<()> {
        let doing = || format!("cannot make {} again", self.name());
        sysv::choose_next_id(Kind::Segment, self.id).doing(|| format!("{}: cannot choose its id", doing()))?;
        match sysv::make_segment(self.key, self.size, self.mode) {
            Ok(id) if id == self.id => Ok(()),
            Ok(other) => {
                sysv::remove(Kind::Segment, other).doing(doing)?;
                Err(Error::Restart(format!("{}: its id is in use, and segment {other} was made instead", doing())))
            }
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Err(Error::Restart(format!(
                "{}: another segment has its key; remove that (ipcrm -M {:#x}) if nobody uses it",
                doing(),
                self.key
            ))),
            Err(error) => Err(error).doing(doing),
        }
    }

    fn make(&self, cx: &mut Restorer<'_>, owner: ObjRef) -> Result<Made> {
        let doing = || format!("cannot make {} again", self.name());
        let is_left = self.is_left()?;
        if !is_left {
            self.make_id()?;
        }
        let made = match Attachment::new(self.id) {
            Ok(attachment) => Made { record: self.clone(), attachment, is_ours: !is_left },
            Err(error) => {
                if !is_left {
                    sysv::remove(Kind::Segment, self.id).doing(doing)?;
                }
                return Err(error).doing(doing);
            }
        };
        let file = open_attached(&made.attachment).doing(doing)?;
        if is_left {
            // What the image does not mention is zeros.
            let everything = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
            let length = i64::try_from(self.size.next_multiple_of(PAGE_SIZE)).unwrap_or(i64::MAX);
            fallocate(&file, everything, 0, length).doing(doing)?;
        }
        sysv::set_segment(self.id, self.owner, self.mode).doing(doing)?;
        if self.mode & SHM_LOCKED != 0 {
            sysv::lock_segment(self.id).doing(doing)?;
        }
        cx.expect_content(owner, file.into());
        Ok(made)
    }
}

/// The file behind our own attachment, open for writing.
fn open_attached(attachment: &Attachment) -> std::io::Result<File> {
    let start = format!("{:x}-", attachment.address());
    for entry in fs::read_dir("/proc/self/map_files")? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(&start) {
            return File::options().read(true).write(true).open(entry.path());
        }
    }
    Err(std::io::Error::other("its mapping is not to be found"))
}

/// Makes every segment, in ckpt itself.
pub fn make(cx: &mut Restorer<'_>) -> Result<()> {
    for (objref, record) in cx.all::<SegmentRecord>(KIND)? {
        cx.shared(objref, |cx| record.make(cx, objref))?;
    }
    Ok(())
}

/// When all processes have attached theirs, and nothing can fail any more: what is to go with its last attachment does, the others stay.
pub fn settle(cx: &mut Restorer<'_>) -> Result<()> {
    for (objref, record) in cx.all::<SegmentRecord>(KIND)? {
        let made = cx.shared(objref, |_| Err::<Made, _>(Error::Unexpected("a segment was not made".into())))?;
        made.is_ours = record.mode & SHM_DEST != 0;
    }
    Ok(())
}

/// Attaches the segments of a process. Each is attached once, elsewhere, and the parts of it that the process has are second views of that.
/// `gap`: finds room for so many bytes.
pub fn map(
    task: &mut RemoteTask<'_>,
    vmas: &[VmaRecord],
    segments: &HashMap<ObjRef, SegmentRecord>,
    mut gap: impl FnMut(&RemoteTask<'_>, u64) -> Result<Addr>,
) -> Result<()> {
    for vma in vmas {
        let Backing::SysV { segment, offset } = vma.backing else { continue };
        let unknown = || Error::Restart(format!("the image attaches object {segment}, which is no shared memory segment"));
        let record = segments.get(&segment).ok_or_else(unknown)?;
        let (size, len) = (record.size.next_multiple_of(PAGE_SIZE), vma.end.0 - vma.start.0);
        if offset.checked_add(len).is_none_or(|end| end > size) {
            return Err(Error::Restart(format!("the image attaches more of {} than there is", record.name())));
        }
        let doing = format!("cannot attach {}", record.name());
        let at = gap(task, size)?;
        let flags = if vma.flags.contains(VmFlags::MAY_WRITE) { 0 } else { libc::SHM_RDONLY };
        task.call(&doing, libc::SYS_shmat, [record.id.into(), at.into(), flags.into()])?;
        let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
        let args = [at.offset(offset).into(), 0u64.into(), len.into(), flags.into(), vma.start.into()];
        task.call(&doing, libc::SYS_mremap, args)?;
        task.call(&doing, libc::SYS_munmap, [at.into(), size.into()])?;
    }
    Ok(())
}

/// Every segment of the image.
pub fn all(cx: &Restorer<'_>) -> Result<HashMap<ObjRef, SegmentRecord>> {
    Ok(cx.all::<SegmentRecord>(KIND)?.into_iter().collect())
}
