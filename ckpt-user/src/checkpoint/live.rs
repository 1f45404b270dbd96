//! Copying the pages while the target runs: what is needed for it, which pages it is for, and what is done when it does not work out.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use super::{CutMemory, Freezer, Frozen, Mappings, Since};
use crate::error::{Error, Result};
use crate::ids::{ObjRef, PageRange, Pid};
use crate::pipeline::{Extent, ExtentKind};
use crate::track::Touched;
use crate::track::ebpf::{EbpfError, LiveCut, Preserver, Room, TaskInspector, ToPreserve, WriteWatch, Writes};

/// The programs that save pages before they change. Loading them takes a while, so it is done only where it is needed, and once.
#[derive(Debug, Default)]
pub(super) enum Programs {
    #[default]
    NotNeededYet,
    Loaded(Box<Preserver>),
    /// This machine or the caller's rights do not have it, or it is not wanted.
    NotHere,
}

/// Pages that are few are copied faster than anything else is set up.
const FEW: u64 = 64;
/// What the ring buffer begins with, and the most that it grows to when the target writes faster than pages are taken out of it.
const RING_FIRST: u32 = 32 << 20;
const RING_MOST: u32 = 512 << 20;

impl Programs {
    /// Loads them at once.
    ///
    /// Errors: what is missing.
    pub(super) fn loaded() -> Result<Programs> {
        Programs::with_ring(RING_FIRST)
    }

    /// Loads them, if that was not tried yet. Are they there?
    pub(super) fn load(&mut self) -> bool {
        if let Programs::NotNeededYet = self {
            *self = Programs::with_ring(RING_FIRST).unwrap_or_else(|error| Programs::missing(&error));
        }
        matches!(self, Programs::Loaded(_))
    }

    fn with_ring(ring_bytes: u32) -> Result<Programs> {
        let preserver = Preserver::load(Room::new(ring_bytes, pages_of_machine()));
        let preserver = preserver.map_err(|error| Error::Unexpected(error.to_string()))?;
        tracing::info!("pages are copied while the process runs, by eBPF");
        Ok(Programs::Loaded(Box::new(preserver)))
    }

    fn missing(error: &Error) -> Programs {
        tracing::info!("pages are copied while the process is stopped: {error}");
        Programs::NotHere
    }

    /// Are they there already?
    pub(super) fn are_loaded(&self) -> bool {
        matches!(self, Programs::Loaded(_))
    }

    /// After a cut that had to hold its target back: takes a larger ring next time, as long as there is memory for it.
    pub(super) fn grow(&mut self) {
        let Programs::Loaded(preserver) = self else { return };
        let ring_bytes = preserver.room().ring_bytes.saturating_mul(2);
        if ring_bytes <= RING_MOST && u64::from(ring_bytes) * 8 <= crate::sys::procfs::available_memory().unwrap_or(0) {
            tracing::info!("the ring buffer for pages that are about to change grows to {} MiB", ring_bytes >> 20);
            // The old one first: both at once would be a lot.
            *self = Programs::NotNeededYet;
            *self = Programs::with_ring(ring_bytes).unwrap_or_else(|error| Programs::missing(&error));
        }
    }

    /// Before a freeze: from now on counts what the target writes, unless it does already.
    pub(super) fn follow_writes(&mut self, inspector: &TaskInspector, pid: Pid) {
        self.of_writes(|writes| writes.follow(inspector.kernel_tgid(pid)?));
    }

    /// Before memory is protected for a cut of these processes: from then on what they touch is noted.
    pub(super) fn begin_noting(&mut self, inspector: &TaskInspector, pids: &[Pid]) {
        // Who has ended meanwhile touches nothing.
        let tgids = pids.iter().filter_map(|&pid| inspector.kernel_tgid(pid).ok()).collect();
        self.of_writes(|writes| writes.begin_noting(tgids));
    }

    /// Before a freeze: [`WriteWatch::noted_so_far`] of these processes.
    pub(super) fn noted_so_far(&mut self, inspector: &TaskInspector, pids: &[Pid]) -> Option<(usize, Instant)> {
        let tgids = pids.iter().map(|&pid| inspector.kernel_tgid(pid).ok()).collect::<Option<Vec<u32>>>()?;
        self.of_writes(|writes| writes.noted_so_far(&tgids))?
    }

    /// At that cut: [`WriteWatch::noted`].
    pub(super) fn noted(&mut self) -> Option<Touched> {
        self.of_writes(WriteWatch::noted)?
    }

    /// At a cut: [`WriteWatch::cut`].
    pub(super) fn cut_writes(&mut self) {
        self.of_writes(WriteWatch::cut);
    }

    /// An image is on disk: [`WriteWatch::commit`].
    pub(super) fn commit_writes(&mut self) -> Option<Writes> {
        self.of_writes(WriteWatch::commit)?
    }

