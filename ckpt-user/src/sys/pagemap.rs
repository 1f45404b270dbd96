//! Which pages of another process are there, from its page tables: the PAGEMAP_SCAN ioctl (Linux 6.7), else /proc/PID/pagemap.

mod entry;

pub use entry::Entry;

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use bitflags::bitflags;

use super::parallel;
use crate::error::{Doing, Result};
use crate::ids::{PAGE_SIZE, PageRange, Pid};

bitflags! {
    /// What the page tables say of a page (linux/fs.h, PAGE_IS_*).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Page: u64 {
        /// It belongs to a file, or to shared anonymous memory: not a private copy.
        const FILE = 1 << 2;
        /// In memory.
        const PRESENT = 1 << 3;
        /// Not in memory, but the page tables hold an entry for it: swapped out, in migration, or a marker.
        const SWAPPED = 1 << 4;
        /// The shared page of zeros.
        const PFN_ZERO = 1 << 5;
        /// A guard page of MADV_GUARD_INSTALL: touching it is fatal.
        const GUARD = 1 << 8;
    }
}

/// struct pm_scan_arg.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct ScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

const _: () = assert!(size_of::<ScanArg>() == 96);

/// struct page_region.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Region {
    start: u64,
    end: u64,
    categories: u64,
}

impl Region {
    fn pages(&self) -> PageRange {
        (self.start / PAGE_SIZE..self.end / PAGE_SIZE).into()
    }
}

/// _IOWR('f', 16, struct pm_scan_arg).
const PAGEMAP_SCAN: libc::c_ulong =
    (3 << 30) | ((size_of::<ScanArg>() as libc::c_ulong) << 16) | ((b'f' as libc::c_ulong) << 8) | 16;

/// PAGE_IS_WPALLOWED, PAGE_IS_WRITTEN, and flags of the request.
const PAGE_IS_WPALLOWED: u64 = 1 << 0;
const PAGE_IS_WRITTEN: u64 = 1 << 1;
const PM_SCAN_WP_MATCHING: u64 = 1 << 0;
const PM_SCAN_CHECK_WPASYNC: u64 = 1 << 1;

/// The question for which the kernel is several times as fast as for any other: what is written, or registered and not there?
const WRITTEN: ScanArg = ScanArg {
    size: 0,
    flags: 0,
    start: 0,
    end: 0,
    walk_end: 0,
    vec: 0,
    vec_len: 0,
    max_pages: 0,
    category_inverted: 0,
    category_mask: PAGE_IS_WRITTEN,
    category_anyof_mask: 0,
    return_mask: PAGE_IS_WRITTEN,
};

const REGIONS_PER_CALL: usize = 1024;
/// Pages of which one page table holds the entries: those of 2 MiB.
pub const TABLE: u64 = 512;
/// Pages that one thread walks over, or looks at for one thing alone, at the least, where several do it at once.
const WALK_LEAST: u64 = 16 * 1024;
const LOOK_LEAST: u64 = 32 * 1024;

/// What was found of pages that may have been written.
#[derive(Debug, Default)]
pub struct Taken {
    /// Written, or dropped since: for each of them the page tables hold no protection any more, in order.
    pub touched: Vec<PageRange>,
    /// Those of them that are there, and maybe some more that were written at that very moment; with what they are. In order.
    pub there: Vec<(PageRange, Page)>,
}

impl Taken {
    /// What was found after it.
    fn append(&mut self, mut after: Taken) {
        self.touched.append(&mut after.touched);
        self.there.append(&mut after.there);
    }
}

/// The page tables of one address space: the one that the process had when this was opened. If it executes another program, it gets another.
#[derive(Debug)]
pub struct PageMap {
    pid: Pid,
    file: File,
    has_scan: bool,
}

impl PageMap {
    /// Opens /proc/PID/pagemap; needs the right to ptrace the process.
    pub fn open(pid: Pid) -> Result<PageMap> {
        let file = File::open(format!("/proc/{pid}/pagemap")).doing(|| format!("cannot open the page map of pid {pid}"))?;
        let map = PageMap { pid, file, has_scan: true };
        let mut sink = Vec::new();
        match map.scan(PageRange { start: 1, count: 1 }, Page::PRESENT, &mut |range, _| sink.push(range)) {
            Ok(()) => Ok(map),
            Err(e) if matches!(e.raw_os_error(), Some(libc::ENOTTY | libc::EINVAL)) => Ok(PageMap { has_scan: false, ..map }),
            Err(e) => Err(e).doing(|| format!("cannot scan the page tables of pid {pid}")),
        }
    }

