//! ckpt's eBPF programs: loading them, and a safe face for each.
//!
//! - [`FaultLog`]: the write faults of chosen processes, as they happen;
//! - [`TaskInspector`]: how the interrupted system calls of a process's threads go on, and when each thread last ran.
//!
//! Everything here needs CAP_BPF and CAP_PERFMON in the initial user namespace, which root has. It never decides anything: whoever
//! is refused goes on without. What is loaded is gone when its owner is dropped or killed; nothing is pinned.

mod error;
mod fault_log;
mod inspector;
mod restart_block;

pub use error::EbpfError;
pub use fault_log::{Counters, FaultLog, FaultLogOptions, WriteFault};
pub use inspector::{TaskInspector, TaskTiming, restart_blocks};
pub use restart_block::{Deadline, RestartBlock};

use aya::{Ebpf, EbpfLoader};

type Result<T, E = EbpfError> = std::result::Result<T, E>;

/// Loads the object: its maps are made, its programs not yet given to the kernel.
fn load(loader: &mut EbpfLoader<'_>) -> Result<Ebpf> {
    // No program is to be adapted to the kernel's type information, which takes aya tens of milliseconds to read.
    loader.btf(None).load(ckpt_ebpf::OBJECT).map_err(|e| EbpfError::new("cannot load ckpt's eBPF programs", e))
}

#[cfg(test)]
mod tests;