    /// [`WriteWatch::rate_now`].
    pub(super) fn rate_now(&mut self) -> Option<u64> {
        self.of_writes(WriteWatch::rate_now)?
    }

    /// What is not known of the writes is not told, and does no harm otherwise.
    fn of_writes<T>(&mut self, act: impl FnOnce(&mut WriteWatch) -> Result<T, EbpfError>) -> Option<T> {
        let Programs::Loaded(preserver) = self else { return None };
        act(preserver.writes()).inspect_err(|error| tracing::info!("it is not known what the process writes: {error}")).ok()
    }

    /// At a cut, with the target stopped: from now on what it is about to write to is saved before, and noted. `None`: there is nothing to copy while it
    /// runs, nor was anything passed over by the scan; or it cannot be done.
    pub(super) fn publish(
        &mut self,
        mappings: &Mappings,
        memories: &[CutMemory],
        split: &Split,
        since: &Since,
    ) -> Option<LiveCut<'_>> {
        let Programs::Loaded(preserver) = self else { return None };
        let mut moving: HashMap<ObjRef, Vec<PageRange>> = HashMap::new();
        split.moving.iter().for_each(|extent| moving.entry(extent.owner).or_default().push(extent.pages));
        let of_memory = |memory: &CutMemory| {
            let (owner, pid) = (memory.mm, memory.pid);
            let (pages, passed_over) = (moving.remove(&owner).unwrap_or_default(), since.passed_over(pid).to_vec());
            if pages.is_empty() && passed_over.is_empty() {
                return None;
            }
            Some(mappings.memory_of(pid).map(|memory| ToPreserve { pid, memory, owner, pages, passed_over }))
        };
        // Where the kernel does not tell of a memory, there is no cut while it runs.
        let given: Vec<ToPreserve> = memories.iter().filter_map(of_memory).collect::<Option<_>>()?;
        if given.is_empty() {
            return None;
        }
        let published = preserver.publish(given);
        published.inspect_err(|error| tracing::info!("pages are copied while the process is stopped: {error}")).ok()
    }
}

/// Whether something is worth trying: a target that does direct I/O all the time, say, makes each live cut void, and then every page is copied twice.
#[derive(Debug, Default)]
pub(super) struct Trust {
    /// How many were void, one after another, and why the last was.
    lost: u32,
    why: String,
    /// How many more are not to be tried.
    rest: u32,
}

impl Trust {
    /// Twice as many are passed over each time, up to this.
    const REST_MOST: u32 = 64;

    /// A cut is about to be taken. Why should it not be tried?
    pub(super) fn reason_against(&mut self) -> Option<String> {
        self.rest = self.rest.checked_sub(1)?;
        Some(format!("not tried, because {} before failed: {}", if self.lost == 1 { "the one" } else { "those" }, self.why))
    }

    /// One was void.
    pub(super) fn lose(&mut self, why: &str) {
        self.rest = (1 << self.lost.min(6)).min(Trust::REST_MOST) - 1;
        self.lost = self.lost.saturating_add(1);
        self.why = why.to_owned();
    }

    /// The next one is not to be tried, whatever comes.
    pub(super) fn rest_once(&mut self) {
        self.rest += 1;
    }

    /// One was good.
    pub(super) fn win(&mut self) {
        *self = Trust::default();
    }
}

/// Twice the pages that fit into memory: what lies between them counts, too.
fn pages_of_machine() -> u64 {
    let of = |var| nix::unistd::sysconf(var).ok().flatten().and_then(|n| u64::try_from(n).ok()).unwrap_or(0);
    (2 * of(nix::unistd::SysconfVar::_PHYS_PAGES)).clamp(1 << 20, 1 << 31)
}

/// A plan in two parts.
pub(super) struct Split {
    /// Copied while the target is stopped.
    pub(super) still: Vec<Extent>,
    /// Copied while it runs.
    pub(super) moving: Vec<Extent>,
    /// Copied while it runs, of what nobody changes.
    pub(super) later: Vec<Extent>,
}

impl Split {
    /// The pages of memories that are to be read and are protected can be copied while they change. Both the parts of the plan of each memory and what is
    /// `protected` of it are in order, for the most part: what is not is merely slower.
    pub(super) fn of(plan: &[Extent], protected: &HashMap<ObjRef, &[PageRange]>) -> Split {
        let mut split = Split { still: Vec::new(), moving: Vec::new(), later: Vec::new() };
        for run in plan.chunk_by(|a, b| a.owner == b.owner) {
            match protected.get(&run[0].owner) {
                Some(protected) => split.add(run, protected),
                None => split.still.extend_from_slice(run),
            }
        }
        if split.moving.iter().map(|extent| extent.pages.count).sum::<u64>() <= FEW {
            split.still.append(&mut split.moving);
        }
        split
    }