    /// Does the kernel have PAGEMAP_SCAN?
    pub fn has_scan(&self) -> bool {
        self.has_scan
    }

    /// Calls `found` for every run of pages within `range` that the page tables know of, in order, with what they are, as far as that is `asked`.
    /// [`Page::FILE`] makes the kernel look at each page itself, beside its entry, which takes several times as long.
    pub fn walk(&self, range: PageRange, asked: Page, mut found: impl FnMut(PageRange, Page)) -> Result<()> {
        let walked = self.walk_in_parts(range, asked);
        let result = walked.map(|all| all.into_iter().for_each(|(pages, page)| found(pages, page)));
        result.doing(|| format!("cannot scan the page tables of pid {} at {}", self.pid, range.addr()))
    }

    fn walk_part(&self, range: PageRange, asked: Page, found: &mut dyn FnMut(PageRange, Page)) -> io::Result<()> {
        if self.has_scan { self.scan(range, asked, found) } else { self.read(range, asked, found) }
    }

    fn walk_in_parts(&self, range: PageRange, asked: Page) -> io::Result<Vec<(PageRange, Page)>> {
        let parts = in_parts(range, WALK_LEAST, |part| {
            let mut all = Vec::new();
            self.walk_part(part, asked, &mut |pages, page| all.push((pages, page))).map(|()| all)
        })?;
        let mut all: Vec<(PageRange, Page)> = Vec::new();
        for (pages, page) in parts.into_iter().flatten() {
            match all.last_mut() {
                Some((last, of)) if *of == page && last.end() == pages.start => last.count += pages.count,
                _ => all.push((pages, page)),
            }
        }
        Ok(all)
    }

    /// The pages of `range` that were written since they were last protected, with what is `asked` of them ([`PageMap::walk`]); protects those again: as one
    /// step for each page, so that no write is missed. Only for memory that is registered ([`super::userfaultfd`]).
    pub fn take_written(&self, range: PageRange, asked: Page, taken: &mut Taken) -> Result<()> {
        self.take(range, PM_SCAN_CHECK_WPASYNC, asked, taken)
    }

    /// The same, of memory that may have changed meanwhile: what is not registered (any more) is passed over.
    pub fn take_written_if_registered(&self, range: PageRange, asked: Page, taken: &mut Taken) -> Result<()> {
        self.take(range, 0, asked, taken)
    }

    /// The same of pages that were there the last time, and were written since, or most of them. Of one that is not there any more nothing is told.
    pub fn take_listed(&self, range: PageRange, asked: Page, taken: &mut Taken) -> Result<()> {
        let result = self.protect(range, PM_SCAN_CHECK_WPASYNC, asked, taken);
        taken.touched.extend(taken.there.iter().map(|(pages, _)| *pages));
        result.doing(|| format!("cannot scan the page tables of pid {} for writes at {}", self.pid, range.addr()))
    }

    /// Calls `found` for every run of pages of `range` that are there, in memory that is registered ([`super::userfaultfd`]), and were not written since
    /// they were last protected. Changes nothing.
    pub fn find_protected(&self, range: PageRange, mut found: impl FnMut(PageRange)) -> Result<()> {
        let request = ScanArg {
            category_inverted: PAGE_IS_WRITTEN,
            category_mask: PAGE_IS_WPALLOWED | PAGE_IS_WRITTEN,
            category_anyof_mask: (Page::PRESENT | Page::SWAPPED).bits(),
            return_mask: PAGE_IS_WPALLOWED,
            ..ScanArg::default()
        };
        let result = self.request(range, request, &mut |region| found(region.pages()));
        result.doing(|| format!("cannot scan the page tables of pid {} for protected pages at {}", self.pid, range.addr()))
    }

