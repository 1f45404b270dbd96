//! Thin wrappers of system calls that nix lacks, for the tests and for the programs under test.

pub mod memory;
pub mod pidfd;
pub mod program;
pub mod raw;
pub mod session;
pub mod uring;
pub mod usage;
pub mod writes;
