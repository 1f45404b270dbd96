//! Pages that the kernel's records name by their `struct page`: where they are mapped. A page of our own tells: it is put into a pipe, whose record
//! names it, too.

use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd};

use nix::fcntl::{SpliceFFlags, vmsplice};

use super::kernel_memory::{KernelMemory, missing};
use super::preserver::Sample;
use super::{EbpfError, Result};
use crate::ids::PAGE_SIZE;
use crate::sys::btf::Btf;

const DOING: &str = "cannot find a page of the kernel's";

/// Where all memory is mapped, and where the struct of each page is.
#[derive(Debug)]
pub(super) struct PagesInMemory {
    mapped_at: u64,
    pages_at: u64,
    page_bytes: u64,
}

impl PagesInMemory {
    /// Finds out.
    pub(super) fn find(kernel: &mut KernelMemory, btf: &Btf) -> Result<PagesInMemory> {
        /// Memory is mapped at a multiple of this, drawn at random when the kernel starts.
        const STEP: u64 = 1 << 30;
        /// As far as one of its records can be from the beginning of all memory.
        const STEPS: u64 = 1 << 12;
        let offset = |of: &str, path: &str| btf.offset_of(of, path).map(u64::from).map_err(missing);
        let error = |error: nix::Error| EbpfError::new(DOING, error);
        let sample = Sample::draw()?;
        let contents = sample.page();
        let (read, write) = nix::unistd::pipe().map_err(error)?;
        vmsplice(write.as_fd(), &[IoSlice::new(contents)], SpliceFFlags::empty()).map_err(error)?;
        let frame = sample.frame()?;
        let file = kernel.open_file(read.as_raw_fd())?;
        let pipe = kernel.number(file + offset("file", "private_data")?)?;
        let buffers = kernel.number(pipe + offset("pipe_inode_info", "bufs")?)?;
        let page = kernel.number(buffers + offset("pipe_buffer", "page")?)?;
        let page_bytes = u64::from(btf.size_of("page").map_err(missing)?);
        let pages_at = page.wrapping_sub(frame * page_bytes);
        let near = pipe / STEP * STEP;
        for step in 0..STEPS {
            let mapped_at = near.wrapping_sub(step * STEP);
            let seen = kernel.bytes(mapped_at.wrapping_add(frame * PAGE_SIZE), 64);
            if seen.is_ok_and(|seen| contents.starts_with(&seen)) {
                return Ok(PagesInMemory { mapped_at, pages_at, page_bytes });
            }
        }
        Err(EbpfError::unsupported(DOING, "the place where this kernel maps all memory was not found"))
    }

    /// Where a page is mapped.
    pub(super) fn address_of(&self, page: u64) -> Result<u64> {
        let offset = page.wrapping_sub(self.pages_at);
        if page == 0 || !offset.is_multiple_of(self.page_bytes) {
            return Err(EbpfError::unsupported(DOING, "it is in memory of a device"));
        }
        Ok(self.mapped_at.wrapping_add(offset / self.page_bytes * PAGE_SIZE))
    }
}
