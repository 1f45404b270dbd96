//! One record for each thread that the iterator is told to visit.

use core::ffi::c_void;
use core::ptr;

use aya_ebpf::Global;
use aya_ebpf::bindings::seq_file;
use aya_ebpf::helpers::generated::{bpf_get_current_task, bpf_ktime_get_ns, bpf_seq_write, bpf_snprintf};
use bytemuck::Zeroable;
use ckpt_ebpf::tasks::{
    ABSENT, ACTION_WORDS, ACTIONS, Owner, RESTART_BLOCK_BYTES, STATE_PARTS_MAX, SYMBOL_BYTES, StateOwners, StatePart,
    TaskOffsets, TaskRecord, digest,
};

use crate::kernel::read;

#[unsafe(no_mangle)]
static TASK_OFFSETS: Global<TaskOffsets> = Global::new(TaskOffsets {
    restart_block: 0,
    restart_fn: 0,
    thread_pid: 0,
    group_leader: 0,
    voluntary_switches: 0,
    exec_start: 0,
    run_queue_of_task: ABSENT,
    run_queue: ABSENT,
    clock: ABSENT,
    clock_task: ABSENT,
    pid_level: 0,
    pid_numbers: 0,
    upid_size: 0,
    upid_nr: 0,
    upid_ns: 0,
    mm: 0,
    mm_users: 0,
    mm_lock_seq: ABSENT,
    exec_id: 0,
    started: 0,
});

#[unsafe(no_mangle)]
static STATE_OWNERS: Global<StateOwners> =
    Global::new(StateOwners { parts: 0, credentials: 0, security: 0, process: 0, signals: 0, actions: 0, action: 0 });

#[unsafe(no_mangle)]
static STATE_PARTS: [Global<StatePart>; STATE_PARTS_MAX] =
    [const { Global::new(StatePart { of: 0, at: 0, long: 0 }) }; STATE_PARTS_MAX];

/// bpf_snprintf's format for the name of a kernel function; it must be in read-only data.
#[unsafe(no_mangle)]
static SYMBOL_FORMAT: [u8; 4] = *b"%ps\0";

/// `struct bpf_iter_meta`, as far as it is used.
#[repr(C)]
struct Meta {
    seq: *mut seq_file,
}

/// `struct bpf_iter__task`.
#[repr(C)]
struct Visit {
    meta: *const Meta,
    /// Null at the end.
    task: *const c_void,
}

#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task")]
fn restart_blocks(visit: *const Visit) -> i32 {
    // SAFETY: the kernel passes this struct to iterators over tasks, and the verifier checks these two loads.
    let (seq, task) = unsafe { ((*(*visit).meta).seq, (*visit).task) };
    if task.is_null() {
        return 0;
    }
    let mut record = TaskRecord::zeroed();
    if describe(task as u64, &mut record).is_some() {
        // SAFETY: the record is initialised, and as long as is said.
        unsafe { bpf_seq_write(seq, (&raw const record).cast(), size_of::<TaskRecord>() as u32) };
    }
    0
}

/// None for a thread that has no number in the reader's pid namespace (any more).
#[inline(always)]
fn describe(task: u64, record: &mut TaskRecord) -> Option<()> {
    let offsets = TASK_OFFSETS.load();
    // SAFETY: the helper has no preconditions.
    let reader = unsafe { bpf_get_current_task() };
    let namespace = Namespace::of(&offsets, reader)?;
    record.tid = namespace.number(&offsets, task)?;
    let leader: u64 = read(task + u64::from(offsets.group_leader))?;
    record.tgid = namespace.number(&offsets, leader)?;
    record.kernel_tgid = Namespace::initial().number(&offsets, leader)?;

    let block = task + u64::from(offsets.restart_block);
    record.restart_block = read::<[u8; RESTART_BLOCK_BYTES]>(block)?;
    let function: u64 = read(block + u64::from(offsets.restart_fn))?;
    symbol(function, &mut record.restart_fn);

    record.mm = read(task + u64::from(offsets.mm))?;
    record.exec_id = read(task + u64::from(offsets.exec_id))?;
    if record.mm != 0 {
        record.mm_users = u64::from(read::<u32>(record.mm + u64::from(offsets.mm_users))?);
        if offsets.mm_lock_seq != ABSENT {
            record.mm_lock_seq = read(record.mm + u64::from(offsets.mm_lock_seq))?;
        }
    }
    record.started = read(task + u64::from(offsets.started))?;
    record.state = state(task, leader, record.mm).unwrap_or(0);
    record.voluntary_switches = read(task + u64::from(offsets.voluntary_switches))?;
    record.exec_start = read(task + u64::from(offsets.exec_start))?;
    if let Some((clock, clock_task)) = clocks(&offsets, task) {
        record.clock_offset = clock.wrapping_sub(clock_task);
        record.now = clocks(&offsets, reader)?.0;
    }
    // SAFETY: the helper has no preconditions.
    record.monotonic = unsafe { bpf_ktime_get_ns() };
    Some(())
}

