//! ptrace(2), one function per request that ckpt makes. Every request must come from the thread that attached.

use std::io;
use std::os::raw::c_void;
use std::ptr::null_mut;

pub use libc::user_regs_struct as Regs;

use super::child;
use crate::ids::Tid;

/// A signal set as the kernel keeps it: bit n-1 is signal n.
pub type KernelSigset = u64;

/// PTRACE_O_SUSPEND_SECCOMP (linux/ptrace.h).
pub const O_SUSPEND_SECCOMP: i32 = 1 << 21;
/// The register set of the processor's extended state: NT_X86_XSTATE (linux/elf.h).
pub const NT_X86_XSTATE: i32 = 0x202;
/// PTRACE_EVENT_STOP (linux/ptrace.h): the event of interrupts, group stops and new threads.
pub const EVENT_STOP: i32 = 128;

/// The largest XSAVE area that is believed: AMX needs 11 KiB, and the area cannot shrink.
const XSTATE_MAX: usize = 64 * 1024;

pub(super) fn request(request: libc::c_uint, tid: Tid, addr: *mut c_void, data: *mut c_void) -> io::Result<i64> {
    // SAFETY: `addr` and `data` are either plain numbers or point to memory of the callers below, valid for the request that they
    // make and for the whole call.
    let value = unsafe { libc::ptrace(request, tid.0, addr, data) };
    if value == -1 { Err(io::Error::last_os_error()) } else { Ok(value) }
}

/// Attaches without stopping. A tracer that dies lets go of the thread, unharmed, unless PTRACE_O_EXITKILL is among the options.
pub fn seize(tid: Tid, options: i32) -> io::Result<()> {
    request(libc::PTRACE_SEIZE, tid, null_mut(), options as usize as *mut c_void).map(drop)
}

/// Asks a seized thread to stop; it does so with [`EVENT_STOP`].
pub fn interrupt(tid: Tid) -> io::Result<()> {
    request(libc::PTRACE_INTERRUPT, tid, null_mut(), null_mut()).map(drop)
}

/// Lets a stopped thread run, delivering `signal` (0: none).
pub fn cont(tid: Tid, signal: i32) -> io::Result<()> {
    request(libc::PTRACE_CONT, tid, null_mut(), signal as usize as *mut c_void).map(drop)
}

/// Lets a stopped thread run to the next entry or exit of a system call.
pub fn cont_to_syscall(tid: Tid) -> io::Result<()> {
    request(libc::PTRACE_SYSCALL, tid, null_mut(), null_mut()).map(drop)
}

/// Lets go of a stopped thread, delivering `signal` (0: none).
pub fn detach(tid: Tid, signal: i32) -> io::Result<()> {
    request(libc::PTRACE_DETACH, tid, null_mut(), signal as usize as *mut c_void).map(drop)
}

/// Changes the options of a stopped thread.
pub fn set_options(tid: Tid, options: i32) -> io::Result<()> {
    request(libc::PTRACE_SETOPTIONS, tid, null_mut(), options as usize as *mut c_void).map(drop)
}

/// The general registers of a stopped thread.
pub fn get_regs(tid: Tid) -> io::Result<Regs> {
    // SAFETY: all bytes zero are a valid value of this struct of integers.
    let mut regs: Regs = unsafe { std::mem::zeroed() };
    request(libc::PTRACE_GETREGS, tid, null_mut(), (&raw mut regs).cast())?;
    Ok(regs)
}

/// Sets the general registers of a stopped thread.
pub fn set_regs(tid: Tid, regs: &Regs) -> io::Result<()> {
    request(libc::PTRACE_SETREGS, tid, null_mut(), (&raw const *regs).cast_mut().cast()).map(drop)
}

/// The extended state (x87, SSE, AVX, ..., in the XSAVE layout) of a stopped thread.
pub fn get_xstate(tid: Tid) -> io::Result<Vec<u8>> {
    // Enough for AVX-512. What has no room is left out, so if all of it was taken, there may be more.
    let mut area = vec![0u8; 4096];
    loop {
        let mut iov = libc::iovec { iov_base: area.as_mut_ptr().cast(), iov_len: area.len() };
        request(libc::PTRACE_GETREGSET, tid, NT_X86_XSTATE as usize as *mut c_void, (&raw mut iov).cast())?;
        if iov.iov_len < area.len() || area.len() >= XSTATE_MAX {
            area.truncate(iov.iov_len);
            return Ok(area);
        }
        area.resize(area.len() * 2, 0);
    }
}

