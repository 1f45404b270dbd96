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

/// The read-only global of type [`StateOwners`], to be set by the loader.
pub const STATE_OWNERS: &str = "STATE_OWNERS";
/// The read-only global, an array of [`STATE_PARTS_MAX`] [`StatePart`]s, to be set by the loader.
pub const STATE_PARTS: &str = "STATE_PARTS";
/// How many [`StatePart`]s there can be.
pub const STATE_PARTS_MAX: usize = 40;
/// Signals that have an action of their own.
pub const ACTIONS: usize = 64;
/// The most bytes of the kernel's record of an action that are looked at.
pub const ACTION_WORDS: usize = 4;

/// Where the kernel keeps what a thread tells nobody but itself: that goes into [`TaskRecord::state`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct StateOwners {
    /// How many [`StatePart`]s there are; 0: none is known, and no state is told.
    pub parts: u32,
    /// `task_struct.cred`.
    pub credentials: u32,
    /// `cred.security`.
    pub security: u32,
    /// `task_struct.signal`.
    pub process: u32,
    /// `task_struct.sighand`.
    pub signals: u32,
    /// `sighand_struct.action`.
    pub actions: u32,
    /// The size of an element of that.
    pub action: u32,
}

/// Some bytes of a struct.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct StatePart {
    /// An [`Owner`].
    pub of: u32,
    /// Where in it.
    pub at: u32,
    /// Is it 8 bytes, rather than 4?
    pub long: u32,
}

/// Whose a [`StatePart`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Owner {
    /// The task's.
    Task = 0,
    /// Its credentials'.
    Credentials = 1,
    /// Its process's.
    Process = 2,
    /// Its memory's.
    Memory = 3,
    /// What security modules keep of its credentials.
    Security = 4,
}

/// One more word goes into a digest. Whatever the others are, two that differ in one word are different.
#[inline(always)]
pub fn digest(so_far: u64, word: u64) -> u64 {
    (so_far ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
}

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
    /// `mm_struct.mm_users`.
    pub mm_users: u32,
    /// `mm_struct.mm_lock_seq`, or [`ABSENT`] (CONFIG_PER_VMA_LOCK).
    pub mm_lock_seq: u32,
    /// `task_struct.self_exec_id`.
    pub exec_id: u32,
    /// `task_struct.start_boottime`.
    pub started: u32,
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
    /// How many tasks have that address space, and how many calls of others are within it at this moment.
    pub mm_users: u64,
    /// Counts the programs that it has executed.
    pub exec_id: u64,
    /// When it was made, in nanoseconds since the machine was.
    pub started: u64,
    /// A digest of all [`StatePart`]s, and, of the main thread of a process, of what is done at each signal. 0 if it is not known.
    pub state: u64,
    /// Thread id, in the reader's pid namespace.
    pub tid: u32,
    /// Process id, in the reader's pid namespace.
    pub tgid: u32,
    /// Process id, in the initial pid namespace.
    pub kernel_tgid: u32,
    /// Changes whenever the mappings of the address space could have changed: its lock was taken for writing. 0 if the kernel does not tell.
    pub mm_lock_seq: u32,
}
