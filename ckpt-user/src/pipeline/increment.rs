//! What of a whole plan an increment must hold: what was written since its parent was made, and what is there no longer.

use rangemap::RangeSet;

use super::{Extent, ExtentKind};
use crate::ids::{ObjRef, PageRange, common, union};

/// What is known of the memory `owner` since the parent of an increment was made.
#[derive(Clone, Copy, Debug)]
pub struct Changes<'a> {
    /// The memory.
    pub owner: ObjRef,
    /// Pages that may have been written.
    pub written: &'a RangeSet<u64>,
    /// Pages that the parent, or one of its own, holds.
    pub held: &'a RangeSet<u64>,
}

/// The pages of `owner` that a plan gives contents.
pub fn pages_of(plan: &[Extent], owner: ObjRef) -> RangeSet<u64> {
    let with_contents = |e: &&Extent| e.owner == owner && e.kind != ExtentKind::Hole && e.pages.count > 0;
    plan.iter().filter(with_contents).map(|e| e.pages.numbers()).collect()
}

/// The plan of an increment, from that of a whole image. What the parent does not hold is taken, written or not; what it holds and the
/// whole plan has no longer becomes a hole, mapped or not: something may be mapped there again later. Other owners are whole.
pub fn increment(whole: &[Extent], changes: &Changes<'_>) -> Vec<Extent> {
    let owner = changes.owner;
    let mut plan = Vec::new();
    for extent in whole {
        if extent.owner != owner {
            plan.push(*extent);
            continue;
        }
        let pages = extent.pages.numbers();
        // In linear time: this is done while the target is stopped.
        let taken = union(changes.held.gaps(&pages), changes.written.overlapping(&pages).map(|w| common(w, &pages)));
        plan.extend(taken.into_iter().map(|run| Extent { owner, pages: run.into(), kind: extent.kind }));
    }
    let there = pages_of(whole, owner);
    for held in changes.held.iter() {
        plan.extend(there.gaps(held).map(|run| Extent { owner, pages: run.into(), kind: ExtentKind::Hole }));
    }
    // So that it is in the image even if nothing has changed.
    plan.push(Extent { owner, pages: PageRange { start: 0, count: 0 }, kind: ExtentKind::Read });
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
                    let held = pages_of(&plan_of(&before), MEMORY);
                    increment(&whole, &Changes { owner: MEMORY, written: &written, held: &held })
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
        let set = |pages: std::ops::Range<u64>| std::iter::once(pages).collect::<RangeSet<u64>>();
        let (written, held) = (set(2..3), set(1..5));
        let plan = increment(&whole, &Changes { owner: MEMORY, written: &written, held: &held });
        let of = |kind| plan.iter().filter(move |e| e.kind == kind && e.pages.count > 0).map(|e| (e.pages.start, e.pages.count));
        assert_eq!(of(ExtentKind::Read).collect::<Vec<_>>(), [(2, 1)]);
        assert_eq!(of(ExtentKind::Hole).collect::<Vec<_>>(), [(3, 2)]);
    }
}
