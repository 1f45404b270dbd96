//! The 64 bits that /proc/PID/pagemap tells of a page (kernel: admin-guide/mm/pagemap, admin-guide/mm/soft-dirty).

use bytemuck::{Pod, Zeroable};

use super::Page;

const FRAME: u64 = (1 << 55) - 1;
const SOFT_DIRTY: u64 = 1 << 55;
const EXCLUSIVE: u64 = 1 << 56;
const GUARD: u64 = 1 << 58;
const FILE: u64 = 1 << 61;
const SWAPPED: u64 = 1 << 62;
const PRESENT: u64 = 1 << 63;

/// See the module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(transparent)]
pub struct Entry(u64);

impl Entry {
    /// What it is. Zero pages look like others.
    pub fn page(self) -> Page {
        let mut page = Page::empty();
        page.set(Page::PRESENT, self.has(PRESENT));
        page.set(Page::SWAPPED, self.has(SWAPPED));
        if self.is_there() {
            page.set(Page::FILE, self.has(FILE));
            page.set(Page::GUARD, self.has(GUARD));
        }
        page
    }

    /// In memory, or swapped out.
    pub fn is_there(self) -> bool {
        self.has(PRESENT | SWAPPED)
    }

    /// Written, or come into being, since the bits were last cleared; or its mapping has.
    pub fn is_soft_dirty(self) -> bool {
        self.has(SOFT_DIRTY)
    }

    /// In memory, and no other page table has it. A page of zeros that was only read belongs to the kernel.
    pub fn is_exclusive(self) -> bool {
        self.has(EXCLUSIVE)
    }

    /// Where it is kept: the physical page or the place in the swap space, and which of these it is. `None`: it is not there, or the kernel does
    /// not tell us (it wants CAP_SYS_ADMIN).
    pub fn place(self) -> Option<u64> {
        (self.is_there() && self.has(FRAME)).then_some(self.0 & (FRAME | SWAPPED | PRESENT))
    }

    /// The physical page. `None`: as for [`Entry::place`], or it is swapped out.
    pub fn frame(self) -> Option<u64> {
        self.place().filter(|_| self.has(PRESENT)).map(|place| place & FRAME)
    }

    /// The same, of a page of private memory that others may have, too, since a fork: all that have it are told the same place.
    pub fn shared_place(self) -> Option<u64> {
        // The kernel's own entries (markers, pages that move) look like pages in swap areas of the highest numbers.
        const AREA: u64 = (1 << 5) - 1;
        const AREAS: u64 = 16;
        let elsewhere = self.has(FILE | EXCLUSIVE | GUARD) || (self.has(SWAPPED) && self.0 & AREA >= AREAS);
        self.place().filter(|_| !elsewhere)
    }

    fn has(self, any: u64) -> bool {
        self.0 & any != 0
    }
}

#[cfg(test)]
impl Entry {
    /// A page in memory that nothing else maps, and that was not written.
    pub fn quiet(frame: u64) -> Entry {
        Entry(PRESENT | EXCLUSIVE | frame)
    }

    /// The same page, but written.
    pub fn written(self) -> Entry {
        Entry(self.0 | SOFT_DIRTY)
    }

    /// The same page, but others map it, too.
    pub fn mapped_elsewhere(self) -> Entry {
        Entry(self.0 & !EXCLUSIVE)
    }

    /// A page in the swap space, which was not written.
    pub fn swapped(place: u64) -> Entry {
        Entry(SWAPPED | place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_told_apart() {
        assert!(!Entry::default().is_there() && Entry::default().place().is_none() && Entry::default().page().is_empty());
        let page = Entry::quiet(77);
        assert_eq!((page.page(), page.frame()), (Page::PRESENT, Some(77)));
        assert!(page.is_there() && page.is_exclusive() && !page.is_soft_dirty() && page.written().is_soft_dirty());
        assert_eq!(page.written().place(), page.place());
        assert!(!page.mapped_elsewhere().is_exclusive());
        let swapped = Entry::swapped(77);
        assert_eq!((swapped.page(), swapped.frame()), (Page::SWAPPED, None));
        assert!(swapped.is_there() && swapped.place().is_some() && swapped.place() != page.place());
        assert!(Entry::quiet(0).is_there() && Entry::quiet(0).place().is_none(), "a frame that is kept from us");
        assert_eq!((page.shared_place(), Entry(PRESENT | FILE | 77).shared_place()), (None, None));
        assert_eq!(page.mapped_elsewhere().shared_place(), page.place());
        assert_eq!(swapped.shared_place(), swapped.place());
        assert_eq!(Entry::swapped(64 | 31).shared_place(), None, "a marker");
        assert_eq!(Entry(PRESENT | FILE | GUARD).page(), Page::PRESENT | Page::FILE | Page::GUARD);
        assert_eq!(Entry(SOFT_DIRTY | FILE).page(), Page::empty(), "nothing is there, in a new mapping");
    }
}