/// Sets the extended state of a stopped thread. The kernel checks it whole; its length must be what this processor uses.
pub fn set_xstate(tid: Tid, area: &[u8]) -> io::Result<()> {
    let mut iov = libc::iovec { iov_base: area.as_ptr().cast_mut().cast(), iov_len: area.len() };
    request(libc::PTRACE_SETREGSET, tid, NT_X86_XSTATE as usize as *mut c_void, (&raw mut iov).cast()).map(drop)
}

/// The blocked signals of a stopped thread.
pub fn get_sigmask(tid: Tid) -> io::Result<KernelSigset> {
    let mut mask: KernelSigset = 0;
    let size = size_of::<KernelSigset>() as *mut c_void;
    request(libc::PTRACE_GETSIGMASK, tid, size, (&raw mut mask).cast())?;
    Ok(mask)
}

/// Sets the blocked signals of a stopped thread.
pub fn set_sigmask(tid: Tid, mask: KernelSigset) -> io::Result<()> {
    let size = size_of::<KernelSigset>() as *mut c_void;
    request(libc::PTRACE_SETSIGMASK, tid, size, (&raw const mask).cast_mut().cast()).map(drop)
}

/// The message of the event that a thread is stopped at: the id of a new thread, for one.
pub fn event_message(tid: Tid) -> io::Result<u64> {
    let mut message: libc::c_ulong = 0;
    request(libc::PTRACE_GETEVENTMSG, tid, null_mut(), (&raw mut message).cast())?;
    Ok(message)
}

/// Why a traced thread reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// At the entry or exit of a system call (PTRACE_O_TRACESYSGOOD).
    Syscall,
    /// An interrupt, or a stop of the whole group by this signal (SIGTRAP: only the interrupt).
    Event(i32),
    /// Some other PTRACE_EVENT_*.
    Other(i32),
    /// About to receive this signal.
    Signal(i32),
    /// It ended, with this wait status.
    Ended(i32),
}

/// Decodes a wait status of a traced thread.
pub fn decode_stop(status: i32) -> Stop {
    if !libc::WIFSTOPPED(status) {
        return Stop::Ended(status);
    }
    let signal = libc::WSTOPSIG(status);
    match status >> 16 {
        0 if signal == libc::SIGTRAP | 0x80 => Stop::Syscall,
        0 => Stop::Signal(signal),
        EVENT_STOP => Stop::Event(signal),
        other => Stop::Other(other),
    }
}

/// Waits for the next report of one thread. `Ok(None)` when a signal of ours came first (a timer of the caller's, say), or when
/// `block` is false and there is none.
///
/// The end of a child of ours is told, but its status is left where it is: for whoever stands in for the child ([`super::child`]).
pub fn wait(tid: Tid, block: bool) -> io::Result<Option<Stop>> {
    let flags = libc::__WALL | if block { 0 } else { libc::WNOHANG };
    match child::peek_end(tid, flags)? {
        Some(status) if child::is_ours(tid) => Ok(Some(Stop::Ended(status))),
        _ => collect(tid, flags),
    }
}

/// The same; a status that is told is gone.
fn collect(tid: Tid, flags: i32) -> io::Result<Option<Stop>> {
    let mut status = 0;
    // SAFETY: `status` outlives the call.
    match unsafe { libc::waitpid(tid.0, &raw mut status, flags) } {
        -1 => {
            let error = io::Error::last_os_error();
            if error.kind() == io::ErrorKind::Interrupted { Ok(None) } else { Err(error) }
        }
        0 => Ok(None),
        _ => Ok(Some(decode_stop(status))),
    }
}

/// Waits until a traced thread that was killed is dead, and collects its status, whoever's child it is. As long as its tracer has not seen that, nobody else does.
pub fn wait_for_end(tid: Tid) -> io::Result<()> {
    loop {
        match collect(tid, libc::__WALL) {
            Ok(Some(Stop::Ended(_))) => return Ok(()),
            // Dead and collected by its parent, or never ours.
            Err(e) if e.raw_os_error() == Some(libc::ECHILD) => return Ok(()),
            Ok(_) => {}
            Err(error) => return Err(error),
        }
    }
}
