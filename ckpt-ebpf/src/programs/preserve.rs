//! Saves pages of the [`MEMORIES`] before they change: see the library's `preserve`.

use core::ffi::c_void;
use core::intrinsics::{AtomicOrdering, atomic_or, atomic_xadd};

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP, BPF_RB_RING_SIZE};
use aya_ebpf::helpers::generated::{bpf_get_current_task, bpf_ktime_get_ns, bpf_loop, bpf_probe_read_user};
use aya_ebpf::macros::{map, raw_tracepoint};
use aya_ebpf::maps::{Array, HashMap, RingBuf};
use aya_ebpf::programs::RawTracePointContext;
use ckpt_ebpf::preserve::{MEMORIES_MAX, Memory, PAGE_BYTES, PageTables, PreImage, Tally, Window, first_ending_after, place};

use crate::faults;
use crate::kernel::read;

const PAGE_SHIFT: u32 = 12;

// What is large is made so by the loader.
#[map]
static MEMORIES: HashMap<u64, Memory> = HashMap::with_max_entries(MEMORIES_MAX, 0);
#[map]
static WINDOWS: Array<Window> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
static CLAIMED: Array<u64> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
static FAULTED: Array<u64> = Array::with_max_entries(1, BPF_F_MMAPABLE);
#[map]
static PRE_IMAGES: RingBuf = RingBuf::with_byte_size(PAGE_BYTES as u32, 0);
#[map]
static PAGE_TABLES: Array<PageTables> = Array::with_max_entries(1, 0);
#[map]
static TALLIES: Array<u64> = Array::with_max_entries(Tally::COUNT, BPF_F_MMAPABLE);

/// The address space of the current task, if it is being copied.
struct Current {
    tables: &'static PageTables,
    memory: Memory,
    mm: u64,
}

impl Current {
    #[inline(always)]
    fn find() -> Option<Current> {
        let tables = PAGE_TABLES.get(0)?;
        if tables.memories == 0 {
            return None;
        }
        // SAFETY: the helper has no preconditions.
        let task = unsafe { bpf_get_current_task() };
        let mm: u64 = read(task + u64::from(tables.mm))?;
        // SAFETY: nothing changes an entry in place.
        let memory = unsafe { MEMORIES.get(mm) }.copied()?;
        Some(Current { tables, memory, mm })
    }

    #[inline(always)]
    fn window(&self, index: u32) -> Option<Window> {
        WINDOWS.get(self.memory.first + index).copied()
    }

    /// Nobody has written to the page since it was protected: its entry in the page tables still says so.
    #[inline(always)]
    fn is_protected(&self, page: u64) -> bool {
        is_protected(self.tables, self.mm, page).unwrap_or(false)
    }

    /// A page is about to change. If it is one to be copied, it has a bit.
    #[inline(always)]
    fn save(&self, page: u64, bit: u64) -> Option<()> {
        let (word, mask) = place(bit);
        let claimed = CLAIMED.get_ptr_mut(word)?;
        // SAFETY: the map returned a pointer to a value, which stays valid while the program runs; all writers use atomics.
        if unsafe { claimed.read_volatile() } & mask == 0 {
            // SAFETY: the helper has no preconditions.
            let began = unsafe { bpf_ktime_get_ns() };
            let copied = self.copy(page, claimed, mask);
            // SAFETY: as above.
            add(Tally::Nanoseconds, unsafe { bpf_ktime_get_ns() } - began);
            copied?;
        }
        // After it was claimed: so whoever claimed it, it had its old contents until then.
        if self.is_protected(page) {
            let faulted = FAULTED.get_ptr_mut(word)?;
            // SAFETY: as above.
            unsafe { atomic_or::<u64, u64, { AtomicOrdering::SeqCst }>(faulted, mask) };
        }
        Some(())
    }

    /// `None`: it could not be saved.
    #[inline(always)]
    fn copy(&self, page: u64, claimed: *mut u64, mask: u64) -> Option<()> {
        if !self.is_protected(page) {
            return None;
        }
        let Some(mut entry) = PRE_IMAGES.reserve::<PreImage>(0) else {
            count(Tally::Full);
            return None;
        };
        let to = entry.as_mut_ptr();
        // SAFETY: the entry is as long as a PreImage; the helper fails on an address that is not mapped.
        let copied = unsafe {
            (*to).page = page;
            (*to).owner = self.memory.owner;
            (*to).cut = self.memory.cut;
            bpf_probe_read_user((&raw mut (*to).bytes).cast(), PAGE_BYTES as u32, (page << PAGE_SHIFT) as *const c_void)
        };
        if copied != 0 {
            entry.discard(BPF_RB_NO_WAKEUP.into());
            count(Tally::Failed);
            return None;
        }
        // Before it is claimed: another thread that finds it claimed lets it be written at once.
        if !self.is_protected(page) {
            // Another thread was faster, and its page was saved; or it was written through no fault, which user space finds.
            entry.discard(BPF_RB_NO_WAKEUP.into());
            return None;
        }
        // SAFETY: as in `save`.
        let before = unsafe { atomic_or::<u64, u64, { AtomicOrdering::SeqCst }>(claimed, mask) };
        if before & mask != 0 {
            // Somebody was faster.
            entry.discard(BPF_RB_NO_WAKEUP.into());
        } else {
            entry.submit(wake_up().into());
            count(Tally::Saved);
        }
        Some(())
    }
}

