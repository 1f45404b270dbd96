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

/// Stops a process in a way that [`crate::sys::status::Status::stopped_by_us`] tells from others: with two SIGSTOPs, one for its main thread. It stops at the first, and the second waits
/// until SIGCONT takes it away.
pub fn stop(pid: Pid) -> io::Result<()> {
    tgkill(pid, pid.leader(), libc::SIGSTOP)?;
    kill(pid, libc::SIGSTOP)
}

/// struct kernel_sigaction: what rt_sigaction(2) takes, which is not what sigaction(3) takes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct KernelSigaction {
    /// The handler, or 0 (default) or 1 (ignore).
    pub handler: u64,
    /// SA_*.
    pub flags: u64,
    /// Where the handler returns to.
    pub restorer: u64,
    /// Signals blocked while it runs; bit n-1 is signal n.
    pub mask: u64,
}

const _: () = assert!(size_of::<KernelSigaction>() == 32);
