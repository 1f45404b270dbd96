//! Soft-dirty bits, for kernels without PAGEMAP_SCAN: at each cut they are read from /proc/PID/pagemap, and cleared.
//!
//! These are two steps, so both are done with every thread stopped: what was read then is what was written since the last time. A process
//! that writes into this one from outside (process_vm_writev) just between the two is missed.
//!
//! A bit tells that its page was written, or is one that the write brought into being. It does not tell (Linux 6.1):
//! - that mremap has moved the page here, if its whole page table was moved (2 MiB or more, aligned: move_normal_pmd). Moved entry by entry, or as
//!   a huge page, it is told.
//! - that the page was dropped, and the page of zeros is here since it was read again.
//! - that the mapping is a new one, where the kernel has joined it with an older one: then only the older one's word counts for both.
//! - that KSM has put another page in its place after it was written.
//!
//! In all of these cases another physical page is here than at the last cut. So a page counts as unwritten only if its bit is clear, no other page
//! table has it, and it is the same physical page, or at the same place in the swap space, as at the last cut: for that, the entries of the last
//! cut are kept, 8 bytes for a page. What is left is a page that was moved away with its page table, and a clean one moved here that
//! the kernel has meanwhile brought into the very physical page (or place in the swap space) of the first: both at once.
//!
//! And one thing nobody tells: in a mapping that is marked as new as a whole, because it was just joined with a new one, mprotect makes pages writable
//! without a fault (can_change_pte_writable). If such pages are made read-only and writable again one by one, are written, and their mapping is then
//! joined with an older one, so that its mark is lost, all since the last cut, then these writes are missed. A collector of garbage that
//! protects single pages may do that; `hash` is the tracker for it.
//!
//! Huge pages of hugetlbfs have no bits, and shared memory is written through mappings of others: these always count as written. So do
//! pages that a child still shares after a fork.
//!
//! Pages that a device writes to (O_DIRECT) have their bits set as the write begins. A thread that waits for that cannot be stopped, so it
//! has ended at each cut; asynchronous I/O and io_uring are refused with the mappings that they take.
//!
//! Whoever else clears the bits of the process takes them from us, unnoticed. Another ckpt does not: who has them is locked.

use std::collections::HashMap;

use super::DirtyTracker;
use super::ebpf::AddressSpace;
use crate::error::{Doing, Error, Result};
use crate::ids::{PAGE_SIZE, PageRange, Pid};
use crate::page_set::PageSet;
use crate::sys::pagemap::{Entry, PageMap, TABLE};
use crate::sys::soft_dirty::{self, SoftDirtyBits};
use crate::tracee::maps::{Mapping, MappingKind};
use crate::tracee::remote::RemoteTask;

/// Does this machine have what it takes, for the caller?
///
/// Errors: what is missing.
pub fn probe() -> Result<()> {
    soft_dirty::trial().map_err(|error| match error.raw_os_error() {
        Some(libc::ENOSYS | libc::EINVAL) => {
            Error::Unexpected("this kernel has no soft-dirty bits (CONFIG_MEM_SOFT_DIRTY)".to_owned())
        }
        Some(libc::EPERM) => {
            Error::os("the numbers of physical pages, by which moved pages are known, are for CAP_SYS_ADMIN only", error)
        }
        _ => Error::os("cannot try soft-dirty bits on a page of our own", error),
    })
}

/// See the module.
#[derive(Debug)]
pub struct SoftDirtyTracker {
    pid: Pid,
    page_map: PageMap,
    bits: SoftDirtyBits,
    last: Tables,
}

impl SoftDirtyTracker {
    /// Of the process of a stopped thread.
    ///
    /// Errors: another ckpt has the bits.
    pub fn start(task: &mut RemoteTask<'_>) -> Result<SoftDirtyTracker> {
        let pid = task.pid();
        let bits = SoftDirtyBits::open(pid).doing(|| format!("cannot clear the soft-dirty bits of pid {pid}"))?;
        if !bits.reserve().doing(|| format!("cannot reserve the soft-dirty bits of pid {pid}"))? {
            return Err(Error::Unexpected(format!(
                "cannot track the memory of pid {pid}: another ckpt uses its soft-dirty bits; end that one, or take --tracker hash"
            )));
        }
        let zero = soft_dirty::zero_frame().doing(|| "cannot find out which physical page is that of zeros")?;
        Ok(SoftDirtyTracker { pid, page_map: PageMap::open(pid)?, bits, last: Tables::new(zero) })
    }
}