/// Only when the ring is more than half full; a wake-up costs more than all the rest.
#[inline(always)]
fn wake_up() -> u32 {
    let (used, size) = (PRE_IMAGES.query(BPF_RB_AVAIL_DATA.into()), PRE_IMAGES.query(BPF_RB_RING_SIZE.into()));
    if used > size / 2 { BPF_RB_FORCE_WAKEUP } else { BPF_RB_NO_WAKEUP }
}

#[inline(always)]
fn count(tally: Tally) {
    add(tally, 1);
}

#[inline(always)]
fn add(tally: Tally, amount: u64) {
    if let Some(value) = TALLIES.get_ptr_mut(tally as u32) {
        // SAFETY: as in `Current::save`.
        unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::SeqCst }>(value, amount) };
    }
}

/// A write fault at this address is about to be handled.
#[inline(always)]
pub fn before_write(address: u64) -> Option<()> {
    let current = Current::find()?;
    let page = address >> PAGE_SHIFT;
    let (_, window) = first_ending_after(current.memory.count, page, |index| current.window(index))?;
    current.save(page, window.bit(page)?)
}

// Entries of page tables (Intel SDM 3A, 4.5).
const PRESENT: u64 = 1 << 0;
const USER: u64 = 1 << 2;
const LARGE: u64 = 1 << 7;
/// _PAGE_UFFD_WP, a bit that the processor leaves to the kernel.
const UFFD_WP: u64 = 1 << 10;
const ENTRIES_BITS: u32 = 9;

/// Does the page's entry say that userfaultfd protects it?
#[inline(always)]
fn is_protected(tables: &PageTables, mm: u64, page: u64) -> Option<bool> {
    let mut table: u64 = read(mm + u64::from(tables.pgd))?;
    let mut level = tables.levels;
    // Five levels at the most.
    for _ in 0..5 {
        if level == 0 {
            return None;
        }
        level -= 1;
        let index = (page >> ((level * ENTRIES_BITS) & 63)) & ((1 << ENTRIES_BITS) - 1);
        let entry: u64 = read(table + index * 8)?;
        if entry & PRESENT == 0 {
            return Some(false);
        }
        if level == 0 || entry & LARGE != 0 && level < 3 {
            return Some(entry & (USER | UFFD_WP) == USER | UFFD_WP);
        }
        table = tables.direct_map + (entry & tables.frame_mask);
    }
    None
}

// linux/asm/unistd_64.h.
const MMAP: u64 = 9;
const MUNMAP: u64 = 11;
const BRK: u64 = 12;
const MREMAP: u64 = 25;
const MADVISE: u64 = 28;
const REMAP_FILE_PAGES: u64 = 216;
const MAP_FIXED: u64 = 0x10;
const MREMAP_FIXED: u64 = 2;

/// Offsets in a struct pt_regs (asm/ptrace.h) of the arguments of a system call.
const ARGUMENTS: [u64; 5] = [112, 104, 96, 56, 72];

#[raw_tracepoint(tracepoint = "sys_enter")]
pub fn sys_enter(ctx: RawTracePointContext) -> i32 {
    before_system_call(ctx.tgid(), ctx.arg(0), ctx.arg(1));
    0
}

#[inline(always)]
fn before_system_call(tgid: u32, regs: u64, number: u64) -> Option<()> {
    if !matches!(number, MMAP | MUNMAP | BRK | MREMAP | MADVISE | REMAP_FILE_PAGES) {
        return None;
    }
    let argument = |n: usize| read::<u64>(regs + ARGUMENTS[n]);
    // All the others change mappings, which the kernel counts.
    if number == MADVISE && takes_pages_away(argument(2)?) {
        faults::note_removal(tgid, argument(0)?, argument(1)?);
    }
    let current = Current::find()?;
    let (first, len) = (argument(0)?, argument(1)?);
    match number {
        MMAP if argument(3)? & MAP_FIXED == 0 => return None,
        MADVISE if !takes_pages_away(argument(2)?) => return None,
        // What is between the new break and the old one goes away.
        BRK => {
            let brk: u64 = read(current.mm + u64::from(current.tables.brk))?;
            return if first < brk { before_removal(&current, first, brk - first) } else { None };
        }
        MREMAP if argument(3)? & MREMAP_FIXED != 0 => {
            before_removal(&current, argument(4)?, argument(2)?)?;
        }
        _ => {}
    }
    before_removal(&current, first, len)
}

