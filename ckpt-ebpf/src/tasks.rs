//! What only the kernel's own records tell about threads: how an interrupted system call goes on, and when a thread last ran.
//!
//! The program is an iterator over tasks (BPF_TRACE_ITER): reading its descriptor runs it for each thread and returns one
//! [`TaskRecord`] each. Where the fields are in this kernel's structs is told by [`TaskOffsets`], since the object is built
//! without knowing the kernel.

use bytemuck::{Pod, Zeroable};

/// The iterator program.
pub const PROGRAM: &str = "restart_blocks";
/// The read-only global of type [`TaskOffsets`], to be set by the loader.
pub const OFFSETS: &str = "TASK_OFFSETS";

/// The offset of a field that this kernel does not have.
pub const ABSENT: u32 = u32::MAX;
/// Bytes of a restart_block that are copied; the largest known is 56.
pub const RESTART_BLOCK_BYTES: usize = 64;
/// Bytes for the name of a kernel function, with a NUL at the end; a longer name is cut.
pub const SYMBOL_BYTES: usize = 48;

/// Offsets in bytes within the kernel's structs, from its BTF.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct TaskOffsets {
    /// `task_struct.restart_block`.
    pub restart_block: u32,
    /// `restart_block.fn`, within the restart_block.
    pub restart_fn: u32,
    /// `task_struct.thread_pid`.
    pub thread_pid: u32,
    /// `task_struct.group_leader`.
    pub group_leader: u32,
    /// `task_struct.nvcsw`.
    pub voluntary_switches: u32,
    /// `task_struct.se.exec_start`.
    pub exec_start: u32,
    /// `task_struct.se.cfs_rq`, or [`ABSENT`] (CONFIG_FAIR_GROUP_SCHED).
    pub run_queue_of_task: u32,
    /// `cfs_rq.rq`, or [`ABSENT`].
    pub run_queue: u32,
    /// `rq.clock`, or [`ABSENT`].
    pub clock: u32,
    /// `rq.clock_task`, or [`ABSENT`].
    pub clock_task: u32,
    /// `pid.level`.
    pub pid_level: u32,
    /// `pid.numbers`.
    pub pid_numbers: u32,
    /// The size of a `upid`, the element of `pid.numbers`.
    pub upid_size: u32,
    /// `upid.nr`.
    pub upid_nr: u32,
    /// `upid.ns`.
    pub upid_ns: u32,
    /// `task_struct.mm`.
    pub mm: u32,
    /// `mm_struct.mm_lock_seq`, or [`ABSENT`] (CONFIG_PER_VMA_LOCK).
    pub mm_lock_seq: u32,
    /// `task_struct.self_exec_id`.
    pub exec_id: u32,
}

/// One thread. Times are in nanoseconds of the kernel's scheduler clock, which starts near boot and counts neither suspension nor
/// corrections of the time; it is not CLOCK_MONOTONIC, but runs alongside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct TaskRecord {
    /// The raw `restart_block`, and what follows it in the task_struct if it is shorter.
    pub restart_block: [u8; RESTART_BLOCK_BYTES],
    /// The name of the function at `restart_block.fn`, ended by a NUL.
    pub restart_fn: [u8; SYMBOL_BYTES],
    /// When the scheduler last charged the thread for running, which for one that sleeps is when it fell asleep. In the clock of
    /// its processor without the time spent on interrupts: [`Self::clock_offset`] more is the scheduler clock.
    pub exec_start: u64,
    /// How far that processor's clock without interrupts is behind its scheduler clock.
    pub clock_offset: u64,
    /// The scheduler clock of the reader's processor at its last update, or 0 if the kernel does not tell.
    pub now: u64,
    /// CLOCK_MONOTONIC (of the initial time namespace) when this was read.
    pub monotonic: u64,
    /// How often the thread went to sleep by itself.
    pub voluntary_switches: u64,
    /// The kernel's address of its address space, which tells address spaces apart that are there at the same time.
    pub mm: u64,
    /// Counts the programs that it has executed.
    pub exec_id: u64,
    /// Thread id, in the reader's pid namespace.
    pub tid: u32,
    /// Process id, in the reader's pid namespace.
    pub tgid: u32,
    /// Process id, in the initial pid namespace.
    pub kernel_tgid: u32,
    /// Changes whenever the mappings of the address space could have changed: its lock was taken for writing. 0 if the kernel does not tell.
    pub mm_lock_seq: u32,
}
