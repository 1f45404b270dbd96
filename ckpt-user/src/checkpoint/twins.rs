//! Pages that several memories of a tree share since a fork, so that an image holds them once.
//!
//! The kernel tells of each page where it is (a physical page, or a place in the swap space), and whether only one memory has it. Two private pages in
//! the same place are one page. The first memory that has it, in the order of the tree, is its owner in the image; the plan of the others loses it.
//!
//! Pages can move while this is read, whether the target is stopped or not. Another page may then be where one of an owner was a moment ago. So the
//! places of the owners' pages are read again at the end: what is where it was did not move meanwhile.

mod left;

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Once;

use super::collect::CutMemory;
use crate::error::Result;
use crate::ids::{ObjRef, PAGE_SIZE, PageRange, union};
use crate::pipeline::{Extent, ExtentKind};
use crate::store::same::Same;
use crate::sys::pagemap::{self, PageMap};
use crate::sys::parallel;

/// The most runs of shared pages that one image tells of: that takes some megabytes. Further ones are stored as pages of each memory.
const RUNS_MOST: usize = 1 << 20;
/// Pages whose places one thread reads at a time.
const PART: u64 = 32 * 1024;
/// Pages between two ranges that are read as one.
const NEAR: u64 = 128;

pub(super) use left::Shared;

/// A page, and where it is.
type Placed = (u64, u64);
/// The pages of ranges of a memory, by its number in the tree, that others may have, too.
type Places<'a> = &'a dyn Fn(usize, &[PageRange]) -> Result<Vec<Placed>>;
/// By the place of a page: which memory has it first, and there which page it is.
type Firsts = HashMap<u64, (u32, u64), BuildHasherDefault<PlaceHasher>>;

/// With the target stopped: the pages that several of its memories share, of one memory after the other and in order. `plan`, that of a whole image, loses
/// them for all but their owners.
pub(super) fn find(memories: &[CutMemory], plan: &mut Vec<Extent>) -> Result<Vec<Same>> {
    if memories.len() < 2 || !places_are_told() {
        return Ok(Vec::new());
    }
    let maps = memories.iter().map(|memory| PageMap::open(memory.pid)).collect::<Result<Vec<_>>>()?;
    let read = |n: usize, ranges: &[PageRange]| places(&maps[n], ranges);
    share(&names(memories), plan, &read)
}

/// As the image calls them.
fn names(memories: &[CutMemory]) -> Vec<ObjRef> {
    memories.iter().map(|memory| memory.mm).collect()
}

/// The kernel keeps the places of pages from who has no CAP_SYS_ADMIN.
fn places_are_told() -> bool {
    static TOLD: Once = Once::new();
    let byte = Box::new(1u8);
    let told = pagemap::frame_of_own_page(std::ptr::from_ref(&*byte) as u64 / PAGE_SIZE).ok().flatten().is_some();
    if !told {
        TOLD.call_once(|| {
            tracing::info!(
                "pages that processes share since a fork are stored for each of them: to find them needs CAP_SYS_ADMIN"
            );
        });
    }
    told
}

/// The pages of these ranges that others may have, too, in order.
fn places(map: &PageMap, ranges: &[PageRange]) -> Result<Vec<Placed>> {
    let read = |ranges: &[PageRange]| {
        let mut found = Vec::new();
        // One call for ranges that are near each other is quicker than two.
        for near in ranges.chunk_by(|a, b| b.start - a.end() <= NEAR) {
            let mut rest = near;
            let span = near[0].start..near.last().map_or(0, |last| last.end());
            map.entries(span.into(), |first, entries| {
                for (page, entry) in (first..).zip(entries) {
                    while rest.first().is_some_and(|range| range.end() <= page) {
                        rest = &rest[1..];
                    }
                    if rest.first().is_some_and(|range| range.start <= page) {
                        found.extend(entry.shared_place().map(|place| (page, place)));
                    }
                }
            })?;
        }
        Ok(found)
    };
    if ranges.iter().map(|range| range.count).sum::<u64>() <= PART {
        return read(ranges);
    }
    parallel::gather(&parts_of(ranges), 1, read)
}

/// The same pages in ranges that are not too long.
fn parts_of(ranges: &[PageRange]) -> Vec<PageRange> {
    let cut = |range: &PageRange| {
        let PageRange { start, .. } = *range;
        let end = range.end();
        (start..end).step_by(PART as usize).map(move |at| PageRange::from(at..end.min(at + PART))).collect::<Vec<_>>()
    };
    ranges.iter().flat_map(cut).collect()
}

