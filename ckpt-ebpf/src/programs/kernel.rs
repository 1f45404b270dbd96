//! The kernel's memory, and the current task in it.

use core::ffi::c_void;

use aya_ebpf::helpers::generated::bpf_probe_read_kernel as raw_read;
use bytemuck::Zeroable;

/// Copies from the kernel's memory.
#[inline(always)]
pub fn read<T: Zeroable>(address: u64) -> Option<T> {
    let mut value = T::zeroed();
    // SAFETY: the destination is as long as is said; the helper fails on an address that is not mapped.
    let result = unsafe { raw_read((&raw mut value).cast(), size_of::<T>() as u32, address as *const c_void) };
    (result == 0).then_some(value)
}