    /// Calls `found` for every run of pages of `range`, all of it registered or not mapped, that were written since they were last protected, or are mapped and
    /// not there. Changes nothing.
    pub fn find_written(&self, range: PageRange, mut found: impl FnMut(PageRange)) -> Result<()> {
        let result = self.request(range, WRITTEN, &mut |region| found(region.pages()));
        result.doing(|| format!("cannot scan the page tables of pid {} for writes at {}", self.pid, range.addr()))
    }

    /// Is all of `range`, which must be mapped, registered with a userfaultfd of asynchronous write protection, so that the kernel notes writes
    /// by itself? No kernel without PAGEMAP_SCAN has that.
    pub fn notes_writes(&self, range: PageRange) -> Result<bool> {
        let request = ScanArg { category_mask: PAGE_IS_WPALLOWED, return_mask: PAGE_IS_WPALLOWED, ..ScanArg::default() };
        let mut noted = 0;
        if self.has_scan {
            let result = self.request(range, request, &mut |region| noted += region.pages().count);
            result.doing(|| format!("cannot ask how writes of pid {} at {} are noted", self.pid, range.addr()))?;
        }
        Ok(noted == range.count)
    }

    fn take(&self, range: PageRange, flags: u64, asked: Page, taken: &mut Taken) -> Result<()> {
        let done = in_parts(range, LOOK_LEAST, |part| self.take_part(part, flags, asked));
        for part in done.doing(|| format!("cannot scan the page tables of pid {} for writes at {}", self.pid, range.addr()))? {
            taken.append(part);
        }
        Ok(())
    }

    /// The kernel is several times as fast where nothing else is asked for, but then takes pages that are not there for written ones, and were it to
    /// protect these, it would mark their places as if something were there. So that is done where something was found, and pages are there.
    fn take_part(&self, part: PageRange, flags: u64, asked: Page) -> io::Result<Taken> {
        let (mut taken, mut spans) = (Taken::default(), Vec::new());
        self.request(part, ScanArg { flags, ..WRITTEN }, &mut |region| taken.touched.push(region.pages()))?;
        taken.touched.iter().for_each(|pages| merge(&mut spans, *pages));
        spans.iter().try_for_each(|span| self.protect(*span, flags, asked, &mut taken))?;
        Ok(taken)
    }

    /// Protects the pages of `span` that are there and were written.
    fn protect(&self, span: PageRange, flags: u64, asked: Page, taken: &mut Taken) -> io::Result<()> {
        let protect = ScanArg {
            flags: PM_SCAN_WP_MATCHING | flags,
            category_mask: PAGE_IS_WRITTEN,
            category_anyof_mask: (Page::PRESENT | Page::SWAPPED).bits(),
            return_mask: PAGE_IS_WRITTEN | self.known(asked).bits(),
            ..ScanArg::default()
        };
        self.request(span, protect, &mut |region| {
            taken.there.push((region.pages(), Page::from_bits_truncate(region.categories)));
        })
    }

    /// Kernels before 6.15 do not know guard pages apart and refuse the bit.
    fn known(&self, mut asked: Page) -> Page {
        asked.set(Page::GUARD, asked.contains(Page::GUARD) && guard_bit_known(&self.file));
        asked
    }

    fn scan(&self, range: PageRange, asked: Page, found: &mut dyn FnMut(PageRange, Page)) -> io::Result<()> {
        let request = ScanArg {
            category_anyof_mask: (Page::PRESENT | Page::SWAPPED).bits(),
            return_mask: self.known(asked).bits(),
            ..ScanArg::default()
        };
        self.request(range, request, &mut |region| found(region.pages(), Page::from_bits_truncate(region.categories)))
    }

