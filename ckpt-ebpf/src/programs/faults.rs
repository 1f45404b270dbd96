//! The write faults of the processes in [`TRACKED`], counted and logged before the kernel handles them; and what becomes of these processes.

use core::intrinsics::{AtomicOrdering, atomic_xadd};

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{BPF_NOEXIST, BPF_RB_NO_WAKEUP};
use aya_ebpf::macros::{map, raw_tracepoint};
use aya_ebpf::maps::{Array, HashMap, RingBuf};
use aya_ebpf::programs::RawTracePointContext;
use aya_log_ebpf::info;
use ckpt_ebpf::faults::{Control, Counter, Entry, FAULTS_BYTES, Kind, REGION_SHIFT, Region, TRACKED_MAX, TaskInfo, WRITE};

use crate::kernel::read;
use crate::preserve;

const PAGE_SHIFT: u32 = 12;
/// The last address bit: set in the kernel's own addresses, whose faults are not the process's.
const KERNEL_HALF: u64 = 1 << 63;

#[map]
static TRACKED: HashMap<u32, TaskInfo> = HashMap::with_max_entries(TRACKED_MAX, 0);
// Made larger by the loader.
#[map]
static REGIONS: HashMap<Region, u64> = HashMap::with_max_entries(1, 0);
#[map]
static FAULTS: RingBuf = RingBuf::with_byte_size(FAULTS_BYTES, 0);
#[map]
static CONTROL: Array<Control> = Array::with_max_entries(1, 0);
#[map]
static COUNTERS: Array<u64> = Array::with_max_entries(Counter::COUNT, 0);

#[raw_tracepoint(tracepoint = "page_fault_user")]
pub fn page_fault_user(ctx: RawTracePointContext) -> i32 {
    note(&ctx);
    0
}

#[raw_tracepoint(tracepoint = "page_fault_kernel")]
pub fn page_fault_kernel(ctx: RawTracePointContext) -> i32 {
    note(&ctx);
    0
}

/// Both tracepoints have the arguments (address, registers, error code).
#[inline(always)]
fn note(ctx: &RawTracePointContext) -> Option<()> {
    let error_code: u64 = ctx.arg(2);
    if error_code & WRITE == 0 {
        return None;
    }
    let address: u64 = ctx.arg(0);
    if address & KERNEL_HALF != 0 {
        return None;
    }
    preserve::before_write(address);
    let tgid = ctx.tgid();
    let task = TRACKED.get_ptr_mut(tgid)?;
    let control = CONTROL.get(0)?;
    // SAFETY: the map returned a pointer to a value, which stays valid while the program runs; all writers use atomics while there are several.
    let execs = unsafe {
        add_one(&raw mut (*task).write_faults);
        (*task).execs
    };
    count_region(Region { number: address >> REGION_SHIFT, epoch: control.epoch, tgid, execs });
    let page = address >> PAGE_SHIFT;
    if !log(Entry { value: page, epoch: control.epoch, tgid, kind: Kind::Write as u16, error_code: error_code as u16 }) {
        // SAFETY: as above.
        unsafe { add_one(&raw mut (*task).lost) };
        if count(Counter::Lost) == 0 {
            info!(ctx, "the log of write faults is full; pid {} wrote to a page that is not in it", tgid);
        }
    }
    Some(())
}

#[inline(always)]
fn count_region(region: Region) {
    if let Some(faults) = REGIONS.get_ptr_mut(region) {
        // SAFETY: as in `note`.
        unsafe { add_one(faults) };
    } else if REGIONS.insert(region, 1, BPF_NOEXIST.into()).is_err() {
        // Another processor was faster, or there is no room.
        match REGIONS.get_ptr_mut(region) {
            // SAFETY: as in `note`.
            Some(faults) => unsafe { add_one(faults) },
            None => count(Counter::Unplaced),
        };
    }
}

