//! Pages that were read while the target stood still, to be written once it runs on: as many as are read in no time.

use std::collections::HashMap;

use super::spool::{self, AT_ONCE, Spool};
use crate::error::Result;
use crate::ids::{ObjRef, PageRange};
use crate::pipeline::{Extent, ExtentKind, PageSource, pages_to_read};

/// The most pages that are kept here (4 MiB): more are written at once.
const MOST: u64 = 1024;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Kept(HashMap<ObjRef, Spool>);

impl Kept {
    /// Reads what the plan has to be read. `None`: that is too much.
    pub(super) fn read(plan: &[Extent], source: &dyn PageSource) -> Result<Option<Kept>> {
        if pages_to_read(plan) > MOST {
            return Ok(None);
        }
        let mut kept = Kept::default();
        let read = plan.iter().filter(|extent| extent.kind == ExtentKind::Read);
        let pieces = read.flat_map(|extent| {
            let starts = extent.pages.numbers().step_by(AT_ONCE as usize);
            starts.map(|start| (extent.owner, PageRange { start, count: AT_ONCE.min(extent.pages.end() - start) }))
        });
        let mut group = Vec::new();
        let mut pieces = pieces.peekable();
        while let Some((owner, pages)) = pieces.next() {
            group.push(pages);
            let taken: u64 = group.iter().map(|pages| pages.count).sum();
            let fits = |next: &(ObjRef, PageRange)| next.0 == owner && taken + next.1.count <= AT_ONCE;
            if !pieces.peek().is_some_and(fits) {
                kept.0.entry(owner).or_default().add(&group, |buf| source.read(owner, &group, buf))?;
                group.clear();
            }
        }
        kept.0.values_mut().for_each(Spool::sort);
        Ok(Some(kept))
    }
}

impl PageSource for Kept {
    fn read(&self, owner: ObjRef, ranges: &[PageRange], buf: &mut [u8]) -> Result<()> {
        spool::of(owner, self.0.get(&owner))?.read(ranges, buf)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::PAGE_SIZE;

    /// Pages that hold their owner and their number.
    struct Numbered;

    impl PageSource for Numbered {
        fn read(&self, owner: ObjRef, ranges: &[PageRange], buf: &mut [u8]) -> Result<()> {
            let pages = ranges.iter().flat_map(|range| range.numbers());
            for (page, bytes) in pages.zip(buf.chunks_exact_mut(PAGE_SIZE as usize)) {
                bytes[..4].copy_from_slice(&owner.0.to_le_bytes());
                bytes[4..12].copy_from_slice(&page.to_le_bytes());
            }
            Ok(())
        }
    }

    fn extent(owner: u32, start: u64, count: u64, kind: ExtentKind) -> Extent {
        Extent { owner: ObjRef(owner), pages: PageRange { start, count }, kind }
    }

    #[test]
    fn what_was_read_is_given_whatever_the_ranges() {
        let plan = [
            extent(2, 100, 300, ExtentKind::Read),
            extent(2, 400, 9, ExtentKind::Zero),
            extent(1, 7, 1, ExtentKind::Read),
            extent(2, 20, 2, ExtentKind::Read),
        ];
        let kept = Kept::read(&plan, &Numbered).unwrap().unwrap();
        for (owner, start, count) in [(2, 100, 256), (2, 350, 50), (2, 399, 1), (1, 7, 1), (2, 20, 2)] {
            let range = PageRange { start, count };
            let (mut got, mut wanted) = (vec![0; range.bytes() as usize], vec![0; range.bytes() as usize]);
            kept.read(ObjRef(owner), &[range], &mut got).unwrap();
            Numbered.read(ObjRef(owner), &[range], &mut wanted).unwrap();
            assert!(got == wanted, "{range:?} of {owner}");
        }
        for (owner, start, count) in [(1, 8, 1), (2, 399, 2), (3, 100, 1), (2, 19, 1)] {
            let mut buf = vec![0; (count * PAGE_SIZE) as usize];
            assert!(kept.read(ObjRef(owner), &[PageRange { start, count }], &mut buf).is_err());
        }
        assert!(Kept::read(&[extent(1, 0, MOST + 1, ExtentKind::Read)], &Numbered).unwrap().is_none());
    }
}
