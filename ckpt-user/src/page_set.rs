//! Sets of pages of which a cut has hundreds of thousands, in no order to speak of: what was written, what an image holds.
//!
//! Kept as ranges in order in one piece of memory: to add as many as there are takes as long as to read them, and they are added while a target stands
//! still. In a tree of ranges each would be looked for by itself, which takes ten times as long.

use std::ops::Range;

use crate::ids::{common, union};

/// A set of numbers of pages. Ranges that touch are one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PageSet {
    ranges: Vec<Range<u64>>,
}

impl PageSet {
    /// An empty one.
    pub fn new() -> PageSet {
        PageSet::default()
    }

    /// Is there none?
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// How many pages there are.
    pub fn count(&self) -> u64 {
        self.ranges.iter().map(|range| range.end - range.start).sum()
    }

    /// The ranges, in order; two never touch.
    pub fn iter(&self) -> impl Iterator<Item = &Range<u64>> + '_ {
        self.ranges.iter()
    }

    /// Is this page in it?
    pub fn contains(&self, page: u64) -> bool {
        self.ranges.get(self.first_ending_after(page)).is_some_and(|range| range.contains(&page))
    }

    /// Are all of these in it?
    pub fn covers(&self, pages: &Range<u64>) -> bool {
        self.gaps(pages).next().is_none()
    }

    /// Takes everything out.
    pub fn clear(&mut self) {
        self.ranges.clear();
    }

    /// Adds pages: quick if they come after all that there are, or few of these are behind them.
    pub fn insert(&mut self, pages: Range<u64>) {
        if pages.is_empty() {
            return;
        }
        // Those that touch it become one with it.
        let first = self.ranges.partition_point(|range| range.end < pages.start);
        let after = first + self.ranges[first..].partition_point(|range| range.start <= pages.end);
        let touching = &self.ranges[first..after];
        let all = match (touching.first(), touching.last()) {
            (Some(one), Some(other)) => one.start.min(pages.start)..other.end.max(pages.end),
            _ => pages,
        };
        self.ranges.splice(first..after, [all]);
    }

    /// Those parts of `pages` that are not in it, in order.
    pub fn gaps(&self, pages: &Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
        let Range { mut start, end } = pages.clone();
        let mut inside = self.ranges[self.first_ending_after(start)..].iter();
        std::iter::from_fn(move || {
            while start < end {
                let next = inside.next().cloned().unwrap_or(end..end);
                let gap = start..next.start.min(end);
                start = next.end.max(start);
                if !gap.is_empty() {
                    return Some(gap);
                }
            }
            None
        })
    }

    /// What it has of `pages`, in order.
    pub fn within(&self, pages: &Range<u64>) -> impl Iterator<Item = Range<u64>> + '_ {
        let pages = pages.clone();
        let inside = self.ranges[self.first_ending_after(pages.start)..].iter();
        inside.map(move |range| common(range, &pages)).take_while(|part| !part.is_empty())
    }

    fn first_ending_after(&self, page: u64) -> usize {
        self.ranges.partition_point(|range| range.end <= page)
    }
}

impl Extend<Range<u64>> for PageSet {
    /// In linear time if they come in order.
    fn extend<T: IntoIterator<Item = Range<u64>>>(&mut self, pages: T) {
        let mut added: Vec<Range<u64>> = pages.into_iter().filter(|range| !range.is_empty()).collect();
        if !added.is_sorted_by_key(|range| range.start) {
            added.sort_unstable_by_key(|range| range.start);
        }
        self.ranges = union(std::mem::take(&mut self.ranges).into_iter(), added.into_iter());
    }
}

impl FromIterator<Range<u64>> for PageSet {
    fn from_iter<T: IntoIterator<Item = Range<u64>>>(pages: T) -> PageSet {
        let mut set = PageSet::new();
        set.extend(pages);
        set
    }
}

impl IntoIterator for PageSet {
    type Item = Range<u64>;
    type IntoIter = std::vec::IntoIter<Range<u64>>;

    fn into_iter(self) -> Self::IntoIter {
        self.ranges.into_iter()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Insert(Range<u64>),
        Extend(Vec<Range<u64>>),
    }

    fn range() -> impl Strategy<Value = Range<u64>> {
        (0..60u64, 0..8u64).prop_map(|(start, count)| start..start + count)
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![range().prop_map(Step::Insert), prop::collection::vec(range(), 0..6).prop_map(Step::Extend)]
    }

    proptest! {
        /// Whatever is added in whatever order: it is a set of pages, in as few ranges as can be.
        #[test]
        fn it_is_a_set_of_pages(steps in prop::collection::vec(step(), 0..12), asked in range()) {
            let (mut set, mut model) = (PageSet::new(), BTreeSet::new());
            for step in steps {
                match step {
                    Step::Insert(pages) => {
                        model.extend(pages.clone());
                        set.insert(pages);
                    }
                    Step::Extend(all) => {
                        model.extend(all.iter().cloned().flatten());
                        set.extend(all);
                    }
                }
                prop_assert!(set.ranges.windows(2).all(|two| two[0].end < two[1].start));
                prop_assert!(set.iter().all(|range| !range.is_empty()));
                prop_assert_eq!(set.iter().cloned().flatten().collect::<BTreeSet<u64>>(), model.clone());
            }
            prop_assert_eq!((set.count(), set.is_empty()), (model.len() as u64, model.is_empty()));
            let (within, gaps): (Vec<u64>, Vec<u64>) = asked.clone().partition(|page| model.contains(page));
            prop_assert_eq!(set.within(&asked).flatten().collect::<Vec<_>>(), within);
            prop_assert_eq!(set.covers(&asked), gaps.is_empty());
            prop_assert_eq!(set.gaps(&asked).flatten().collect::<Vec<_>>(), gaps);
            prop_assert!((0..70).all(|page| set.contains(page) == model.contains(&page)));
            prop_assert_eq!(set.clone().into_iter().collect::<PageSet>(), set);
        }
    }
}
