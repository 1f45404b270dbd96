//! Finding out what changed with no help from the kernel: the pages of the parent image are remembered by their hashes, 128 bits each, and
//! a page whose hash is the same is not written again. It must be read, though.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};

use xxhash_rust::xxh3::xxh3_128;

use super::DirtyTracker;
use super::ebpf::AddressSpace;
use crate::error::Result;
use crate::ids::{ObjRef, PAGE_SIZE, PageRange, Pid};
use crate::page_set::PageSet;
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

    fn prepare(&mut self, _: &mut RemoteTask<'_>, _: Option<AddressSpace>) -> Result<()> {
        Ok(())
    }

    fn cut(&mut self, _: &mut [Mapping], _: bool) -> Result<PageSet> {
        Ok(std::iter::once(0..u64::MAX).collect())
    }
}

/// The hashes of the pages of the memories of an image: 16 bytes for a page.
#[derive(Debug, Default)]
pub struct PageHashes {
    /// By the names that the image has for them.
    rows: HashMap<ObjRef, Rows>,
    /// The processes that the image holds, and the memory of each.
    memories: HashMap<Pid, ObjRef>,
    /// As another image calls the memories.
    names: HashMap<ObjRef, ObjRef>,
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

impl Row {
    /// The hash of the page so many pages behind the first.
    fn get(&self, at: u64) -> Option<u128> {
        match self {
            Row::Data(hashes) => hashes.get(at as usize).copied(),
            Row::Zeros(count) => (at < *count).then(|| xxh3_128(&[0; PAGE_SIZE as usize])),
        }
    }
}

impl PageHashes {
    /// As the image calls the memory of a process.
    pub fn memory_of(&self, pid: Pid) -> Option<ObjRef> {
        self.memories.get(&pid).copied().filter(|memory| self.rows.contains_key(memory))
    }

    /// The pages of a memory, by its name in the image, that have a hash.
    pub fn pages(&self, memory: ObjRef) -> impl Iterator<Item = std::ops::Range<u64>> + '_ {
        self.rows.get(&memory).into_iter().flatten().map(|(&first, row)| first..first + row.len())
    }

    /// As another image calls the memories: its name, and the one that this image has.
    pub fn rename(&mut self, names: impl IntoIterator<Item = (ObjRef, ObjRef)>) {
        self.names = names.into_iter().collect();
    }
}

impl KnownPages for PageHashes {
    fn is_known(&self, owner: ObjRef, page: u64, bytes: &[u8]) -> bool {
        let rows = self.names.get(&owner).and_then(|then| self.rows.get(then));
        let row = rows.and_then(|rows| rows.range(..=page).next_back());
        row.is_some_and(|(first, row)| row.get(page - first) == Some(xxh3_128(bytes)))
    }
}

/// Takes the pages of an image, and keeps the hashes of those that are memory.
#[derive(Debug)]
pub struct Hashing {
    memories: HashMap<Pid, ObjRef>,
    rows: HashMap<ObjRef, Mutex<Rows>>,
}

impl Hashing {
    /// Of the memories of these processes.
    pub fn of(memories: HashMap<Pid, ObjRef>) -> Hashing {
        let rows = memories.values().map(|&memory| (memory, Mutex::default())).collect();
        Hashing { memories, rows }
    }

    /// What has come.
    pub fn finish(self) -> PageHashes {
        let rows =
            self.rows.into_iter().map(|(memory, rows)| (memory, rows.into_inner().unwrap_or_else(PoisonError::into_inner)));
        PageHashes { rows: rows.collect(), memories: self.memories, names: HashMap::new() }
    }

    fn add(&self, owner: ObjRef, first: u64, row: impl FnOnce() -> Row) {
        if let Some(rows) = self.rows.get(&owner) {
            let row = row();
            rows.lock().unwrap_or_else(PoisonError::into_inner).insert(first, row);
        }
    }
}

impl PageSink for Hashing {
    fn data(&self, owner: ObjRef, ranges: &[PageRange], bytes: &[u8]) -> Result<()> {
        let mut pages = bytes.chunks_exact(PAGE_SIZE as usize);
        for range in ranges {
            let pages = pages.by_ref().take(range.count as usize);
            self.add(owner, range.start, || Row::Data(pages.map(xxh3_128).collect()));
        }
        Ok(())
    }

    fn zero(&self, owner: ObjRef, pages: PageRange) -> Result<()> {
        self.add(owner, pages.start, || Row::Zeros(pages.count));
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
        let hashing = Hashing::of([(Pid(9), memory)].into());
        let page = |value: u8| vec![value; PAGE_SIZE as usize];
        let range = |start, count| PageRange { start, count };
        hashing.data(memory, &[range(10, 2), range(20, 1)], &[page(1), page(2), page(3)].concat()).unwrap();
        hashing.data(ObjRef(4), &[range(30, 1)], &page(1)).unwrap();
        hashing.zero(memory, range(40, 5)).unwrap();
        let mut hashes = hashing.finish();
        hashes.rename([(ObjRef(7), memory)]);
        let known = |at, value| hashes.is_known(ObjRef(7), at, &page(value));
        assert!(known(10, 1) && known(11, 2) && known(20, 3) && known(44, 0));
        assert!(!known(10, 2) && !known(9, 1) && !known(12, 2) && !known(30, 1) && !known(45, 0));
        assert_eq!((hashes.memory_of(Pid(9)), hashes.memory_of(Pid(8))), (Some(memory), None));
        assert!(!hashes.is_known(memory, 10, &page(1)), "another memory");
        assert_eq!(hashes.pages(memory).collect::<Vec<_>>(), [10..12, 20..21, 40..45]);
    }
}