/// What is shared, by the places of pages, which `read` tells of ranges of a memory.
fn share(owners: &[ObjRef], plan: &mut Vec<Extent>, read: Places<'_>) -> Result<Vec<Same>> {
    let mut of_memory: HashMap<ObjRef, Vec<PageRange>> = HashMap::new();
    for extent in plan.iter().filter(|extent| extent.kind == ExtentKind::Read && extent.pages.count > 0) {
        of_memory.entry(extent.owner).or_default().push(extent.pages);
    }
    of_memory.values_mut().for_each(|ranges| ranges.sort_unstable_by_key(|range| range.start));
    let mut first = Firsts::default();
    let mut all: Vec<(usize, Same)> = Vec::new();
    for (n, &memory) in owners.iter().enumerate() {
        let Some(ranges) = of_memory.get(&memory) else { continue };
        let (mut own, mut runs): (Vec<Placed>, Vec<(usize, Same)>) = (Vec::new(), Vec::new());
        for (page, place) in read(n, ranges)? {
            match first.get(&place) {
                None => own.push((page, place)),
                Some(&(of, there)) => {
                    let pages = PageRange { start: page, count: 1 };
                    let same = Same { memory, pages, owner: owners[of as usize], first: there };
                    if !runs.last_mut().is_some_and(|(_, last)| last.takes_in(&same)) {
                        runs.push((of as usize, same));
                    }
                }
            }
        }
        for (page, place) in own {
            first.entry(place).or_insert((n as u32, page));
        }
        drop_doubles(&mut runs);
        all.append(&mut runs);
        if all.len() >= RUNS_MOST {
            tracing::info!("more pages are shared between processes than one image tells of; the others are stored for each");
            all.truncate(RUNS_MOST);
            break;
        }
    }
    let all = still_there(all, &first, read)?;
    take_out(owners, plan, &all);
    Ok(all)
}

/// A memory that has a page of an owner twice has it once here.
fn drop_doubles(runs: &mut Vec<(usize, Same)>) {
    let mut by_place: Vec<usize> = (0..runs.len()).collect();
    by_place.sort_unstable_by_key(|&n| (runs[n].0, runs[n].1.first));
    let (mut end, mut last, mut doubles) = (0, usize::MAX, vec![false; runs.len()]);
    for n in by_place {
        let (owner, Same { pages, first, .. }) = runs[n];
        if owner == last && first < end {
            doubles[n] = true;
        } else {
            (last, end) = (owner, first + pages.count);
        }
    }
    let mut doubles = doubles.into_iter();
    runs.retain(|_| doubles.next() == Some(false));
}

/// Those whose pages are where they were, with their owners.
fn still_there(all: Vec<(usize, Same)>, first: &Firsts, read: Places<'_>) -> Result<Vec<Same>> {
    let mut lent: HashMap<usize, Vec<std::ops::Range<u64>>> = HashMap::new();
    for (of, same) in &all {
        lent.entry(*of).or_default().push(same.first..same.first + same.pages.count);
    }
    let mut moved: HashMap<usize, Vec<u64>> = HashMap::new();
    for (of, mut ranges) in lent {
        ranges.sort_unstable_by_key(|range| range.start);
        let ranges = union(ranges.into_iter(), std::iter::empty());
        let ranges: Vec<PageRange> = ranges.into_iter().map(PageRange::from).collect();
        let now: Vec<Placed> = read(of, &ranges)?;
        let mut now = now
            .into_iter()
            .filter(|(page, place)| first.get(place) == Some(&(of as u32, *page)))
            .map(|(page, _)| page)
            .peekable();
        let gone =
            ranges.iter().flat_map(|range| range.numbers()).filter(|page| now.next_if_eq(page).is_none()).collect::<Vec<_>>();
        if !gone.is_empty() {
            moved.insert(of, gone);
        }
    }
    let stayed = |(of, same): &(usize, Same)| {
        let Some(moved) = moved.get(of) else { return true };
        let after = moved.partition_point(|page| *page < same.first);
        moved.get(after).is_none_or(|page| *page >= same.first + same.pages.count)
    };
    Ok(all.into_iter().filter(stayed).map(|(_, same)| same).collect())
}

