//! Other processes: stopping them, their registers and memory, and system calls made inside them. Knows nothing of images.

pub mod batch;
pub mod cave;
pub mod freeze;
pub mod interrupted;
pub mod maps;
pub mod memory;
pub mod quiet;
pub mod remote;
pub mod run;
pub mod spawn;
pub mod stale;
pub mod stub;
pub mod thread;
pub mod tree;
