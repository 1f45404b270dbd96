//! userfaultfd(2) as a way to learn of writes: asynchronous write protection, where the kernel lets a write through by itself and only
//! notes it in the page table. A descriptor works on the address space that made it, whoever holds it.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use crate::ids::PageRange;

/// Flags of userfaultfd(2): no faults of the kernel are to be handled, which with asynchronous protection loses nothing and needs no right.
pub const USER_MODE_ONLY: i32 = 1;

/// linux/userfaultfd.h.
pub(super) const API: u64 = 0xaa;
const PAGEFAULT_FLAG_WP: u64 = 1 << 0;
const WP_HUGETLBFS_SHMEM: u64 = 1 << 12;
/// UFFD_FEATURE_WP_UNPOPULATED: also pages that are not there can be protected.
pub const WP_UNPOPULATED: u64 = 1 << 13;
/// UFFD_FEATURE_WP_ASYNC: the kernel handles the faults by itself.
pub const WP_ASYNC: u64 = 1 << 15;
const REGISTER_MODE_WP: u64 = 1 << 1;
/// _IOWR(0xaa, 0x3f, struct uffdio_api), _IOWR(0xaa, 0x00, struct uffdio_register), _IOWR(0xaa, 0x06, struct uffdio_writeprotect).
pub(super) const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
const UFFDIO_REGISTER: libc::c_ulong = 0xc020_aa00;
const UFFDIO_WRITEPROTECT: libc::c_ulong = 0xc018_aa06;

/// struct uffdio_register.
#[repr(C)]
struct Register {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

const _: () = assert!(size_of::<Register>() == 32);

/// A descriptor whose address space notes writes to registered memory.
#[derive(Debug)]
pub struct WriteNotes(OwnedFd);

impl WriteNotes {
    /// Makes a new descriptor of userfaultfd(2) one. Fails with EINVAL where the kernel lacks asynchronous protection (Linux 6.7 has it).
    pub fn begin(fd: OwnedFd) -> io::Result<WriteNotes> {
        let mut api = [API, PAGEFAULT_FLAG_WP | WP_HUGETLBFS_SHMEM | WP_UNPOPULATED | WP_ASYNC, 0];
        // SAFETY: the request takes a struct of three 64-bit numbers, which outlives the call.
        check(unsafe { libc::ioctl(fd.as_fd().as_raw_fd(), UFFDIO_API, &raw mut api) })?;
        Ok(WriteNotes(fd))
    }

    /// From now on writes to these pages can be noted. EBUSY: another userfaultfd has them; EINVAL: the kernel does not do it for this
    /// kind of memory; ESRCH: the address space is gone.
    pub fn register(&self, pages: PageRange) -> io::Result<()> {
        let mut register = Register { start: pages.addr().0, len: pages.bytes(), mode: REGISTER_MODE_WP, ioctls: 0 };
        // SAFETY: the request takes this struct, which outlives the call.
        check(unsafe { libc::ioctl(self.0.as_raw_fd(), UFFDIO_REGISTER, &raw mut register) })
    }

    /// Takes away whatever protection these registered pages have, so that all of them count as written.
    pub fn unprotect(&self, pages: PageRange) -> io::Result<()> {
        // struct uffdio_writeprotect: start, length, and a mode of 0, which is to end it.
        let mut range = [pages.addr().0, pages.bytes(), 0];
        // SAFETY: the request takes a struct of three 64-bit numbers, which outlives the call.
        check(unsafe { libc::ioctl(self.0.as_raw_fd(), UFFDIO_WRITEPROTECT, &raw mut range) })
    }
}

fn check(result: i32) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
