//! What memories that shared pages at the last cut still share. Where all of them were watched since, nobody need look for it: what one of them has written to
//! is its own, and everything else is as it was.

use std::collections::HashMap;
use std::ops::Range;

use super::{names, take_out};
use crate::checkpoint::collect::CutMemory;
use crate::ids::{ObjRef, PageRange, Pid};
use crate::page_set::PageSet;
use crate::pipeline::{Extent, pages_by_owner};
use crate::store::same::Same;

/// What the memories of a tree have of each other.
#[derive(Debug)]
pub(in super::super) struct Shared {
    /// The processes that they are seen through.
    pids: Vec<Pid>,
    runs: Vec<Run>,
}

impl Shared {
    /// At a cut, of which that was found out.
    pub(in super::super) fn of(memories: &[CutMemory], same: &[Same]) -> Shared {
        Shared { pids: memories.iter().map(|memory| memory.pid).collect(), runs: runs(&names(memories), same) }
    }

    /// What is left of it at the next one, and `plan`, that of a whole image, loses for all but the owners. `written` since, by the process that a memory is seen
    /// through. `None`: there are other memories now, or of one it is not known.
    pub(in super::super) fn left<'a>(
        &self,
        memories: &[CutMemory],
        written: impl Fn(Pid) -> Option<&'a PageSet>,
        plan: &mut Vec<Extent>,
    ) -> Option<Vec<Same>> {
        if !memories.iter().map(|memory| memory.pid).eq(self.pids.iter().copied()) {
            return None;
        }
        let written: Vec<&PageSet> = self.pids.iter().map(|pid| written(*pid)).collect::<Option<_>>()?;
        Some(left(&self.runs, &written, &names(memories), plan))
    }
}

/// Pages that a memory had of another one: by their places in a list of memories.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Run {
    memory: usize,
    pages: PageRange,
    owner: usize,
    first: u64,
}

/// The same for a later cut, in which the memories may have other names. In order of the list, and of the pages of each.
pub(super) fn runs(owners: &[ObjRef], same: &[Same]) -> Vec<Run> {
    let places: HashMap<ObjRef, usize> = owners.iter().enumerate().map(|(n, owner)| (*owner, n)).collect();
    let run = |same: &Same| {
        let (memory, owner) = (*places.get(&same.memory)?, *places.get(&same.owner)?);
        Some(Run { memory, pages: same.pages, owner, first: same.first })
    };
    let mut runs: Vec<Run> = same.iter().filter_map(run).collect();
    runs.sort_by_key(|run| (run.memory, run.pages.start));
    runs
}

/// What is left of `last` for these memories, called `owners` now, of which these pages were `touched` since. `plan`, that of a whole image, loses it for all
/// but the owners. A page whose owner has touched it, or dropped it, goes to the first of the others that still have it.
pub(super) fn left(last: &[Run], touched: &[&PageSet], owners: &[ObjRef], plan: &mut Vec<Extent>) -> Vec<Same> {
    let mut there = pages_by_owner(plan);
    let there: Vec<PageSet> = owners.iter().map(|owner| there.remove(owner).unwrap_or_default()).collect();
    let untouched = |memory: usize, pages: PageRange| -> Vec<Range<u64>> {
        let pages = pages.numbers();
        let gaps = touched[memory].gaps(&pages);
        gaps.flat_map(|gap| there[memory].within(&gap).collect::<Vec<_>>()).collect()
    };
    let mut heirs: HashMap<(usize, u64), (usize, u64)> = HashMap::new();
    let mut all: Vec<Same> = Vec::new();
    let mut push = |memory: usize, start: u64, count: u64, owner: usize, first: u64| {
        let same = Same { memory: owners[memory], pages: PageRange { start, count }, owner: owners[owner], first };
        if !all.last_mut().is_some_and(|last| last.takes_in(&same)) {
            all.push(same);
        }
    };
    for &Run { memory, pages, owner, first } in last {
        for had in untouched(memory, pages) {
            // From a page of the owner to that of this memory.
            let here = |page: u64| page - first + pages.start;
            let theirs = PageRange { start: had.start - pages.start + first, count: had.end - had.start };
            let mut at = theirs.start;
            for kept in untouched(owner, theirs).into_iter().chain(std::iter::once(theirs.end()..theirs.end())) {
                for page in at..kept.start {
                    match heirs.get(&(owner, page)) {
                        Some(&(heir, there)) => push(memory, here(page), 1, heir, there),
                        None => drop(heirs.insert((owner, page), (memory, here(page)))),
                    }
                }
                if !kept.is_empty() {
                    push(memory, here(kept.start), kept.end - kept.start, owner, kept.start);
                }
                at = kept.end;
            }
        }
    }
    take_out(owners, plan, &all);
    all
}
