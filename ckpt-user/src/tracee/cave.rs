//! A place in another process that it can execute, that nothing uses, and that a tracer may write: where the stub is planted.

use super::maps::{Mapping, MappingKind};
use super::memory::ProcessMemory;
use super::stub::{self, Saved};
use crate::error::{Error, Result};
use crate::ids::{Addr, Pid};

/// A place that nothing uses: zeros, or the stub of a ckpt that was killed.
#[derive(Debug)]
pub struct Cave {
    /// Where.
    pub at: Addr,
    /// What such a ckpt has left there.
    pub stale: Option<Saved>,
}

/// Finds room for a stub: in the zeros after the vdso's code, else after the code of some mapped file.
pub fn find(pid: Pid, memory: &ProcessMemory, mappings: &[Mapping]) -> Result<Cave> {
    let len = stub::planted_len();
    let executable = |m: &&Mapping| m.prot.exec && m.prot.read && !m.shared;
    let vdso = mappings.iter().filter(|m| m.kind == MappingKind::Vdso);
    let files = mappings.iter().filter(executable).filter(|m| m.kind == MappingKind::File);
    for mapping in vdso.chain(files) {
        // Only the last pages matter: the slack lies after the last instruction.
        let window = (mapping.end.0 - mapping.start.0).min(2 * crate::ids::PAGE_SIZE);
        let base = Addr(mapping.end.0 - window);
        let mut bytes = vec![0; window as usize];
        if memory.read_some(base, &mut bytes).ok() != Some(bytes.len()) {
            continue;
        }
        if let Some((at, stale)) = stub::find(&bytes) {
            return Ok(Cave { at: base.offset(at as u64), stale: Some(stale) });
        }
        let used = bytes.iter().rposition(|&b| b != 0).map_or(0, |last| last + 1);
        let at = used.next_multiple_of(stub::ALIGNMENT);
        if at + len <= bytes.len() {
            return Ok(Cave { at: base.offset(at as u64), stale: None });
        }
    }
    Err(Error::Unexpected(format!(
        "cannot make system calls in pid {pid}: no {len} unused bytes after the code of its vdso or of any mapped file"
    )))
}
