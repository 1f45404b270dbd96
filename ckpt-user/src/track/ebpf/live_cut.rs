//! A cut whose pages are copied while the process runs: who saves which page (`ckpt_ebpf::preserve` has the rule).
//!
//! A reader of pages claims what it has read, and then asks the page tables: a page that is still protected, or was found protected by a program
//! when it was about to be written, had its old contents until it was claimed. Anything else has changed in a way that nobody could see in
//! time, and the cut is void.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use ckpt_ebpf::preserve::{PreImage, Tally, Window, first_ending_after, place};

use super::MemoryState;
use super::error::EbpfError;
use super::preserver::{ENTRY_BYTES, Preserver};
use super::windows::{self, Layout};
use crate::error::{Error, Result};
use crate::ids::{ObjRef, PAGE_SIZE, PageRange, Pid};
use crate::page_set::PageSet;
use crate::pipeline::LivePages;
use crate::sys::pagemap::PageMap;
use crate::track::unproved;

/// See the module. Dropping it ends the saving of pages before they change.
pub struct LiveCut<'a> {
    preserver: &'a mut Preserver,
    parts: Vec<Part>,
    /// Of the parts, so many were given to the programs.
    given: usize,
    /// Pages to copy.
    pages: u64,
    /// Of these, those that readers have claimed, and found to be true.
    settled: AtomicU64,
    /// Of these, those that came out of the ring.
    taken: AtomicU64,
    /// What the programs had counted before.
    before: Tallies,
    /// Since when nothing is left to read and the ring is empty, though pages are missing.
    waiting_since: Mutex<Option<Instant>>,
}

/// One memory.
#[derive(Debug)]
pub(super) struct Part {
    /// A process that has it.
    pub(super) pid: Pid,
    /// As it was at the cut.
    pub(super) memory: MemoryState,
    pub(super) owner: ObjRef,
    pub(super) layout: Layout,
    pub(super) page_map: PageMap,
    /// To copy.
    pub(super) pages: Vec<PageRange>,
    /// To be proved unchanged.
    pub(super) passed_over: Vec<PageRange>,
}

#[derive(Clone, Copy, Debug)]
struct Tallies {
    saved: u64,
    full: u64,
    failed: u64,
    nanoseconds: u64,
}

/// How long a program may take from its claim until the page is in the ring: some microseconds, if the machine is not suspended meanwhile.
const LATEST: Duration = Duration::from_secs(5);
/// As many pages as a page table has.
const BETWEEN_MOST: u64 = 512;

