//! Pages that are copied before the freeze, where they cannot be copied after the thaw. A copy counts if nobody has written to its page in between.
//!
//! Memory is protected first, and copied then, while the target runs. At the cut the page tables tell what was written since: that is read again, with the
//! target stopped, and the copies of the rest go into the image after the thaw.
//!
//! What the kernel writes by itself may have begun before: a page that read(2) with O_DIRECT fills was taken note of when the call began, and may
//! change after it was protected and copied, with no trace left in the page tables. So the target is stopped for a moment after its memory was protected:
//! then every such call has ended, and those that begin later leave their trace.

use std::collections::HashMap;
use std::time::Duration;

use super::Options;
use super::collect::CutMemory;
use super::freezer::Freezer;
use super::live::Split;
use super::mappings::Mappings;
use super::since::Since;
use super::spool::{self, AT_ONCE, Spool};
use crate::error::{Error, Result};
use crate::ids::{ObjRef, PAGE_SIZE, PageRange, Pid};
use crate::pipeline::{Extent, PageSource};
use crate::resources::Collector;
use crate::resources::memory::MemorySource;
use crate::resources::vma::{self, SharedSeen};

/// The most pages of a target that are held here at once; and no more than an eighth of the memory that is free.
const MOST: u64 = (1 << 30) / PAGE_SIZE;

/// Copies of pages, by the process that each memory is seen through.
#[derive(Debug, Default)]
pub(super) struct Spools(HashMap<Pid, Spool>);

impl Spools {
    /// While the target runs, with its memory protected: copies what the image will hold for the most part. The target stands still for a moment first,
    /// which is added to `pause` (the module says why). `None`: it is not worth it.
    pub(super) fn fill(
        freezer: &Freezer<'_>,
        options: &Options,
        since: &Since,
        mappings: &Mappings,
        pause: &mut Duration,
    ) -> Result<Option<Spools>> {
        let owner = ObjRef(1);
        let mut planned = Vec::new();
        for (pid, mappings, as_left) in mappings.last() {
            let mut cx = Collector::new(&options.collect, vec![pid]);
            let vmas = vma::collect(&mut cx, pid, owner, mappings, as_left);
            match vmas.and_then(|mut vmas| vma::pages(pid, &mut vmas, since.presence(pid), &mut SharedSeen::default())) {
                Ok(extents) => planned.push((pid, since.to_copy_early(pid, owner, extents))),
                Err(error) => tracing::debug!("no pages of pid {pid} are copied before it is stopped: {error}"),
            }
        }
        planned.retain(|(_, pages)| !pages.is_empty());
        let mut room = room();
        if planned.is_empty() || room == 0 {
            return Ok(None);
        }
        let (frozen, _) = freezer.freeze()?;
        let began = frozen.since;
        // Who had pages pinned before they were protected may write to them after they were copied, and leaves no trace.
        planned.retain(|&(pid, _)| !frozen.was_entered(pid));
        let (_, thawed) = frozen.thaw()?;
        *pause += thawed - began;
        let mut spools = Spools::default();
        let forked = planned.len() > 1;
        for (pid, pages) in planned {
            match fill(pid, forked, &pages, room) {
                Ok(spool) => {
                    room -= spool.pages();
                    spools.0.insert(pid, spool);
                }
                Err(Error::Gone(pid)) if pid != freezer.root => {}
                Err(error) => return Err(error),
            }
        }
        Ok(Some(spools))
    }

    /// After the cut: the plan of an image in two parts, what is still to be read, and the pages that are here and were not written since; with where to
    /// read these from. What was copied counts only if it is known what was written since.
    pub(super) fn split(&self, plan: &[Extent], memories: &[CutMemory], since: &Since) -> (Split, Spooled<'_>) {
        let mut clean = HashMap::new();
        let mut spooled = Spooled(HashMap::new());
        for memory in memories {
            let Some((spool, written)) = self.0.get(&memory.pid).zip(since.written_since_prearm(memory.pid)) else { continue };
            clean.insert(memory.mm, spool.clean(written));
            spooled.0.insert(memory.mm, spool);
        }
        let clean = clean.iter().map(|(&mm, pages)| (mm, pages.as_slice())).collect();
        (Split::of(plan, &clean), spooled)
    }
}

/// Copies by the names that an image has for the memories.
#[derive(Debug)]
pub(super) struct Spooled<'a>(HashMap<ObjRef, &'a Spool>);

impl PageSource for Spooled<'_> {
    fn read(&self, owner: ObjRef, ranges: &[PageRange], buf: &mut [u8]) -> Result<()> {
        spool::of(owner, self.0.get(&owner).copied())?.read(ranges, buf)
    }
}

/// How many pages may be held now.
fn room() -> u64 {
    MOST.min(crate::sys::procfs::available_memory().unwrap_or(0) / 8 / PAGE_SIZE)
}

/// Copies pages of a process that runs, which may share some with others (`forked`), as many of the first as there is `room` for. What cannot be read any more is left out.
///
/// Errors: the process is gone.
fn fill(pid: Pid, forked: bool, pages: &[PageRange], room: u64) -> Result<Spool> {
    let owner = ObjRef(1);
    let source = MemorySource::new([(owner, pid)], forked, Vec::new())?;
    let mut spool = Spool::default();
    let planned = pages.iter().map(|range| range.count).sum::<u64>().min(room);
    if !spool.reserve(planned) {
        return Ok(spool);
    }
    for batch in batches(pages, room) {
        match spool.add(&batch, |buf| source.read(owner, &batch, buf)) {
            Ok(()) => {}
            Err(Error::Gone(pid)) => return Err(Error::Gone(pid)),
            Err(error) => tracing::debug!("pages of pid {pid} are left to the pause: {error}"),
        }
    }
    spool.sort();
    Ok(spool)
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
                let bytes: Vec<u8> = range.numbers().flat_map(|number| page(number, 0)).collect();
                spool.add(&[range], |buf| { buf.copy_from_slice(&bytes); Ok(()) }).unwrap();
            }
            let at_the_cut = |number: u64| page(number, u8::from(written.contains(&number)));
            let plan: Vec<Extent> = ranges(planned).into_iter().map(|pages| Extent { owner, pages, kind: ExtentKind::Read }).collect();
            let set = written.iter().map(|&number| number..number + 1).collect();
            let clean = spool.clean(&set);
            let Split { still, moving, .. } = Split::of(&plan, &[(owner, &clean[..])].into());
            let list = |plan: &[Extent]| plan.iter().flat_map(|extent| extent.pages.numbers()).collect::<Vec<u64>>();
            let mut all = [list(&still), list(&moving)].concat();
            all.sort_unstable();
            prop_assert_eq!(all, list(&plan));
            for extent in moving {
                let mut bytes = vec![9; extent.pages.bytes() as usize];
                spool.read(&[extent.pages], &mut bytes).unwrap();
                let expected: Vec<u8> = extent.pages.numbers().flat_map(at_the_cut).collect();
                prop_assert!(bytes == expected, "{extent:?}");
            }
        }
    }
}
