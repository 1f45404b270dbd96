//! The mappings of a memory: their records, and which of their pages must be saved.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::AsFd;

use rangemap::RangeSet;
use serde::{Deserialize, Serialize};

use super::{Collector, mapped_file, sysv_shm};
use crate::error::{Doing, Result};
use crate::ids::{Addr, ObjRef, PAGE_SIZE, PageRange, Pid};
use crate::pipeline::{Extent, ExtentKind};
use crate::sys::pagemap::PageMap;
use crate::tracee::maps::{self, Mapping, MappingKind, Prot, VmFlags};
use crate::track::presence::{Content, Presence};

/// One mapping in an image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmaRecord {
    /// The memory that it belongs to.
    pub mm: ObjRef,
    /// First address.
    pub start: Addr,
    /// One past the last address.
    pub end: Addr,
    /// What is allowed.
    pub prot: Prot,
    /// MAP_SHARED?
    pub shared: bool,
    /// What somebody asked for beside.
    #[serde(default)]
    pub flags: VmFlags,
    /// What stands behind it.
    pub backing: Backing,
    /// Bytes of a page here.
    pub page_size: u64,
    /// A name given by PR_SET_VMA_ANON_NAME.
    #[serde(default)]
    pub anon_name: Option<String>,
    /// Guard pages of MADV_GUARD_INSTALL in it.
    #[serde(default)]
    pub guards: Vec<PageRange>,
    /// Pages of it travel in the image.
    #[serde(default)]
    pub has_pages: bool,
}

/// What stands behind a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Backing {
    /// Nothing: zeros.
    Anonymous,
    /// A file, from this offset on.
    File {
        /// The open file in the object table.
        file: ObjRef,
        /// Bytes.
        offset: u64,
    },
    /// Shared anonymous memory, from this offset on. `id` tells which of the memory's mappings share it.
    SharedAnonymous {
        /// The inode it had.
        id: u64,
        /// Bytes.
        offset: u64,
    },
    /// The kernel's code in user space.
    Vdso,
    /// The kernel's data beside it.
    Vvar,
    /// A System V shared memory segment, from this offset on.
    SysV {
        /// The segment in the object table.
        segment: ObjRef,
        /// Bytes.
        offset: u64,
    },
}

impl VmaRecord {
    /// Its pages.
    pub fn pages(&self) -> PageRange {
        PageRange { start: self.start.page(), count: (self.end.0 - self.start.0) / PAGE_SIZE }
    }
}

/// Refuses, by name, a mapping that cannot be saved.
fn refuse_unknown(cx: &Collector<'_>, pid: Pid, page_map: &PageMap, mapping: &Mapping, as_left: bool) -> Result<()> {
    let refuse = |reason: &str, advice: &str| cx.refuse(pid, mapping.describe(), reason, advice);
    // Where the kernel only notes writes, as for ckpt itself, nobody waits for a handler.
    // A mapping is registered as a whole, so that one page tells.
    let first = PageRange { count: 1, ..mapping.pages() };
    let is_handled = mapping.flags.contains(VmFlags::WRITES_NOTED) && !as_left && !page_map.notes_writes(first)?;
    if is_handled || mapping.flags.contains(VmFlags::USERFAULTFD) {
        return refuse(
            "is registered with a userfaultfd, whose handler ckpt cannot restart",
            "checkpoint the program before it uses userfaultfd",
        );
    }
    if mapping.flags.contains(VmFlags::SHADOW_STACK) {
        return refuse(
            "is a shadow stack, which only the kernel may write",
            "run the program with GLIBC_TUNABLES=glibc.cpu.x86_shstk=off",
        );
    }
    match mapping.kind {
        MappingKind::AnonymousHuge if mapping.shared => {
            refuse("is shared memory of huge pages without a name", "use a private mapping, or a file on hugetlbfs")
        }
        MappingKind::Special => refuse(
            "is memory that the kernel gave for a service of its own (asynchronous I/O, io_uring, perf, uprobes, ...)",
            "let the program end that service first",
        ),
        MappingKind::Vdso | MappingKind::Vvar | MappingKind::Vsyscall => Ok(()),
        _ if mapping.flags.contains(VmFlags::DEVICE) => {
            refuse("is memory of a device, which an image cannot hold", "let the program unmap the device first")
        }
        _ => Ok(()),
    }
}