/// Takes them out of the plan, of which no memory is to disappear.
fn take_out(owners: &[ObjRef], plan: &mut Vec<Extent>, all: &[Same]) {
    let mut shared: HashMap<ObjRef, &[Same]> =
        all.chunk_by(|a, b| a.memory == b.memory).map(|some| (some[0].memory, some)).collect();
    let mut left = Vec::with_capacity(plan.len());
    for extent in std::mem::take(plan) {
        let runs = shared.get(&extent.owner).copied().unwrap_or_default();
        let mut pages = extent.pages.numbers();
        let near = runs.partition_point(|run| run.pages.end() <= pages.start);
        for run in runs[near..].iter().take_while(|run| run.pages.start < extent.pages.end()) {
            if pages.start < run.pages.start {
                left.push(Extent { pages: (pages.start..run.pages.start).into(), ..extent });
            }
            pages.start = run.pages.end().min(pages.end);
        }
        if pages.start < pages.end || extent.pages.count == 0 {
            left.push(Extent { pages: pages.into(), ..extent });
        }
    }
    for &owner in owners {
        if shared.remove(&owner).is_some() {
            left.push(Extent { owner, pages: PageRange { start: 0, count: 0 }, kind: ExtentKind::Read });
        }
    }
    *plan = left;
}

/// Numbers of physical pages differ in their low bits, which is enough.
#[derive(Default)]
struct PlaceHasher(u64);

