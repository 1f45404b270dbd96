//! Pages that several memories of an image share, as fork leaves them: they stand in the image once, as pages of one of these memories, and the others
//! say whose page it is.
//!
//! What an image says of this is all that counts, and what its parents said does not: of a page that is shared in an image neither that image nor
//! its parents hold contents for whoever names another memory. So when one of them writes to its page, or its owner ends, the page comes into the next
//! increment as if it were new.

use std::collections::HashMap;

use rangemap::RangeSet;
use serde::{Deserialize, Serialize};

use crate::ids::{ObjRef, PageRange};
use crate::image::ImageError;
use crate::image::chunk::PAGES_END;
use crate::image::model::Object;
use crate::image::number::{fold, number, put, unfold};

/// The kind of the object that says so. There is one at most.
pub const KIND: &str = "same-pages";

/// These pages of a memory are those of another one, from the page `first` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Same {
    /// Who has them as well.
    pub memory: ObjRef,
    /// Which.
    pub pages: PageRange,
    /// Whose they are in the image.
    pub owner: ObjRef,
    /// The first of them there.
    pub first: u64,
}

impl Same {
    /// Takes in `next`, if its pages follow on these, in both memories.
    pub fn takes_in(&mut self, next: &Same) -> bool {
        let of_the_same = (self.memory, self.owner) == (next.memory, next.owner);
        let follows = of_the_same && self.pages.end() == next.pages.start && self.first + self.pages.count == next.first;
        self.pages.count += if follows { next.pages.count } else { 0 };
        follows
    }
}

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SamePages {
    pairs: Vec<Pair>,
}

/// What one memory has of another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Pair {
    memory: ObjRef,
    owner: ObjRef,
    /// For each run, in order: the pages since the last one ended, how many it has, and how far away they are in the memory of the owner, against the run
    /// before.
    #[serde(with = "serde_bytes")]
    runs: Vec<u8>,
}

impl SamePages {
    /// Of one memory after the other, the runs of each in order.
    pub fn new(all: &[Same]) -> SamePages {
        let mut pairs = Vec::new();
        for of_memory in all.chunk_by(|a, b| a.memory == b.memory) {
            let mut owners: Vec<(ObjRef, Vec<&Same>)> = Vec::new();
            let mut places = HashMap::new();
            for same in of_memory {
                let place = *places.entry(same.owner).or_insert(owners.len());
                if place == owners.len() {
                    owners.push((same.owner, Vec::new()));
                }
                owners[place].1.push(same);
            }
            for (owner, sames) in owners {
                let (mut runs, mut end, mut shift) = (Vec::new(), 0, 0);
                for Same { pages, first, .. } in sames {
                    let far = *first as i64 - pages.start as i64;
                    put(&mut runs, pages.start - end);
                    put(&mut runs, pages.count);
                    put(&mut runs, fold(far - shift));
                    (end, shift) = (pages.end(), far);
                }
                pairs.push(Pair { memory: of_memory[0].memory, owner, runs });
            }
        }
        SamePages { pairs }
    }

    /// What an image says, by its objects.
    pub fn of<'a>(objects: impl IntoIterator<Item = &'a Object>) -> Result<SamePages, ImageError> {
        let found = objects.into_iter().find(|object| object.section.kind == KIND);
        found.map_or_else(|| Ok(SamePages::default()), |object| object.section.decode())
    }

    /// Is nothing shared?
    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }

    /// All of it. The error says what is impossible.
    pub fn all(&self) -> Result<Vec<Same>, String> {
        let mut all = Vec::new();
        let mut given: HashMap<ObjRef, RangeSet<u64>> = HashMap::new();
        for pair in &self.pairs {
            let of_memory = given.entry(pair.memory).or_default();
            for same in pair.decode() {
                let same = same.ok_or_else(|| format!("what object {} shares with others cannot be read", pair.memory))?;
                if of_memory.overlaps(&same.pages.numbers()) {
                    return Err(format!("pages {:?} of object {} are shared twice", same.pages, same.memory));
                }
                of_memory.insert(same.pages.numbers());
                all.push(same);
            }
        }
        // What is named is to be there.
        let lent = |same: &&Same| {
            let theirs = same.first..same.first + same.pages.count;
            same.memory == same.owner || given.get(&same.owner).is_some_and(|given| given.overlaps(&theirs))
        };
        let mut borrowed: HashMap<(ObjRef, ObjRef), RangeSet<u64>> = HashMap::new();
        for same in &all {
            let borrowed = borrowed.entry((same.memory, same.owner)).or_default();
            let theirs = same.first..same.first + same.pages.count;
            if borrowed.overlaps(&theirs) {
                return Err(format!("object {} has pages of object {} twice", same.memory, same.owner));
            }
            borrowed.insert(theirs);
        }
        match all.iter().find(lent) {
            Some(same) => Err(format!("pages {:?} of object {} are those of others, which have none", same.pages, same.memory)),
            None => Ok(all),
        }
    }
}

