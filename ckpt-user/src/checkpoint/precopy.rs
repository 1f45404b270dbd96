//! Pages that are copied before the freeze, where they cannot be copied after the thaw. A copy counts if nobody has written to its page in between.
//!
//! Memory is protected first, and copied then, while the target runs. At the cut the page tables tell what was written since: that is read again, with the
//! target stopped, and the copies of the rest go into the image after the thaw.
//!
//! What the kernel writes by itself may have begun before: a page that read(2) with O_DIRECT fills was taken note of when the call began, and may
//! change after it was protected and copied, with no trace left in the page tables. So the target is stopped for a moment after its memory was protected:
//! then every such call has ended, and those that begin later leave their trace.

use rangemap::RangeSet;

use super::live::Split;
use crate::error::{Error, Result};
use crate::ids::{ObjRef, PAGE_SIZE, PageRange, Pid};
use crate::pipeline::{Extent, PageSource};
use crate::resources::memory::MemorySource;

/// The most pages of a target that are held here at once; and no more than an eighth of the memory that is free.
const MOST: u64 = (1 << 30) / PAGE_SIZE;
/// Read at once.
const AT_ONCE: u64 = 256;

/// Copies of pages of one memory.
#[derive(Debug, Default)]
pub(super) struct Spool {
    /// In order, with the place of the first page in `bytes`.
    ranges: Vec<(PageRange, usize)>,
    bytes: Vec<u8>,
}

/// How many pages may be held now.
pub(super) fn room() -> u64 {
    MOST.min(crate::sys::procfs::available_memory().unwrap_or(0) / 8 / PAGE_SIZE)
}

impl Spool {
    /// Copies pages of a process that runs, as many of the first as there is `room` for. What cannot be read any more is left out.
    ///
    /// Errors: the process is gone.
    pub(super) fn fill(pid: Pid, pages: &[PageRange], room: u64) -> Result<Spool> {
        let owner = ObjRef(1);
        let source = MemorySource::new(owner, pid, Vec::new())?;
        let mut spool = Spool::default();
        let planned = pages.iter().map(|range| range.count).sum::<u64>().min(room);
        if spool.bytes.try_reserve_exact((planned * PAGE_SIZE) as usize).is_err() {
            return Ok(spool);
        }
        for batch in batches(pages, room) {
            let start = spool.bytes.len();
            spool.bytes.resize(start + batch.iter().map(|range| range.bytes() as usize).sum::<usize>(), 0);
            match source.read(owner, &batch, &mut spool.bytes[start..]) {
                Ok(()) => {
                    let mut at = start;
                    for range in batch {
                        spool.ranges.push((range, at));
                        at += range.bytes() as usize;
                    }
                }
                Err(Error::Gone(pid)) => return Err(Error::Gone(pid)),
                Err(error) => {
                    tracing::debug!("pages of pid {pid} are left to the pause: {error}");
                    spool.bytes.truncate(start);
                }
            }
        }
        spool.ranges.sort_unstable_by_key(|(range, _)| range.start);
        Ok(spool)
    }

    /// The plan of an image in two parts: what is still to be read, and the pages of `owner` that are here and were not `written` since.
    pub(super) fn split(&self, plan: &[Extent], owner: ObjRef, written: &RangeSet<u64>) -> Split {
        let clean = self.ranges.iter().flat_map(|(range, _)| written.gaps(&range.numbers()).collect::<Vec<_>>());
        let clean: Vec<PageRange> = clean.map(PageRange::from).collect();
        Split::of(plan, owner, &clean)
    }

    /// From this page on: the bytes of it and of those that follow it, here and in the memory.
    fn from(&self, page: u64) -> Option<&[u8]> {
        let after = self.ranges.partition_point(|(range, _)| range.start <= page);
        let (range, at) = self.ranges[..after].last().filter(|(range, _)| page < range.end())?;
        Some(&self.bytes[at + ((page - range.start) * PAGE_SIZE) as usize..at + range.bytes() as usize])
    }
}

impl PageSource for Spool {
    fn read(&self, _: ObjRef, ranges: &[PageRange], mut buf: &mut [u8]) -> Result<()> {
        for range in ranges {
            let mut pages = range.numbers();
            while pages.start < pages.end {
                let missing = || Error::Unexpected(format!("page {} was not copied: this is an error in ckpt", pages.start));
                let there = self.from(pages.start).ok_or_else(missing)?;
                let count = (there.len() as u64 / PAGE_SIZE).min(pages.end - pages.start);
                let (part, rest) = buf.split_at_mut((count * PAGE_SIZE) as usize);
                part.copy_from_slice(&there[..part.len()]);
                buf = rest;
                pages.start += count;
            }
        }
        Ok(())
    }
}