/// Are its writes told, and told in the page tables of this process alone?
fn is_noted(mapping: &Mapping) -> bool {
    let private = matches!(mapping.kind, MappingKind::Anonymous | MappingKind::File) && !mapping.shared;
    private && mapping.page_size == PAGE_SIZE
}

impl DirtyTracker for SoftDirtyTracker {
    fn name(&self) -> &'static str {
        "soft-dirty"
    }

    /// Another program has another address space, in which everything is new, unless others have cleared its bits. The trial is made with
    /// memory of ckpt's own: it must be the same physical page in the address space of the last cut and in that of the process.
    fn prepare(&mut self, task: &mut RemoteTask<'_>, _: Option<AddressSpace>) -> Result<()> {
        let page_map = PageMap::open(self.pid)?;
        let own = PageRange { count: 1, ..task.own_pages()? };
        // So that it is there.
        task.memory().write(own.addr(), &[0])?;
        let entry = |page_map: &PageMap| {
            let mut found = Entry::default();
            page_map.entries(own, |_, entries| found = entries[0]).map(|()| found)
        };
        let now = entry(&page_map)?;
        // Nothing can be read of an address space that has ended.
        let same = entry(&self.page_map).is_ok_and(|before| before.place() == now.place());
        if now.place().is_none() || !now.is_exclusive() || !same {
            let lost = "it has another address space than before (another program was executed)";
            return Err(Error::Unexpected(format!("cannot track the memory of pid {}: {lost}", self.pid)));
        }
        self.page_map = page_map;
        Ok(())
    }

    fn cut(&mut self, mappings: &mut [Mapping], _: bool) -> Result<PageSet> {
        let mut written = PageSet::new();
        let mut now = Tables::new(self.last.zero);
        for mapping in mappings {
            let pages = mapping.pages();
            if pages.count == 0 {
                continue;
            }
            if is_noted(mapping) {
                self.page_map.entries(pages, |first, entries| now.take(first, entries, &self.last, &mut written))?;
            } else {
                written.insert(pages.numbers());
            }
        }
        self.bits.clear().doing(|| format!("cannot clear the soft-dirty bits of pid {}", self.pid))?;
        self.last = now;
        Ok(written)
    }
}

/// The entries that a cut has found, by page table.
#[derive(Debug)]
struct Tables {
    tables: HashMap<u64, Box<[Entry; TABLE as usize]>>,
    /// The physical page of zeros.
    zero: u64,
}

impl Tables {
    fn new(zero: u64) -> Tables {
        Tables { tables: HashMap::new(), zero }
    }

    /// Takes entries of pages side by side, all of one page table, and adds those that count as written since the cut that has found `before`.
    fn take(&mut self, first: u64, entries: &[Entry], before: &Tables, written: &mut PageSet) {
        if !entries.iter().any(|entry| entry.is_there()) {
            return;
        }
        let (number, at) = (first / TABLE, (first % TABLE) as usize);
        let none = [Entry::default(); TABLE as usize];
        let old = before.tables.get(&number).map_or(&none, |table| table);
        let table = self.tables.entry(number).or_insert_with(|| Box::new(none));
        table[at..at + entries.len()].copy_from_slice(entries);
        let mut run = first..first;
        for ((page, entry), old) in (first..).zip(entries).zip(&old[at..]) {
            if !entry.is_there() || self.is_unwritten(*entry, *old) {
                continue;
            }
            if page == run.end {
                run.end += 1;
            } else {
                add(written, std::mem::replace(&mut run, page..page + 1));
            }
        }
        add(written, run);
    }

    /// Does a page hold what it held when its entry was `before`? See the module.
    fn is_unwritten(&self, now: Entry, before: Entry) -> bool {
        let theirs = now.frame().is_none_or(|frame| frame == self.zero) || now.is_exclusive();
        !now.is_soft_dirty() && theirs && now.place().is_some() && now.place() == before.place()
    }
}