impl Hasher for PlaceHasher {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64((*byte).into()));
    }

    fn write_u64(&mut self, place: u64) {
        // The table looks at the highest bits and at the lowest.
        self.0 = (self.0 ^ place).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 ^= self.0 >> 32;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::left::{left, runs};
    use super::*;
    use crate::page_set::PageSet;
    use crate::store::SamePages;

    /// Memories as fork and writes leave them: of each page, where it is. No two things were ever in the same place.
    #[derive(Clone, Debug, Default)]
    struct Tree {
        memories: Vec<BTreeMap<u64, u64>>,
        places: u64,
    }

    #[derive(Clone, Debug)]
    enum Event {
        Fork(prop::sample::Index),
        Write(prop::sample::Index, u64, u64),
        Drop(prop::sample::Index, u64, u64),
        Move(prop::sample::Index, u64, u64),
    }

    fn events() -> impl Strategy<Value = Vec<Event>> {
        let of = any::<prop::sample::Index>;
        let event = prop_oneof![
            of().prop_map(Event::Fork),
            (of(), 0..60u64, 1..20u64).prop_map(|(of, at, count)| Event::Write(of, at, count)),
            (of(), 0..60u64, 1..9u64).prop_map(|(of, at, count)| Event::Drop(of, at, count)),
            (of(), 0..60u64, 100..160u64).prop_map(|(of, from, to)| Event::Move(of, from, to)),
        ];
        prop::collection::vec(event, 0..30)
    }

    impl Tree {
        fn act(&mut self, event: &Event) {
            if self.memories.is_empty() {
                self.memories.push(BTreeMap::new());
            }
            let len = self.memories.len();
            match event {
                Event::Fork(of) => self.memories.push(self.memories[of.index(len)].clone()),
                Event::Write(of, at, count) => {
                    for page in *at..at + count {
                        self.places += 1;
                        self.memories[of.index(len)].insert(page, self.places);
                    }
                }
                Event::Drop(of, at, count) => self.memories[of.index(len)].retain(|page, _| !(*at..at + count).contains(page)),
                Event::Move(of, from, to) => {
                    let memory = &mut self.memories[of.index(len)];
                    if let Some(place) = memory.remove(from) {
                        memory.insert(*to, place);
                    }
                }
            }
        }

        fn plan(&self) -> (Vec<ObjRef>, Vec<Extent>) {
            let owners: Vec<ObjRef> = (1..=self.memories.len() as u32).map(ObjRef).collect();
            let mut plan: Vec<Extent> = Vec::new();
            for (&owner, memory) in owners.iter().zip(&self.memories) {
                for &page in memory.keys() {
                    match plan.last_mut() {
                        Some(last) if last.owner == owner && last.pages.end() == page => last.pages.count += 1,
                        _ => plan.push(Extent { owner, pages: PageRange { start: page, count: 1 }, kind: ExtentKind::Read }),
                    }
                }
            }
            (owners, plan)
        }

        fn read(&self, n: usize, ranges: &[PageRange]) -> Vec<Placed> {
            let of = |page: u64| self.memories[n].get(&page).map(|place| (page, *place));
            ranges.iter().flat_map(|range| range.numbers()).filter_map(of).collect()
        }
    }

    /// What whoever reads the image finds: of each page of each memory, the place whose contents it gets.
    fn restored(tree: &Tree, plan: &[Extent], same: &[Same]) -> Vec<BTreeMap<u64, u64>> {
        let mut memories = vec![BTreeMap::new(); tree.memories.len()];
        for extent in plan {
            let n = extent.owner.0 as usize - 1;
            for page in extent.pages.numbers() {
                assert!(memories[n].insert(page, tree.memories[n][&page]).is_none(), "page {page} comes twice");
            }
        }
        let stored = memories.clone();
        for same in SamePages::new(same).all().unwrap() {
            for (page, there) in same.pages.numbers().zip(same.first..) {
                let place = stored[same.owner.0 as usize - 1][&there];
                assert!(memories[same.memory.0 as usize - 1].insert(page, place).is_none());
            }
        }
        memories
    }

    proptest! {
        #[test]
        fn each_page_is_stored_once_and_comes_back(events in events()) {
            let mut tree = Tree::default();
            events.iter().for_each(|event| tree.act(event));
            let (owners, mut plan) = tree.plan();
            let same = share(&owners, &mut plan, &|n, ranges| Ok(tree.read(n, ranges))).unwrap();
            prop_assert_eq!(restored(&tree, &plan, &same), tree.memories.clone());
            let distinct: BTreeSet<u64> = tree.memories.iter().flat_map(|memory| memory.values().copied()).collect();
            prop_assert_eq!(plan.iter().map(|extent| extent.pages.count).sum::<u64>(), distinct.len() as u64);
        }

        /// Pages move between two looks at them, into places where others were.
        #[test]
        fn pages_that_move_meanwhile_are_not_mistaken(events in events(), moves in prop::collection::vec((any::<prop::sample::Index>(), 0..60u64, 0..400u64), 0..8)) {
            let mut tree = Tree::default();
            events.iter().for_each(|event| tree.act(event));
            let (owners, mut plan) = tree.plan();
            // Where things are by now; what they are does not change.
            let now = RefCell::new(tree.clone());
            let moves = RefCell::new(moves);
            let read = |n: usize, ranges: &[PageRange]| {
                let found = now.borrow().read(n, ranges);
                if let Some((of, page, place)) = moves.borrow_mut().pop() {
                    let mut now = now.borrow_mut();
                    let taken = now.memories.iter().any(|memory| memory.values().any(|at| *at == place));
                    let of = of.index(now.memories.len());
                    let old = now.memories[of].get(&page).copied();
                    if let Some(old) = old.filter(|_| !taken) {
                        now.memories.iter_mut().flat_map(|memory| memory.values_mut()).filter(|at| **at == old).for_each(|at| *at = place);
                    }
                }
                Ok(found)
            };
            let same = share(&owners, &mut plan, &read).unwrap();
            if !tree.memories.is_empty() {
                prop_assert_eq!(restored(&tree, &plan, &same), tree.memories);
            }
        }
    }

    proptest! {
        /// Nobody looks for what was shared: what is known of the writes is enough, cut after cut.
        #[test]
        fn what_is_left_is_told_by_the_writes(events in events(), later in prop::collection::vec(events(), 1..4)) {
            let mut tree = Tree::default();
            events.iter().for_each(|event| tree.act(event));
            let (owners, mut plan) = tree.plan();
            let mut last = runs(&owners, &share(&owners, &mut plan, &|n, ranges| Ok(tree.read(n, ranges))).unwrap());
            for events in later {
                let mut touched = vec![PageSet::new(); tree.memories.len()];
                let mut moved = false;
                // A new memory is looked at as a whole, and so are all others then.
                for event in events.iter().filter(|event| !matches!(event, Event::Fork(_))) {
                    let len = tree.memories.len();
                    match event {
                        _ if len == 0 => continue,
                        Event::Write(of, at, count) => touched[of.index(len)].insert(*at..at + count),
                        Event::Move(of, _, to) => {
                            moved = true;
                            touched[of.index(len)].insert(*to..to + 1);
                        }
                        Event::Drop(..) | Event::Fork(_) => {}
                    }
                    tree.act(event);
                }
                let (owners, mut plan) = tree.plan();
                let touched: Vec<&PageSet> = touched.iter().collect();
                let same = left(&last, &touched, &owners, &mut plan);
                prop_assert_eq!(restored(&tree, &plan, &same), tree.memories.clone());
                let distinct: BTreeSet<u64> = tree.memories.iter().flat_map(|memory| memory.values().copied()).collect();
                let stored = plan.iter().map(|extent| extent.pages.count).sum::<u64>();
                prop_assert!(stored == distinct.len() as u64 || moved, "{stored} pages are stored of {}", distinct.len());
                last = runs(&owners, &same);
                if moved {
                    break;
                }
            }
        }
    }

    #[test]
    fn a_page_that_a_memory_has_twice_is_lent_once() {
        let same =
            |start, count, first| (0, Same { memory: ObjRef(2), pages: PageRange { start, count }, owner: ObjRef(1), first });
        let mut runs = vec![same(1, 4, 10), same(7, 2, 13), same(20, 1, 14), same(30, 1, 14)];
        drop_doubles(&mut runs);
        assert_eq!(runs, [same(1, 4, 10), same(20, 1, 14)]);
    }
}
