//! Whose pages an image holds: that no page of an owner comes twice, and that every owner was ended by its empty chunk, with none of its
//! chunks after it. Chunks may be admitted in any order, as parallel readers come to them.
//!
//! Takes bounded memory, whatever the image. Memory that was saved whole costs next to nothing, memory saved in scattered pages a bit per
//! page; beyond [`BLOCKS_MAX`] blocks of scattered pages (that is 512 GiB of addresses) what is new is no longer remembered, so a page
//! that came twice might then be missed. A correct image is never refused.

use std::collections::BTreeMap;

use super::chunk::Run;
use super::error::{ImageError, Place};
use crate::ids::{ObjRef, PageRange};

/// Pages in a block: a bit each in eight words.
const BLOCK: u64 = 512;
/// Entries remembered, of partly and of wholly covered blocks together.
const BLOCKS_MAX: usize = 1 << 18;
/// Owners in one image.
const OWNERS_MAX: usize = 1 << 20;

type Bits = [u64; (BLOCK / 64) as usize];

#[derive(Clone, Copy, Debug, Default)]
struct State {
    /// The greatest number of a record that has pages of it.
    last: Option<u64>,
    /// The number of the record that ended it.
    ended: Option<u64>,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Owners {
    states: BTreeMap<ObjRef, State>,
    /// Blocks of which some pages came, and which.
    partial: BTreeMap<(ObjRef, u64), Bits>,
    /// Runs of blocks of which all pages came: the first block, and the one after the last.
    whole: BTreeMap<(ObjRef, u64), u64>,
}

impl Owners {
    /// Nothing came yet.
    pub fn new() -> Owners {
        Owners::default()
    }

    /// Takes note of the chunk record at `at`, which has these runs of `owner`.
    ///
    /// # Errors
    /// [`ImageError::Malformed`] for a page that came before, and for a chunk beyond the end of its owner.
    pub fn admit(&mut self, owner: ObjRef, runs: &[Run], at: Place) -> Result<(), ImageError> {
        if self.states.len() >= OWNERS_MAX && !self.states.contains_key(&owner) {
            return Err(ImageError::malformed(at, format!("more than {OWNERS_MAX} objects own pages")));
        }
        let state = self.states.entry(owner).or_default();
        if runs.is_empty() {
            if state.ended.replace(at.record).is_some() {
                return Err(ImageError::malformed(at, format!("the pages of object {owner} end twice")));
            }
        } else {
            state.last = state.last.max(Some(at.record));
        }
        if state.ended.is_some_and(|ended| state.last > Some(ended)) {
            return Err(ImageError::malformed(at, format!("there are pages of object {owner} after their end")));
        }
        for run in runs {
            self.insert(owner, run.pages).map_err(|page| {
                ImageError::malformed(at, format!("a page of object {owner} comes twice (in the block from page {page:#x})"))
            })?;
        }
        Ok(())
    }

    /// Every owner, once all chunks came.
    ///
    /// # Errors
    /// [`ImageError::Malformed`] for one that was not ended; `at` is the trailer's place.
    pub fn finish(self, at: Place) -> Result<Vec<ObjRef>, ImageError> {
        match self.states.iter().find(|(_, state)| state.ended.is_none()) {
            Some((owner, _)) => Err(ImageError::malformed(at, format!("the pages of object {owner} have no end"))),
            None => Ok(self.states.into_keys().collect()),
        }
    }

    /// Notes the pages; if one of them was noted before, returns the first page of its block.
    fn insert(&mut self, owner: ObjRef, pages: PageRange) -> Result<(), u64> {
        let (first, end) = (pages.start, pages.end());
        let (whole_from, whole_to) = (first.div_ceil(BLOCK), end / BLOCK);
        if whole_from > whole_to {
            // Within one block, touching neither edge.
            return self.insert_part(owner, first / BLOCK, first % BLOCK, end % BLOCK);
        }
        if !first.is_multiple_of(BLOCK) {
            self.insert_part(owner, first / BLOCK, first % BLOCK, BLOCK)?;
        }
        if !end.is_multiple_of(BLOCK) {
            self.insert_part(owner, whole_to, 0, end % BLOCK)?;
        }
        if whole_from < whole_to {
            if let Some((&(_, block), _)) = self.partial.range((owner, whole_from)..(owner, whole_to)).next() {
                return Err(block * BLOCK);
            }
            self.insert_whole(owner, whole_from, whole_to)?;
        }
        Ok(())
    }