fn add(written: &mut PageSet, run: std::ops::Range<u64>) {
    if !run.is_empty() {
        written.insert(run);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ZERO: u64 = 9;

    /// Is a page with the entry `now` taken for one that was not written since its entry was `before`?
    fn is_unwritten(before: Entry, now: Entry) -> bool {
        let (mut last, mut next) = (Tables::new(ZERO), Tables::new(ZERO));
        // In the middle of others, which say nothing.
        let around = |entry: Entry| [Entry::quiet(1), entry, Entry::default()];
        last.take(TABLE * 3 + 99, &around(before), &Tables::new(ZERO), &mut PageSet::new());
        let mut written = PageSet::new();
        next.take(TABLE * 3 + 99, &around(now), &last, &mut written);
        let page = TABLE * 3 + 100;
        assert!(!now.is_there() || written.iter().all(|run| *run == (page..page + 1)), "{written:?}");
        !written.contains(page)
    }

    #[test]
    fn memory_that_others_write_and_huge_pages_are_not_watched() {
        let pid = Pid(std::process::id() as i32);
        let mut mapping = crate::tracee::maps::read(pid).unwrap().swap_remove(0);
        (mapping.kind, mapping.shared, mapping.page_size) = (MappingKind::Anonymous, false, PAGE_SIZE);
        assert!(is_noted(&mapping));
        assert!(!is_noted(&Mapping { shared: true, ..mapping.clone() }));
        assert!(!is_noted(&Mapping { page_size: 2 << 20, ..mapping.clone() }));
        assert!(!is_noted(&Mapping { kind: MappingKind::SharedAnonymous, ..mapping.clone() }));
        assert!(!is_noted(&Mapping { kind: MappingKind::Vdso, ..mapping }));
    }

    #[test]
    fn only_the_same_physical_page_with_a_clear_bit_was_not_written() {
        let page = Entry::quiet(77);
        assert!(is_unwritten(page, page) && is_unwritten(page.written(), page));
        assert!(!is_unwritten(page, page.written()));
        assert!(!is_unwritten(page, Entry::quiet(78)), "moved here");
        assert!(!is_unwritten(Entry::default(), page), "not there before");
        assert!(!is_unwritten(page, page.mapped_elsewhere()), "it may be the huge page of zeros by now");
        let zero = Entry::quiet(ZERO).mapped_elsewhere();
        assert!(!is_unwritten(page, zero), "dropped, and read again");
        assert!(is_unwritten(zero, zero));
        let swapped = Entry::swapped(77);
        assert!(is_unwritten(swapped, swapped) && !is_unwritten(swapped, Entry::swapped(78)));
        assert!(!is_unwritten(page, swapped) && !is_unwritten(swapped, page) && !is_unwritten(swapped, swapped.written()));
        assert!(!is_unwritten(Entry::quiet(0), Entry::quiet(0)), "which physical page is not told");
        assert!(is_unwritten(page, Entry::default()), "what is not there is a hole");
    }

    #[test]
    fn pages_are_found_wherever_mappings_and_tables_begin() {
        let mut written = PageSet::new();
        let (mut last, mut next) = (Tables::new(ZERO), Tables::new(ZERO));
        let all: Vec<Entry> = (0..TABLE).map(|n| Entry::quiet(100 + n)).collect();
        last.take(0, &all[..200], &Tables::new(ZERO), &mut written);
        last.take(200, &all[200..], &Tables::new(ZERO), &mut written);
        assert!(written.iter().count() == 1 && written.contains(0) && written.contains(TABLE - 1), "{written:?}");
        written.clear();
        let mut changed = all.clone();
        for at in [0, 1, 255, 511] {
            changed[at] = changed[at].written();
        }
        next.take(0, &changed[..256], &last, &mut written);
        next.take(256, &changed[256..], &last, &mut written);
        assert_eq!(written.iter().cloned().collect::<Vec<_>>(), [0..2, 255..256, 511..512]);
        next.take(TABLE, &[Entry::default(); 4], &last, &mut written);
        assert_eq!(next.tables.len(), 1, "a table of nothing is not kept");
    }
}
