//! What is to be saved, and how it is cut into pieces of the size of a chunk.

use crate::error::{Error, Result};
use crate::ids::{ObjRef, PageRange};
use crate::image::Place;
use crate::image::chunk::{MAX_DATA_PAGES, MAX_RUNS, PAGES_END, Run, RunKind};
use crate::image::owners::Owners;

/// What is known of pages before they are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExtentKind {
    /// They have contents, which the source gives.
    Read,
    /// They are all zeros; they need not be read.
    Zero,
    /// They are not there.
    Hole,
}

/// Pages to save.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Whose. An owner without pages has one extent of no pages, so that it is in the image.
    pub owner: ObjRef,
    /// Which.
    pub pages: PageRange,
    /// What they are.
    pub kind: ExtentKind,
}

/// How many pages of the plan are to be read: what the progress of a dump counts up to.
pub fn pages_to_read(plan: &[Extent]) -> u64 {
    plan.iter().filter(|extent| extent.kind == ExtentKind::Read).map(|extent| extent.pages.count).sum()
}

/// Checks that the plan can become an image, in which no page of an owner stands twice. Returns the owners, in order of appearance.
pub(super) fn check(plan: &[Extent]) -> Result<Vec<ObjRef>> {
    let mut owners = Vec::new();
    let mut seen = Owners::new();
    let mut last = None;
    for Extent { owner, pages, .. } in plan.iter().copied() {
        if owner == ObjRef(0) || pages.start > PAGES_END || PAGES_END - pages.start < pages.count {
            return Err(Error::Unexpected(format!(
                "the pages {pages:?} of object {owner} cannot be saved: this is an error in ckpt"
            )));
        }
        if last.replace(owner) != Some(owner) && !owners.contains(&owner) {
            owners.push(owner);
        }
        if pages.count > 0 {
            let run = Run { pages, kind: RunKind::Data };
            seen.admit(owner, &[run], Place::default()).map_err(|why| {
                Error::Unexpected(format!("the pages {pages:?} of object {owner} cannot be saved, by an error in ckpt: {why}"))
            })?;
        }
    }
    Ok(owners)
}

/// Pages of one owner that make one chunk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) owner: ObjRef,
    /// Data runs are to be read; some of their pages may turn out to be zeros.
    pub(super) runs: Vec<Run>,
}

/// Cuts a plan into pieces.
#[derive(Debug)]
pub(super) struct Pieces<'a> {
    plan: &'a [Extent],
    /// Pages of the first extent that were cut off already.
    taken: u64,
}

/// Runs of a piece before zeros are found in it: every page that is read may become a run of its own.
const RUNS_MAX: usize = MAX_RUNS - MAX_DATA_PAGES;
const _: () = assert!(RUNS_MAX >= MAX_DATA_PAGES);

impl<'a> Pieces<'a> {
    pub(super) fn of(plan: &'a [Extent]) -> Pieces<'a> {
        Pieces { plan, taken: 0 }
    }
}

impl Iterator for Pieces<'_> {
    type Item = Piece;

    fn next(&mut self) -> Option<Piece> {
        let mut piece: Option<Piece> = None;
        let mut room = MAX_DATA_PAGES as u64;
        while let Some((extent, rest)) = self.plan.split_first() {
            let left = PageRange { start: extent.pages.start + self.taken, count: extent.pages.count - self.taken };
            if left.count == 0 {
                (self.plan, self.taken) = (rest, 0);
                continue;
            }
            let is_read = extent.kind == ExtentKind::Read;
            let count = left.count.min(if is_read { room } else { u32::MAX.into() });
            let piece = piece.get_or_insert_with(|| Piece { owner: extent.owner, runs: Vec::new() });
            if piece.owner != extent.owner || piece.runs.len() == RUNS_MAX || count == 0 {
                break;
            }
            let kind = match extent.kind {
                ExtentKind::Read => RunKind::Data,
                ExtentKind::Zero => RunKind::Zero,
                ExtentKind::Hole => RunKind::Hole,
            };
            piece.runs.push(Run { pages: PageRange { start: left.start, count }, kind });
            self.taken += count;
            room -= if is_read { count } else { 0 };
        }
        piece
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn extents() -> impl Strategy<Value = Vec<Extent>> {
        let extent = (1..3u32, 0..600u64, 0..3u64, 0..3usize);
        proptest::collection::vec(extent, 0..50).prop_map(|raw| {
            let mut next = 0;
            let place = |(owner, count, gap, kind)| {
                let pages = PageRange { start: next + gap, count };
                next = pages.end();
                let kind = [ExtentKind::Read, ExtentKind::Zero, ExtentKind::Hole][kind];
                Extent { owner: ObjRef(owner), pages, kind }
            };
            raw.into_iter().map(place).collect()
        })
    }

    proptest! {
        #[test]
        fn pieces_are_the_plan_and_fit_a_chunk(plan in extents()) {
            prop_assert!(check(&plan).is_ok());
            let list = |owner, pages: PageRange, data| (pages.start..pages.end()).map(move |page| (owner, page, data));
            let expected: Vec<_> = plan.iter().flat_map(|e| list(e.owner, e.pages, e.kind == ExtentKind::Read)).collect();
            let mut found = Vec::new();
            for piece in Pieces::of(&plan) {
                let data: u64 = piece.runs.iter().filter(|r| r.kind == RunKind::Data).map(|r| r.pages.count).sum();
                prop_assert!(data <= MAX_DATA_PAGES as u64 && (1..=RUNS_MAX).contains(&piece.runs.len()));
                found.extend(piece.runs.iter().flat_map(|r| list(piece.owner, r.pages, r.kind == RunKind::Data)));
            }
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn a_plan_with_a_page_twice_is_refused() {
        let extent = |owner, start| Extent { owner: ObjRef(owner), pages: PageRange { start, count: 2 }, kind: ExtentKind::Zero };
        assert_eq!(check(&[extent(2, 0), extent(1, 0), extent(2, 2)]).unwrap(), [ObjRef(2), ObjRef(1)]);
        assert!(check(&[extent(2, 0), extent(2, 1)]).is_err());
        assert!(check(&[extent(0, 0)]).is_err());
        assert!(check(&[extent(1, u64::MAX)]).is_err());
    }

    #[test]
    fn a_hole_longer_than_a_run_becomes_several() {
        let plan = [Extent { owner: ObjRef(1), pages: PageRange { start: 0, count: 3 << 32 }, kind: ExtentKind::Hole }];
        let pieces: Vec<Piece> = Pieces::of(&plan).collect();
        assert_eq!(pieces.iter().flat_map(|p| &p.runs).map(|r| r.pages.count).sum::<u64>(), 3 << 32);
    }
}
