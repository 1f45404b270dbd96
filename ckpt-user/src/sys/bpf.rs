//! The parts of bpf(2) that aya does not offer: a task iterator that visits one thread, or the threads of one process, and taking all there is out of a hash map.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use bytemuck::{NoUninit, Pod};

use crate::ids::Pid;

// linux/bpf.h: enum bpf_cmd and enum bpf_attach_type.
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_MAP_LOOKUP_AND_DELETE_BATCH: libc::c_int = 25;
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

/// Which threads an iterator visits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Visited {
    /// All of the process, as the caller's pid namespace numbers it.
    Threads(Pid),
    /// Its main thread.
    Leader(Pid),
}

/// A file that runs the iterator program once for each of these, and holds what the program wrote. Needs Linux 6.1; older kernels answer EINVAL. ESRCH if
/// there is no such process.
pub fn task_iterator(program: BorrowedFd<'_>, visited: Visited) -> io::Result<File> {
    let process = match visited {
        Visited::Threads(pid) => TaskIterator { tid: 0, pid: pid.0 as u32, pid_fd: 0 },
        Visited::Leader(pid) => TaskIterator { tid: pid.0 as u32, pid: 0, pid_fd: 0 },
    };
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

/// `union bpf_attr`, its struct `batch`.
#[derive(Clone, Copy, NoUninit)]
#[repr(C)]
struct Batch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// Takes all elements out of a hash map that is not one per processor, whose keys and values are these. Each is taken by itself: what programs add meanwhile
/// is taken or stays.
pub fn take_all<K: Pod, V: Pod>(map: BorrowedFd<'_>) -> io::Result<Vec<(K, V)>> {
    let mut all = Vec::new();
    let mut room = 1024;
    // Where the next call goes on. The kernel's own, no longer than a key or 4 bytes.
    let (mut from, mut next) = (vec![0_u8; size_of::<K>().max(8)], vec![0_u8; size_of::<K>().max(8)]);
    let mut goes_on = false;
    loop {
        let (mut keys, mut values) = (vec![K::zeroed(); room], vec![V::zeroed(); room]);
        let mut batch = Batch {
            in_batch: if goes_on { from.as_mut_ptr().expose_provenance() as u64 } else { 0 },
            out_batch: next.as_mut_ptr().expose_provenance() as u64,
            keys: keys.as_mut_ptr().expose_provenance() as u64,
            values: values.as_mut_ptr().expose_provenance() as u64,
            count: room as u32,
            map_fd: map.as_raw_fd() as u32,
            elem_flags: 0,
            flags: 0,
        };
        // SAFETY: the attributes are as long as is said. They point to as many keys and values as they say, of the sizes that the map has by the word of the
        // caller, and to enough room for the places; all of it outlives the call.
        let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_MAP_LOOKUP_AND_DELETE_BATCH, &raw mut batch, size_of::<Batch>()) };
        let error = (result < 0).then(io::Error::last_os_error);
        match error.as_ref().and_then(io::Error::raw_os_error) {
            // More are in one place than there is room for: none of them was taken.
            Some(libc::ENOSPC) => {
                room *= 2;
                continue;
            }
            // The last of them.
            None | Some(libc::ENOENT) => all.extend(keys.into_iter().zip(values).take(batch.count as usize)),
            Some(_) => {}
        }
        match error {
            None => {
                std::mem::swap(&mut from, &mut next);
                goes_on = true;
            }
            Some(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(all),
            Some(error) => return Err(error),
        }
    }
}