impl<'a> LiveCut<'a> {
    pub(super) fn new(preserver: &'a mut Preserver, parts: Vec<Part>) -> LiveCut<'a> {
        let pages = parts.iter().map(|part| windows::count(&part.pages)).sum();
        let tally = |tally| preserver.tally(tally);
        let before = Tallies {
            saved: tally(Tally::Saved),
            full: tally(Tally::Full),
            failed: tally(Tally::Failed),
            nanoseconds: tally(Tally::Nanoseconds),
        };
        let (settled, taken, waiting_since) = (AtomicU64::new(0), AtomicU64::new(0), Mutex::default());
        LiveCut { preserver, parts, given: 0, pages, settled, taken, before, waiting_since }
    }

    /// Gives all parts to the programs.
    pub(super) fn publish(&mut self) -> Result<(), EbpfError> {
        let mut first = 0;
        for part in &self.parts {
            self.preserver.give(part, first)?;
            self.given += 1;
            first += part.layout.windows.len();
        }
        let noting = self.parts.iter().any(|part| !part.passed_over.is_empty());
        self.preserver.set_count(self.parts.len() as u32, noting)
    }

    /// Pages that were passed over by the scan before the cut.
    pub fn passed_over(&self) -> u64 {
        self.parts.iter().map(|part| windows::count(&part.passed_over)).sum()
    }

    /// Proves that nobody had written, before the cut, to the pages that were passed over. They were protected, and watched by nobody, until they were
    /// published. One that still is protected nobody has written to; neither has anybody before the cut to one that a program has found
    /// protected after it.
    ///
    /// `is_as_mapped`: the mappings of a process are now what they were when its memory was in that state.
    ///
    /// Errors: [`Error::Unseen`], that is not so, or not sure.
    pub fn prove(&self, is_as_mapped: &dyn Fn(Pid, &MemoryState) -> bool) -> Result<()> {
        for part in &self.parts {
            let mut clean = part.not_written().map_err(|error| Error::Unseen(error.to_string()))?;
            // What is not mapped any more is not told as written, either.
            if !is_as_mapped(part.pid, &part.memory) {
                clean = part.there_and_protected().map_err(|error| Error::Unseen(error.to_string()))?;
            }
            // Noted before it was written: so after the look.
            let noted = |page| part.has_bit(self.preserver.faulted(), page);
            if let Some(page) = part.passed_over.iter().find_map(|pages| unproved(*pages, &clean, noted)) {
                let at = page * PAGE_SIZE;
                return Err(Error::Unseen(format!("the page at {at:#x} was written, or taken away, past the page fault")));
            }
        }
        Ok(())
    }

    fn part(&self, owner: ObjRef) -> Result<&Part> {
        let part = self.parts.iter().find(|part| part.owner == owner);
        part.ok_or_else(|| Error::Unexpected(format!("object {owner} is not copied while it changes")))
    }

    /// How full the ring is: 1 is full.
    pub fn pressure(&self) -> f64 {
        (self.waiting() * ENTRY_BYTES) as f64 / f64::from(self.preserver.room().ring_bytes)
    }

    /// Pages that the programs have saved.
    pub fn preserved(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    /// The time that the process has lost to that, over all its threads.
    pub fn time_lost(&self) -> Duration {
        Duration::from_nanos(self.preserver.tally(Tally::Nanoseconds) - self.before.nanoseconds)
    }

    /// Claims the pages, and returns those that others had claimed before.
    fn claim(&self, part: &Part, ranges: &[PageRange]) -> Vec<u64> {
        let mut lost = Vec::new();
        let claimed = self.preserver.claimed();
        part.layout.for_each_mask(ranges, |word, mask| {
            let others = claimed[word as usize].fetch_or(mask, Ordering::SeqCst) & mask;
            if others != 0 {
                lost.extend(part.layout.pages_of(word, others));
            }
        });
        lost
    }

    /// The pages of `ranges` that are there, and that nobody has written to since they were protected.
    fn clean(&self, part: &Part, ranges: &[PageRange]) -> Result<PageSet> {
        let mut clean = PageSet::new();
        for span in spans(ranges) {
            let found = part.page_map.find_protected(span, |pages| clean.insert(pages.numbers()));
            // The address space is gone: another program runs, or none.
            found.map_err(|error| self.void(error.to_string()))?;
        }
        Ok(clean)
    }

    fn void(&self, why: impl Into<String>) -> Error {
        let full = self.preserver.tally(Tally::Full) - self.before.full;
        if full > 0 {
            return Error::Void(format!("{full} pages were written that the ring buffer of eBPF had no room for"));
        }
        Error::Void(why.into())
    }
}

impl Part {
    /// What was passed over, with what lies between: to look at a little more is quicker than many looks.
    fn passed_over(&self) -> impl Iterator<Item = PageRange> {
        let side_by_side = self.passed_over.chunk_by(|one, next| next.start - one.end() <= BETWEEN_MOST);
        side_by_side.filter_map(|pages| {
            let (first, last) = (pages.first()?, pages.last()?);
            Some(PageRange { start: first.start, count: last.end() - first.start })
        })
    }

    /// Of that, the pages that were not written, nor taken away, since they were protected, as long as they are mapped. The kernel is several times as fast as
    /// for [`Part::there_and_protected`].
    fn not_written(&self) -> Result<PageSet> {
        let mut clean = PageSet::new();
        for pages in self.passed_over() {
            let mut written = PageSet::new();
            self.page_map.find_written(pages, |pages| written.insert(pages.numbers()))?;
            clean.extend(written.gaps(&pages.numbers()));
        }
        Ok(clean)
    }

    /// The same, and they are there.
    fn there_and_protected(&self) -> Result<PageSet> {
        let mut clean = PageSet::new();
        for pages in self.passed_over() {
            self.page_map.find_protected(pages, |pages| clean.insert(pages.numbers()))?;
        }
        Ok(clean)
    }

    fn window_of(&self, page: u64) -> Option<Window> {
        let get = |n: u32| self.layout.windows.get(n as usize).copied();
        first_ending_after(self.layout.windows.len() as u32, page, get).map(|(_, window)| window)
    }

    fn has_bit(&self, bits: &[AtomicU64], page: u64) -> bool {
        let Some(bit) = self.window_of(page).and_then(|window| window.bit(page)) else { return false };
        let (word, mask) = place(bit);
        bits[word as usize].load(Ordering::SeqCst) & mask != 0
    }
}

/// Ranges that are close together are looked at with one call.
fn spans(ranges: &[PageRange]) -> Vec<PageRange> {
    const NEAR: u64 = 64;
    let mut spans: Vec<PageRange> = Vec::new();
    for range in ranges {
        match spans.last_mut() {
            Some(last) if range.start >= last.end() && range.start - last.end() <= NEAR => last.count = range.end() - last.start,
            _ => spans.push(*range),
        }
    }
    spans
}

impl LivePages for LiveCut<'_> {
    fn has(&self, owner: ObjRef) -> bool {
        self.parts.iter().any(|part| part.owner == owner)
    }

    fn left(&self, owner: ObjRef, ranges: &[PageRange]) -> Vec<PageRange> {
        let Ok(Part { layout, .. }) = self.part(owner) else { return ranges.to_vec() };
        let mut left: Vec<PageRange> = Vec::with_capacity(ranges.len());
        let claimed = self.preserver.claimed();
        for range in ranges {
            layout.for_each_mask(&[*range], |word, mask| {
                let free = !claimed[word as usize].load(Ordering::Relaxed) & mask;
                for page in layout.pages_of(word, free) {
                    match left.last_mut() {
                        Some(last) if last.end() == page && page > range.start => last.count += 1,
                        _ => left.push(PageRange { start: page, count: 1 }),
                    }
                }
            });
        }
        left
    }

    fn settle(&self, owner: ObjRef, ranges: &[PageRange]) -> Result<Vec<u64>> {
        let part = self.part(owner)?;
        let lost = self.claim(part, ranges);
        let clean = self.clean(part, ranges)?;
        let dirty = ranges.iter().flat_map(|range| clean.gaps(&range.numbers()).collect::<Vec<_>>()).flatten();
        for page in dirty {
            if lost.binary_search(&page).is_err() && !part.has_bit(self.preserver.faulted(), page) {
                let why = format!(
                    "the page at {:#x} was written, or taken away, past the page fault: by direct I/O or another process, say",
                    page * PAGE_SIZE
                );
                return Err(self.void(why));
            }
        }
        let read: u64 = ranges.iter().map(|range| range.count).sum();
        self.settled.fetch_add(read - lost.len() as u64, Ordering::SeqCst);
        Ok(lost)
    }

    fn waiting(&self) -> u64 {
        let saved = self.preserver.tally(Tally::Saved) - self.before.saved;
        saved.saturating_sub(self.taken.load(Ordering::SeqCst))
    }

    fn take(&self, buf: &mut [u8]) -> Result<Vec<(ObjRef, u64)>> {
        let mut pages = Vec::new();
        let mut ring = self.preserver.ring().lock().unwrap_or_else(PoisonError::into_inner);
        for place in buf.chunks_exact_mut(PAGE_SIZE as usize) {
            // What an earlier cut, which was given up, has left there is passed over.
            let entry = loop {
                let Some(item) = ring.next() else { break None };
                let entry: &PreImage = bytemuck::try_from_bytes(&item)
                    .map_err(|_| Error::Unexpected("an entry of the ring buffer of eBPF has a wrong size".to_owned()))?;
                if entry.cut == self.preserver.cut() {
                    place.copy_from_slice(&entry.bytes);
                    break Some((ObjRef(entry.owner), entry.page));
                }
            };
            let Some(page) = entry else { break };
            pages.push(page);
        }
        drop(ring);
        self.taken.fetch_add(pages.len() as u64, Ordering::SeqCst);
        Ok(pages)
    }

    fn is_complete(&self) -> Result<bool> {
        let done = self.settled.load(Ordering::SeqCst) + self.taken.load(Ordering::SeqCst);
        if done == self.pages {
            return Ok(true);
        }
        if self.preserver.tally(Tally::Failed) > self.before.failed {
            return Err(self.void("a page changed while it was being saved"));
        }
        let mut since = self.waiting_since.lock().unwrap_or_else(PoisonError::into_inner);
        if self.waiting() > 0 {
            *since = None;
            return Ok(false);
        }
        if since.get_or_insert_with(Instant::now).elapsed() > LATEST {
            return Err(self.void(format!("{} pages were claimed, and did not come", self.pages - done)));
        }
        Ok(false)
    }
}

impl Drop for LiveCut<'_> {
    fn drop(&mut self) {
        let withdrawn = self.preserver.set_count(0, false);
        let taken = self.parts[..self.given].iter().map(|part| self.preserver.take_back(part.memory.space.mm));
        for error in taken.chain([withdrawn]).filter_map(Result::err) {
            tracing::warn!("{error}");
        }
        // A cut that was given up leaves pages there, which would take the room of the next one's.
        let mut ring = self.preserver.ring().lock().unwrap_or_else(PoisonError::into_inner);
        while ring.next().is_some() {}
    }
}

impl fmt::Debug for LiveCut<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LiveCut").field("memories", &self.parts.len()).field("pages", &self.pages).finish_non_exhaustive()
    }
}