/// MADV_DONTNEED, FREE, REMOVE, DONTNEED_LOCKED, GUARD_INSTALL.
#[inline(always)]
fn takes_pages_away(advice: u64) -> bool {
    matches!(advice, 4 | 8 | 9 | 24 | 102)
}

/// Where a walk over pages is.
#[repr(C)]
struct Walk {
    page: u64,
    end: u64,
    window: u32,
    unused: u32,
}

/// The most pages that are looked at, and words of bitmaps that are passed over, at one system call: 4 GiB of pages that are all to be saved.
const STEPS: u32 = 1 << 20;

/// Pages from `address` on are about to be taken away.
#[inline(always)]
fn before_removal(current: &Current, address: u64, len: u64) -> Option<()> {
    let (page, end) = (address >> PAGE_SHIFT, (address.wrapping_add(len).wrapping_add(PAGE_BYTES as u64 - 1)) >> PAGE_SHIFT);
    let (window, _) = first_ending_after(current.memory.count, page, |index| current.window(index))?;
    let mut walk = Walk { page, end, window, unused: 0 };
    // SAFETY: the callback is a program of this type of signature, and its context outlives the call.
    unsafe { bpf_loop(STEPS, step as *mut c_void, (&raw mut walk).cast(), 0) };
    Some(())
}

/// One page, or one word of pages of which nothing is left to do. 1: enough.
extern "C" fn step(_index: u32, walk: *mut Walk) -> i64 {
    // SAFETY: what `before_removal` has passed.
    let walk = unsafe { &mut *walk };
    match walk.step() {
        Some(()) => 0,
        None => 1,
    }
}

impl Walk {
    #[inline(always)]
    fn step(&mut self) -> Option<()> {
        let current = Current::find()?;
        if self.window >= current.memory.count {
            return None;
        }
        let window = current.window(self.window)?;
        if self.page < window.start {
            self.page = window.start;
        }
        if self.page >= self.end {
            return None;
        }
        let Some(bit) = window.bit(self.page) else {
            self.window += 1;
            return Some(());
        };
        let (word, _) = place(bit);
        let claimed = CLAIMED.get_ptr_mut(word)?;
        // SAFETY: as in `Current::save`.
        let mut done = unsafe { claimed.read_volatile() };
        if current.tables.noting != 0 {
            let faulted = FAULTED.get_ptr_mut(word)?;
            // SAFETY: as in `Current::save`.
            done &= unsafe { faulted.read_volatile() };
        }
        let left = !done >> (bit % 64);
        if left == 0 {
            self.page += 64 - bit % 64;
        } else {
            if left & 1 != 0 {
                current.save(self.page, bit)?;
            }
            self.page += 1;
        }
        Some(())
    }
}

/// The candidates are this far apart: the kernel's randomisation works in steps of a gibibyte.
const GIB_SHIFT: u32 = 30;

/// Tries where the direct mapping could begin, from the gibibyte of our own page directory downwards: at the right place the page has what its
/// owner sees in it.
#[raw_tracepoint(tracepoint = "find_direct_map")]
pub fn find_direct_map(ctx: RawTracePointContext) -> i32 {
    let (frame, address, candidates): (u64, u64, u64) = (ctx.arg(0), ctx.arg(1), ctx.arg(2));
    calibrate(frame, address, candidates as u32);
    0
}

/// How much of a page is compared.
type Sample = [u64; 4];

#[repr(C)]
struct Search {
    at: u64,
    sample: Sample,
    found: u64,
}

#[inline(always)]
fn calibrate(frame: u64, address: u64, candidates: u32) -> Option<()> {
    let tables = PAGE_TABLES.get_ptr_mut(0)?;
    let mut search = Search { at: 0, sample: [0; 4], found: 0 };
    // SAFETY: the destination is as long as is said; the map returned a pointer to a value; the callback is as in `before_removal`.
    unsafe {
        let to = (&raw mut search.sample).cast();
        if bpf_probe_read_user(to, size_of::<Sample>() as u32, address as *const c_void) != 0 {
            return None;
        }
        let task = bpf_get_current_task();
        let mm: u64 = read(task + u64::from((*tables).mm))?;
        let pgd: u64 = read(mm + u64::from((*tables).pgd))?;
        search.at = (pgd >> GIB_SHIFT << GIB_SHIFT) + (frame << PAGE_SHIFT);
        bpf_loop(candidates, try_candidate as *mut c_void, (&raw mut search).cast(), 0);
        if search.found == 0 {
            return None;
        }
        (*tables).direct_map = search.found - (frame << PAGE_SHIFT);
    }
    Some(())
}

extern "C" fn try_candidate(_index: u32, search: *mut Search) -> i64 {
    // SAFETY: what `calibrate` has passed.
    let search = unsafe { &mut *search };
    if read::<Sample>(search.at) == Some(search.sample) {
        search.found = search.at;
        return 1;
    }
    search.at -= 1 << GIB_SHIFT;
    0
}
