//! The memory of one process through /proc/PID/mem, which also reaches pages that their owner may not read or write itself.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;

use crate::error::{Doing, Result};
use crate::ids::{Addr, Pid};

/// See the module. Needs the right to ptrace the process; writing past protections needs it to be traced by us.
#[derive(Debug)]
pub struct ProcessMemory {
    pid: Pid,
    file: File,
}

impl ProcessMemory {
    /// Opens the memory of `pid`.
    pub fn open(pid: Pid) -> Result<ProcessMemory> {
        let path = format!("/proc/{pid}/mem");
        let file =
            OpenOptions::new().read(true).write(true).open(&path).doing(|| format!("cannot open the memory of pid {pid}"))?;
        Ok(ProcessMemory { pid, file })
    }

    /// Reads exactly `buf.len()` bytes.
    pub fn read(&self, at: Addr, buf: &mut [u8]) -> Result<()> {
        self.file.read_exact_at(buf, at.0).doing(|| format!("cannot read {} bytes at {at} in pid {}", buf.len(), self.pid))
    }

    /// Reads a value.
    pub fn read_value<T: bytemuck::AnyBitPattern>(&self, at: Addr) -> Result<T> {
        let mut bytes = vec![0; size_of::<T>()];
        self.read(at, &mut bytes)?;
        Ok(bytemuck::pod_read_unaligned(&bytes))
    }

    /// Writes all of `buf`, also into private pages that are read-only to their owner.
    pub fn write(&self, at: Addr, buf: &[u8]) -> Result<()> {
        self.file.write_all_at(buf, at.0).doing(|| format!("cannot write {} bytes at {at} in pid {}", buf.len(), self.pid))
    }

    /// Reads up to `buf.len()` bytes, for callers that know what a short answer means.
    pub fn read_some(&self, at: Addr, buf: &mut [u8]) -> io::Result<usize> {
        self.file.read_at(buf, at.0)
    }
}
