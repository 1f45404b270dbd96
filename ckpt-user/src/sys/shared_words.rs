//! Memory of 64-bit words that is shared with eBPF programs: an array map made with BPF_F_MMAPABLE. Both sides use atomic operations only.

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::sync::atomic::AtomicU64;

use nix::sys::mman::{MapFlags, ProtFlags, mmap, munmap};

/// See the module. Unmapped when dropped; the map itself lives as long as somebody has it.
#[derive(Debug)]
pub struct SharedWords {
    start: NonNull<AtomicU64>,
    len: usize,
}

// SAFETY: all access is by atomic operations on memory that stays mapped as long as the value lives.
unsafe impl Send for SharedWords {}
// SAFETY: as above.
unsafe impl Sync for SharedWords {}

impl SharedWords {
    /// Maps the first `len` words of the array map behind `map`, whose elements must be whole words.
    pub fn map(map: impl AsFd, len: usize) -> io::Result<SharedWords> {
        let bytes = len.checked_mul(8).and_then(NonZeroUsize::new).ok_or(io::ErrorKind::InvalidInput)?;
        let prot = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping, wherever the kernel likes; it refuses one that is longer than the map.
        let start = unsafe { mmap(None, bytes, prot, MapFlags::MAP_SHARED, map, 0) }?;
        Ok(SharedWords { start: start.cast(), len })
    }

    /// All of them.
    pub fn words(&self) -> &[AtomicU64] {
        // SAFETY: so much is mapped, aligned to a page, as long as `self` lives; any bits are a valid number.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl Drop for SharedWords {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by us, and no reference to it outlives `self`.
        if let Err(error) = unsafe { munmap(self.start.cast(), self.len * 8) } {
            tracing::warn!("cannot unmap memory shared with eBPF programs: {error}");
        }
    }
}
