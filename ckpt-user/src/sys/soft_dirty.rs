//! Soft-dirty bits: the kernel sets one in a page's entry in the page table when the page is written, and clears all of a process when told to
//! (kernel: admin-guide/mm/soft-dirty).

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::FileExt;
use std::ptr::null_mut;

use super::pagemap;
use crate::ids::{PAGE_SIZE, Pid};

/// The bits of a process, whatever program it executes.
#[derive(Debug)]
pub struct SoftDirtyBits(File);

impl SoftDirtyBits {
    /// Needs the right to ptrace the process.
    pub fn open(pid: Pid) -> io::Result<SoftDirtyBits> {
        OpenOptions::new().write(true).open(format!("/proc/{pid}/clear_refs")).map(SoftDirtyBits)
    }

    /// Keeps others that ask for the same off, as long as this lives: whoever clears the bits takes them from everybody else. Is it ours?
    pub fn reserve(&self) -> io::Result<bool> {
        match self.0.try_lock() {
            Ok(()) => Ok(true),
            Err(TryLockError::WouldBlock) => Ok(false),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// From now on no page counts as written, and neither does any mapping as new.
    pub fn clear(&self) -> io::Result<()> {
        self.0.write_all_at(b"4", 0)
    }
}

/// A page of our own, to try things on.
#[derive(Debug)]
struct TrialPage(*mut u8);

impl TrialPage {
    fn new() -> io::Result<TrialPage> {
        let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: new memory, wherever the kernel wants it.
        let page = unsafe { libc::mmap(null_mut(), PAGE_SIZE as usize, prot, flags, -1, 0) };
        if page == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(TrialPage(page.cast())) }
    }

    fn entry(&self) -> io::Result<pagemap::Entry> {
        pagemap::entry_of_own_page(self.0 as u64 / PAGE_SIZE)
    }

    fn read(&self) -> u8 {
        // SAFETY: the page is our own, and mapped as long as `self` lives.
        unsafe { self.0.read_volatile() }
    }

    fn write(&self) {
        // SAFETY: as above; nothing refers to it.
        unsafe { self.0.write_volatile(1) }
    }
}

impl Drop for TrialPage {
    fn drop(&mut self) {
        // SAFETY: the page is our own, and nothing refers to it. That cannot fail.
        unsafe { libc::munmap(self.0.cast(), PAGE_SIZE as usize) };
    }
}

/// The physical page of zeros, which stands wherever memory was only read.
///
/// Errors: EPERM, if the kernel keeps the numbers of physical pages from us.
pub fn zero_frame() -> io::Result<u64> {
    let page = TrialPage::new()?;
    page.read();
    page.entry()?.frame().ok_or_else(|| io::Error::from_raw_os_error(libc::EPERM))
}

/// Does this kernel have such bits, for the caller? A page of our own is tried: cleared, it must be clean, and written, dirty.
///
/// Errors: ENOSYS, if not; EPERM, if it keeps the numbers of physical pages from us.
pub fn trial() -> io::Result<()> {
    let lacking = || Err(io::Error::from_raw_os_error(libc::ENOSYS));
    let page = TrialPage::new()?;
    page.write();
    SoftDirtyBits::open(Pid(std::process::id() as i32))?.clear()?;
    let clean = page.entry()?;
    page.write();
    let dirty = page.entry()?;
    if clean.is_soft_dirty() || !dirty.is_soft_dirty() || !dirty.is_exclusive() {
        return lacking();
    }
    zero_frame().map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_can_have_them() {
        let pid = Pid(std::process::id() as i32);
        let (one, other) = (SoftDirtyBits::open(pid).unwrap(), SoftDirtyBits::open(pid).unwrap());
        assert!(one.reserve().unwrap());
        assert!(!other.reserve().unwrap());
        drop(one);
        assert!(other.reserve().unwrap());
    }

    #[test]
    fn they_are_there_or_it_is_said_why_not() {
        if let Err(error) = trial() {
            assert!(matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EINVAL | libc::EPERM)), "{error}");
        }
    }
}