    /// Makes a request for all of `range`, however many calls that takes, and hands out the regions in order.
    fn request(&self, range: PageRange, request: ScanArg, found: &mut dyn FnMut(&Region)) -> io::Result<()> {
        // The kernel makes room of its own for as many. Filled by it: to clear it before each of many small requests would take longer than these.
        let room = REGIONS_PER_CALL.min(range.count as usize);
        let mut regions: Vec<Region> = Vec::with_capacity(room);
        let end = range.end() * PAGE_SIZE;
        let mut start = range.start * PAGE_SIZE;
        while start < end {
            regions.clear();
            let (vec, vec_len) = (regions.as_mut_ptr() as u64, room as u64);
            let mut arg = ScanArg { size: size_of::<ScanArg>() as u64, start, end, vec, vec_len, ..request };
            // SAFETY: `arg` is the struct that this request takes, and `vec` points to room for `vec_len` regions that outlives the call.
            let n = unsafe { libc::ioctl(self.file.as_raw_fd(), PAGEMAP_SCAN, &raw mut arg) };
            if n < 0 {
                return Err(io::Error::last_os_error());
            }
            let n = (n as usize).min(room);
            // SAFETY: the kernel has filled in so many regions, and they are plain numbers.
            unsafe { regions.set_len(n) };
            regions.iter().for_each(&mut *found);
            // Not `walk_end`: where the kernel needed its own buffer of 512 regions more than once, that may lie before regions that it
            // has given (seen on Linux 6.18), which would come twice.
            match regions.last() {
                Some(last) if n == room && last.end > start => start = last.end,
                _ => break,
            }
        }
        Ok(())
    }

    /// The same from the entries of /proc/PID/pagemap. Zero pages look like others there.
    fn read(&self, range: PageRange, asked: Page, found: &mut dyn FnMut(PageRange, Page)) -> io::Result<()> {
        let mut run: Option<(PageRange, Page)> = None;
        self.read_entries(range, &mut |first, entries| {
            for (number, entry) in (first..).zip(entries) {
                let page = entry.page() & asked;
                match &mut run {
                    Some((pages, of)) if *of == page && pages.end() == number => pages.count += 1,
                    _ => {
                        if let Some((pages, of)) = run.take().filter(|(_, of)| !of.is_empty()) {
                            found(pages, of);
                        }
                        run = Some((PageRange { start: number, count: 1 }, page));
                    }
                }
            }
        })?;
        if let Some((pages, of)) = run.filter(|(_, of)| !of.is_empty()) {
            found(pages, of);
        }
        Ok(())
    }

    /// Calls `found` with the entries of all pages of `range`, in order, and the number of the first of them. They come by page tables: each time
    /// those of one, or of a part of it.
    pub fn entries(&self, range: PageRange, mut found: impl FnMut(u64, &[Entry])) -> Result<()> {
        let result = self.read_entries(range, &mut |first, entries| {
            let (head, rest) = entries.split_at(entries.len().min((TABLE - first % TABLE) as usize));
            found(first, head);
            for (n, table) in rest.chunks(TABLE as usize).enumerate() {
                found(first + head.len() as u64 + n as u64 * TABLE, table);
            }
        });
        result.doing(|| format!("cannot read the page map of pid {} at {}", self.pid, range.addr()))
    }

    fn read_entries(&self, range: PageRange, found: &mut dyn FnMut(u64, &[Entry])) -> io::Result<()> {
        const AT_ONCE: u64 = 16 * TABLE;
        let mut room = vec![Entry::default(); AT_ONCE.min(range.count) as usize];
        let mut at = range.start;
        while at < range.end() {
            let count = (range.end() - at).min(AT_ONCE - at % AT_ONCE).min(room.len() as u64);
            let entries = &mut room[..count as usize];
            self.file.read_exact_at(bytemuck::cast_slice_mut(entries), at * size_of::<Entry>() as u64)?;
            found(at, entries);
            at += count;
        }
        Ok(())
    }
}

/// Does `part` for parts of the range by several threads at once, if it is long. What is found is returned in order.
fn in_parts<T: Send>(range: PageRange, least: u64, part: impl Fn(PageRange) -> io::Result<T> + Sync) -> io::Result<Vec<T>> {
    let size = range.count.div_ceil(parallel::parts(range.count, least) as u64).max(1);
    let of = |start: u64| part(PageRange { start, count: size.min(range.end() - start) });
    parallel::each((range.start..range.end()).step_by(size as usize), of).into_iter().collect()
}

/// Adds pages that follow on the last ones. Where not more than those of a page table lie between, one call for all is quicker than two: to pass over
/// them takes the kernel 2 us, and a call that, and the time to have the other processors forget what they know of the page tables.
fn merge(spans: &mut Vec<PageRange>, pages: PageRange) {
    match spans.last_mut() {
        Some(last) if pages.start >= last.end() && pages.start - last.end() <= TABLE => last.count = pages.end() - last.start,
        _ => spans.push(pages),
    }
}

