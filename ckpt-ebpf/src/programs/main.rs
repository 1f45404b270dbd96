//! The eBPF programs, all in one object. Their types, and the names that user space finds them by, are in the library.

#![no_std]
#![no_main]
// The target has no read-modify-write methods in core::sync::atomic; the intrinsics compile to the BPF atomics.
#![feature(core_intrinsics)]
#![allow(internal_features)]

mod faults;
mod kernel;
mod peek;
mod preserve;
mod tasks;

/// Some helpers of the kernel are for programs under the GPL only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    // The verifier refuses a program in which this is reachable.
    loop {}
}
