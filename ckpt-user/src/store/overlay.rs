//! A chain of images laid over each other, the newest first: each page is taken from the newest image that speaks of it, and goes to a
//! sink once.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use rangemap::RangeSet;

use super::Past;
use crate::error::Result;
use crate::ids::{ObjRef, PAGE_SIZE, PageRange, common};
use crate::pipeline::PageSink;

/// See the module.
pub struct Overlay<'a> {
    inner: &'a dyn PageSink,
    /// Where the newest image has mappings, in each memory: older pages elsewhere are gone.
    mapped: Mapped,
    /// Whose pages are taken from the image that is being read: as it calls them, and as the newest does. `None`: that is the newest.
    older: Option<HashMap<ObjRef, ObjRef>>,
    /// Pages that newer images speak of, by the newest's names.
    claimed: Claims,
    /// And the one that is being read.
    claiming: Mutex<Claims>,
}

type Claims = HashMap<ObjRef, RangeSet<u64>>;

/// The memories of an image, and the pages of each that are mapped.
pub type Mapped = HashMap<ObjRef, RangeSet<u64>>;

impl<'a> Overlay<'a> {
    /// Begins with the newest image, whose memories have mappings at the pages `mapped`.
    pub fn new(inner: &'a dyn PageSink, mapped: Mapped) -> Overlay<'a> {
        Overlay { inner, mapped, older: None, claimed: Claims::new(), claiming: Mutex::default() }
    }

    /// Goes on with the parent of the image that was read. `past`: what the one that was read says of it.
    pub fn next_image(&mut self, past: &Past) {
        for (owner, pages) in self.claiming.get_mut().unwrap_or_else(PoisonError::into_inner).drain() {
            self.claimed.entry(owner).or_default().extend(pages);
        }
        let newest = |owner: &ObjRef| self.older.as_ref().map_or(Some(*owner), |names| names.get(owner).copied());
        self.older = Some(past.owners.iter().filter_map(|(owner, parents)| Some((*parents, newest(owner)?))).collect());
    }

    /// As the newest image calls an owner. `None`: its pages are of no use.
    fn newest(&self, owner: ObjRef) -> Option<ObjRef> {
        self.older.as_ref().map_or(Some(owner), |names| names.get(&owner).copied())
    }

    fn claim(&self, owner: ObjRef, pages: PageRange) {
        if pages.count > 0 {
            let mut claiming = self.claiming.lock().unwrap_or_else(PoisonError::into_inner);
            claiming.entry(owner).or_default().insert(pages.numbers());
        }
    }

    /// The parts of `pages` that are still to come.
    fn wanted(&self, owner: ObjRef, pages: PageRange) -> Vec<PageRange> {
        let pages = pages.numbers();
        let there = match self.mapped.get(&owner) {
            Some(mapped) => mapped.overlapping(&pages).map(|mapped| common(mapped, &pages)).collect(),
            None => vec![pages],
        };
        let Some(claimed) = self.claimed.get(&owner) else { return there.into_iter().map(PageRange::from).collect() };
        there.iter().flat_map(|inside| claimed.gaps(inside).map(PageRange::from)).collect()
    }
}

impl PageSink for Overlay<'_> {
    fn data(&self, owner: ObjRef, ranges: &[PageRange], bytes: &[u8]) -> Result<()> {
        let Some(owner) = self.newest(owner) else { return Ok(()) };
        if self.older.is_none() {
            ranges.iter().for_each(|range| self.claim(owner, *range));
            return self.inner.data(owner, ranges, bytes);
        }
        let (mut parts, mut kept) = (Vec::new(), Vec::new());
        let mut rest = bytes;
        for range in ranges {
            let (here, after) = rest.split_at(range.bytes() as usize);
            for part in self.wanted(owner, *range) {
                let from = ((part.start - range.start) * PAGE_SIZE) as usize;
                kept.extend_from_slice(&here[from..from + part.bytes() as usize]);
                parts.push(part);
            }
            self.claim(owner, *range);
            rest = after;
        }
        // A page is a part at the least, so these are not more than a sink takes at once.
        if parts.is_empty() { Ok(()) } else { self.inner.data(owner, &parts, &kept) }
    }

