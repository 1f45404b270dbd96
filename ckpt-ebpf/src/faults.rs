//! The write faults of chosen processes: what the two page-fault programs are told, and what they tell.
//!
//! Only faults are seen, not all writes: what the kernel writes through get_user_pages (direct I/O, process_vm_writev, ptrace)
//! goes through no exception of the process. Whoever needs all of them must ask the page tables.

use bytemuck::{Pod, Zeroable};

/// The program on the raw tracepoint of the same name: faults of user code.
pub const USER_PROGRAM: &str = "page_fault_user";
/// The program on the raw tracepoint of the same name: faults of the kernel on behalf of a process, as in read(2).
pub const KERNEL_PROGRAM: &str = "page_fault_kernel";

/// Hash map from thread group id (`u32`, as the initial pid namespace numbers it) to [`TaskInfo`]: whom the programs watch.
pub const TRACKED: &str = "TRACKED";
/// How many processes can be watched at once.
pub const TRACKED_MAX: u32 = 16 * 1024;

/// Ring buffer of [`WriteFault`]. Nothing wakes up its reader: who wants to know what is in it reads it.
pub const FAULTS: &str = "FAULTS";
/// Size of the ring buffer in bytes, unless the loader sets another: a power of two, and a multiple of the page size.
pub const FAULTS_BYTES: u32 = 1 << 20;

/// Array of one `u64`: the epoch that is noted in each [`WriteFault`].
pub const CONTROL: &str = "CONTROL";
/// Array of one `u64` per [`Counter`], over all processes since the object was loaded.
pub const COUNTERS: &str = "COUNTERS";

/// Index into [`COUNTERS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Counter {
    /// Faults that are, or were, in the ring buffer.
    Logged = 0,
    /// Faults that found the ring buffer full, and are known only by being counted here.
    Lost = 1,
}

impl Counter {
    /// How many counters there are.
    pub const COUNT: u32 = 2;
}

/// What is kept for each process that is watched. User space writes it once, as zeros.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct TaskInfo {
    /// Write faults since the process is watched, whether or not the ring buffer had room for them.
    pub write_faults: u64,
    /// Those of them that found the ring buffer full.
    pub lost: u64,
}

/// A write fault, at its start: the page still has its old contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct WriteFault {
    /// The number of the page: the address divided by the page size.
    pub page: u64,
    /// What was in [`CONTROL`] when it happened.
    pub epoch: u64,
    /// The process, as the initial pid namespace numbers it.
    pub tgid: u32,
    /// The processor's error code (Intel SDM 3A, 4.7): bit 0 the page was present, bit 1 ([`WRITE`]) it was a write, bit 2 by
    /// user code.
    pub error_code: u32,
}

/// The bit of a page fault's error code that says that it was a write.
pub const WRITE: u64 = 1 << 1;
