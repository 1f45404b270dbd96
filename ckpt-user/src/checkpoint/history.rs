//! What the last image holds of the contents of files, and of the memory, so that the next one need hold only what has changed: a 128-bit hash of each page.
//!
//! The contents are read at each cut and compared by these, because nothing else tells reliably what was written where. Only a file whose size
//! and times prove that it was left alone ([`Stamp`]) is not read. Of the memory those pages are read and compared that may have been written; the hashes
//! of the others stay.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use xxhash_rust::xxh3::xxh3_128;

use super::collect::content_extents;
use crate::ids::{ObjRef, Pid};
use crate::page_set::PageSet;
use crate::pipeline::{self, Changes, Extent, ExtentKind, KnownPages};
use crate::resources::collector::{Content, FileId};
use crate::resources::written::Stamp;
use crate::store::Past;

/// See the module.
#[derive(Debug, Default)]
pub struct History {
    last: HashMap<Of, Arc<Held>>,
    /// Of the cut that is being saved.
    next: HashMap<ObjRef, Mutex<Held>>,
}

/// What has pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Of {
    /// The memory that is seen through this process.
    Memory(Pid),
    File(FileId),
}

/// What an image, or its parents, hold of one of them.
#[derive(Debug)]
struct Held {
    of: Of,
    /// As the image calls it.
    owner: ObjRef,
    stamp: Option<Stamp>,
    hashes: Arc<Hashes>,
    /// As the image before held it.
    before: Option<Arc<Held>>,
    /// Of the memory: pages that are zeros or not there by now, without having been read.
    gone: Vec<Range<u64>>,
}

impl History {
    /// At a cut: which pages of the contents are to be saved, and which contents go on from the last image.
    pub fn plan(&mut self, contents: &[Content]) -> (Vec<Extent>, Past) {
        let (mut plan, mut past) = (Vec::new(), Past::default());
        self.next.clear();
        let all: PageSet = std::iter::once(0..u64::MAX).collect();
        for content in contents {
            let of = Of::File(content.id);
            let before = self.last.get(&of).cloned();
            let mut hashes = Arc::default();
            match &before {
                None => plan.extend(content_extents(content)),
                Some(held) => {
                    past.owners.push((content.owner, held.owner));
                    if content.stamp.is_some() && content.stamp == held.stamp {
                        hashes = held.hashes.clone();
                    } else {
                        let whole: Vec<Extent> = content_extents(content).collect();
                        let changes = Changes { owner: content.owner, written: &all, held: &held.hashes.pages() };
                        plan.extend(pipeline::increment(&whole, &[changes]));
                    }
                }
            }
            let held = Held { of, owner: content.owner, stamp: content.stamp, hashes, before, gone: Vec::new() };
            self.next.insert(content.owner, Mutex::new(held));
        }
        (plan, past)
    }

    /// After that: the memory that is seen through `pid`, which the image calls `owner`, is compared, too. `plan` is that of the image. Pages that it does not speak of are as the
    /// last image has them.
    pub fn compare_memory(&mut self, pid: Pid, owner: ObjRef, plan: &[Extent]) {
        let of = Of::Memory(pid);
        let before = self.last.get(&of).cloned();
        let not_read = |extent: &&Extent| extent.owner == owner && extent.kind != ExtentKind::Read;
        let gone = plan.iter().filter(not_read).map(|extent| extent.pages.numbers()).collect();
        let held = Held { of, owner, stamp: None, hashes: Arc::default(), before, gone };
        self.next.insert(owner, Mutex::new(held));
    }

    /// The next image goes on from none of these: the memory that is seen through `pid`, or all.
    pub fn forget(&mut self, pid: Option<Pid>) {
        match pid {
            Some(pid) => drop(self.last.remove(&Of::Memory(pid))),
            None => self.last.clear(),
        }
    }

    /// The image of that cut is on disk.
    pub fn commit(&mut self) {
        let next: Vec<Held> =
            self.next.drain().map(|(_, held)| held.into_inner().unwrap_or_else(PoisonError::into_inner)).collect();
        let mut last = std::mem::take(&mut self.last);
        for mut held in next {
            held.before = None;
            if let (Of::Memory(_), Some(before)) = (held.of, last.remove(&held.of)) {
                // Nobody else has it by now, so nothing is copied.
                let mut hashes = Arc::try_unwrap(before).map_or_else(|shared| shared.hashes.clone(), |held| held.hashes);
                let all = Arc::make_mut(&mut hashes);
                std::mem::take(&mut held.gone).into_iter().for_each(|pages| all.remove(pages));
                all.update(&held.hashes);
                held.hashes = hashes;
            }
            self.last.insert(held.of, Arc::new(held));
        }
    }
}

