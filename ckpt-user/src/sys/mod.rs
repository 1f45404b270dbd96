//! The kernel's door: raw system calls, kernel structs with their layouts asserted, /proc, feature probes. The home of `unsafe`.

pub mod clone;
pub mod deadline;
pub mod pagemap;
pub mod procfs;
pub mod ptrace;
pub mod signal;
pub mod sparse;
pub mod vm;