    fn insert_part(&mut self, owner: ObjRef, block: u64, from: u64, to: u64) -> Result<(), u64> {
        if self.in_whole(owner, block) {
            return Err(block * BLOCK);
        }
        let full = self.is_full();
        let key = (owner, block);
        if full && !self.partial.contains_key(&key) {
            return Ok(());
        }
        let bits = self.partial.entry(key).or_default();
        for (word, first) in bits.iter_mut().zip((0..).step_by(64)) {
            let (low, high) = (from.clamp(first, first + 64) - first, to.clamp(first, first + 64) - first);
            if low < high {
                let mask = (u64::MAX >> (64 - (high - low))) << low;
                if *word & mask != 0 {
                    return Err(block * BLOCK);
                }
                *word |= mask;
            }
        }
        if *bits == [u64::MAX; 8] {
            self.partial.remove(&key);
            self.insert_whole(owner, block, block + 1)?;
        }
        Ok(())
    }

    fn in_whole(&self, owner: ObjRef, block: u64) -> bool {
        self.whole.range((owner, 0)..=(owner, block)).next_back().is_some_and(|(_, &end)| end > block)
    }

    fn insert_whole(&mut self, owner: ObjRef, mut from: u64, mut to: u64) -> Result<(), u64> {
        let before = self.whole.range((owner, 0)..(owner, to)).next_back().map(|(key, end)| (*key, *end));
        if let Some(((_, start), end)) = before {
            if end > from {
                return Err(start.max(from) * BLOCK);
            }
            if end == from {
                from = start;
            }
        }
        if let Some(end) = self.whole.remove(&(owner, to)) {
            to = end;
        }
        if !self.is_full() || self.whole.contains_key(&(owner, from)) {
            self.whole.insert((owner, from), to);
        }
        Ok(())
    }

    fn is_full(&self) -> bool {
        self.partial.len() + self.whole.len() >= BLOCKS_MAX
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::image::chunk::RunKind;

    const OWNER: ObjRef = ObjRef(3);

    fn run(start: u64, count: u64) -> Run {
        Run { pages: PageRange { start, count }, kind: RunKind::Zero }
    }

    fn at(record: u64) -> Place {
        Place { record, offset: 0 }
    }

    proptest! {
        #[test]
        fn finds_exactly_the_pages_that_come_twice(runs in proptest::collection::vec((0..6000u64, 1..1800u64), 1..40)) {
            let mut owners = Owners::new();
            let mut seen = std::collections::HashSet::new();
            for (start, count) in runs {
                let twice = (start..start + count).any(|page| seen.contains(&page));
                let admitted = owners.admit(OWNER, &[run(start, count)], at(0)).is_ok();
                prop_assert_eq!(admitted, !twice);
                if twice {
                    break;
                }
                seen.extend(start..start + count);
            }
        }
    }

    #[test]
    fn dense_memory_is_remembered_as_one_run() {
        let mut owners = Owners::new();
        for chunk in (0..4096).rev() {
            owners.admit(OWNER, &[run(chunk * 256, 256)], at(chunk)).unwrap();
        }
        assert_eq!((owners.partial.len(), owners.whole.len()), (0, 1));
        assert!(owners.admit(OWNER, &[run(77, 1)], at(0)).is_err());
        assert!(owners.admit(ObjRef(4), &[run(77, 1)], at(0)).is_ok());
    }

    #[test]
    fn memory_stays_bounded_and_nothing_correct_is_refused() {
        let mut owners = Owners::new();
        for block in 0..2 * BLOCKS_MAX as u64 {
            owners.admit(OWNER, &[run(block * BLOCK + 5, 1)], at(block)).unwrap();
        }
        assert!(owners.partial.len() + owners.whole.len() <= BLOCKS_MAX);
        assert!(owners.admit(OWNER, &[run(5, 1)], at(0)).is_err());
        owners.admit(OWNER, &[run(1 << 50, 1 << 31)], at(0)).unwrap();
    }

    #[test]
    fn every_owner_is_ended_once_and_after_its_pages() {
        let mut owners = Owners::new();
        owners.admit(OWNER, &[], at(5)).unwrap();
        owners.admit(OWNER, &[run(1, 1)], at(4)).unwrap();
        assert!(owners.admit(OWNER, &[run(2, 1)], at(6)).is_err());

        let mut owners = Owners::new();
        owners.admit(OWNER, &[run(1, 1)], at(5)).unwrap();
        assert!(owners.admit(OWNER, &[], at(4)).is_err());

        let mut owners = Owners::new();
        owners.admit(OWNER, &[], at(5)).unwrap();
        assert!(owners.admit(OWNER, &[], at(6)).is_err());

        let mut owners = Owners::new();
        owners.admit(OWNER, &[run(1, 1)], at(5)).unwrap();
        assert!(owners.finish(at(6)).is_err());
    }
}
