//! Writes to memory that are none of the processor's stores: by the kernel, on behalf of the program or of another; and pages that move.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::sys::memory::Region;

/// read(2) into the region until it is full.
pub fn read_into(region: Region, from: BorrowedFd<'_>) -> io::Result<()> {
    fill(region, |at, len, _| {
        // SAFETY: the region is mapped for writing, and its owner says that it may be written.
        unsafe { libc::read(from.as_raw_fd(), at, len) }
    })
}

/// pread(2) into the region until it is full. With O_DIRECT the device writes it.
pub fn pread_into(region: Region, from: BorrowedFd<'_>, offset: usize) -> io::Result<()> {
    fill(region, |at, len, done| {
        // SAFETY: the region is mapped for writing, and its owner says that it may be written.
        unsafe { libc::pread(from.as_raw_fd(), at, len, (offset + done) as i64) }
    })
}

fn fill(region: Region, mut more: impl FnMut(*mut libc::c_void, usize, usize) -> isize) -> io::Result<()> {
    let mut done = 0;
    while done < region.len {
        match more((region.start + done) as *mut _, region.len - done, done) {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n if n > 0 => done += n as usize,
            _ => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}

/// process_vm_writev(2) into a process, which may be this one.
pub fn write_into(pid: i32, region: Region, bytes: &[u8]) -> io::Result<()> {
    assert_eq!(bytes.len(), region.len, "another size");
    let local = libc::iovec { iov_base: bytes.as_ptr() as *mut _, iov_len: bytes.len() };
    let remote = libc::iovec { iov_base: region.start as *mut _, iov_len: region.len };
    // SAFETY: the bytes are only read; the region is mapped for writing, and its owner says that it may be written.
    let written = unsafe { libc::process_vm_writev(pid, &local, 1, &remote, 1, 0) };
    match written {
        n if n == bytes.len() as isize => Ok(()),
        n if n >= 0 => Err(io::ErrorKind::WriteZero.into()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// mremap(2) to another address, in place of what is mapped there.
pub fn move_to(region: Region, start: usize) -> io::Result<Region> {
    let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
    // SAFETY: the caller owns both ranges.
    let address = unsafe { libc::mremap(region.start as *mut _, region.len, region.len, flags, start as *mut libc::c_void) };
    if address == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(Region { start, len: region.len }) }
}
