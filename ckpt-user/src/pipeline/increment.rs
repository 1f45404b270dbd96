//! What of a whole plan an increment must hold: what was written since its parent was made, and what is there no longer.

use std::collections::HashMap;

use super::{Extent, ExtentKind};
use crate::ids::{ObjRef, PageRange, union};
use crate::page_set::PageSet;

/// What is known of the memory `owner` since the parent of an increment was made.
#[derive(Clone, Copy, Debug)]
pub struct Changes<'a> {
    /// The memory.
    pub owner: ObjRef,
    /// Pages that may have been written.
    pub written: &'a PageSet,
    /// Pages that the parent, or one of its own, holds.
    pub held: &'a PageSet,
}

/// The pages of each owner that a plan gives contents.
pub fn pages_by_owner(plan: &[Extent]) -> HashMap<ObjRef, PageSet> {
    let mut pages: HashMap<ObjRef, PageSet> = HashMap::new();
    // Pages of one owner stand together, for the most part.
    for run in plan.chunk_by(|a, b| a.owner == b.owner) {
        let with_contents = run.iter().filter(|e| e.kind != ExtentKind::Hole && e.pages.count > 0);
        pages.entry(run[0].owner).or_default().extend(with_contents.map(|e| e.pages.numbers()));
    }
    pages
}

/// The plan of an increment, from that of a whole image. What the parent does not hold is taken, written or not; what it holds and the
/// whole plan has no longer becomes a hole, mapped or not: something may be mapped there again later. Owners without changes are whole.
pub fn increment(whole: &[Extent], changes: &[Changes<'_>]) -> Vec<Extent> {
    let by_owner: HashMap<ObjRef, &Changes<'_>> = changes.iter().map(|changes| (changes.owner, changes)).collect();
    let mut plan = Vec::new();
    for extent in whole {
        let Some(changes) = by_owner.get(&extent.owner) else {
            plan.push(*extent);
            continue;
        };
        let pages = extent.pages.numbers();
        // In linear time: this is done while the target is stopped.
        let taken = union(changes.held.gaps(&pages), changes.written.within(&pages));
        plan.extend(taken.into_iter().map(|run| Extent { pages: run.into(), ..*extent }));
    }
    let all = pages_by_owner(whole);
    let none = PageSet::new();
    for &Changes { owner, held, .. } in changes {
        let there = all.get(&owner).unwrap_or(&none);
        for held in held.iter() {
            plan.extend(there.gaps(held).map(|run| Extent { owner, pages: run.into(), kind: ExtentKind::Hole }));
        }
        // So that it is in the image even if nothing has changed.
        plan.push(Extent { owner, pages: PageRange { start: 0, count: 0 }, kind: ExtentKind::Read });
    }
    plan
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    const MEMORY: ObjRef = ObjRef(1);

    /// A page: none, or a number for its contents.
    type Model = BTreeMap<u64, u32>;

    fn plan_of(model: &Model) -> Vec<Extent> {
        let one = |(&start, _)| Extent { owner: MEMORY, pages: PageRange { start, count: 1 }, kind: ExtentKind::Read };
        model.iter().map(one).collect()
    }

    fn models() -> impl Strategy<Value = Vec<Model>> {
        prop::collection::vec(prop::collection::btree_map(0..40u64, 0..3u32, 0..40), 1..6)
    }

    proptest! {
        /// Images applied one after the other give the last state, if everything that differs counts as written.
        #[test]
        fn a_chain_of_increments_is_the_last_state(states in models(), spurious in prop::collection::vec(0..40u64, 0..5)) {
            let (mut memory, mut before) = (Model::new(), Model::new());
            for (n, now) in states.iter().enumerate() {
                let whole = plan_of(now);
                let plan = if n == 0 {
                    whole
                } else {
                    let differs = now.iter().filter(|(page, value)| before.get(page) != Some(value)).map(|(&page, _)| page);
                    let written = differs.chain(spurious.iter().copied()).map(|page| page..page + 1).collect();
                    let held = pages_by_owner(&plan_of(&before)).remove(&MEMORY).unwrap_or_default();
                    increment(&whole, &[Changes { owner: MEMORY, written: &written, held: &held }])
                };
                for extent in plan {
                    for page in extent.pages.numbers() {
                        match extent.kind {
                            ExtentKind::Hole => memory.remove(&page),
                            _ => memory.insert(page, now[&page]),
                        };
                    }
                }
                prop_assert_eq!(&memory, now);
                before = now.clone();
            }
        }
    }

    #[test]
    fn what_did_not_change_is_not_there() {
        let whole = plan_of(&Model::from([(1, 0), (2, 0)]));
        let set = |pages: std::ops::Range<u64>| std::iter::once(pages).collect::<PageSet>();
        let (written, held) = (set(2..3), set(1..5));
        let plan = increment(&whole, &[Changes { owner: MEMORY, written: &written, held: &held }]);
        let of = |kind| plan.iter().filter(move |e| e.kind == kind && e.pages.count > 0).map(|e| (e.pages.start, e.pages.count));
        assert_eq!(of(ExtentKind::Read).collect::<Vec<_>>(), [(2, 1)]);
        assert_eq!(of(ExtentKind::Hole).collect::<Vec<_>>(), [(3, 2)]);
    }
}
