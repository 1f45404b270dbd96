//! The write faults of the processes in [`TRACKED`], counted and logged before the kernel handles them.

use core::intrinsics::{AtomicOrdering, atomic_xadd};

use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::BPF_RB_NO_WAKEUP;
use aya_ebpf::macros::{map, raw_tracepoint};
use aya_ebpf::maps::{Array, HashMap, RingBuf};
use aya_ebpf::programs::RawTracePointContext;
use aya_log_ebpf::warn;
use ckpt_ebpf::faults::{Counter, FAULTS_BYTES, TRACKED_MAX, TaskInfo, WRITE, WriteFault};

use crate::preserve;

const PAGE_SHIFT: u32 = 12;
/// The last address bit: set in the kernel's own addresses, whose faults are not the process's.
const KERNEL_HALF: u64 = 1 << 63;

#[map]
static TRACKED: HashMap<u32, TaskInfo> = HashMap::with_max_entries(TRACKED_MAX, 0);
#[map]
static FAULTS: RingBuf = RingBuf::with_byte_size(FAULTS_BYTES, 0);
#[map]
static CONTROL: Array<u64> = Array::with_max_entries(1, 0);
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
fn note(ctx: &RawTracePointContext) {
    let error_code: u64 = ctx.arg(2);
    if error_code & WRITE == 0 {
        return;
    }
    let address: u64 = ctx.arg(0);
    if address & KERNEL_HALF != 0 {
        return;
    }
    preserve::before_write(address);
    let tgid = ctx.tgid();
    let Some(task) = TRACKED.get_ptr_mut(&tgid) else { return };
    // SAFETY: the map returned a pointer to a value, which stays valid while the program runs; all writers use atomics.
    unsafe { add_one(&raw mut (*task).write_faults) };

    let Some(mut entry) = FAULTS.reserve::<WriteFault>(0) else {
        // SAFETY: as above.
        unsafe { add_one(&raw mut (*task).lost) };
        if count(Counter::Lost) == 0 {
            warn!(ctx, "the log of write faults is full; pid {} wrote to a page that is not in it", tgid);
        }
        return;
    };
    let epoch = CONTROL.get(0).copied().unwrap_or(0);
    entry.write(WriteFault { page: address >> PAGE_SHIFT, epoch, tgid, error_code: error_code as u32 });
    entry.submit(BPF_RB_NO_WAKEUP.into());
    count(Counter::Logged);
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
/// `value` is valid, and is only written by atomics.
#[inline(always)]
unsafe fn add_one(value: *mut u64) -> u64 {
    // SAFETY: the caller's promise.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::SeqCst }>(value, 1) }
}
