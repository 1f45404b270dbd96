//! Pages that were read while the target stood still, to be written once it runs on: as many as are read in no time.

use crate::error::{Error, Result};
use crate::ids::{ObjRef, PAGE_SIZE, PageRange};
use crate::pipeline::{Extent, ExtentKind, PageSource, pages_to_read};

/// The most pages that are kept here (4 MiB): more are written at once.
const MOST: u64 = 1024;
/// Read at once, which is what a source gives.
const AT_ONCE: u64 = 256;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Kept {
    /// In order, with the place of the first page in `bytes`.
    pages: Vec<(ObjRef, PageRange, usize)>,
    bytes: Vec<u8>,
}

impl Kept {
    /// Reads what the plan has to be read. `None`: that is too much.
    pub(super) fn read(plan: &[Extent], source: &dyn PageSource) -> Result<Option<Kept>> {
        let count = pages_to_read(plan);
        if count > MOST {
            return Ok(None);
        }
        let mut kept = Kept { pages: Vec::new(), bytes: vec![0; (count * PAGE_SIZE) as usize] };
        let mut at = 0;
        for extent in plan.iter().filter(|extent| extent.kind == ExtentKind::Read) {
            for start in extent.pages.numbers().step_by(AT_ONCE as usize) {
                let pages = PageRange { start, count: AT_ONCE.min(extent.pages.end() - start) };
                let end = at + pages.bytes() as usize;
                source.read(extent.owner, &[pages], &mut kept.bytes[at..end])?;
                kept.pages.push((extent.owner, pages, at));
                at = end;
            }
        }
        kept.pages.sort_unstable_by_key(|(owner, pages, _)| (*owner, pages.start));
        Ok(Some(kept))
    }
}

impl PageSource for Kept {
    fn read(&self, owner: ObjRef, ranges: &[PageRange], mut buf: &mut [u8]) -> Result<()> {
        for range in ranges {
            let mut wanted = range.numbers();
            while wanted.start < wanted.end {
                let after = self.pages.partition_point(|(of, pages, _)| (*of, pages.start) <= (owner, wanted.start));
                let there = self.pages[..after].last().filter(|(of, pages, _)| *of == owner && wanted.start < pages.end());
                let missing = || Error::Unexpected(format!("page {} was not kept: this is an error in ckpt", wanted.start));
                let (_, pages, at) = there.ok_or_else(missing)?;
                let first = at + ((wanted.start - pages.start) * PAGE_SIZE) as usize;
                let count = (pages.end() - wanted.start).min(wanted.end - wanted.start);
                let (now, rest) = buf.split_at_mut((count * PAGE_SIZE) as usize);
                now.copy_from_slice(&self.bytes[first..first + now.len()]);
                (buf, wanted.start) = (rest, wanted.start + count);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
