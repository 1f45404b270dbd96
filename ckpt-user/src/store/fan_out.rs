//! Pages that stand in an image once and belong to several memories: a sink that gives them to each.

use std::collections::HashMap;

use super::same::Same;
use crate::error::Result;
use crate::ids::{ObjRef, PAGE_SIZE, PageRange, common};
use crate::pipeline::PageSink;

/// See the module.
pub struct FanOut<'a> {
    inner: &'a dyn PageSink,
    /// By the owner of the pages; of each memory that has some of them, by the number that they have with the owner.
    lent: HashMap<ObjRef, Vec<Borrower>>,
}

/// Runs of pages of one memory.
struct Borrower {
    memory: ObjRef,
    runs: Vec<Run>,
}

/// Pages of the owner, and the first of them in the memory of the borrower.
struct Run {
    pages: PageRange,
    first: u64,
}

impl<'a> FanOut<'a> {
    /// Everything goes to `inner`, and what is the `same` elsewhere goes there, too.
    pub fn new(inner: &'a dyn PageSink, same: &[Same]) -> FanOut<'a> {
        let mut lent: HashMap<ObjRef, Vec<Borrower>> = HashMap::new();
        let mut places: HashMap<(ObjRef, ObjRef), usize> = HashMap::new();
        for same in same {
            let borrowers = lent.entry(same.owner).or_default();
            let place = *places.entry((same.owner, same.memory)).or_insert(borrowers.len());
            if place == borrowers.len() {
                borrowers.push(Borrower { memory: same.memory, runs: Vec::new() });
            }
            let pages = PageRange { start: same.first, count: same.pages.count };
            borrowers[place].runs.push(Run { pages, first: same.pages.start });
        }
        lent.values_mut().flatten().for_each(|borrower| borrower.runs.sort_unstable_by_key(|run| run.pages.start));
        FanOut { inner, lent }
    }
}

impl Borrower {
    /// What it has of these pages: those of the owner, and the first of them in its own memory.
    fn parts(&self, pages: PageRange) -> impl Iterator<Item = (PageRange, u64)> + '_ {
        let first = self.runs.partition_point(|run| run.pages.end() <= pages.start);
        let near = self.runs[first..].iter().take_while(move |run| run.pages.start < pages.end());
        near.map(move |run| {
            let part = common(&run.pages.numbers(), &pages.numbers());
            (part.clone().into(), run.first + (part.start - run.pages.start))
        })
    }
}

impl PageSink for FanOut<'_> {
    fn data(&self, owner: ObjRef, ranges: &[PageRange], bytes: &[u8]) -> Result<()> {
        self.inner.data(owner, ranges, bytes)?;
        for borrower in self.lent.get(&owner).into_iter().flatten() {
            let (mut theirs, mut kept) = (Vec::new(), Vec::new());
            let mut rest = bytes;
            for range in ranges {
                let (here, after) = rest.split_at(range.bytes() as usize);
                for (part, first) in borrower.parts(*range) {
                    let from = ((part.start - range.start) * PAGE_SIZE) as usize;
                    kept.extend_from_slice(&here[from..from + part.bytes() as usize]);
                    theirs.push(PageRange { start: first, count: part.count });
                }
                rest = after;
            }
            // Nobody has a page of one owner twice, so these are not more than a sink takes at once.
            if !theirs.is_empty() {
                self.inner.data(borrower.memory, &theirs, &kept)?;
            }
        }
        Ok(())
    }

    fn zero(&self, owner: ObjRef, pages: PageRange) -> Result<()> {
        self.inner.zero(owner, pages)?;
        for borrower in self.lent.get(&owner).into_iter().flatten() {
            for (part, first) in borrower.parts(pages) {
                self.inner.zero(borrower.memory, PageRange { start: first, count: part.count })?;
            }
        }
        Ok(())
    }

    fn hole(&self, owner: ObjRef, pages: PageRange) -> Result<()> {
        // Where the owner has no page, the others have none, either.
        self.inner.hole(owner, pages)
    }
}

impl std::fmt::Debug for FanOut<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FanOut").field("owners", &self.lent.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::super::test_sink::{Pages, filled};
    use super::*;

    #[test]
    fn pages_go_to_all_that_have_them() {
        let range = |start, count| PageRange { start, count };
        let same = |memory, start, count, owner, first| Same {
            memory: ObjRef(memory),
            pages: range(start, count),
            owner: ObjRef(owner),
            first,
        };
        let sink = Pages::default();
        let same = [same(2, 10, 4, 1, 10), same(2, 20, 1, 1, 5), same(3, 12, 9, 1, 12), same(3, 30, 1, 2, 30)];
        let fan = FanOut::new(&sink, &same);
        fan.data(ObjRef(1), &[range(5, 2), range(11, 3)], &filled(&[5, 6, 11, 12, 13])).unwrap();
        fan.zero(ObjRef(1), range(19, 5)).unwrap();
        fan.data(ObjRef(2), &[range(30, 1)], &filled(&[30])).unwrap();
        fan.hole(ObjRef(1), range(10, 1)).unwrap();
        let own = [(1, 5, 5), (1, 6, 6), (1, 11, 11), (1, 12, 12), (1, 13, 13), (2, 30, 30)];
        let zeros = (19..24).map(|page| (1, page, 0));
        let others =
            [(2, 11, 11), (2, 12, 12), (2, 13, 13), (2, 20, 5), (3, 12, 12), (3, 13, 13), (3, 19, 0), (3, 20, 0), (3, 30, 30)];
        let expected = own.into_iter().chain(zeros).chain(others).map(|(owner, page, value)| ((owner, page), value)).collect();
        assert_eq!(sink.into_map(), expected);
    }
}
