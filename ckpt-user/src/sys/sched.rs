//! Scheduling of another thread, from outside: policy, niceness, processors, I/O priority; and its robust list, which the kernel
//! tells of any thread by its id as well.

use std::io;
use std::sync::OnceLock;

use bytemuck::{Pod, Zeroable};

use crate::ids::{Addr, Tid};

/// Processors that we may use. Found out once: it takes reading several files.
pub fn parallelism() -> usize {
    static PROCESSORS: OnceLock<usize> = OnceLock::new();
    *PROCESSORS.get_or_init(|| std::thread::available_parallelism().map_or(1, usize::from))
}

/// struct sched_attr (linux/sched/types.h), with the two utilization clamps.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct SchedAttr {
    /// Bytes that the kernel filled in.
    pub size: u32,
    /// SCHED_OTHER, SCHED_FIFO, ...
    pub policy: u32,
    /// SCHED_FLAG_*.
    pub flags: u64,
    /// Niceness, for the policies that have one.
    pub nice: i32,
    /// Priority, for the real-time policies.
    pub priority: u32,
    /// SCHED_DEADLINE: nanoseconds per period. SCHED_OTHER (Linux 6.12): the slice.
    pub runtime: u64,
    /// SCHED_DEADLINE, nanoseconds.
    pub deadline: u64,
    /// SCHED_DEADLINE, nanoseconds.
    pub period: u64,
    /// Least utilization, of 1024.
    pub util_min: u32,
    /// Greatest utilization, of 1024.
    pub util_max: u32,
}

const _: () = assert!(size_of::<SchedAttr>() == 56);

/// IOPRIO_WHO_PROCESS (linux/ioprio.h): one thread.
const IOPRIO_WHO_PROCESS: i32 = 1;
/// Bytes of a processor mask that is surely long enough for any kernel (CONFIG_NR_CPUS is at most 8192).
const CPU_MASK_BYTES: usize = 1024;

fn result(value: libc::c_long) -> io::Result<i64> {
    if value == -1 { Err(io::Error::last_os_error()) } else { Ok(value) }
}

/// sched_getattr(2).
pub fn attributes(tid: Tid) -> io::Result<SchedAttr> {
    let mut attr = SchedAttr::default();
    // SAFETY: the kernel writes at most the size given, into a struct that outlives the call.
    result(unsafe { libc::syscall(libc::SYS_sched_getattr, tid.0, &raw mut attr, size_of::<SchedAttr>(), 0) })?;
    Ok(attr)
}

/// sched_setattr(2).
pub fn set_attributes(tid: Tid, attr: &SchedAttr) -> io::Result<()> {
    let attr = SchedAttr { size: attr.size.min(size_of::<SchedAttr>() as u32), ..*attr };
    // SAFETY: the kernel reads `size` bytes, at most the struct, which outlives the call.
    result(unsafe { libc::syscall(libc::SYS_sched_setattr, tid.0, &raw const attr, 0) }).map(drop)
}

/// getpriority(2): the niceness of one thread, -20 to 19, also under policies that do not use it.
pub fn niceness(tid: Tid) -> io::Result<i32> {
    // SAFETY: only numbers are passed.
    let value = result(unsafe { libc::syscall(libc::SYS_getpriority, libc::PRIO_PROCESS, tid.0) })?;
    Ok(20 - value as i32)
}

/// setpriority(2) for one thread.
pub fn set_niceness(tid: Tid, nice: i32) -> io::Result<()> {
    // SAFETY: only numbers are passed.
    result(unsafe { libc::syscall(libc::SYS_setpriority, libc::PRIO_PROCESS, tid.0, nice) }).map(drop)
}

/// sched_getaffinity(2): the processors on which a thread may run now, ascending.
pub fn processors(tid: Tid) -> io::Result<Vec<u32>> {
    let mut mask = vec![0u8; CPU_MASK_BYTES];
    // SAFETY: the kernel writes at most the length given.
    let len = result(unsafe { libc::syscall(libc::SYS_sched_getaffinity, tid.0, mask.len(), mask.as_mut_ptr()) })?;
    mask.truncate(len as usize);
    Ok((0..mask.len() as u32 * 8).filter(|cpu| mask[*cpu as usize / 8] & (1 << (cpu % 8)) != 0).collect())
}

/// sched_setaffinity(2). Processors beyond what any kernel knows are left out.
pub fn set_processors(tid: Tid, cpus: &[u32]) -> io::Result<()> {
    let mut mask = vec![0u8; CPU_MASK_BYTES];
    for &cpu in cpus {
        if let Some(byte) = mask.get_mut(cpu as usize / 8) {
            *byte |= 1 << (cpu % 8);
        }
    }
    // SAFETY: the kernel reads the length given.
    result(unsafe { libc::syscall(libc::SYS_sched_setaffinity, tid.0, mask.len(), mask.as_ptr()) }).map(drop)
}

/// ioprio_get(2): class and level of one thread.
pub fn io_priority(tid: Tid) -> io::Result<i32> {
    // SAFETY: only numbers are passed.
    result(unsafe { libc::syscall(libc::SYS_ioprio_get, IOPRIO_WHO_PROCESS, tid.0) }).map(|value| value as i32)
}

/// ioprio_set(2) for one thread.
pub fn set_io_priority(tid: Tid, priority: i32) -> io::Result<()> {
    // SAFETY: only numbers are passed.
    result(unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, tid.0, priority) }).map(drop)
}

/// get_robust_list(2): where the list of locks begins that the kernel unlocks when a thread dies, and the length of its head.
pub fn robust_list(tid: Tid) -> io::Result<(Addr, usize)> {
    let (mut head, mut len) = (0u64, 0usize);
    // SAFETY: the kernel writes one pointer and one size, both ours.
    result(unsafe { libc::syscall(libc::SYS_get_robust_list, tid.0, &raw mut head, &raw mut len) })?;
    Ok((Addr(head), len))
}
