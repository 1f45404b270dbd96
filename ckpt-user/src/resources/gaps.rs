//! Places in an address space where nothing is.

use crate::ids::{Addr, PAGE_SIZE};

/// One past the last address a task on x86-64 can map with 4-level page tables.
pub const TASK_SIZE: u64 = 0x7fff_ffff_f000;
/// Above what mmap_min_addr may forbid.
const FIRST: u64 = 1 << 20;

/// See the module. Asked for larger and larger gaps, it finds one as long as there is one, and looks at each place once.
#[derive(Debug)]
pub struct Gaps {
    taken: Vec<(u64, u64)>,
    next: usize,
    at: u64,
}

impl Gaps {
    /// Between these ranges.
    pub fn between(taken: impl IntoIterator<Item = (u64, u64)>) -> Gaps {
        let mut taken: Vec<(u64, u64)> = taken.into_iter().collect();
        taken.sort_unstable();
        Gaps { taken, next: 0, at: FIRST }
    }

    /// A gap of `len` bytes that touches nothing, nor any of those before. `None`: there is no further one.
    pub fn take(&mut self, len: u64) -> Option<Addr> {
        while let Some(&(start, end)) = self.taken.get(self.next) {
            if start >= self.end_of(len)?.saturating_add(PAGE_SIZE) {
                break;
            }
            self.at = self.at.max(end.saturating_add(PAGE_SIZE));
            self.next += 1;
        }
        let end = self.end_of(len).filter(|&end| end <= TASK_SIZE)?;
        Some(Addr(std::mem::replace(&mut self.at, end + PAGE_SIZE)))
    }

    fn end_of(&self, len: u64) -> Option<u64> {
        self.at.checked_add(len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_touches_nothing() {
        let taken = [(0x40_0000, 0x50_0000), (0x10_0000, 0x11_0000)];
        assert_eq!(Gaps::between(taken).take(0x20_0000), Some(Addr(0x11_1000)));
        assert_eq!(Gaps::between(taken).take(0x40_0000), Some(Addr(0x50_1000)));
        assert_eq!(Gaps::between([(0x1000, TASK_SIZE)]).take(PAGE_SIZE), None);
        assert_eq!(Gaps::between(taken).take(u64::MAX), None);
        assert_eq!(Gaps::between(taken).take(TASK_SIZE), None);
    }

    #[test]
    fn each_gap_is_another_one() {
        let taken: Vec<(u64, u64)> = (1..200).map(|n| (n * 0x10_0000, n * 0x10_0000 + 0x9_0000)).collect();
        let mut gaps = Gaps::between(taken.iter().copied());
        let mut all = taken;
        for len in (1..500).map(|n| n / 5 * PAGE_SIZE + PAGE_SIZE) {
            let Addr(start) = gaps.take(len).expect("there is room");
            assert!(all.iter().all(|&(from, to)| to < start || start + len < from), "{start:#x}");
            all.push((start, start + len));
        }
        assert!(all.iter().any(|&(start, _)| start > 0x10_0000 && start < 0x20_0000), "small ones fit between");
    }
}
