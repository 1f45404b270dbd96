//! What the scan of a cut can do without, where a log of write faults tells what was touched since all pages were protected. The log need not be complete:
//! that nothing of it was written unseen must be proved afterwards.

use std::ops::Range;

use super::presence::{Content, Presence};
use crate::ids::PageRange;
use crate::page_set::PageSet;

/// Shorter stretches of pages with contents are scanned with what lies beside them.
const STRETCH_LEAST: u64 = 256;
/// To scan so many pages takes no longer than to do without.
const LEAST: u64 = 64 * 1024;
/// Pages that were written are taken one by one, which takes a microsecond for each; where there are more than one in so many that can be passed over, to scan
/// all of them is as quick.
const WRITTEN_ONE_IN: u64 = 512;

/// Pages that a log of write faults has of some time.
#[derive(Clone, Debug, Default)]
pub struct Touched {
    /// They may have been written.
    pub written: PageSet,
    /// They may have been taken away.
    pub removed: PageSet,
}

/// Pages that had contents when they were protected, and are not scanned.
#[derive(Debug, Default)]
pub(super) struct Passed {
    /// They must be proved to be protected as before.
    pub(super) over: Vec<PageRange>,
    /// They count as written, whatever they are.
    pub(super) written: PageSet,
}

impl Passed {
    /// What is left to be scanned of these stretches.
    pub(super) fn leave(&self, stretches: &[(PageRange, bool)]) -> Vec<(PageRange, bool)> {
        let mut passed = self.written.clone();
        passed.extend(self.over.iter().map(|pages| pages.numbers()));
        let left = |&(pages, of_file): &(PageRange, bool)| {
            passed.gaps(&pages.numbers()).map(|gap| (PageRange::from(gap), of_file)).collect::<Vec<_>>()
        };
        stretches.iter().flat_map(left).collect()
    }
}

/// What can be passed over of the pages `within`: nothing, if that is not worth it.
///
/// Only of pages with contents can it be proved later that they were not written: another one may come and go.
pub(super) fn passed_over(presence: &Presence, within: &PageSet, touched: &Touched) -> Passed {
    let mut passed = Passed::default();
    let runs = within.iter().flat_map(|pages| presence.within(pages.clone().into()));
    let long = runs.filter(|(run, content)| *content == Content::Data && run.count >= STRETCH_LEAST);
    for stays in long.flat_map(|(run, _)| touched.removed.gaps(&run.numbers()).collect::<Vec<Range<u64>>>()) {
        passed.over.extend(touched.written.gaps(&stays).map(PageRange::from));
        passed.written.extend(touched.written.within(&stays));
    }
    let count = passed.over.iter().map(|pages| pages.count).sum::<u64>();
    if count < LEAST || passed.written.count() * WRITTEN_ONE_IN > count { Passed::default() } else { passed }
}

/// One of `pages`, which were passed over, of which it is not proved that nobody had written to it before the cut. Some time after that, those of `clean` are
/// there and protected; and `noted` tells of which a program has found that since the cut, when they were about to change.
pub(super) fn unproved(pages: PageRange, clean: &PageSet, noted: impl Fn(u64) -> bool) -> Option<u64> {
    clean.gaps(&pages.numbers()).flatten().find(|&page| !noted(page))
}

#[cfg(test)]
mod model_tests;

#[cfg(test)]
mod tests {
    use std::iter;

    use proptest::prelude::*;

    use super::*;

    fn known(runs: &[(u64, u64, Content)]) -> Presence {
        let mut presence = Presence::default();
        let there: Vec<_> = runs.iter().map(|&(start, count, content)| (PageRange { start, count }, content)).collect();
        let all = PageRange { start: 0, count: 1 << 40 };
        presence.update([all.numbers()].into_iter().collect(), &[all], &there);
        presence
    }

    #[test]
    fn a_few_pages_are_not_worth_it() {
        let presence = known(&[(0, LEAST, Content::Data)]);
        let within = iter::once(0..1 << 30).collect();
        let over = |within: &PageSet, touched: Range<u64>| {
            passed_over(&presence, within, &Touched { written: iter::once(touched).collect(), ..Touched::default() }).over
        };
        assert_eq!(over(&within, LEAST..LEAST + 9), [PageRange { start: 0, count: LEAST }]);
        assert_eq!(over(&within, 7..8), []);
        assert_eq!(over(&iter::once(1..1 << 30).collect(), 0..0), []);
        const MOST: u64 = 3 * LEAST / WRITTEN_ONE_IN;
        let touched = |count| Touched { written: iter::once(9..9 + count).collect(), ..Touched::default() };
        let larger = known(&[(0, 3 * LEAST + MOST, Content::Data)]);
        assert_eq!(passed_over(&larger, &within, &touched(MOST)).written.count(), MOST);
        assert_eq!(passed_over(&larger, &within, &touched(MOST + 1)).over, []);
    }

    /// Pages as ranges.
    fn ranges(most: u64) -> impl Strategy<Value = Vec<(u64, u64)>> {
        prop::collection::vec((0..9000u64, 1..most), 0..12)
    }

    proptest! {
        /// Each page is scanned, counts as written, or is proved to be unchanged: the last only if it had contents and nobody touched it.
        #[test]
        fn every_page_is_looked_at_or_proved(
            steps in prop::collection::vec((0..3u64, 1..40u64, 0..3u8), 1..20),
            written in ranges(20), removed in ranges(400), windows in ranges(4000), stretches in ranges(3000),
        ) {
            const BASE: u64 = LEAST + 3000;
            let mut at = BASE;
            // So that it is worth it.
            let mut runs = vec![(3000, LEAST, Content::Data)];
            for (gap, count, content) in steps {
                let start = at + gap * STRETCH_LEAST / 4;
                at = start + count * STRETCH_LEAST / 4;
                runs.push((start, at - start, [Content::Data, Content::Zero, Content::Guard][content as usize]));
            }
            let presence = known(&runs);
            let set = |ranges: &[(u64, u64)]| ranges.iter().map(|&(start, count)| BASE + start..BASE + start + count).collect::<PageSet>();
            let touched = Touched { written: set(&written), removed: set(&removed) };
            let mut within = set(&windows);
            within.insert(3000..BASE);
            let passed = passed_over(&presence, &within, &touched);
            prop_assert!(passed.over.windows(2).all(|two| two[0].end() <= two[1].start));
            prop_assert_eq!(passed.over.first().map(|pages| pages.start), Some(3000));
            let over: PageSet = passed.over.iter().map(|pages| pages.numbers()).collect();
            let stretches: PageSet = set(&stretches);
            let whole: Vec<(PageRange, bool)> = stretches.iter().map(|pages| (pages.clone().into(), false)).collect();
            let scanned: PageSet = passed.leave(&whole).into_iter().map(|(pages, _)| pages.numbers()).collect();
            for page in BASE..BASE + 13_000 {
                let is_data = runs.iter().any(|run| run.2 == Content::Data && (run.0..run.0 + run.1).contains(&page));
                let (is_over, is_written) = (over.contains(page), passed.written.contains(page));
                prop_assert!(!(is_over && is_written));
                if is_over || is_written {
                    prop_assert!(is_data && within.contains(page) && !touched.removed.contains(page), "page {}", page);
                    prop_assert_eq!(is_written, touched.written.contains(page), "page {}", page);
                }
                prop_assert_eq!(scanned.contains(page), stretches.contains(page) && !is_over && !is_written, "page {}", page);
            }
        }
    }
}
