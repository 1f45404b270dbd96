//! The write faults of chosen processes: what the two page-fault programs are told, and what they tell.
//!
//! Only faults are seen, not all writes: what the kernel writes through get_user_pages (direct I/O, process_vm_writev, ptrace)
//! goes through no exception of the process. Whoever needs all of them must ask the page tables.

use bytemuck::{Pod, Zeroable};

/// The program on the raw tracepoint of the same name: faults of user code.
pub const USER_PROGRAM: &str = "page_fault_user";
/// The program on the raw tracepoint of the same name: faults of the kernel on behalf of a process, as in read(2).
pub const KERNEL_PROGRAM: &str = "page_fault_kernel";

/// The programs on the raw tracepoints of the same names, which keep the set of those who are watched true.
pub const FORK_PROGRAM: &str = "sched_process_fork";
/// See [`FORK_PROGRAM`].
pub const EXEC_PROGRAM: &str = "sched_process_exec";
/// See [`FORK_PROGRAM`].
pub const EXIT_PROGRAM: &str = "sched_process_exit";

/// Hash map from thread group id (`u32`, as the initial pid namespace numbers it) to [`TaskInfo`]: whom the programs watch. User space puts
/// a process in; the programs put in the processes that it makes, and take out what has ended. Threads come and go with their process.
pub const TRACKED: &str = "TRACKED";
/// How many processes can be watched at once.
pub const TRACKED_MAX: u32 = 16 * 1024;

/// Hash map from [`Region`] to the number of write faults there (`u64`). User space takes out those of a past epoch.
pub const REGIONS: &str = "REGIONS";
/// How many regions are counted by themselves, unless the loader sets another number.
pub const REGIONS_MAX: u32 = 32 * 1024;
/// The logarithm of the bytes of a region: 2 MiB.
pub const REGION_SHIFT: u32 = 21;

/// Ring buffer of [`Entry`]. Nothing wakes up its reader: who wants to know what is in it reads it.
pub const FAULTS: &str = "FAULTS";
/// Size of the ring buffer in bytes, unless the loader sets another: a power of two, and a multiple of the page size.
pub const FAULTS_BYTES: u32 = 1 << 20;

/// Array of one [`Control`].
pub const CONTROL: &str = "CONTROL";
/// Array of one `u64` per [`Counter`], over all processes since the object was loaded.
pub const COUNTERS: &str = "COUNTERS";

/// What user space tells the programs. Offsets are in bytes, from the kernel's BTF.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Control {
    /// What is noted in each [`Entry`] and [`Region`].
    pub epoch: u64,
    /// `task_struct.tgid`.
    pub tgid: u32,
    /// `task_struct.signal`.
    pub signal: u32,
    /// `signal_struct.live`.
    pub live: u32,
    /// Always 0.
    pub reserved: u32,
}

/// Index into [`COUNTERS`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Counter {
    /// Entries that are, or were, in the ring buffer.
    Logged = 0,
    /// Those that found the ring buffer full, and are known only by being counted here.
    Lost = 1,
    /// Faults in regions for which there was no room in [`REGIONS`].
    Unplaced = 2,
    /// Processes that were made by those who are watched, and for which there was no room in [`TRACKED`].
    Untracked = 3,
}

impl Counter {
    /// How many counters there are.
    pub const COUNT: u32 = 4;
}

/// What is kept for each process that is watched. User space writes it once, with zeros for what is counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct TaskInfo {
    /// Write faults since the process is watched, or executed another program, whether or not the ring buffer had room for them.
    pub write_faults: u64,
    /// Those of them that found the ring buffer full.
    pub lost: u64,
    /// How many programs it has executed meanwhile: each has another address space, in which nothing counts that came before.
    pub execs: u32,
    /// The process that user space has put in: itself, or the one that it comes from.
    pub root: u32,
}

/// A part of an address space, in one epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Region {
    /// The address shifted by [`REGION_SHIFT`].
    pub number: u64,
    /// [`Control::epoch`].
    pub epoch: u64,
    /// The process, as the initial pid namespace numbers it.
    pub tgid: u32,
    /// [`TaskInfo::execs`].
    pub execs: u32,
}

/// What an [`Entry`] tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Kind {
    /// A write fault, at its start: the page still has its old contents.
    Write = 0,
    /// The process has made another one, which is watched, too.
    Fork = 1,
    /// It executes another program.
    Exec = 2,
    /// It has ended, and is watched no more.
    Exit = 3,
    /// It is about to give up pages, of a mapping that stays as it is (madvise(2)).
    Removal = 4,
}

/// Something that has happened to a process that is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Entry {
    /// Of a write fault the number of the page: the address divided by the page size. Of a fork the new process. Of a removal the number of the first
    /// page.
    pub value: u64,
    /// [`Control::epoch`] when it happened.
    pub epoch: u64,
    /// The process, as the initial pid namespace numbers it.
    pub tgid: u32,
    /// A [`Kind`].
    pub kind: u16,
    /// Of a write fault the low bits of the processor's error code (Intel SDM 3A, 4.7): bit 0 the page was present, bit 1 ([`WRITE`]) it was a
    /// write, bit 2 by user code. Of a removal the logarithm of the number of pages, rounded up.
    pub error_code: u16,
}

/// The bit of a page fault's error code that says that it was a write.
pub const WRITE: u64 = 1 << 1;
