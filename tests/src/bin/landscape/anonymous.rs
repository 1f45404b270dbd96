//! Memory that is backed by no file of the program's: private, shared, advised, locked, guarded, growing.

use std::io;

use ckpt_tests::checks::{Checks, said, same};
use ckpt_tests::sys::memory::{PAGE, Region, sbrk};

const READ_WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;
/// MADV_GUARD_INSTALL of linux/mman.h (Linux 6.13).
const MADV_GUARD_INSTALL: i32 = 102;
/// Bytes of a huge page.
const HUGE: usize = 2 << 20;

/// A check of something that is there.
type Made = io::Result<Box<dyn FnMut() -> Result<(), String>>>;

/// Makes them.
pub fn add(checks: &mut Checks) {
    checks.add("plain", plain());
    checks.add("with-holes", with_holes());
    checks.add("read-only", read_only());
    checks.add("inaccessible", inaccessible());
    checks.add("reserved", reserved());
    checks.add("shared", shared());
    for (n, (name, advice)) in ADVICE.iter().enumerate() {
        checks.add(name, advised(*advice, n as u64));
    }
    checks.add("huge-advised", huge_advised());
    checks.add("guard", guard());
    checks.add("locked", locked(0, 71));
    checks.add("locked-on-fault", locked(libc::MLOCK_ONFAULT, 72));
    checks.add("hugetlb", hugetlb());
    checks.add("growing-down", growing_down());
    checks.add("stack", Ok::<_, String>(stack));
    checks.add("heap", heap());
    checks.add("named", named());
    checks.add("without-reserve", without_reserve());
}

const ADVICE: &[(&str, i32)] = &[
    ("no-huge-pages", libc::MADV_NOHUGEPAGE),
    ("not-for-children", libc::MADV_DONTFORK),
    ("wiped-for-children", libc::MADV_WIPEONFORK),
    ("not-in-dumps", libc::MADV_DONTDUMP),
    ("mergeable", libc::MADV_MERGEABLE),
    ("random", libc::MADV_RANDOM),
    ("sequential", libc::MADV_SEQUENTIAL),
];

fn boxed(check: impl FnMut() -> Result<(), String> + 'static) -> Made {
    Ok(Box::new(check))
}

fn plain() -> Made {
    let region = Region::anonymous(300 * PAGE)?;
    region.fill(1);
    // It must not only be there, but be writable, too.
    let mut seed = 1;
    boxed(move || {
        region.check(seed)?;
        seed += 1000;
        region.fill(seed);
        region.check(seed)
    })
}

/// Pages that were never touched, of zeros, and dropped.
fn with_holes() -> Made {
    let region = Region::anonymous(64 * PAGE)?;
    for page in (0..64).step_by(3) {
        region.page(page).fill(page as u64);
    }
    region.page(7).put(&[0; PAGE]);
    region.page(9).advise(libc::MADV_DONTNEED)?;
    boxed(move || {
        for page in 0..64 {
            let page_region = region.page(page);
            let zero = page % 3 != 0 || page == 9;
            let result = if zero { page_region.check_zero() } else { page_region.check(page as u64) };
            result.map_err(|why| format!("page {page}: {why}"))?;
        }
        Ok(())
    })
}

fn read_only() -> Made {
    let region = Region::anonymous(4 * PAGE)?;
    region.fill(2);
    region.protect(libc::PROT_READ)?;
    boxed(move || region.check(2))
}

/// Contents that nobody may look at, for now.
fn inaccessible() -> Made {
    let region = Region::anonymous(4 * PAGE)?;
    region.fill(3);
    region.protect(libc::PROT_NONE)?;
    boxed(move || {
        same("readable", region.is_readable(), false)?;
        said("mprotect", region.protect(libc::PROT_READ))?;
        let result = region.check(3);
        said("mprotect", region.protect(libc::PROT_NONE))?;
        result
    })
}

/// A great range of addresses with nothing in it, and a little used part: what allocators and JIT compilers do.
fn reserved() -> Made {
    let region = Region::map(8 << 30, libc::PROT_NONE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE, None)?;
    let used = region.part(5 << 30, 3 * PAGE);
    used.protect(READ_WRITE)?;
    used.fill(4);
    boxed(move || {
        used.check(4)?;
        same("readable", region.page(0).is_readable(), false)
    })
}

/// For children that are yet to come.
fn shared() -> Made {
    let region = Region::map(16 * PAGE, READ_WRITE, libc::MAP_SHARED | libc::MAP_ANONYMOUS, None)?;
    region.part(0, 9 * PAGE).fill(5);
    boxed(move || {
        region.part(0, 9 * PAGE).check(5)?;
        region.part(9 * PAGE, 7 * PAGE).check_zero()
    })
}