/// The current process is about to give up pages of a mapping that stays as it is.
#[inline(always)]
pub fn note_removal(tgid: u32, address: u64, len: u64) -> Option<()> {
    let task = TRACKED.get_ptr_mut(tgid)?;
    let control = CONTROL.get(0)?;
    let pages = (address.wrapping_add(len).wrapping_add((1 << PAGE_SHIFT) - 1) >> PAGE_SHIFT).wrapping_sub(address >> PAGE_SHIFT);
    let error_code = if pages < 2 { 0 } else { 64 - (pages - 1).leading_zeros() as u16 };
    if !log(Entry { value: address >> PAGE_SHIFT, epoch: control.epoch, tgid, kind: Kind::Removal as u16, error_code }) {
        // SAFETY: as in `note`.
        unsafe { add_one(&raw mut (*task).lost) };
        count(Counter::Lost);
    }
    Some(())
}

/// False: the ring buffer is full.
#[inline(always)]
fn log(entry: Entry) -> bool {
    let Some(mut place) = FAULTS.reserve::<Entry>(0) else { return false };
    place.write(entry);
    place.submit(BPF_RB_NO_WAKEUP.into());
    count(Counter::Logged);
    true
}

/// Something rare has happened to a process.
#[inline(always)]
fn log_event(kind: Kind, tgid: u32, value: u64) {
    let epoch = CONTROL.get(0).map_or(0, |control| control.epoch);
    if !log(Entry { value, epoch, tgid, kind: kind as u16, error_code: 0 }) {
        count(Counter::Lost);
    }
}

/// Arguments: the task, the new task. A new thread belongs to its process, which is watched already.
#[raw_tracepoint(tracepoint = "sched_process_fork")]
pub fn sched_process_fork(ctx: RawTracePointContext) -> i32 {
    after_fork(&ctx);
    0
}

#[inline(always)]
fn after_fork(ctx: &RawTracePointContext) -> Option<()> {
    let tgid = ctx.tgid();
    let parent = TRACKED.get_ptr_mut(tgid)?;
    let control = CONTROL.get(0)?;
    let new: u64 = ctx.arg(1);
    let child: u32 = read(new + u64::from(control.tgid))?;
    if child == tgid {
        return None;
    }
    // SAFETY: as in `note`; nobody writes to it.
    let root = unsafe { (*parent).root };
    let info = TaskInfo { write_faults: 0, lost: 0, execs: 0, root };
    if TRACKED.insert(child, info, BPF_NOEXIST.into()).is_ok() {
        log_event(Kind::Fork, tgid, u64::from(child));
    } else if count(Counter::Untracked) == 0 {
        info!(ctx, "too many processes are watched: there is no room for pid {}, made by pid {}", child, tgid);
    }
    Some(())
}

/// The current task has another address space by now, and is the only thread of its process.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
pub fn sched_process_exec(ctx: RawTracePointContext) -> i32 {
    let tgid = ctx.tgid();
    if let Some(task) = TRACKED.get_ptr_mut(tgid) {
        // SAFETY: as in `note`; there is no other thread now.
        unsafe {
            (*task).write_faults = 0;
            (*task).lost = 0;
            (*task).execs += 1;
        }
        log_event(Kind::Exec, tgid, 0);
        info!(&ctx, "pid {} executes another program: what was counted of its memory is void", tgid);
    }
    0
}

/// The current task ends.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
pub fn sched_process_exit(ctx: RawTracePointContext) -> i32 {
    before_exit(&ctx);
    0
}

#[inline(always)]
fn before_exit(ctx: &RawTracePointContext) -> Option<()> {
    let tgid = ctx.tgid();
    TRACKED.get_ptr_mut(tgid)?;
    let control = CONTROL.get(0)?;
    let task: u64 = ctx.arg(0);
    let signal: u64 = read(task + u64::from(control.signal))?;
    let live: u32 = read(signal + u64::from(control.live))?;
    // The kernel has counted the thread out already.
    if live == 0 && TRACKED.remove(tgid).is_ok() {
        log_event(Kind::Exit, tgid, 0);
    }
    Some(())
}

/// Adds one, and returns what was there before.
#[inline(always)]
fn count(counter: Counter) -> u64 {
    match COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: as in `note`.
        Some(value) => unsafe { add_one(value) },
        None => 0,
    }
}

/// # Safety
/// `value` is valid, and is only written by atomics while there are several writers.
#[inline(always)]
unsafe fn add_one(value: *mut u64) -> u64 {
    // SAFETY: the caller's promise.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::SeqCst }>(value, 1) }
}
