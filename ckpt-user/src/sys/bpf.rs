//! The part of bpf(2) that aya does not offer: a task iterator that visits the threads of one process only.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use bytemuck::NoUninit;

use crate::ids::Pid;

// linux/bpf.h: enum bpf_cmd and enum bpf_attach_type.
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_ITER_CREATE: libc::c_int = 33;
const BPF_TRACE_ITER: u32 = 28;

/// `union bpf_iter_link_info`, as for tasks.
#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct TaskIterator {
    tid: u32,
    pid: u32,
    pid_fd: u32,
}

/// `union bpf_attr`, the beginning of its struct `link_create`.
#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct LinkCreate {
    prog_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
    iter_info: u64,
    iter_info_len: u32,
    unused: u32,
}

/// `union bpf_attr`, its struct `iter_create`.
#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct IterCreate {
    link_fd: u32,
    flags: u32,
}

/// A file that runs the iterator program once for each thread of the process `pid`, as the caller's pid namespace numbers it, and
/// holds what the program wrote. Needs Linux 6.1; older kernels answer EINVAL. ESRCH if there is no such process.
pub fn task_iterator(program: BorrowedFd<'_>, pid: Pid) -> io::Result<File> {
    let process = TaskIterator { tid: 0, pid: pid.0 as u32, pid_fd: 0 };
    let link = bpf(
        BPF_LINK_CREATE,
        LinkCreate {
            prog_fd: program.as_raw_fd() as u32,
            target_fd: 0,
            attach_type: BPF_TRACE_ITER,
            flags: 0,
            iter_info: (&raw const process).addr() as u64,
            iter_info_len: size_of_val(&process) as u32,
            unused: 0,
        },
    )?;
    bpf(BPF_ITER_CREATE, IterCreate { link_fd: link.as_raw_fd() as u32, flags: 0 }).map(File::from)
}

fn bpf<T: NoUninit>(command: libc::c_int, attributes: T) -> io::Result<OwnedFd> {
    // SAFETY: the attributes are initialised and as long as is said; what they point to outlives the call, and is only read.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw const attributes, size_of::<T>()) };
    match RawFd::try_from(result) {
        // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}
