//! clone3(2) with a chosen pid.

use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::AsRawFd;

use super::child;
use crate::ids::Pid;

/// struct clone_args (linux/sched.h).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, bytemuck::NoUninit)]
pub struct CloneArgs {
    /// CLONE_*.
    pub flags: u64,
    /// Where to put a pidfd.
    pub pidfd: u64,
    /// CLONE_CHILD_SETTID.
    pub child_tid: u64,
    /// CLONE_PARENT_SETTID.
    pub parent_tid: u64,
    /// The signal that the parent gets when it ends.
    pub exit_signal: u64,
    /// Stack, or 0 for the caller's.
    pub stack: u64,
    /// Its size.
    pub stack_size: u64,
    /// CLONE_SETTLS.
    pub tls: u64,
    /// Address of the ids to take, innermost namespace first.
    pub set_tid: u64,
    /// How many.
    pub set_tid_size: u64,
    /// CLONE_INTO_CGROUP.
    pub cgroup: u64,
}

const _: () = assert!(size_of::<CloneArgs>() == 88);

/// Which side of a clone one is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cloned {
    /// In the new process, a copy with only the calling thread. Nothing but [`Leash::wait`] and plain system calls may follow:
    /// other threads may have held locks.
    Child,
    /// In the caller, with the child's pid.
    Parent(Pid),
}

/// Makes a child with the given pid.
pub fn child_with_pid(pid: Pid, flags: u64) -> io::Result<Cloned> {
    clone(&CloneArgs {
        flags,
        exit_signal: libc::SIGCHLD as u64,
        set_tid: &raw const pid.0 as u64,
        set_tid_size: 1,
        ..CloneArgs::default()
    })
}

/// Makes a child whose end is told by no signal, and which stays until it is waited for, even if we ignore SIGCHLD.
pub fn silent_child() -> io::Result<Cloned> {
    clone(&CloneArgs::default())
}

fn clone(args: &CloneArgs) -> io::Result<Cloned> {
    // SAFETY: the struct, and the pid that it may point to, outlive the call. Without CLONE_VM the child has its own copy of everything;
    // it does what `Cloned::Child` demands.
    match unsafe { libc::syscall(libc::SYS_clone3, &raw const *args, size_of::<CloneArgs>()) } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Cloned::Child),
        got => Ok(Cloned::Parent(Pid(got as i32))),
    }
}

/// Makes a process with the given pid that is nobody's child but init's (or the nearest subreaper's).
pub fn orphan_with_pid(pid: Pid) -> io::Result<Cloned> {
    // SAFETY: the middle process makes only system calls that are safe after a fork of a process with threads.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => match child_with_pid(pid, 0) {
            Ok(Cloned::Child) => Ok(Cloned::Child),
            // SAFETY: _exit runs no handlers of the copied program.
            Ok(Cloned::Parent(_)) => unsafe { libc::_exit(0) },
            // SAFETY: as above. The status tells the error.
            Err(error) => unsafe { libc::_exit(error.raw_os_error().unwrap_or(libc::EIO)) },
        },
        middle => child::answer(Pid(middle)).map(|()| Cloned::Parent(pid)),
    }
}

/// What holds a new process until it is traced, stopped and made into something else: without its maker's copy of this it ends.
#[derive(Debug)]
pub struct Leash {
    held: PipeWriter,
    end: PipeReader,
}

impl Leash {
    /// Made before the process is.
    pub fn new() -> io::Result<Leash> {
        let (end, held) = io::pipe()?;
        Ok(Leash { held, end })
    }

    /// In the new process: does nothing, and ends when its maker's copy is dropped, or its maker dies.
    pub fn wait(&self) -> ! {
        let mut byte = 0u8;
        // SAFETY: this process has descriptors of its own, and nothing in it uses this one any more.
        unsafe { libc::close(self.held.as_raw_fd()) };
        loop {
            // SAFETY: `byte` outlives the call.
            let read = unsafe { libc::read(self.end.as_raw_fd(), (&raw mut byte).cast(), 1) };
            if read >= 0 || io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
                // SAFETY: _exit runs no handlers of the copied program.
                unsafe { libc::_exit(1) };
            }
        }
    }
}