    /// Leaves the pages of these owners for later.
    pub(super) fn leave(&mut self, owners: &HashSet<ObjRef>) {
        self.later.extend(self.still.extract_if(.., |extent| owners.contains(&extent.owner)));
    }

    /// Extents of one memory.
    fn add(&mut self, run: &[Extent], protected: &[PageRange]) {
        let mut next = 0;
        for extent in run {
            if extent.kind != ExtentKind::Read || extent.pages.count == 0 {
                self.still.push(*extent);
                continue;
            }
            let mut pages = extent.pages.numbers();
            let part = |pages: std::ops::Range<u64>| Extent { pages: pages.into(), ..*extent };
            if next > 0 && protected[next - 1].end() > pages.start {
                next = 0;
            }
            while pages.start < pages.end {
                let stretch = protected.get(next).map_or(u64::MAX..u64::MAX, |stretch| stretch.numbers());
                if stretch.end <= pages.start {
                    next += 1;
                } else if stretch.start > pages.start {
                    let end = stretch.start.min(pages.end);
                    self.still.push(part(pages.start..end));
                    pages.start = end;
                } else {
                    let end = stretch.end.min(pages.end);
                    self.moving.push(part(pages.start..end));
                    pages.start = end;
                }
            }
        }
    }
}

/// Holds the target back while it writes faster than pages are taken out of the ring.
pub(super) struct Hold<'a> {
    cut: &'a LiveCut<'a>,
    freezer: &'a Freezer<'a>,
    state: RefCell<Held>,
}

#[derive(Default)]
struct Held {
    now: Option<(Frozen, Instant)>,
    total: Duration,
}

/// How full the ring is when the target is held back, and when it may go on.
const HIGH: f64 = 0.5;
const LOW: f64 = 0.1;

impl<'a> Hold<'a> {
    pub(super) fn new(cut: &'a LiveCut<'a>, freezer: &'a Freezer<'a>) -> Hold<'a> {
        Hold { cut, freezer, state: RefCell::default() }
    }

    /// To be called again and again.
    pub(super) fn look(&self) {
        let mut state = self.state.borrow_mut();
        let pressure = self.cut.pressure();
        match state.now.take() {
            None if pressure > HIGH => match self.freezer.freeze() {
                Ok((mut frozen, _)) => {
                    frozen.take_time();
                    state.now = Some((frozen, Instant::now()));
                }
                // The cut may become void by it, which is noticed.
                Err(error) => tracing::info!("the process could not be held back: {error}"),
            },
            Some((frozen, since)) if pressure < LOW => {
                state.total += since.elapsed();
                drop(frozen);
            }
            other => state.now = other,
        }
    }

    /// Lets the target go on. How long it was held back in all.
    pub(super) fn end(self) -> Duration {
        let state = self.state.into_inner();
        state.total + state.now.map_or(Duration::ZERO, |(_, since)| since.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn void_cuts_are_tried_less_and_less_until_one_is_good() {
        let mut trust = Trust::default();
        let mut tried = Vec::new();
        for cut in 0..300 {
            if trust.reason_against().is_none() {
                tried.push(cut);
                trust.lose("direct I/O");
            }
        }
        assert_eq!(tried, [0, 1, 3, 7, 15, 31, 63, 127, 191, 255]);
        trust.win();
        assert_eq!(trust.reason_against(), None);
    }

    #[test]
    fn what_is_not_protected_is_copied_while_the_target_is_stopped() {
        let extent = |owner, start, count, kind| Extent { owner: ObjRef(owner), pages: PageRange { start, count }, kind };
        let plan = [
            extent(1, 0, 200, ExtentKind::Read),
            extent(1, 200, 10, ExtentKind::Zero),
            extent(1, 300, 50, ExtentKind::Read),
            extent(2, 0, 100, ExtentKind::Read),
        ];
        let protected = [PageRange { start: 100, count: 150 }, PageRange { start: 320, count: 1000 }];
        let split = Split::of(&plan, &[(ObjRef(1), &protected[..])].into());
        assert_eq!(split.moving, [extent(1, 100, 100, ExtentKind::Read), extent(1, 320, 30, ExtentKind::Read)]);
        let still = [extent(1, 0, 100, ExtentKind::Read), plan[1], extent(1, 300, 20, ExtentKind::Read), plan[3]];
        assert_eq!(split.still, still);
        let few = [PageRange { start: 0, count: FEW }];
        let none = Split::of(&plan, &[(ObjRef(1), &few[..])].into());
        assert!(none.moving.is_empty(), "it is not worth it");
        assert_eq!(none.still.iter().map(|extent| extent.pages.count).sum::<u64>(), 360);
    }
}
