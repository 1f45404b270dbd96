//! A chain of images laid over each other, the newest first: each page is taken from the newest image that speaks of it, and goes to a
//! sink once.

use std::sync::{Mutex, PoisonError};

use rangemap::RangeSet;

use crate::error::Result;
use crate::ids::{ObjRef, PAGE_SIZE, PageRange, common};
use crate::pipeline::PageSink;

/// See the module. Only memory has a past: contents of files are whole in every image, so those of older ones are left out.
pub struct Overlay<'a> {
    inner: &'a dyn PageSink,
    /// The memory, as the newest image calls it.
    memory: ObjRef,
    /// Where the newest image has mappings: older pages elsewhere are gone.
    mapped: RangeSet<u64>,
    /// As the image that is being read calls it. `None`: that is the newest.
    older: Option<ObjRef>,
    /// Pages that newer images speak of.
    claimed: RangeSet<u64>,
    /// And the one that is being read.
    claiming: Mutex<RangeSet<u64>>,
}

impl<'a> Overlay<'a> {
    /// Begins with the newest image, which calls the memory `memory` and has mappings at the pages `mapped`.
    pub fn new(inner: &'a dyn PageSink, memory: ObjRef, mapped: RangeSet<u64>) -> Overlay<'a> {
        Overlay { inner, memory, mapped, older: None, claimed: RangeSet::new(), claiming: Mutex::default() }
    }

    /// Goes on with the parent of the image that was read, which calls the memory `memory`.
    pub fn next_image(&mut self, memory: ObjRef) {
        self.claimed.extend(std::mem::take(self.claiming.get_mut().unwrap_or_else(PoisonError::into_inner)));
        self.older = Some(memory);
    }

    fn claim(&self, pages: PageRange) {
        if pages.count > 0 {
            self.claiming.lock().unwrap_or_else(PoisonError::into_inner).insert(pages.numbers());
        }
    }

    /// The parts of `pages` that are still to come.
    fn wanted(&self, pages: PageRange) -> Vec<PageRange> {
        let pages = pages.numbers();
        let mapped = self.mapped.overlapping(&pages).map(|mapped| common(mapped, &pages));
        mapped.flat_map(|inside| self.claimed.gaps(&inside).map(PageRange::from).collect::<Vec<_>>()).collect()
    }
}

impl PageSink for Overlay<'_> {
    fn data(&self, owner: ObjRef, ranges: &[PageRange], bytes: &[u8]) -> Result<()> {
        let Some(memory) = self.older else {
            if owner == self.memory {
                ranges.iter().for_each(|range| self.claim(*range));
            }
            return self.inner.data(owner, ranges, bytes);
        };
        if owner != memory {
            return Ok(());
        }
        let (mut parts, mut kept) = (Vec::new(), Vec::new());
        let mut rest = bytes;
        for range in ranges {
            let (here, after) = rest.split_at(range.bytes() as usize);
            for part in self.wanted(*range) {
                let from = ((part.start - range.start) * PAGE_SIZE) as usize;
                kept.extend_from_slice(&here[from..from + part.bytes() as usize]);
                parts.push(part);
            }
            self.claim(*range);
            rest = after;
        }
        // A page is a part at the least, so these are not more than a sink takes at once.
        if parts.is_empty() { Ok(()) } else { self.inner.data(self.memory, &parts, &kept) }
    }

    fn zero(&self, owner: ObjRef, pages: PageRange) -> Result<()> {
        let Some(memory) = self.older else {
            if owner == self.memory {
                self.claim(pages);
            }
            return self.inner.zero(owner, pages);
        };
        if owner == memory {
            self.wanted(pages).into_iter().try_for_each(|part| self.inner.zero(self.memory, part))?;
            self.claim(pages);
        }
        Ok(())
    }

    fn hole(&self, owner: ObjRef, pages: PageRange) -> Result<()> {
        if owner == self.older.unwrap_or(self.memory) {
            self.claim(pages);
        }
        if self.older.is_none() { self.inner.hole(owner, pages) } else { Ok(()) }
    }
}

impl std::fmt::Debug for Overlay<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Overlay").field("memory", &self.memory).field("older", &self.older).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// Pages by the first byte of their contents.
    #[derive(Default)]
    struct Pages(Mutex<BTreeMap<u64, u8>>);

    impl PageSink for Pages {
        fn data(&self, owner: ObjRef, ranges: &[PageRange], bytes: &[u8]) -> Result<()> {
            assert_eq!(owner, ObjRef(7), "as the newest image calls it");
            let pages = ranges.iter().flat_map(|range| range.numbers());
            for (page, contents) in pages.zip(bytes.chunks(PAGE_SIZE as usize)) {
                assert!(self.0.lock().unwrap().insert(page, contents[0]).is_none(), "page {page} comes twice");
            }
            Ok(())
        }

        fn zero(&self, owner: ObjRef, pages: PageRange) -> Result<()> {
            (pages.start..pages.end())
                .try_for_each(|start| self.data(owner, &[PageRange { start, count: 1 }], &[0; PAGE_SIZE as usize]))
        }

        fn hole(&self, _: ObjRef, _: PageRange) -> Result<()> {
            Ok(())
        }
    }

    #[test]
    fn each_page_comes_from_the_newest_image_that_speaks_of_it() {
        let range = |start, count| PageRange { start, count };
        let pages = |values: &[u8]| values.iter().flat_map(|v| [*v; PAGE_SIZE as usize]).collect::<Vec<u8>>();
        let sink = Pages::default();
        let mut overlay = Overlay::new(&sink, ObjRef(7), std::iter::once(0..20).collect());
        overlay.data(ObjRef(7), &[range(3, 2), range(9, 1)], &pages(&[33, 34, 39])).unwrap();
        overlay.hole(ObjRef(7), range(5, 2)).unwrap();
        overlay.next_image(ObjRef(2));
        overlay.zero(ObjRef(2), range(4, 4)).unwrap();
        overlay.data(ObjRef(7), &[range(1, 1)], &pages(&[99])).unwrap();
        overlay.hole(ObjRef(2), range(10, 1)).unwrap();
        overlay.next_image(ObjRef(3));
        let values: Vec<u8> = (100..124).collect();
        overlay.data(ObjRef(3), &[range(0, 12), range(18, 12)], &pages(&values)).unwrap();
        let expected =
            [(0, 100), (1, 101), (2, 102), (3, 33), (4, 34), (7, 0), (8, 108), (9, 39), (11, 111), (18, 112), (19, 113)];
        assert_eq!(sink.0.into_inner().unwrap(), BTreeMap::from(expected));
    }
}
