//! Finding out what changed with no help from the kernel: the pages of the parent image are remembered by their hashes, 128 bits each, and
//! a page whose hash is the same is not written again. It must be read, though.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use rangemap::RangeSet;
use xxhash_rust::xxh3::xxh3_128;

use super::DirtyTracker;
use crate::error::Result;
use crate::ids::{ObjRef, PAGE_SIZE, PageRange};
use crate::pipeline::{KnownPages, PageSink};
use crate::tracee::maps::Mapping;
use crate::tracee::remote::RemoteTask;

/// The tracker that sees nothing, so that every page is to be read. What was written is compared anyway.
#[derive(Debug)]
pub struct Unseeing;

impl DirtyTracker for Unseeing {
    fn name(&self) -> &'static str {
        "hash"
    }

    fn prepare(&mut self, _: &mut RemoteTask<'_>) -> Result<()> {
        Ok(())
    }

    fn cut(&mut self, _: &mut [Mapping]) -> Result<RangeSet<u64>> {
        Ok(std::iter::once(0..u64::MAX).collect())
    }
}

/// The hashes of the pages of one memory: 16 bytes for a page.
#[derive(Debug)]
pub struct PageHashes {
    /// The memory, as the image that the pages come from calls it.
    owner: ObjRef,
    rows: Rows,
}

/// By the first page: pages side by side.
type Rows = BTreeMap<u64, Row>;

#[derive(Debug)]
enum Row {
    /// With these hashes.
    Data(Vec<u128>),
    /// So many pages of zeros.
    Zeros(u64),
}

impl Row {
    fn len(&self) -> u64 {
        match self {
            Row::Data(hashes) => hashes.len() as u64,
            Row::Zeros(count) => *count,
        }
    }
}

impl PageHashes {
    /// The hash of a page that is there.
    fn get(&self, page: u64) -> Option<u128> {
        let (first, row) = self.rows.range(..=page).next_back()?;
        match row {
            Row::Data(hashes) => hashes.get((page - first) as usize).copied(),
            Row::Zeros(count) => (page - first < *count).then(|| xxh3_128(&[0; PAGE_SIZE as usize])),
        }
    }

    /// The pages that have one.
    pub fn pages(&self) -> impl Iterator<Item = std::ops::Range<u64>> + '_ {
        self.rows.iter().map(|(&first, row)| first..first + row.len())
    }

    /// The same memory, as another image calls it.
    pub fn rename(&mut self, owner: ObjRef) {
        self.owner = owner;
    }
}

impl KnownPages for PageHashes {
    fn is_known(&self, owner: ObjRef, page: u64, bytes: &[u8]) -> bool {
        owner == self.owner && self.get(page) == Some(xxh3_128(bytes))
    }
}

/// Takes the pages of an image, and keeps their hashes.
#[derive(Debug)]
pub struct Hashing {
    owner: ObjRef,
    rows: Mutex<Rows>,
}

impl Hashing {
    /// Of the memory `owner`.
    pub fn of(owner: ObjRef) -> Hashing {
        Hashing { owner, rows: Mutex::default() }
    }

    /// What has come.
    pub fn finish(self) -> PageHashes {
        PageHashes { owner: self.owner, rows: self.rows.into_inner().unwrap_or_else(PoisonError::into_inner) }
    }

    fn add(&self, first: u64, row: Row) {
        self.rows.lock().unwrap_or_else(PoisonError::into_inner).insert(first, row);
    }
}

impl PageSink for Hashing {
    fn data(&self, owner: ObjRef, ranges: &[PageRange], bytes: &[u8]) -> Result<()> {
        if owner == self.owner {
            let mut pages = bytes.chunks_exact(PAGE_SIZE as usize);
            for range in ranges {
                self.add(range.start, Row::Data(pages.by_ref().take(range.count as usize).map(xxh3_128).collect()));
            }
        }
        Ok(())
    }

    fn zero(&self, owner: ObjRef, pages: PageRange) -> Result<()> {
        if owner == self.owner {
            self.add(pages.start, Row::Zeros(pages.count));
        }
        Ok(())
    }

    fn hole(&self, _: ObjRef, _: PageRange) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_known_by_its_contents_and_place() {
        let memory = ObjRef(3);
        let hashing = Hashing::of(memory);
        let page = |value: u8| vec![value; PAGE_SIZE as usize];
        let range = |start, count| PageRange { start, count };
        hashing.data(memory, &[range(10, 2), range(20, 1)], &[page(1), page(2), page(3)].concat()).unwrap();
        hashing.data(ObjRef(4), &[range(30, 1)], &page(1)).unwrap();
        hashing.zero(memory, range(40, 5)).unwrap();
        let mut hashes = hashing.finish();
        hashes.rename(ObjRef(7));
        let known = |at, value| hashes.is_known(ObjRef(7), at, &page(value));
        assert!(known(10, 1) && known(11, 2) && known(20, 3) && known(44, 0));
        assert!(!known(10, 2) && !known(9, 1) && !known(12, 2) && !known(30, 1) && !known(45, 0));
        assert!(!hashes.is_known(memory, 10, &page(1)), "another memory");
        assert_eq!(hashes.pages().collect::<Vec<_>>(), [10..12, 20..21, 40..45]);
    }
}