/// Shared anonymous memory that was met so far in a cut, by inode: the pages of it that are saved already.
pub type SharedSeen = HashMap<u64, RangeSet<u64>>;

/// Collects the mappings of `pid`, whose memory is the object `mm`: the records, by address, of which [`pages`] completes what depends on the pages.
/// `as_left`: they are as an earlier cut has left them.
pub fn collect(cx: &mut Collector<'_>, pid: Pid, mm: ObjRef, mappings: &[Mapping], as_left: bool) -> Result<Vec<VmaRecord>> {
    let page_map = PageMap::open(pid)?;
    let mut vmas = Vec::new();
    for mapping in mappings.iter().filter(|m| m.kind != MappingKind::Vsyscall) {
        let done = cx.attempt(|cx| {
            refuse_unknown(cx, pid, &page_map, mapping, as_left)?;
            let backing = backing(cx, pid, mapping)?;
            Ok(VmaRecord {
                mm,
                start: mapping.start,
                end: mapping.end,
                prot: mapping.prot,
                shared: mapping.shared,
                flags: mapping.flags - VmFlags::WRITES_NOTED,
                backing,
                page_size: mapping.page_size,
                anon_name: anon_name(mapping),
                guards: Vec::new(),
                has_pages: false,
            })
        })?;
        vmas.extend(done);
    }
    Ok(vmas)
}

/// The pages of these mappings of `pid` that the image must hold, as whoever watches the memory knows them (`presence`), or else as the kernel tells.
pub fn pages(pid: Pid, vmas: &mut [VmaRecord], presence: Option<&Presence>, shared_seen: &mut SharedSeen) -> Result<Vec<Extent>> {
    let page_map = PageMap::open(pid)?;
    let mut extents = Vec::new();
    for vma in vmas {
        // Pages that follow on the last ones lengthen their extent.
        let end = |extents: &[Extent]| (extents.len(), extents.last().map(|last: &Extent| last.pages.count));
        let before = end(&extents);
        find_pages(&page_map, pid, vma, presence, shared_seen, &mut extents)?;
        vma.has_pages = end(&extents) != before;
    }
    Ok(extents)
}

fn anon_name(mapping: &Mapping) -> Option<String> {
    let name = mapping.name.to_str()?;
    let inner = name.strip_prefix("[anon:").or_else(|| name.strip_prefix("[anon_shmem:"))?;
    inner.strip_suffix(']').map(str::to_owned)
}

fn backing(cx: &mut Collector<'_>, pid: Pid, mapping: &Mapping) -> Result<Backing> {
    Ok(match mapping.kind {
        MappingKind::Vdso => Backing::Vdso,
        MappingKind::Vvar => Backing::Vvar,
        MappingKind::SharedAnonymous => Backing::SharedAnonymous { id: mapping.inode, offset: mapping.offset },
        MappingKind::SysVShm => Backing::SysV { segment: sysv_shm::collect(cx, pid, mapping)?, offset: mapping.offset },
        MappingKind::File => Backing::File { file: mapped_file::collect(cx, pid, mapping)?, offset: mapping.offset },
        _ => Backing::Anonymous,
    })
}

