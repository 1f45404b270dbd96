//! Memory of the programs under test: mappings that stay until the program ends, filled with patterns that can be checked.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Bytes of a page.
pub const PAGE: usize = 4096;

/// A range of mapped memory. It is never unmapped by being dropped.
#[derive(Clone, Copy, Debug)]
pub struct Region {
    /// The first address.
    pub start: usize,
    /// Bytes.
    pub len: usize,
}

impl Region {
    /// mmap(2), wherever the kernel likes.
    pub fn map(len: usize, protection: i32, flags: i32, file: Option<(BorrowedFd<'_>, usize)>) -> io::Result<Region> {
        Region::map_at(0, len, protection, flags, file)
    }

    /// mmap(2).
    pub fn map_at(
        start: usize,
        len: usize,
        protection: i32,
        flags: i32,
        file: Option<(BorrowedFd<'_>, usize)>,
    ) -> io::Result<Region> {
        let (fd, offset) = file.map_or((-1, 0), |(fd, offset)| (fd.as_raw_fd(), offset));
        // SAFETY: without MAP_FIXED nothing that exists is touched; with it the caller owns the range.
        let address = unsafe { libc::mmap(start as *mut _, len, protection, flags, fd, offset as i64) };
        if address == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(Region { start: address as usize, len }) }
    }

    /// Anonymous private memory for reading and writing.
    pub fn anonymous(len: usize) -> io::Result<Region> {
        Region::map(len, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, None)
    }

    /// A part of it.
    pub fn part(self, offset: usize, len: usize) -> Region {
        assert!(offset + len <= self.len, "no such part");
        Region { start: self.start + offset, len }
    }

    /// Its page `n`.
    pub fn page(self, n: usize) -> Region {
        self.part(n * PAGE, PAGE)
    }

    /// Fills it with the pattern of `seed`.
    pub fn fill(self, seed: u64) {
        for n in 0..self.len / 8 {
            // SAFETY: the region is mapped, and its owner says that it may be written.
            unsafe { ((self.start + n * 8) as *mut u64).write_volatile(word(seed, n)) };
        }
    }

    /// Does it hold the pattern of `seed`?
    pub fn check(self, seed: u64) -> Result<(), String> {
        for n in 0..self.len / 8 {
            let at = self.start + n * 8;
            // SAFETY: the region is mapped, and its owner says that it may be read.
            let found = unsafe { (at as *const u64).read_volatile() };
            if found != word(seed, n) {
                return Err(format!("at {at:#x} (offset {:#x}) {found:#x} instead of {:#x}", n * 8, word(seed, n)));
            }
        }
        Ok(())
    }

    /// Are all its bytes zero?
    pub fn check_zero(self) -> Result<(), String> {
        // SAFETY: the region is mapped, and its owner says that it may be read.
        match (0..self.len).find(|n| unsafe { ((self.start + n) as *const u8).read_volatile() } != 0) {
            None => Ok(()),
            Some(n) => Err(format!("not zero at {:#x}", self.start + n)),
        }
    }

    /// mprotect(2).
    pub fn protect(self, protection: i32) -> io::Result<()> {
        // SAFETY: the owner of the region knows who uses it.
        done(unsafe { libc::mprotect(self.start as *mut _, self.len, protection) })
    }

    /// madvise(2).
    pub fn advise(self, advice: i32) -> io::Result<()> {
        // SAFETY: the owner of the region knows who uses it.
        done(unsafe { libc::madvise(self.start as *mut _, self.len, advice) })
    }

    /// mlock2(2).
    pub fn lock(self, flags: u32) -> io::Result<()> {
        // SAFETY: locking changes nothing that a program can see.
        done(unsafe { libc::syscall(libc::SYS_mlock2, self.start, self.len, flags) } as i32)
    }

    /// munmap(2).
    pub fn unmap(self) -> io::Result<()> {
        // SAFETY: the owner of the region knows who uses it.
        done(unsafe { libc::munmap(self.start as *mut _, self.len) })
    }

    /// Writes bytes to its beginning.
    pub fn put(self, bytes: &[u8]) {
        assert!(bytes.len() <= self.len, "too small");
        // SAFETY: the region is mapped for writing, and overlaps no Rust object.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.start as *mut u8, bytes.len()) };
    }

    /// Its contents, for as long as nobody writes to it.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the region is mapped, and its owner says that it may be read.
        unsafe { std::slice::from_raw_parts(self.start as *const u8, self.len) }
    }

    /// Calls the machine code at its beginning, a function without arguments.
    pub fn call(self) -> u32 {
        // SAFETY: the owner has put such a function there.
        let function: extern "C" fn() -> u32 = unsafe { std::mem::transmute(self.start) };
        function()
    }

    /// Can its first byte be read? Asked of the kernel, without a fault.
    pub fn is_readable(self) -> bool {
        let mut ends = [0; 2];
        // SAFETY: the array has room for both descriptors.
        assert_eq!(unsafe { libc::pipe(ends.as_mut_ptr()) }, 0, "no pipe");
        // SAFETY: both were just given to us.
        let (_reader, writer) = unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) };
        // SAFETY: the kernel checks the address.
        unsafe { libc::write(writer.as_raw_fd(), self.start as *const _, 1) == 1 }
    }
}

fn word(seed: u64, n: usize) -> u64 {
    crate::chain::step(seed, n as u64)
}

fn done(result: i32) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// sbrk(2): the end of the heap before it was moved by `change` bytes.
pub fn sbrk(change: isize) -> io::Result<usize> {
    // SAFETY: the C library's allocator copes with a heap that others move, and frees nothing of theirs.
    let before = unsafe { libc::sbrk(change) };
    if before as isize == -1 { Err(io::Error::last_os_error()) } else { Ok(before as usize) }
}
