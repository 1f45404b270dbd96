//! ckpt's eBPF programs: loading them, and a safe face for each.
//!
//! - [`Preserver`]: the old contents of pages, saved before they change;
//! - [`FaultLog`], which comes with it: the write faults of chosen processes, as they happen; [`WriteWatch`]: what they amount to;
//! - [`TaskInspector`]: how the interrupted system calls of a process's threads go on, when each thread last ran, and whether it would answer as it has;
//! - [`pty_state`]: what waits in a pseudoterminal;
//! - [`mqueue_messages`]: what waits in a POSIX message queue;
//! - [`tcp_unacknowledged`]: what is on its way in a TCP connection;
//! - [`semaphore_undo`]: what the kernel does to semaphores when a process ends.
//!
//! Everything here needs CAP_BPF and CAP_PERFMON in the initial user namespace, which root has. It never decides anything: whoever
//! is refused goes on without. What is loaded is gone when its owner is dropped or killed; nothing is pinned.

mod error;
mod fault_log;
mod inspector;
mod kernel_memory;
mod live_cut;
mod mqueue_messages;
mod pages;
mod preserver;
mod pty_state;
mod restart_block;
mod semaphore_undo;
mod tcp_queue;
mod tcp_unheld;
mod thread_state;
mod touched;
mod unix_unheld;
mod windows;
mod writes;

pub use error::EbpfError;
pub use fault_log::{Counters, FaultLog, Happening};
pub use inspector::{AddressSpace, MemoryState, TaskInspector, TaskTiming, ThreadState, restart_blocks};
pub use live_cut::LiveCut;
pub use mqueue_messages::{QueuedMessage, mqueue_messages};
pub use preserver::{Preserver, Room, ToPreserve};
pub use pty_state::{PtyState, Side, prepare_for_ptys, pty_state};
pub use restart_block::{Deadline, RestartBlock};
pub use semaphore_undo::{SemaphoreUndo, semaphore_undo};
pub use tcp_queue::{TcpNumbers, prepare_for_tcp, tcp_numbers, tcp_unacknowledged};
pub use tcp_unheld::{TcpWaiting, has_chooser, tcp_of_closed, tcp_received, tcp_waiting};
pub use unix_unheld::{UnixArrived, UnixSent, prepare_for_unix, unix_waiting};
pub use writes::{WriteWatch, Writes};

use aya::maps::{Map, MapData, MapError};
use aya::programs::{ProgramError, RawTracePoint};
use aya::{Ebpf, EbpfLoader};

use error::errno;

type Result<T, E = EbpfError> = std::result::Result<T, E>;

/// Loads the object: its maps are made, its programs not yet given to the kernel.
fn load(loader: &mut EbpfLoader<'_>) -> Result<Ebpf> {
    // No program is to be adapted to the kernel's type information, which takes aya tens of milliseconds to read.
    loader.btf(None).load(ckpt_ebpf::OBJECT).map_err(|e| EbpfError::new("cannot load ckpt's eBPF programs", e))
}

/// Takes a map out of the object.
fn map<T: TryFrom<Map, Error = MapError>>(ebpf: &mut Ebpf, name: &str) -> Result<T> {
    let doing = || format!("cannot use the eBPF map {name}");
    let map = ebpf.take_map(name).ok_or_else(|| EbpfError::unexpected(doing(), "it is not in the object"))?;
    T::try_from(map).map_err(|e| EbpfError::new(doing(), e))
}

/// Takes a hash map out of the object, to be used without aya.
fn hash_map(ebpf: &mut Ebpf, name: &str) -> Result<MapData> {
    match ebpf.take_map(name) {
        Some(Map::HashMap(map)) => Ok(map),
        _ => Err(EbpfError::unexpected(format!("cannot use the eBPF map {name}"), "it is no hash map of the object")),
    }
}

/// Attaches programs, each of which has the name of its tracepoint.
fn attach(mut ebpf: Ebpf, names: &[&str]) -> Result<Ebpf> {
    for name in names {
        let doing = || format!("cannot attach an eBPF program to the tracepoint {name}");
        let program = ebpf.program_mut(name).ok_or_else(|| EbpfError::unexpected(doing(), "it is not in the object"))?;
        let program: &mut RawTracePoint = program.try_into().map_err(|e: ProgramError| EbpfError::new(doing(), e))?;
        program.load().map_err(|e| EbpfError::new(doing(), e))?;
        program.attach(name).map_err(|e| match errno(&e) {
            Some(libc::ENOENT) => EbpfError::unsupported(doing(), "this kernel does not have it"),
            _ => EbpfError::new(doing(), e),
        })?;
    }
    Ok(ebpf)
}

#[cfg(test)]
mod tests;