impl KnownPages for History {
    fn is_known(&self, owner: ObjRef, page: u64, bytes: &[u8]) -> bool {
        let Some(held) = self.next.get(&owner) else { return false };
        let hash = xxh3_128(bytes);
        let mut held = held.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::make_mut(&mut held.hashes).set(page, hash);
        held.before.as_ref().is_some_and(|before| before.hashes.get(page) == Some(hash))
    }
}

/// Pages of a file in one piece of the list.
const PIECE: usize = 256;

/// The hashes of the pages of a file that may have holes. 0 stands for none, which no page has in the life of this universe.
#[derive(Clone, Debug, Default)]
struct Hashes(BTreeMap<u64, Box<[u128; PIECE]>>);

impl Hashes {
    fn set(&mut self, page: u64, hash: u128) {
        let piece = self.0.entry(page / PIECE as u64).or_insert_with(|| Box::new([0; PIECE]));
        piece[page as usize % PIECE] = hash;
    }

    fn get(&self, page: u64) -> Option<u128> {
        let piece = self.0.get(&(page / PIECE as u64))?;
        Some(piece[page as usize % PIECE]).filter(|hash| *hash != 0)
    }

    fn remove(&mut self, pages: Range<u64>) {
        let pieces = pages.start / PIECE as u64..pages.end.div_ceil(PIECE as u64);
        let mut emptied = Vec::new();
        for (&at, piece) in self.0.range_mut(pieces) {
            let first = at * PIECE as u64;
            let part = pages.start.saturating_sub(first)..(pages.end - first).min(PIECE as u64);
            piece[part.start as usize..part.end as usize].fill(0);
            if piece.iter().all(|hash| *hash == 0) {
                emptied.push(at);
            }
        }
        emptied.iter().for_each(|at| drop(self.0.remove(at)));
    }

    /// Takes all that `newer` has.
    fn update(&mut self, newer: &Hashes) {
        for (&at, piece) in &newer.0 {
            let mine = self.0.entry(at).or_insert_with(|| Box::new([0; PIECE]));
            mine.iter_mut().zip(piece.iter()).filter(|(_, new)| **new != 0).for_each(|(old, new)| *old = *new);
        }
    }

