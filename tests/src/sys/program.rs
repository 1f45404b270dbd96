//! Address spaces that outlive their programs.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use super::memory::{PAGE, Region};
use super::pidfd;

/// Has another process, a child of this one's parent, hold this address space until this process has ended, whatever it executes.
pub fn leave_holder() -> io::Result<()> {
    let stack = Region::anonymous(4 * PAGE)?;
    // This program does not see the end of the holder's use of it.
    let process: &'static mut OwnedFd = Box::leak(Box::new(pidfd::open(std::process::id() as i32)?));
    let top = (stack.start + stack.len) as *mut libc::c_void;
    // SAFETY: the stack and the argument are for the new process alone, which makes system calls and nothing else.
    let pid = unsafe { libc::clone(hold, top, libc::CLONE_VM | libc::CLONE_PARENT, (&raw mut *process).cast()) };
    if pid < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

extern "C" fn hold(process: *mut libc::c_void) -> i32 {
    // SAFETY: it is the argument that `leave_holder` gave away.
    let process = unsafe { &*process.cast::<OwnedFd>() };
    let mut end = libc::pollfd { fd: process.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: these calls touch nothing but the struct on this stack. Out of the session, so that the number of the process can be free.
    unsafe {
        libc::setsid();
        libc::poll(&raw mut end, 1, -1);
        libc::_exit(0)
    }
}
