//! Sending signals.

use std::io;

use crate::ids::{Pid, Tid};

/// tgkill(2): sends `signal` to one thread.
pub fn tgkill(pid: Pid, tid: Tid, signal: i32) -> io::Result<()> {
    // SAFETY: only numbers are passed.
    let result = unsafe { libc::syscall(libc::SYS_tgkill, pid.0, tid.0, signal) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// kill(2): sends `signal` to a process.
pub fn kill(pid: Pid, signal: i32) -> io::Result<()> {
    // SAFETY: only numbers are passed.
    let result = unsafe { libc::kill(pid.0, signal) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
