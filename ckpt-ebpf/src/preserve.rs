//! Copy-before-write: pages that user space is still to copy, whose old contents the programs save before they can change.
//!
//! At a cut user space protects pages against writing and publishes them: [`Window`]s, stretches of addresses, and behind them two bitmaps with
//! a bit for each page of a window. Then the process runs on while its pages are copied, by user space and by the programs, under one rule:
//!
//! *Whoever has finished copying a page sets its bit in [`CLAIMED`]; who finds it clear has the true contents, any later one discards its copy.*
//!
//! The programs run before anything can change: at the start of a page fault, and at the entry of a system call that takes pages away. So when a
//! page can first be written, some run of a program on it has ended, and its claim came before. What goes through neither (the kernel's own
//! writes through get_user_pages) is found in the page tables by user space, which must look at the pages that it has copied *after* it has
//! claimed them: they must still be protected, or noted in [`FAULTED`] as pages that a program found protected when they were about to be written.
//!
//! Windows may have pages that nobody is to copy, whose bit in [`CLAIMED`] is set from the beginning. They are noted in [`FAULTED`] like all others.
//!
//! A program that cannot save a page (the ring is full, the page is not there) claims nothing and notes nothing. Such a page is then found
//! unprotected, and that cut is void: nothing is lost silently.

use bytemuck::{Pod, Zeroable};

/// The program on the raw tracepoint of the same name, for system calls that take pages away: munmap(2), mremap(2), ...
pub const SYSCALL_PROGRAM: &str = "sys_enter";

/// Hash map from the kernel's address of an address space (`u64`, a `struct mm_struct`) to [`Memory`]: whose pages are being copied.
pub const MEMORIES: &str = "MEMORIES";
/// How many address spaces can be copied at once.
pub const MEMORIES_MAX: u32 = 16 * 1024;
/// Array of [`Window`]: those of a memory stand side by side, in order of address. Mapped by user space.
pub const WINDOWS: &str = "WINDOWS";
/// Array of `u64`: a bit for each page of a window, set if the page is not to be copied (any more). Mapped by user space.
pub const CLAIMED: &str = "CLAIMED";
/// Array of `u64`, with the same bits: set if a program found the page protected, and claimed, when it was about to be written. Mapped by user space.
pub const FAULTED: &str = "FAULTED";
/// Ring buffer of [`PreImage`]. Its reader is woken only when it is more than half full.
pub const PRE_IMAGES: &str = "PRE_IMAGES";
/// Array of one [`PageTables`].
pub const PAGE_TABLES: &str = "PAGE_TABLES";
/// Array of one `u64` per [`Tally`], since the object was loaded. Mapped by user space.
pub const TALLIES: &str = "TALLIES";

/// The program that finds out [`PageTables::direct_map`]: run once, through BPF_PROG_TEST_RUN, with the arguments (page frame, address, candidates): the
/// frame of a page of the caller's, its address, and how many gibibytes to try.
pub const CALIBRATION_PROGRAM: &str = "find_direct_map";

/// Bytes of a page.
pub const PAGE_BYTES: usize = 4096;
/// Windows of one memory at most: a power of two.
pub const WINDOWS_MAX: u32 = 1 << WINDOWS_MAX_BITS;
/// Its logarithm: the steps of a search.
pub const WINDOWS_MAX_BITS: u32 = 18;

/// An address space that is being copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Memory {
    /// The index of its first [`Window`].
    pub first: u32,
    /// How many it has.
    pub count: u32,
    /// What user space calls it; comes back in [`PreImage::owner`].
    pub owner: u32,
    /// Which cut this is; comes back in [`PreImage::cut`].
    pub cut: u32,
}

/// Pages side by side that have bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Window {
    /// The number of the first page.
    pub start: u64,
    /// One past the last.
    pub end: u64,
    /// The bit of the first page in the bitmaps.
    pub first_bit: u64,
}

impl Window {
    /// The bit of a page, if it is one of these.
    pub fn bit(&self, page: u64) -> Option<u64> {
        (self.start <= page && page < self.end).then(|| self.first_bit + (page - self.start))
    }
}

/// The place of a bit in a bitmap: the index of its word, and the word that has only this bit.
pub fn place(bit: u64) -> (u32, u64) {
    ((bit / 64) as u32, 1 << (bit % 64))
}

/// The index, within `count` windows in order, of the first that ends after `page`: the one that has it, or else the next. `None`: there is none,
/// or `get` has no window of that index.
///
/// The loop has a fixed bound, as programs must; `count` is at most [`WINDOWS_MAX`].
#[inline(always)]
pub fn first_ending_after(count: u32, page: u64, get: impl Fn(u32) -> Option<Window>) -> Option<(u32, Window)> {
    let (mut low, mut high) = (0, count);
    for _ in 0..=WINDOWS_MAX_BITS {
        if low >= high {
            break;
        }
        let middle = low + (high - low) / 2;
        if get(middle)?.end > page {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    if low >= count { None } else { Some((low, get(low)?)) }
}

/// Contents of a page before it could change.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct PreImage {
    /// The number of the page.
    pub page: u64,
    /// [`Memory::owner`].
    pub owner: u32,
    /// [`Memory::cut`].
    pub cut: u32,
    /// What it held.
    pub bytes: [u8; PAGE_BYTES],
}

/// How the programs find the page tables of a process. Offsets are in bytes, from the kernel's BTF.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct PageTables {
    /// Where the kernel has all memory mapped, one after another; 0 as long as that is not known.
    pub direct_map: u64,
    /// The bits of an entry that are a physical address.
    pub frame_mask: u64,
    /// How many levels there are: 4 or 5.
    pub levels: u32,
    /// `task_struct.mm`.
    pub mm: u32,
    /// `mm_struct.pgd`.
    pub pgd: u32,
    /// `mm_struct.brk`.
    pub brk: u32,
    /// Address spaces in [`MEMORIES`]: nothing is looked up while there are none.
    pub memories: u32,
    /// 1: pages that are not to be copied are noted as well before a system call takes them away, which takes a look at each.
    pub noting: u32,
}

/// Index into [`TALLIES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Tally {
    /// Pages that went into the ring.
    Saved = 0,
    /// Pages for which it had no room.
    Full = 1,
    /// Pages that could not be read.
    Failed = 2,
    /// Nanoseconds that the process has lost to it: the time that it took to save pages.
    Nanoseconds = 3,
}

impl Tally {
    /// How many there are.
    pub const COUNT: u32 = 4;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_found_by_their_pages() {
        for count in 0..40u64 {
            let windows: [Window; 40] =
                core::array::from_fn(|n| Window { start: 10 * n as u64 + 3, end: 10 * n as u64 + 8, first_bit: 5 * n as u64 });
            let windows = &windows[..count as usize];
            let get = |n: u32| windows.get(n as usize).copied();
            for page in 0..420 {
                let expected = windows.iter().position(|w| w.end > page).map(|n| (n as u32, windows[n]));
                assert_eq!(first_ending_after(count as u32, page, get), expected, "page {page} of {count} windows");
                let bit = expected.and_then(|(_, window)| window.bit(page));
                let inside = page / 10 < count && (3..8).contains(&(page % 10));
                assert_eq!(bit, inside.then(|| page / 10 * 5 + page % 10 - 3));
            }
        }
    }

    #[test]
    fn bits_have_places() {
        assert_eq!((place(0), place(63), place(64)), ((0, 1), (0, 1 << 63), (1, 1)));
    }
}