fn advised(advice: i32, seed: u64) -> Made {
    let region = Region::anonymous(8 * PAGE)?;
    region.advise(advice)?;
    region.fill(100 + seed);
    // The flags themselves are seen in smaps, where the test compares them.
    boxed(move || region.check(100 + seed))
}

fn huge_advised() -> Made {
    let region = Region::anonymous(3 * HUGE)?;
    region.advise(libc::MADV_HUGEPAGE)?;
    region.part(0, HUGE + HUGE / 2).fill(6);
    boxed(move || {
        region.part(0, HUGE + HUGE / 2).check(6)?;
        region.part(2 * HUGE + HUGE / 2, HUGE / 2).check_zero()
    })
}

/// A guard page in the middle of memory, which no mapping tells of.
fn guard() -> Made {
    let region = Region::anonymous(5 * PAGE)?;
    region.fill(7);
    region.page(2).advise(MADV_GUARD_INSTALL)?;
    boxed(move || {
        same("the guard page is readable", region.page(2).is_readable(), false)?;
        same("the page after it is readable", region.page(3).is_readable(), true)?;
        region.part(0, 2 * PAGE).check(7)
    })
}

fn locked(flags: u32, seed: u64) -> Made {
    let region = Region::anonymous(6 * PAGE)?;
    region.lock(flags)?;
    region.part(0, 3 * PAGE).fill(seed);
    boxed(move || {
        region.part(0, 3 * PAGE).check(seed)?;
        region.part(3 * PAGE, 3 * PAGE).check_zero()
    })
}

fn hugetlb() -> Made {
    let region = Region::map(HUGE, READ_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB, None)?;
    region.fill(8);
    boxed(move || region.check(8))
}

/// A mapping that grows when the page below it is touched, as stacks do.
fn growing_down() -> Made {
    const ROOM: usize = 4 << 20;
    // The kernel lets nobody else into the last MiB below what may grow, and minds no neighbour that cannot be accessed.
    const GAP: usize = 1 << 20;
    let room = Region::map(ROOM, libc::PROT_NONE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE, None)?;
    room.part(ROOM - GAP, GAP).unmap()?;
    let top = room.start + ROOM - 2 * PAGE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_GROWSDOWN | libc::MAP_FIXED_NOREPLACE;
    let region = Region::map_at(top, 2 * PAGE, READ_WRITE, flags, None)?;
    region.fill(9);
    let mut pages = 0;
    boxed(move || {
        region.check(9)?;
        // One page more each time.
        pages += 1;
        let below = Region { start: top - pages * PAGE, len: PAGE };
        below.fill(9 + pages as u64);
        below.check(9 + pages as u64)
    })
}

/// The main stack still grows on demand.
fn stack() -> Result<(), String> {
    fn deeper(depth: u32) -> u64 {
        let mut frame = [0u64; 512];
        frame[depth as usize % 512] = u64::from(depth);
        let frame = std::hint::black_box(frame);
        if depth == 0 { 0 } else { frame[depth as usize % 512] + deeper(depth - 1) }
    }
    same("a sum over the stack", deeper(256), 256 * 257 / 2)
}

/// The heap, grown and shrunk.
fn heap() -> Made {
    let start = sbrk(64 * PAGE as isize)?;
    let region = Region { start: start.next_multiple_of(PAGE), len: 32 * PAGE };
    region.fill(10);
    sbrk(-(16 * PAGE as isize))?;
    let mut end = sbrk(0)?;
    boxed(move || {
        region.check(10)?;
        same("the end of the heap", said("sbrk", sbrk(2 * PAGE as isize))?, end)?;
        let new = Region { start: end.next_multiple_of(PAGE), len: PAGE };
        new.fill(11);
        end += 2 * PAGE;
        new.check(11)
    })
}

/// A name that /proc shows.
fn named() -> Made {
    const PR_SET_VMA: i32 = 0x5356_4d41;
    const PR_SET_VMA_ANON_NAME: i32 = 0;
    let region = Region::anonymous(2 * PAGE)?;
    let mut name = *b"a name for it\0";
    let arguments = [
        PR_SET_VMA.into(),
        PR_SET_VMA_ANON_NAME.into(),
        region.start.into(),
        region.len.into(),
        ckpt_tests::sys::raw::Arg::to(&mut name),
    ];
    ckpt_tests::sys::raw::call(libc::SYS_prctl, &arguments)?;
    region.fill(12);
    boxed(move || region.check(12))
}

fn without_reserve() -> Made {
    let region = Region::map(16 * PAGE, READ_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE, None)?;
    region.page(3).fill(13);
    boxed(move || region.page(3).check(13))
}