/// The entry of a page of ours.
pub fn entry_of_own_page(page: u64) -> io::Result<Entry> {
    let mut entry = Entry::default();
    File::open("/proc/self/pagemap")?.read_exact_at(bytemuck::bytes_of_mut(&mut entry), page * size_of::<Entry>() as u64)?;
    Ok(entry)
}

/// The physical page that a page of ours is in. `None`: it is not in memory, or the kernel does not tell us (it wants CAP_SYS_ADMIN).
pub fn frame_of_own_page(page: u64) -> io::Result<Option<u64>> {
    entry_of_own_page(page).map(Entry::frame)
}

/// Does this kernel's PAGEMAP_SCAN know PAGE_IS_GUARD? Asked once.
fn guard_bit_known(file: &File) -> bool {
    use std::sync::OnceLock;
    static KNOWN: OnceLock<bool> = OnceLock::new();
    *KNOWN.get_or_init(|| {
        let mut arg = ScanArg { size: size_of::<ScanArg>() as u64, start: PAGE_SIZE, end: 2 * PAGE_SIZE, ..ScanArg::default() };
        let mut region = Region::default();
        arg.vec = &raw mut region as u64;
        arg.vec_len = 1;
        arg.return_mask = Page::GUARD.bits();
        // SAFETY: as in `request`; one page, one region.
        unsafe { libc::ioctl(file.as_raw_fd(), PAGEMAP_SCAN, &raw mut arg) >= 0 }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_of_asking_agree_on_our_own_memory() {
        let pid = Pid(std::process::id() as i32);
        let mut map = PageMap::open(pid).unwrap();
        let mut memory = vec![0u8; 64 * PAGE_SIZE as usize];
        memory.iter_mut().step_by(4096).for_each(|b| *b = 1);
        let first = memory.as_ptr() as u64 / PAGE_SIZE + 1;
        let range = PageRange { start: first, count: 62 };
        let count = |map: &PageMap| {
            let mut n = 0;
            map.walk(range, Page::PRESENT, |pages, page| n += if page.contains(Page::PRESENT) { pages.count } else { 0 })
                .unwrap();
            n
        };
        assert_eq!(count(&map), 62);
        map.has_scan = false;
        assert_eq!(count(&map), 62);
    }

    #[test]
    fn scattered_pages_come_once_and_in_order() {
        const PAGES: usize = 5000;
        let len = PAGES * PAGE_SIZE as usize;
        let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: new memory, wherever the kernel wants it.
        let memory = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, -1, 0) };
        assert_ne!(memory, libc::MAP_FAILED);
        // SAFETY: the memory is our own; a huge page would be there as a whole.
        assert_eq!(unsafe { libc::madvise(memory, len, libc::MADV_NOHUGEPAGE) }, 0);
        let map = PageMap::open(Pid(std::process::id() as i32)).unwrap();
        let first = memory as u64 / PAGE_SIZE;
        // As many runs as the kernel's buffer takes, as ours takes, one more, one less, and several times as many.
        for runs in [1, 511, 512, 513, 1000, 1023, 1024, 1025, 1536, 2048, 2500] {
            // SAFETY: the memory is our own, and nothing refers to it.
            assert_eq!(unsafe { libc::madvise(memory, len, libc::MADV_DONTNEED) }, 0);
            for run in 0..runs {
                // SAFETY: within the memory, to which nothing else refers.
                unsafe { memory.cast::<u8>().add(2 * run * PAGE_SIZE as usize).write_volatile(1) };
            }
            let mut found = Vec::new();
            map.walk(PageRange { start: first, count: PAGES as u64 }, Page::PRESENT, |pages, _| {
                found.push((pages.start, pages.count))
            })
            .unwrap();
            let wanted: Vec<_> = (0..runs as u64).map(|run| (first + 2 * run, 1)).collect();
            assert!(found == wanted, "{runs} runs were found as {}", found.len());
        }
        // SAFETY: the memory is our own, and nothing refers to it.
        assert_eq!(unsafe { libc::munmap(memory, len) }, 0);
    }
}