impl Pair {
    fn decode(&self) -> impl Iterator<Item = Option<Same>> + '_ {
        let (mut rest, mut end, mut shift) = (self.runs.as_slice(), 0u64, 0i64);
        let mut next = move || {
            let start = end.checked_add(number(&mut rest)?)?;
            let count = number(&mut rest)?;
            shift = shift.checked_add(unfold(number(&mut rest)?))?;
            let first = start.checked_add_signed(shift)?;
            end = start.checked_add(count).filter(|end| *end <= PAGES_END)?;
            first.checked_add(count).filter(|end| *end <= PAGES_END && count > 0)?;
            let pages = PageRange { start, count };
            Some((Same { memory: self.memory, pages, owner: self.owner, first }, rest.is_empty()))
        };
        let mut over = self.runs.is_empty();
        std::iter::from_fn(move || {
            if over {
                return None;
            }
            let found = next();
            over = found.is_none_or(|(_, last)| last);
            Some(found.map(|(same, _)| same))
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn sames() -> impl Strategy<Value = Vec<Same>> {
        let run = (0..3u32, 0..1u64 << 40, 1..5000u64, 1..4u32);
        prop::collection::vec(run, 0..30).prop_map(|raw| {
            let mut ends = [0; 3];
            let place = |(n, (memory, gap, count, owner)): (usize, (u32, u64, u64, u32))| {
                let end = &mut ends[memory as usize];
                let pages = PageRange { start: *end + gap, count };
                *end = pages.end();
                // Anywhere, but nowhere twice.
                let first = ((n as u64 * 7919 % 32) << 40) + gap % 1000;
                Same { memory: ObjRef(memory + 10), pages, owner: ObjRef(owner), first }
            };
            let mut all: Vec<Same> = raw.into_iter().enumerate().map(place).collect();
            all.sort_by_key(|same| (same.memory, same.owner, same.pages.start));
            all
        })
    }

    proptest! {
        #[test]
        fn what_is_shared_comes_back(all in sames()) {
            let mut in_order = all.clone();
            in_order.sort_by_key(|same| (same.memory, same.pages.start));
            let mut read = SamePages::new(&in_order).all().unwrap();
            read.sort_by_key(|same| (same.memory, same.owner, same.pages.start));
            prop_assert_eq!(read, all);
        }

        #[test]
        fn hostile_runs_never_panic(runs in prop::collection::vec(any::<u8>(), 0..60), owner in 1..3u32) {
            let same = SamePages { pairs: vec![Pair { memory: ObjRef(1), owner: ObjRef(owner), runs }] };
            if let Ok(all) = same.all() {
                prop_assert!(all.iter().all(|same| same.pages.count > 0 && same.pages.end() <= PAGES_END));
            }
        }
    }

    #[test]
    fn a_page_is_lent_once_and_by_its_owner() {
        let same = |memory, start, owner, first| Same {
            memory: ObjRef(memory),
            pages: PageRange { start, count: 3 },
            owner: ObjRef(owner),
            first,
        };
        let all = |all: &[Same]| SamePages::new(all).all();
        assert!(all(&[same(2, 10, 1, 10), same(3, 10, 1, 10), same(3, 13, 2, 20)]).is_ok());
        assert!(all(&[same(2, 10, 1, 10), same(2, 12, 3, 12)]).unwrap_err().contains("twice"));
        assert!(all(&[same(2, 10, 1, 10), same(3, 10, 2, 12)]).unwrap_err().contains("have none"));
        assert!(all(&[same(2, 10, 2, 20)]).is_err());
    }
}
