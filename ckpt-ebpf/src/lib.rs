//! The eBPF programs of ckpt (src/programs/, built by `cargo xtask ebpf` into prebuilt/ckpt-ebpf.o), and, as this library, what
//! they share with user space: the names of programs, maps and globals, and the types of everything that passes between them.
//!
//! All types are plain bytes without padding, so both sides may copy them as such. The library itself does nothing.

#![no_std]

pub mod faults;
pub mod peek;
pub mod preserve;
pub mod tasks;

#[cfg(not(target_arch = "bpf"))]
mod object;

#[cfg(not(target_arch = "bpf"))]
pub use object::OBJECT;
