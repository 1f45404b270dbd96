//! Which bit belongs to which page: windows of addresses, so few that they are found quickly and so tight that bitmaps stay small.

use ckpt_ebpf::preserve::{Window, first_ending_after, place};

use crate::ids::PageRange;

/// Pages that are close together share a window.
const GAP: u64 = 512;

/// Windows in order, whose bits follow one another; the bits of each begin with a word of their own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) windows: Vec<Window>,
    /// The first bit.
    first: u64,
}

/// How many pages are in `set`.
pub(super) fn count(set: &[PageRange]) -> u64 {
    set.iter().map(|range| range.count).sum()
}

impl Layout {
    /// For the pages of `set`, which is in order. The bits begin at `first`, which begins a word.
    pub(super) fn of(set: &[PageRange], first: u64) -> Layout {
        let mut layout = Layout { first, ..Layout::default() };
        for pages in set.iter().filter(|pages| pages.count > 0) {
            match layout.windows.last_mut() {
                Some(last) if pages.start - last.end <= GAP => last.end = pages.end(),
                _ => {
                    let first_bit = layout.end().next_multiple_of(64);
                    layout.windows.push(Window { start: pages.start, end: pages.end(), first_bit });
                }
            }
        }
        layout
    }

    /// One past the last bit.
    pub(super) fn end(&self) -> u64 {
        self.windows.last().map_or(self.first, |last| last.first_bit + (last.end - last.start))
    }

    /// Calls `each` with the index of a word and the bits in it that stand for pages of `ranges`, which are in order and within windows.
    pub(super) fn for_each_mask(&self, ranges: &[PageRange], mut each: impl FnMut(u64, u64)) {
        for range in ranges {
            let mut at = range.start;
            while at < range.end() {
                let get = |n: u32| self.windows.get(n as usize).copied();
                let Some((_, window)) = first_ending_after(self.windows.len() as u32, at, get) else { return };
                let Some(first) = window.bit(at) else { return };
                let end = first + (range.end().min(window.end) - at);
                let mut bit = first;
                while bit < end {
                    let (word, _) = place(bit);
                    let count = (64 - bit % 64).min(end - bit);
                    let mask = if count == 64 { !0 } else { ((1 << count) - 1) << (bit % 64) };
                    each(word.into(), mask);
                    bit += count;
                }
                at += end - first;
            }
        }
    }

    /// The pages behind bits of a word, in order. There must be a window that has the word, and each word is of one alone.
    pub(super) fn pages_of(&self, word: u64, mut mask: u64) -> impl Iterator<Item = u64> + use<> {
        let window = self.windows[self.windows.partition_point(|window| window.first_bit <= word * 64) - 1];
        let first = window.start + (word * 64 - window.first_bit);
        std::iter::from_fn(move || {
            let bit = (mask != 0).then(|| mask.trailing_zeros())?;
            mask &= mask - 1;
            Some(first + u64::from(bit))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn ranges(most: u64) -> impl Strategy<Value = Vec<PageRange>> {
        prop::collection::vec((1..most, 1..most), 0..20).prop_map(|raw| {
            let mut at = 0;
            let place = |(gap, count)| {
                let start = at + gap;
                at = start + count;
                PageRange { start, count }
            };
            raw.into_iter().map(place).collect()
        })
    }

    proptest! {
        #[test]
        fn every_page_has_a_bit_of_its_own(set in ranges(700)) {
            let layout = Layout::of(&set, 128);
            prop_assert!(layout.windows.windows(2).all(|w| w[0].end <= w[1].start));
            prop_assert!(layout.windows.iter().all(|w| w.first_bit % 64 == 0 && w.first_bit + (w.end - w.start) <= layout.end()));
            let mut bits = BTreeSet::new();
            let mut pages = Vec::new();
            layout.for_each_mask(&set, |word, mask| {
                pages.extend(layout.pages_of(word, mask));
                for bit in 0..64 {
                    if mask & (1 << bit) != 0 {
                        assert!(bits.insert(word * 64 + bit), "a bit comes twice");
                    }
                }
            });
            prop_assert_eq!(pages, set.iter().flat_map(|r| r.numbers()).collect::<Vec<_>>());
            prop_assert!(bits.iter().all(|&bit| (128..layout.end()).contains(&bit)));
        }
    }

    #[test]
    fn scattered_pages_share_windows_and_far_ones_do_not() {
        let set = [PageRange { start: 10, count: 1 }, PageRange { start: 400, count: 5 }, PageRange { start: 5000, count: 64 }];
        let layout = Layout::of(&set, 0);
        let bounds: Vec<_> = layout.windows.iter().map(|w| (w.start, w.end, w.first_bit)).collect();
        assert_eq!(bounds, [(10, 405, 0), (5000, 5064, 448)]);
        assert_eq!(layout.end(), 512);
    }
}
