//! Reading and writing the memory of another process: process_vm_readv(2) and process_vm_writev(2).

use std::io;

use crate::ids::{Addr, Pid};

/// IOV_MAX: pieces that one call takes.
pub const PIECES_MAX: usize = 1024;

/// One piece of another process's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where.
    pub addr: Addr,
    /// Bytes.
    pub len: usize,
}

fn remote(pieces: &[Piece]) -> Vec<libc::iovec> {
    pieces.iter().map(|p| libc::iovec { iov_base: p.addr.0 as *mut libc::c_void, iov_len: p.len }).collect()
}

/// Reads the pieces, one after another, into `buf`. Returns the bytes read: fewer than asked where a page cannot be read.
pub fn read(pid: Pid, pieces: &[Piece], buf: &mut [u8]) -> io::Result<usize> {
    assert!(pieces.len() <= PIECES_MAX && pieces.iter().map(|p| p.len).sum::<usize>() <= buf.len());
    let local = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
    let remote = remote(pieces);
    // SAFETY: the local vector covers `buf`, which is ours alone; the remote one is only looked at in the other process.
    let n = unsafe { libc::process_vm_readv(pid.0, &raw const local, 1, remote.as_ptr(), remote.len() as u64, 0) };
    if n < 0 { Err(io::Error::last_os_error()) } else { Ok(n as usize) }
}

/// Writes `buf` to the pieces, one after another. Returns the bytes written: fewer than asked where a page cannot be written.
pub fn write(pid: Pid, pieces: &[Piece], buf: &[u8]) -> io::Result<usize> {
    assert!(pieces.len() <= PIECES_MAX && pieces.iter().map(|p| p.len).sum::<usize>() <= buf.len());
    let local = libc::iovec { iov_base: buf.as_ptr().cast_mut().cast(), iov_len: buf.len() };
    let remote = remote(pieces);
    // SAFETY: the local vector covers `buf` and is only read; the remote one is another process's memory, none of ours.
    let n = unsafe { libc::process_vm_writev(pid.0, &raw const local, 1, remote.as_ptr(), remote.len() as u64, 0) };
    if n < 0 { Err(io::Error::last_os_error()) } else { Ok(n as usize) }
}
