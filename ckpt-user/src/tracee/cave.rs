//! A place in another process that it can execute, that nothing uses, and that a tracer may write: where the stub is planted.

use super::maps::{Mapping, MappingKind};
use super::memory::ProcessMemory;
use super::stub;
use crate::error::{Error, Result};
use crate::ids::{Addr, Pid};

/// Finds `len` bytes: in the zeros after the vdso's code, else after the code of some mapped file.
pub fn find(pid: Pid, memory: &ProcessMemory, len: usize) -> Result<Addr> {
    let mappings = super::maps::read(pid)?;
    let executable = |m: &&Mapping| m.prot.exec && m.prot.read && !m.shared;
    let vdso = mappings.iter().filter(|m| m.kind == MappingKind::Vdso);
    let files = mappings.iter().filter(executable).filter(|m| m.kind == MappingKind::File);
    let mut left_behind = None;
    for mapping in vdso.chain(files) {
        // Only the last pages matter: the slack lies after the last instruction.
        let window = (mapping.end.0 - mapping.start.0).min(2 * crate::ids::PAGE_SIZE);
        let base = Addr(mapping.end.0 - window);
        let mut bytes = vec![0; window as usize];
        if memory.read_some(base, &mut bytes).ok() != Some(bytes.len()) {
            continue;
        }
        let used = bytes.iter().rposition(|&b| b != 0).map_or(0, |last| last + 1);
        let at = used.next_multiple_of(16);
        if at + len <= bytes.len() {
            return Ok(base.offset(at as u64));
        }
        if left_behind.is_none() {
            left_behind = find_left_behind(&bytes, len).map(|at| base.offset(at as u64));
        }
    }
    left_behind.ok_or_else(|| {
        Error::Unexpected(format!(
            "cannot make system calls in pid {pid}: no {len} unused bytes after the code of its vdso or of any mapped file"
        ))
    })
}

/// The last stub that an earlier ckpt left when it was killed: free to be used again once everything after it is full.
fn find_left_behind(bytes: &[u8], len: usize) -> Option<usize> {
    let positions = bytes.len().checked_sub(len)? / 16;
    (0..=positions).rev().map(|n| n * 16).find(|&at| bytes[at..].starts_with(&stub::MAGIC))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stub_left_behind_is_found() {
        let mut bytes = vec![1u8; 4096];
        bytes[512..528].copy_from_slice(&stub::MAGIC);
        assert_eq!(find_left_behind(&bytes, 400), Some(512));
        assert_eq!(find_left_behind(&bytes[..700], 400), None, "it must be whole");
    }
}
