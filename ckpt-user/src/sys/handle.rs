//! Files by their handle instead of a name: open_by_handle_at(2).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// MAX_HANDLE_SZ of the kernel.
const MAX_HANDLE: usize = 128;

/// struct file_handle with its contents.
#[repr(C)]
struct Handle {
    bytes: u32,
    kind: i32,
    contents: [u8; MAX_HANDLE],
}

const _: () = assert!(size_of::<Handle>() == 8 + MAX_HANDLE);

/// Opens (O_PATH, close-on-exec) the file of the file system of `mount` that has this handle. Needs CAP_DAC_READ_SEARCH.
pub fn open(mount: BorrowedFd<'_>, kind: i32, contents: &[u8]) -> io::Result<OwnedFd> {
    if contents.len() > MAX_HANDLE {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let mut handle = Handle { bytes: contents.len() as u32, kind, contents: [0; MAX_HANDLE] };
    handle.contents[..contents.len()].copy_from_slice(contents);
    // SAFETY: the struct has the layout of a file_handle followed by at least as many bytes as it says, and outlives the call.
    let fd = unsafe {
        libc::open_by_handle_at(mount.as_raw_fd(), (&raw mut handle).cast::<libc::file_handle>(), libc::O_PATH | libc::O_CLOEXEC)
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