    fn zero(&self, owner: ObjRef, pages: PageRange) -> Result<()> {
        let Some(owner) = self.newest(owner) else { return Ok(()) };
        let parts = if self.older.is_none() { vec![pages] } else { self.wanted(owner, pages) };
        parts.into_iter().try_for_each(|part| self.inner.zero(owner, part))?;
        self.claim(owner, pages);
        Ok(())
    }

    fn hole(&self, owner: ObjRef, pages: PageRange) -> Result<()> {
        let Some(owner) = self.newest(owner) else { return Ok(()) };
        self.claim(owner, pages);
        if self.older.is_none() { self.inner.hole(owner, pages) } else { Ok(()) }
    }
}

impl std::fmt::Debug for Overlay<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Overlay").field("memories", &self.mapped.len()).field("older", &self.older).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::test_sink::{Pages, filled};
    use super::*;

    fn range(start: u64, count: u64) -> PageRange {
        PageRange { start, count }
    }

    #[test]
    fn each_page_comes_from_the_newest_image_that_speaks_of_it() {
        let sink = Pages::default();
        let past = |now: u32, then: u32| Past { owners: vec![(ObjRef(now), ObjRef(then))] };
        let mut overlay = Overlay::new(&sink, [(ObjRef(7), std::iter::once(0..20).collect())].into());
        overlay.data(ObjRef(7), &[range(3, 2), range(9, 1)], &filled(&[33, 34, 39])).unwrap();
        overlay.hole(ObjRef(7), range(5, 2)).unwrap();
        overlay.next_image(&past(7, 2));
        overlay.zero(ObjRef(2), range(4, 4)).unwrap();
        overlay.data(ObjRef(7), &[range(1, 1)], &filled(&[98])).unwrap();
        overlay.data(ObjRef(2), &[range(1, 1)], &filled(&[99])).unwrap();
        overlay.hole(ObjRef(2), range(10, 1)).unwrap();
        overlay.next_image(&past(2, 3));
        let values: Vec<u8> = (100..124).collect();
        overlay.data(ObjRef(3), &[range(0, 12), range(18, 12)], &filled(&values)).unwrap();
        let expected =
            [(0, 100), (1, 99), (2, 102), (3, 33), (4, 34), (7, 0), (8, 108), (9, 39), (11, 111), (18, 112), (19, 113)];
        assert_eq!(sink.into_map(), expected.into_iter().map(|(page, value)| ((7, page), value)).collect());
    }

    #[test]
    fn contents_of_files_go_on_where_the_newer_image_says_so() {
        let past = |contents: &[(u32, u32)]| Past { owners: contents.iter().map(|&(a, b)| (ObjRef(a), ObjRef(b))).collect() };
        let sink = Pages::default();
        let mut overlay = Overlay::new(&sink, Mapped::new());
        // 5 goes on as 6 and then as 4; 6 is another file, and whole.
        overlay.data(ObjRef(5), &[range(0, 1)], &filled(&[50])).unwrap();
        overlay.hole(ObjRef(5), range(3, 1)).unwrap();
        overlay.data(ObjRef(6), &[range(0, 1)], &filled(&[60])).unwrap();
        overlay.next_image(&past(&[(5, 6)]));
        overlay.data(ObjRef(6), &[range(0, 2)], &filled(&[70, 71])).unwrap();
        overlay.data(ObjRef(5), &[range(9, 1)], &filled(&[72])).unwrap();
        overlay.next_image(&past(&[(6, 4), (5, 6)]));
        overlay.zero(ObjRef(4), range(1, 4)).unwrap();
        overlay.data(ObjRef(6), &[range(8, 1)], &filled(&[80])).unwrap();
        let expected = [((5, 0), 50), ((5, 1), 71), ((5, 2), 0), ((5, 4), 0), ((6, 0), 60)];
        assert_eq!(sink.into_map(), BTreeMap::from(expected));
    }
}
