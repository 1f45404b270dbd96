//! The memory of a thread: parts that change places, and are mapped anew.

use std::io;

use ckpt_tests::sys::memory::{PAGE, Region};
use ckpt_tests::sys::writes::move_to;

use crate::plan::PARTS;

const READ_WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;
/// Bytes of a huge page.
const HUGE: usize = 2 << 20;
/// Pages in one.
pub const HUGE_PART: usize = HUGE / PAGE;

/// Which kind of memory.
#[derive(Clone, Copy, Debug, Default)]
pub struct Kind {
    /// Huge pages, please.
    pub huge: bool,
    /// Huge pages that were reserved, and nothing else (MAP_HUGETLB).
    pub hugetlb: bool,
    /// MAP_SHARED instead of MAP_PRIVATE.
    pub shared: bool,
}

/// Are there reserved huge pages? The error says why this cannot be had here.
pub fn try_hugetlb() -> io::Result<()> {
    Region::map(HUGE, READ_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB, None)?.unmap()
}

/// The parts, and an unused range between which and them they move.
#[derive(Debug)]
pub struct Territory {
    kind: Kind,
    parts: [Region; PARTS],
    spare: Region,
}

impl Territory {
    /// Room for `pages`, a multiple of the number of parts, and of [`HUGE_PART`] in each if it is of reserved huge pages.
    pub fn new(pages: usize, kind: Kind) -> io::Result<Territory> {
        let len = pages / PARTS * PAGE;
        // Each part gets a place of its own, so that they are one mapping only if the kernel joins them.
        let place = len.next_multiple_of(if kind.huge || kind.hugetlb { HUGE } else { PAGE });
        let all = reserve(0, place * (PARTS + 1) + HUGE)?;
        let start = all.start.next_multiple_of(HUGE);
        let at = |n: usize| Region { start: start + n * place, len };
        for n in 0..PARTS {
            at(n).unmap()?;
            map(at(n), kind)?;
        }
        Ok(Territory { kind, parts: std::array::from_fn(at), spare: at(PARTS) })
    }

    /// Page `n`, wherever it is now.
    pub fn page(&self, n: usize) -> Region {
        let pages = self.parts[0].len / PAGE;
        self.parts[n / pages].page(n % pages)
    }

    /// Moves parts: one to another address, or two to each other's.
    pub fn wander(&mut self, n: usize) -> io::Result<()> {
        let (one, other) = (n % PARTS, (n / PARTS) % PARTS);
        let old = self.parts[one];
        self.parts[one] = move_to(old, self.spare.start)?;
        if one != other {
            let free = self.parts[other];
            self.parts[other] = move_to(free, old.start)?;
            self.parts[one] = move_to(self.parts[one], free.start)?;
            // What is the spare range stays so.
            reserve(self.spare.start, self.spare.len)?;
        } else {
            self.spare = reserve(old.start, old.len)?;
        }
        Ok(())
    }

    /// Unmaps a part, and maps a new one in its place.
    pub fn renew(&self, part: usize) -> io::Result<()> {
        self.parts[part].unmap()?;
        map(self.parts[part], self.kind)
    }

    /// Has the kernel move a page to the swap space, if there is one.
    pub fn page_out(&self, n: usize) -> io::Result<()> {
        self.page(n).advise(libc::MADV_PAGEOUT)
    }

    /// Gives the memory of a page back: it holds zeros then.
    pub fn drop_page(&self, n: usize) -> io::Result<()> {
        self.page(n).advise(if self.kind.shared { libc::MADV_REMOVE } else { libc::MADV_DONTNEED })
    }
}

fn map(at: Region, kind: Kind) -> io::Result<()> {
    let sharing = if kind.shared { libc::MAP_SHARED } else { libc::MAP_PRIVATE };
    let huge = if kind.hugetlb { libc::MAP_HUGETLB } else { 0 };
    let flags = sharing | huge | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    let region = Region::map_at(at.start, at.len, READ_WRITE, flags, None)?;
    if kind.huge { region.advise(libc::MADV_HUGEPAGE) } else { Ok(()) }
}

/// Keeps addresses free: 0 for any.
fn reserve(start: usize, len: usize) -> io::Result<Region> {
    let fixed = if start == 0 { 0 } else { libc::MAP_FIXED_NOREPLACE };
    Region::map_at(start, len, libc::PROT_NONE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | fixed, None)
}
