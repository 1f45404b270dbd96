//! What changed in a process, and what its threads wait for, as the kernel sees it.

pub mod ebpf;