/// The first `room` pages, in batches of [`AT_ONCE`] at the most.
fn batches(pages: &[PageRange], mut room: u64) -> Vec<Vec<PageRange>> {
    let mut batches: Vec<Vec<PageRange>> = Vec::new();
    let mut left = 0;
    for range in pages {
        let mut start = range.start;
        while start < range.end() && room > 0 {
            if left == 0 {
                batches.push(Vec::new());
                left = AT_ONCE;
            }
            let count = (range.end() - start).min(left).min(room);
            if let Some(batch) = batches.last_mut() {
                batch.push(PageRange { start, count });
            }
            (start, left, room) = (start + count, left - count, room - count);
        }
    }
    batches
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::pipeline::ExtentKind;

    fn ranges(raw: Vec<(u64, u64)>) -> Vec<PageRange> {
        let mut next = 0;
        let place = |(gap, count)| {
            let range = PageRange { start: next + gap, count };
            next = range.end();
            range
        };
        raw.into_iter().map(place).collect()
    }

    /// Memory whose pages hold their number and the time at which they were written last.
    fn page(number: u64, time: u8) -> Vec<u8> {
        let mut bytes = vec![time; PAGE_SIZE as usize];
        bytes[..8].copy_from_slice(&number.to_le_bytes());
        bytes
    }

    proptest! {
        #[test]
        fn batches_are_the_first_pages(raw in prop::collection::vec((0..9u64, 1..700u64), 0..20), room in 0..3000u64) {
            let pages = ranges(raw);
            let batches = batches(&pages, room);
            prop_assert!(batches.iter().all(|batch| batch.iter().map(|range| range.count).sum::<u64>() <= AT_ONCE));
            let list = |ranges: &[PageRange]| ranges.iter().copied().flat_map(PageRange::numbers).collect::<Vec<_>>();
            let expected: Vec<u64> = list(&pages).into_iter().take(room as usize).collect();
            prop_assert_eq!(list(&batches.concat()), expected);
        }

        /// Whatever was copied before, and whatever was written since: both parts of the plan together are the memory at the cut.
        #[test]
        fn the_image_is_the_memory_at_the_cut(
            copied in prop::collection::vec((0..9u64, 1..90u64), 0..12),
            planned in prop::collection::vec((0..9u64, 1..90u64), 1..12),
            written in prop::collection::btree_set(0..900u64, 0..200),
        ) {
            let owner = ObjRef(3);
            let mut spool = Spool::default();
            for range in ranges(copied) {
                spool.ranges.push((range, spool.bytes.len()));
                range.numbers().for_each(|number| spool.bytes.extend(page(number, 0)));
            }
            let at_the_cut = |number: u64| page(number, u8::from(written.contains(&number)));
            let plan: Vec<Extent> = ranges(planned).into_iter().map(|pages| Extent { owner, pages, kind: ExtentKind::Read }).collect();
            let set = written.iter().map(|&number| number..number + 1).collect();
            let Split { still, moving } = spool.split(&plan, owner, &set);
            let list = |plan: &[Extent]| plan.iter().flat_map(|extent| extent.pages.numbers()).collect::<Vec<u64>>();
            let mut all = [list(&still), list(&moving)].concat();
            all.sort_unstable();
            prop_assert_eq!(all, list(&plan));
            for extent in moving {
                let mut bytes = vec![9; extent.pages.bytes() as usize];
                spool.read(owner, &[extent.pages], &mut bytes).unwrap();
                let expected: Vec<u8> = extent.pages.numbers().flat_map(at_the_cut).collect();
                prop_assert!(bytes == expected, "{extent:?}");
            }
        }
    }

    #[test]
    fn what_was_not_copied_is_not_given() {
        let spool = Spool { ranges: vec![(PageRange { start: 5, count: 1 }, 0)], bytes: page(5, 0) };
        let mut bytes = vec![0; 2 * PAGE_SIZE as usize];
        assert!(spool.read(ObjRef(1), &[PageRange { start: 5, count: 2 }], &mut bytes).is_err());
        assert!(spool.read(ObjRef(1), &[PageRange { start: 4, count: 1 }], &mut bytes).is_err());
    }
}
