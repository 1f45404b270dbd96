//! Copies of pages of one memory, or of the contents of a file.

use crate::error::{Error, Result};
use crate::ids::{ObjRef, PAGE_SIZE, PageRange};
use crate::page_set::PageSet;

/// Pages that are read at once, which is what a source gives.
pub(super) const AT_ONCE: u64 = 256;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Spool {
    /// In order once they are sorted, with the place of the first page in `bytes`.
    ranges: Vec<(PageRange, usize)>,
    bytes: Vec<u8>,
}

impl Spool {
    /// Makes room for so many pages. Is there as much memory?
    pub(super) fn reserve(&mut self, pages: u64) -> bool {
        self.bytes.try_reserve_exact((pages * PAGE_SIZE) as usize).is_ok()
    }

    /// Adds pages, which `read` copies into a buffer, range after range. After an error none of them is there.
    pub(super) fn add(&mut self, ranges: &[PageRange], read: impl FnOnce(&mut [u8]) -> Result<()>) -> Result<()> {
        let mut at = self.bytes.len();
        self.bytes.resize(at + ranges.iter().map(|range| range.bytes() as usize).sum::<usize>(), 0);
        if let Err(error) = read(&mut self.bytes[at..]) {
            self.bytes.truncate(at);
            return Err(error);
        }
        for range in ranges {
            self.ranges.push((*range, at));
            at += range.bytes() as usize;
        }
        Ok(())
    }

    /// To be called when all are added, and before any is read.
    pub(super) fn sort(&mut self) {
        self.ranges.sort_unstable_by_key(|(range, _)| range.start);
    }

    /// How many.
    pub(super) fn pages(&self) -> u64 {
        self.ranges.iter().map(|(range, _)| range.count).sum()
    }

    /// Those that were not `written` since.
    pub(super) fn clean(&self, written: &PageSet) -> Vec<PageRange> {
        let clean = self.ranges.iter().flat_map(|(range, _)| written.gaps(&range.numbers()).collect::<Vec<_>>());
        clean.map(PageRange::from).collect()
    }

    /// From this page on: the bytes of it and of those that follow it, here and in the memory.
    fn from(&self, page: u64) -> Option<&[u8]> {
        let after = self.ranges.partition_point(|(range, _)| range.start <= page);
        let (range, at) = self.ranges[..after].last().filter(|(range, _)| page < range.end())?;
        Some(&self.bytes[at + ((page - range.start) * PAGE_SIZE) as usize..at + range.bytes() as usize])
    }

    pub(super) fn read(&self, ranges: &[PageRange], mut buf: &mut [u8]) -> Result<()> {
        for range in ranges {
            let mut pages = range.numbers();
            while pages.start < pages.end {
                let missing = || Error::Unexpected(format!("page {} was not copied: this is an error in ckpt", pages.start));
                let there = self.from(pages.start).ok_or_else(missing)?;
                let count = (there.len() as u64 / PAGE_SIZE).min(pages.end - pages.start);
                let (part, rest) = buf.split_at_mut((count * PAGE_SIZE) as usize);
                part.copy_from_slice(&there[..part.len()]);
                buf = rest;
                pages.start += count;
            }
        }
        Ok(())
    }
}

/// What is copied of this owner, which there must be.
pub(super) fn of(owner: ObjRef, spool: Option<&Spool>) -> Result<&Spool> {
    spool.ok_or_else(|| Error::Unexpected(format!("nothing of object {owner} was copied")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_copied_is_not_given() {
        let mut spool = Spool::default();
        spool.add(&[PageRange { start: 5, count: 1 }], |_| Ok(())).unwrap();
        let failed = spool.add(&[PageRange { start: 6, count: 1 }], |_| Err(Error::Unexpected("it is gone".to_owned())));
        assert!(failed.is_err() && spool.pages() == 1);
        let mut bytes = vec![0; 2 * PAGE_SIZE as usize];
        assert!(spool.read(&[PageRange { start: 5, count: 1 }], &mut bytes[..PAGE_SIZE as usize]).is_ok());
        assert!(spool.read(&[PageRange { start: 5, count: 2 }], &mut bytes).is_err());
        assert!(spool.read(&[PageRange { start: 4, count: 1 }], &mut bytes).is_err());
    }
}
