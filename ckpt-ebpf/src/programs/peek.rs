//! Copies from the kernel's memory what user space asks for: see the library's `peek`.

use core::ffi::c_void;

use aya_ebpf::bindings::seq_file;
use aya_ebpf::helpers::generated::{bpf_probe_read_kernel, bpf_seq_write};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, PerCpuArray};
use ckpt_ebpf::peek::{ADDRESS, LENGTH, LENGTH_MAX};

#[map]
static PEEK: Array<u64> = Array::with_max_entries(2, 0);
/// Longer than a program's stack may be.
#[map]
static PEEK_COPY: PerCpuArray<[u8; LENGTH_MAX]> = PerCpuArray::with_max_entries(1, 0);

/// `struct bpf_iter_meta`.
#[repr(C)]
struct Meta {
    seq: *mut seq_file,
    session_id: u64,
    /// How many tasks were visited before this one.
    number: u64,
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
fn peek(visit: *const Visit) -> i32 {
    // SAFETY: the kernel passes this struct to iterators over tasks, and the verifier checks these loads.
    let (seq, number, task) = unsafe { ((*(*visit).meta).seq, (*(*visit).meta).number, (*visit).task) };
    if number == 0 && !task.is_null() {
        answer(seq, task as u64);
    }
    0
}

#[inline(always)]
fn answer(seq: *mut seq_file, task: u64) -> Option<()> {
    let (address, length) = (*PEEK.get(ADDRESS)?, *PEEK.get(LENGTH)?);
    if address == 0 {
        // SAFETY: the number is as long as is said.
        unsafe { bpf_seq_write(seq, (&raw const task).cast(), size_of::<u64>() as u32) };
        return Some(());
    }
    if length == 0 || length > LENGTH_MAX as u64 {
        return None;
    }
    let copy = PEEK_COPY.get_ptr_mut(0)?.cast::<c_void>();
    // SAFETY: the map returned a pointer to LENGTH_MAX bytes, which stay valid while the program runs; the first helper fails on an
    // address that is not mapped.
    unsafe {
        if bpf_probe_read_kernel(copy, length as u32, address as *const c_void) == 0 {
            bpf_seq_write(seq, copy, length as u32);
        }
    }
    Some(())
}
