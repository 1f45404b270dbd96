//! Mappings of files: private and shared, of files with a name, without one, and in memory.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use ckpt_tests::checks::{Checks, said, same};
use ckpt_tests::sys::memory::{PAGE, Region};
use nix::sys::memfd::{MFdFlags, memfd_create};

const READ_WRITE: i32 = libc::PROT_READ | libc::PROT_WRITE;
const PAGES: usize = 8;
/// What the files hold.
const FILE: u64 = 500;
/// What the program has written.
const OWN: u64 = 600;

type Check = Box<dyn FnMut() -> Result<(), String>>;

/// Makes them.
pub fn add(checks: &mut Checks) {
    checks.add("file-private", named("private").and_then(|file| private(&file, 0)));
    checks.add("file-private-offset", named("offset").and_then(|file| private(&file, 2)));
    checks.add("file-read-only", named("read-only").and_then(|file| read_only(&file)));
    checks.add("file-shared", named("shared").and_then(|file| shared(file, true)));
    checks.add("file-shared-read-only", named("shared-read-only").and_then(|file| shared(file, false)));
    checks.add("file-beyond-end", beyond_end());
    checks.add("deleted-private", deleted("deleted-private").and_then(|file| private(&file, 0)));
    checks.add("deleted-shared", deleted("deleted-shared").and_then(|file| shared(file, true)));
    checks.add("deleted-two-ways", deleted("deleted-two-ways").and_then(two_ways));
    checks.add("memfd-private", memfd().and_then(|file| private(&file, 0)));
    checks.add("memfd-shared", memfd().and_then(|file| shared(file, true)));
}

fn fill(file: File) -> io::Result<File> {
    file.set_len((PAGES * PAGE) as u64)?;
    let region = Region::map(PAGES * PAGE, READ_WRITE, libc::MAP_SHARED, Some((file.as_fd(), 0)))?;
    region.fill(FILE);
    region.unmap()?;
    // Written through a mapping that is gone: the time of the last change is settled, too.
    file.sync_all()?;
    Ok(file)
}

fn named(name: &str) -> io::Result<File> {
    fill(File::options().read(true).write(true).create_new(true).open(name)?)
}

fn deleted(name: &str) -> io::Result<File> {
    let file = named(name)?;
    fs::remove_file(name)?;
    Ok(file)
}

fn memfd() -> io::Result<File> {
    fill(memfd_create(c"mapped", MFdFlags::MFD_CLOEXEC)?.into())
}

/// The part of the pattern that begins with page `page` of the file.
fn check_pattern(region: Region, page: usize, seed: u64) -> Result<(), String> {
    // The pattern runs through the whole file, so it is compared with a copy of that.
    let whole = said("mmap", Region::anonymous(region.len + page * PAGE))?;
    whole.fill(seed);
    let result = equal(region, whole.part(page * PAGE, region.len));
    said("munmap", whole.unmap())?;
    result
}

fn equal(a: Region, b: Region) -> Result<(), String> {
    same("the memory is equal to the file", a.bytes() == b.bytes(), true)
}

/// Changes to its third page are the program's own; the descriptor is closed.
fn private(file: &File, first: usize) -> io::Result<Check> {
    let region = Region::map((PAGES - first) * PAGE, READ_WRITE, libc::MAP_PRIVATE, Some((file.as_fd(), first * PAGE)))?;
    region.page(2).fill(OWN);
    let mut change = OWN;
    Ok(Box::new(move || {
        check_pattern(region.part(0, 2 * PAGE), first, FILE)?;
        region.page(2).check(change)?;
        check_pattern(region.part(3 * PAGE, (PAGES - first - 3) * PAGE), first + 3, FILE)?;
        change += 1;
        region.page(2).fill(change);
        Ok(())
    }))
}

/// Changed, and then protected: only the image knows the change.
fn read_only(file: &File) -> io::Result<Check> {
    let region = Region::map(PAGES * PAGE, READ_WRITE, libc::MAP_PRIVATE, Some((file.as_fd(), 0)))?;
    region.page(1).fill(OWN);
    region.protect(libc::PROT_READ)?;
    Ok(Box::new(move || {
        check_pattern(region.part(0, PAGE), 0, FILE)?;
        region.page(1).check(OWN)?;
        check_pattern(region.part(2 * PAGE, (PAGES - 2) * PAGE), 2, FILE)
    }))
}

/// What is written to memory is in the file, and the other way round. The descriptor stays open.
fn shared(file: File, writable: bool) -> io::Result<Check> {
    let protection = if writable { READ_WRITE } else { libc::PROT_READ };
    let region = Region::map(PAGES * PAGE, protection, libc::MAP_SHARED, Some((file.as_fd(), 0)))?;
    Ok(Box::new(move || {
        check_pattern(region, 0, FILE)?;
        said("pwrite", file.write_all_at(b"by way of the file", 5 * PAGE as u64))?;
        same("written to the file", &region.page(5).bytes()[..18], b"by way of the file")?;
        if writable {
            region.page(6).put(b"by way of memory");
            let mut found = [0; 16];
            said("pread", file.read_exact_at(&mut found, 6 * PAGE as u64))?;
            same("written to memory", &found, b"by way of memory")?;
            region.fill(FILE);
        } else {
            let original = said("mmap", Region::anonymous(PAGES * PAGE))?;
            original.fill(FILE);
            said("pwrite", file.write_all_at(original.page(5).bytes(), 5 * PAGE as u64))?;
            said("munmap", original.unmap())?;
        }
        Ok(())
    }))
}

/// A mapping that is longer than its file; the pages beyond its end cannot be touched.
fn beyond_end() -> io::Result<Check> {
    let file = named("short")?;
    let region = Region::map((PAGES + 4) * PAGE, READ_WRITE, libc::MAP_PRIVATE, Some((file.as_fd(), 0)))?;
    region.page(0).fill(OWN);
    Ok(Box::new(move || {
        region.page(0).check(OWN)?;
        check_pattern(region.part(PAGE, (PAGES - 1) * PAGE), 1, FILE)?;
        same("readable beyond the end", region.page(PAGES + 1).is_readable(), false)
    }))
}

/// One file, mapped twice: the same memory.
fn two_ways(file: File) -> io::Result<Check> {
    let map = |flags| Region::map(PAGES * PAGE, READ_WRITE, flags, Some((file.as_fd(), 0)));
    let (one, other) = (map(libc::MAP_SHARED)?, map(libc::MAP_SHARED)?);
    let mut seed = OWN;
    one.page(3).fill(seed);
    Ok(Box::new(move || {
        other.page(3).check(seed)?;
        seed += 1;
        other.page(3).fill(seed);
        one.page(3).check(seed)
    }))
}
