//! What a ckpt that was killed in the middle of remote calls has left in its target: its stub, memory of its own, and threads inside the
//! stub. These are on their way out, but whoever stops them there must not take the stub for the program.

use super::freeze::FrozenProcess;
use super::maps::{Mapping, MappingKind};
use super::memory::ProcessMemory;
use super::remote::Injector;
use super::stub::{self, Saved, Workspace};
use super::thread::gone_or;
use crate::error::Result;
use crate::ids::Addr;
use crate::sys::ptrace;

/// Makes a way for remote calls into a process of somebody else's, and takes away what a ckpt that was killed
/// has left there. `mappings` are those of its memory.
pub fn enter(frozen: &mut FrozenProcess, mappings: &mut Vec<Mapping>) -> Result<Injector> {
    let (mut injector, stale) = Injector::new(frozen.pid, mappings)?;
    take_out(frozen, injector.memory())?;
    if let Some(stale) = stale {
        tracing::info!("pid {} holds what a ckpt that was killed has left", frozen.pid);
        if mappings.iter().any(|mapping| is(mapping, stale.workspace())) {
            injector.unmap(frozen.leader(), stale.workspace())?;
            mappings.retain(|mapping| !is(mapping, stale.workspace()));
        }
        injector.clear()?;
    }
    Ok(injector)
}

/// Gives threads that stopped inside a stub the registers and the signal mask with which they would leave it.
pub fn take_out(frozen: &mut FrozenProcess, memory: &ProcessMemory) -> Result<()> {
    let pid = frozen.pid;
    for thread in &mut frozen.threads {
        let Some(saved) = stub_around(memory, thread.regs.rip) else { continue };
        let tid = thread.tid;
        tracing::info!("thread {tid} is still in the stub of a ckpt that was killed");
        let regs = saved.outside(&thread.regs);
        // The mask first: until it has its registers the thread would still leave the stub by itself.
        gone_or(pid, ptrace::set_sigmask(tid, saved.sigmask()), || format!("cannot set the signal mask of thread {tid}"))?;
        gone_or(pid, ptrace::set_regs(tid, &regs), || format!("cannot set the registers of thread {tid}"))?;
        (thread.regs, thread.sigmask) = (regs, saved.sigmask());
    }
    Ok(())
}

/// What the stub puts back in whose code `rip` is, if it is in one.
fn stub_around(memory: &ProcessMemory, rip: u64) -> Option<Saved> {
    let first = rip.checked_sub(stub::planted_len() as u64)?.checked_add(1)?.next_multiple_of(stub::ALIGNMENT as u64);
    let mut bytes = vec![0; (rip - first) as usize];
    // A stub lies in one piece; what cannot be read is none.
    memory.read(Addr(first), &mut bytes).ok()?;
    Some(stub::find(&bytes)?.1)
}

/// Is it that workspace? Its place was drawn at random, so what has just these bounds is no chance.
fn is(mapping: &Mapping, workspace: Workspace) -> bool {
    let at = mapping.start.0 == workspace.addr && mapping.end.0 - mapping.start.0 == workspace.len;
    workspace.len > 0 && at && mapping.kind == MappingKind::Anonymous && !mapping.shared
}