/// The digest of what only the thread itself tells, which is never 0.
#[inline(always)]
fn state(task: u64, leader: u64, mm: u64) -> Option<u64> {
    let owners = STATE_OWNERS.load();
    if owners.parts == 0 || mm == 0 {
        return None;
    }
    let credentials: u64 = read(task + u64::from(owners.credentials))?;
    let security: u64 = read(credentials + u64::from(owners.security))?;
    let process: u64 = read(task + u64::from(owners.process))?;
    let mut state = 0;
    for (n, part) in STATE_PARTS.iter().enumerate() {
        if n as u32 >= owners.parts {
            break;
        }
        let part = part.load();
        let owner = match part.of {
            of if of == Owner::Credentials as u32 => credentials,
            of if of == Owner::Process as u32 => process,
            of if of == Owner::Memory as u32 => mm,
            of if of == Owner::Security as u32 => security,
            _ => task,
        };
        let at = owner + u64::from(part.at);
        let word = if part.long != 0 { read::<u64>(at)? } else { u64::from(read::<u32>(at)?) };
        state = digest(state, word);
    }
    if task == leader {
        let signals: u64 = read(task + u64::from(owners.signals))?;
        for n in 0..ACTIONS as u64 {
            let action: [u64; ACTION_WORDS] = read(signals + u64::from(owners.actions) + n * u64::from(owners.action))?;
            for word in action {
                state = digest(state, word);
            }
        }
    }
    Some(state.max(1))
}

/// A pid namespace, as one finds numbers in it.
struct Namespace {
    /// The address of the struct pid_namespace; 0 for "whichever is at that level".
    address: u64,
    level: u32,
}

impl Namespace {
    fn initial() -> Namespace {
        Namespace { address: 0, level: 0 }
    }

    /// The innermost one that the task has a number in.
    #[inline(always)]
    fn of(offsets: &TaskOffsets, task: u64) -> Option<Namespace> {
        let pid: u64 = read(task + u64::from(offsets.thread_pid))?;
        let level: u32 = read(pid + u64::from(offsets.pid_level))?;
        let address = read(upid(offsets, pid, level) + u64::from(offsets.upid_ns))?;
        Some(Namespace { address, level })
    }

    /// The task's number in it.
    #[inline(always)]
    fn number(&self, offsets: &TaskOffsets, task: u64) -> Option<u32> {
        let pid: u64 = read(task + u64::from(offsets.thread_pid))?;
        // It is reset when a task is released.
        if pid == 0 {
            return None;
        }
        let deepest: u32 = read(pid + u64::from(offsets.pid_level))?;
        if deepest < self.level {
            return None;
        }
        let upid = upid(offsets, pid, self.level);
        let namespace: u64 = read(upid + u64::from(offsets.upid_ns))?;
        if self.address != 0 && namespace != self.address {
            return None;
        }
        read(upid + u64::from(offsets.upid_nr))
    }
}

#[inline(always)]
fn upid(offsets: &TaskOffsets, pid: u64, level: u32) -> u64 {
    pid + u64::from(offsets.pid_numbers) + u64::from(level) * u64::from(offsets.upid_size)
}

/// The scheduler clock of the task's processor at its last update, with and without the time spent on interrupts.
#[inline(always)]
fn clocks(offsets: &TaskOffsets, task: u64) -> Option<(u64, u64)> {
    if offsets.run_queue_of_task == ABSENT {
        return None;
    }
    let fair: u64 = read(task + u64::from(offsets.run_queue_of_task))?;
    let queue: u64 = read(fair + u64::from(offsets.run_queue))?;
    Some((read(queue + u64::from(offsets.clock))?, read(queue + u64::from(offsets.clock_task))?))
}

/// Writes the name of the kernel function at `address`.
#[inline(always)]
fn symbol(address: u64, name: &mut [u8; SYMBOL_BYTES]) {
    let mut arguments = [address];
    // SAFETY: all pointers are valid for the sizes that are passed, and the format ends with a NUL.
    unsafe {
        bpf_snprintf(
            name.as_mut_ptr().cast(),
            SYMBOL_BYTES as u32,
            ptr::from_ref(&SYMBOL_FORMAT).cast(),
            arguments.as_mut_ptr(),
            size_of_val(&arguments) as u32,
        )
    };
}