    /// The pages that have one.
    fn pages(&self) -> PageSet {
        let numbers = self.0.iter().flat_map(|(&at, piece)| (at * PIECE as u64..).zip(piece.iter()));
        let mut there = numbers.filter(|(_, hash)| **hash != 0).map(|(page, _)| page);
        let mut pages = PageSet::new();
        let Some(first) = there.next() else { return pages };
        let mut run = first..first + 1;
        for page in there {
            if page == run.end {
                run.end += 1;
            } else {
                pages.insert(std::mem::replace(&mut run, page..page + 1));
            }
        }
        pages.insert(run);
        pages
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use super::*;
    use crate::ids::{PAGE_SIZE, PageRange};

    fn content(owner: u32, inode: u64, pages: PageRange) -> Content {
        let source: OwnedFd = std::fs::File::open("/dev/null").unwrap().into();
        let (owner, id) = (ObjRef(owner), FileId { device: 1, inode });
        Content { owner, source, pages: vec![pages], size: pages.end() * PAGE_SIZE, id, stamp: None, is_copy: false }
    }

    fn range(start: u64, count: u64) -> PageRange {
        PageRange { start, count }
    }

    /// What a plan says of each page.
    fn fates(plan: &[Extent]) -> Vec<(u32, u64, ExtentKind)> {
        plan.iter().flat_map(|e| e.pages.numbers().map(|page| (e.owner.0, page, e.kind))).collect()
    }

    #[test]
    fn a_page_is_known_if_the_last_image_holds_it_of_the_same_file() {
        let mut history = History::default();
        let (_, past) = history.plan(&[content(4, 70, range(0, 3))]);
        assert_eq!(past, Past::default());
        let page = |value: u8| [value; PAGE_SIZE as usize];
        assert!((0..3).all(|n| !history.is_known(ObjRef(4), n, &page(n as u8))));
        history.commit();

        // Of three pages the last is cut off, and two come; another file has the number that this one had.
        let (plan, past) = history.plan(&[content(4, 71, range(0, 1)), content(9, 70, range(0, 2)), content(8, 72, range(5, 1))]);
        assert_eq!(past.owners, [(ObjRef(9), ObjRef(4))]);
        let read = |owner, page| (owner, page, ExtentKind::Read);
        assert_eq!(fates(&plan), [read(4, 0), read(9, 0), read(9, 1), (9, 2, ExtentKind::Hole), read(8, 5)]);
        assert!(!history.is_known(ObjRef(4), 0, &page(0)));
        assert!(history.is_known(ObjRef(9), 0, &page(0)) && !history.is_known(ObjRef(9), 1, &page(7)));
        assert!(!history.is_known(ObjRef(8), 5, &page(0)));
        // That image has failed: what counts is still the one before.
        history.plan(&[content(3, 70, range(0, 3))]);
        assert!(history.is_known(ObjRef(3), 1, &page(1)) && history.is_known(ObjRef(3), 2, &page(2)));
    }

    #[test]
    fn a_page_of_the_memory_is_known_if_the_last_image_holds_it() {
        let mut history = History::default();
        let page = |value: u8| [value; PAGE_SIZE as usize];
        let mut cut = |owner: u32, values: [u8; 3], committed: bool| {
            history.plan(&[]);
            history.compare_memory(Pid(7), ObjRef(owner), &[]);
            let known = [0, 1, 2].map(|n| history.is_known(ObjRef(owner), n as u64, &page(values[n])));
            if committed {
                history.commit();
            }
            known
        };
        assert_eq!(cut(5, [0, 1, 2], false), [false; 3], "the first image");
        assert_eq!(cut(5, [0, 1, 2], true), [false; 3], "that one has failed");
        assert_eq!(cut(6, [0, 9, 2], false), [true, false, true], "as another image calls it");
        assert_eq!(cut(6, [0, 9, 2], true), [true, false, true], "that one has failed");
        assert_eq!(cut(6, [0, 9, 1], true), [true, true, false]);
    }

    #[test]
    fn what_was_not_read_is_as_the_last_image_has_it() {
        let mut history = History::default();
        let page = |value: u8| [value; PAGE_SIZE as usize];
        let extent = |start, count, kind| Extent { owner: ObjRef(5), pages: range(start, count), kind };
        // Some pages of the memory are read, with what they hold; others are zeros, or gone. Which of those that are read are known?
        let mut cut = |read: &[(u64, u8)], rest: &[Extent]| {
            history.plan(&[]);
            history.compare_memory(Pid(7), ObjRef(5), rest);
            let known: Vec<bool> = read.iter().map(|&(n, value)| history.is_known(ObjRef(5), n, &page(value))).collect();
            history.commit();
            known
        };
        assert_eq!(cut(&[(0, 1), (1, 2), (2, 3), (300, 4)], &[]), [false; 4]);
        assert_eq!(cut(&[(1, 2), (2, 9)], &[]), [true, false]);
        assert_eq!(cut(&[(0, 1), (300, 4)], &[]), [true; 2], "they were not read meanwhile");
        assert_eq!(cut(&[(2, 9)], &[extent(0, 1, ExtentKind::Hole), extent(250, 100, ExtentKind::Zero)]), [true]);
        assert_eq!(cut(&[(0, 1), (300, 4), (1, 2)], &[]), [false, false, true], "they were gone, and are there again");
        assert_eq!(cut(&[(0, 1), (300, 4), (2, 3)], &[]), [true, true, false]);
    }

    #[test]
    fn hashes_are_forgotten_in_pieces_and_parts_of_them() {
        let mut hashes = Hashes::default();
        (0..4 * PIECE as u64).for_each(|page| hashes.set(page, 1));
        hashes.remove(10..20);
        hashes.remove(250..260);
        hashes.remove(500..1024);
        let left: Vec<Range<u64>> = hashes.pages().iter().cloned().collect();
        assert_eq!(left, [0..10, 20..250, 260..500]);
        assert_eq!(hashes.0.len(), 2, "empty pieces take no room");
        hashes.remove(0..u64::MAX);
        assert!(hashes.0.is_empty());
    }

    #[test]
    fn pages_that_have_a_hash() {
        let mut hashes = Hashes::default();
        for page in [0, 1, 255, 256, 257, 1 << 40] {
            hashes.set(page, u128::from(page) + 1);
        }
        assert_eq!(hashes.pages().iter().cloned().collect::<Vec<_>>(), [0..2, 255..258, 1 << 40..(1 << 40) + 1]);
        assert_eq!((hashes.get(256), hashes.get(2), hashes.get(9999)), (Some(257), None, None));
        assert!(Hashes::default().pages().is_empty());
    }
}