/// Adds the pages that the image must hold.
fn find_pages(
    page_map: &PageMap,
    pid: Pid,
    vma: &mut VmaRecord,
    presence: Option<&Presence>,
    shared_seen: &mut SharedSeen,
    extents: &mut Vec<Extent>,
) -> Result<()> {
    let owner = vma.mm;
    let mut push = |pages: PageRange, kind: ExtentKind| match extents.last_mut() {
        Some(last) if last.owner == owner && last.kind == kind && last.pages.end() == pages.start => {
            last.pages.count += pages.count
        }
        _ => extents.push(Extent { owner, pages, kind }),
    };
    match vma.backing {
        Backing::Vdso | Backing::Vvar => Ok(()),
        // They are the segment's.
        Backing::SysV { .. } => Ok(()),
        // What a file holds, the file keeps.
        Backing::File { .. } if vma.shared => Ok(()),
        // The kernel may drop these pages at any time; programs expect zeros.
        Backing::Anonymous if vma.flags.contains(VmFlags::DROPPABLE) => Ok(()),
        Backing::SharedAnonymous { id, offset } => {
            for pages in unseen(shared_seen, id, offset, vma.pages()) {
                for data in shared_data(pid, vma, pages)? {
                    push(data, ExtentKind::Read);
                }
            }
            Ok(())
        }
        Backing::Anonymous | Backing::File { .. } => {
            let of_file = matches!(vma.backing, Backing::File { .. });
            let mut guards = Vec::new();
            let mut take = |pages: PageRange, content: Option<Content>| match content {
                Some(Content::Guard) => guards.push(pages),
                Some(Content::Zero) => push(pages, ExtentKind::Zero),
                Some(Content::Data) => push(pages, ExtentKind::Read),
                None => {}
            };
            match presence.filter(|presence| vma.page_size == PAGE_SIZE && presence.covers(vma.pages())) {
                Some(presence) => presence.within(vma.pages()).for_each(|(pages, content)| take(pages, Some(content))),
                None => {
                    page_map.walk(vma.pages(), Content::asked(of_file), |pages, page| take(pages, Content::of(page, of_file)))?
                }
            }
            vma.guards = guards;
            Ok(())
        }
    }
}

/// The pages of this mapping whose shared memory was not seen through an earlier mapping.
fn unseen(seen: &mut SharedSeen, id: u64, offset: u64, at: PageRange) -> Vec<PageRange> {
    let first = offset / PAGE_SIZE;
    let inner = first..first + at.count;
    let of_memory = seen.entry(id).or_default();
    let fresh = of_memory.gaps(&inner).map(|run| PageRange::from(at.start + (run.start - first)..at.start + (run.end - first)));
    let fresh = fresh.collect();
    of_memory.insert(inner);
    fresh
}

/// Which of `pages` of shared anonymous memory hold data, as the file behind it tells; all of them where we may not ask it.
fn shared_data(pid: Pid, vma: &VmaRecord, pages: PageRange) -> Result<Vec<PageRange>> {
    let Backing::SharedAnonymous { offset, .. } = vma.backing else { return Ok(Vec::new()) };
    let link = maps::file_of(pid, vma.start, vma.end);
    let Ok(file) = File::open(&link) else { return Ok(vec![pages]) };
    let to_offset = |page: u64| offset + (page - vma.start.page()) * PAGE_SIZE;
    let data = crate::sys::sparse::data_ranges(file.as_fd(), to_offset(pages.start)..to_offset(pages.end()))
        .doing(|| format!("cannot find the data of {link}"))?;
    let to_page = |at: u64| vma.start.page() + (at - offset) / PAGE_SIZE;
    let runs = data.into_iter().map(|range| {
        let start = to_page(range.start);
        PageRange { start, count: to_page(range.end.next_multiple_of(PAGE_SIZE)) - start }
    });
    Ok(runs.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_memory_is_saved_once() {
        let mut seen = HashMap::new();
        let range = |start, count| PageRange { start, count };
        assert_eq!(unseen(&mut seen, 7, 0, range(100, 4)), vec![range(100, 4)]);
        assert_eq!(unseen(&mut seen, 7, 2 * PAGE_SIZE, range(200, 4)), vec![range(202, 2)]);
        assert_eq!(unseen(&mut seen, 8, 0, range(300, 1)), vec![range(300, 1)]);
        // Around what was seen, which the next one finds to be all of it.
        assert_eq!(unseen(&mut seen, 8, 0, range(400, 1)), vec![]);
        assert_eq!(unseen(&mut seen, 9, 3 * PAGE_SIZE, range(500, 2)), vec![range(500, 2)]);
        assert_eq!(unseen(&mut seen, 9, 0, range(600, 9)), vec![range(600, 3), range(605, 4)]);
        assert_eq!(unseen(&mut seen, 9, PAGE_SIZE, range(700, 8)), vec![]);
    }
}
