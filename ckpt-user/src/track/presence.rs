//! What is there of a memory, kept from one cut to the next: what was touched since is looked at again, and nothing else. To ask the kernel for all of it
//! each time would take longer than anything else that is done while a process stands still.

use crate::ids::PageRange;
use crate::page_set::PageSet;
use crate::sys::pagemap::Page;

/// What an image must say of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// It has contents.
    Data,
    /// Zeros, which hide what a file has there.
    Zero,
    /// A guard page of MADV_GUARD_INSTALL.
    Guard,
}

impl Content {
    /// What must be asked of the pages of a mapping, which is a private one of a file or of none.
    pub fn asked(of_file: bool) -> Page {
        let mut asked = Page::PRESENT | Page::SWAPPED | Page::PFN_ZERO | Page::GUARD;
        // Memory without a file has no pages of one.
        asked.set(Page::FILE, of_file);
        asked
    }

    /// Of a page that is there. `None`: nothing need be said, it is the file's own page, or untouched zeros.
    pub fn of(page: Page, of_file: bool) -> Option<Content> {
        match page {
            _ if page.contains(Page::GUARD) => Some(Content::Guard),
            _ if page.contains(Page::FILE) => None,
            _ if page.contains(Page::PFN_ZERO) => of_file.then_some(Content::Zero),
            _ => Some(Content::Data),
        }
    }
}

/// Pages that have the same contents, in a manner of speaking.
pub type Run = (PageRange, Content);

/// See the module.
#[derive(Debug, Default)]
pub struct Presence {
    /// Of these pages everything is known.
    seen: PageSet,
    /// In order; no two that touch are alike.
    runs: Vec<Run>,
}

impl Presence {
    /// Is everything known of these pages?
    pub fn covers(&self, pages: PageRange) -> bool {
        self.seen.covers(&pages.numbers())
    }

    /// Of these pages everything is known.
    pub fn seen(&self) -> &PageSet {
        &self.seen
    }

    /// What is there of `pages`, in order.
    pub fn within(&self, pages: PageRange) -> impl Iterator<Item = Run> + '_ {
        let first = self.runs.partition_point(|(run, _)| run.end() <= pages.start);
        let inside = self.runs[first..].iter().take_while(move |(run, _)| run.start < pages.end());
        inside.map(move |&(run, content)| (PageRange::from(run.start.max(pages.start)..run.end().min(pages.end())), content))
    }

    /// From now on `seen` is what is known; of that, `touched` is as `there` says, and the rest as it was. Both in order, and `there` within `touched`.
    pub fn update(&mut self, seen: PageSet, touched: &[PageRange], there: &[Run]) {
        let outside: Vec<PageRange> = seen.gaps(&(0..u64::MAX)).map(PageRange::from).collect();
        let kept = without(&without(&self.runs, &outside), touched);
        self.runs = merged(&kept, there);
        self.seen = seen;
    }
}

/// What is left of `runs` without `taken`, both in order.
fn without(runs: &[Run], taken: &[PageRange]) -> Vec<Run> {
    let (mut left, mut next) = (Vec::with_capacity(runs.len()), 0);
    for &(run, content) in runs {
        let mut at = run.start;
        while at < run.end() {
            match taken.get(next) {
                Some(range) if range.end() <= at => next += 1,
                Some(range) if range.start < run.end() => {
                    if range.start > at {
                        left.push((PageRange::from(at..range.start), content));
                    }
                    at = range.end();
                }
                _ => {
                    left.push((PageRange::from(at..run.end()), content));
                    break;
                }
            }
        }
    }
    left
}

/// Two sequences that have no page in common, as one.
fn merged(a: &[Run], b: &[Run]) -> Vec<Run> {
    let (mut a, mut b) = (a.iter().peekable(), b.iter().peekable());
    let mut all: Vec<Run> = Vec::new();
    loop {
        let next = match (a.peek(), b.peek()) {
            (Some((one, _)), Some((other, _))) if other.start < one.start => b.next(),
            (Some(_), _) => a.next(),
            (None, _) => b.next(),
        };
        let Some(&(run, content)) = next else { return all };
        match all.last_mut() {
            Some((last, like)) if *like == content && last.end() == run.start => last.count += run.count,
            _ => all.push((run, content)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn range(start: u64, count: u64) -> PageRange {
        PageRange { start, count }
    }

    /// Page by page.
    fn pages(runs: impl Iterator<Item = Run>) -> BTreeMap<u64, u8> {
        runs.flat_map(|(run, content)| run.numbers().map(move |page| (page, content as u8))).collect()
    }

    /// Sets of pages as ranges in order, some of which may touch.
    fn ranges() -> impl Strategy<Value = Vec<PageRange>> {
        prop::collection::vec((0..4u64, 1..6u64), 0..8).prop_map(|steps| {
            let mut at = 0;
            let place = |(gap, count)| {
                at += gap + count;
                range(at - count, count)
            };
            steps.into_iter().map(place).collect()
        })
    }

    proptest! {
            /// However it is updated, it says of each page what it was told last.
            #[test]
            fn it_is_a_map_of_pages(steps in prop::collection::vec((ranges(), ranges(), prop::collection::vec(0..4u8, 64)), 1..6)) {
                let mut presence = Presence::default();
                let mut model: BTreeMap<u64, u8> = BTreeMap::new();
                for (seen, touched, contents) in steps {
                    let is_in = |ranges: &[PageRange], page: u64| ranges.iter().any(|range| range.numbers().contains(&page));
                    let there: Vec<Run> = touched
                        .iter()
                        .flat_map(|range| range.numbers())
                        .filter(|&page| is_in(&seen, page))
                        .filter_map(|page| Some((range(page, 1), [Content::Data, Content::Zero, Content::Guard].get(contents[page as usize] as usize).copied()?)))
                        .collect();
                    model.retain(|&page, _| is_in(&seen, page) && !is_in(&touched, page));
                    model.extend(pages(there.iter().copied()));
                    presence.update(seen.iter().map(|range| range.numbers()).collect(), &touched, &there);
                    prop_assert_eq!(pages(presence.within(range(0, 1000))), model.clone());
                    prop_assert!(presence.runs.windows(2).all(|two| two[0].0.end() < two[1].0.start || two[0].1 != two[1].1));
                    for page in 0..64 {
                        prop_assert_eq!(presence.covers(range(page, 1)), is_in(&seen, page));
    prop_assert_eq!(presence.covers(range(page, 2)), is_in(&seen, page) && is_in(&seen, page + 1));
                    }
                }
            }
        }
}
