//! The kernel's own records, read piece by piece: for what no system call tells.

use std::io::Read;
use std::os::fd::{AsFd, RawFd};

use aya::maps::Array;
use aya::programs::{Iter, ProgramError};
use aya::{Btf as AyaBtf, Ebpf, EbpfLoader};
use ckpt_ebpf::faults::FAULTS;
use ckpt_ebpf::peek::{ADDRESS, LENGTH, LENGTH_MAX, PROGRAM, REQUEST};

use super::{EbpfError, Result, load};
use crate::ids::{PAGE_SIZE, Pid};
use crate::sys::bpf::{Visited, task_iterator};
use crate::sys::btf::{Btf, BtfError};

const DOING: &str = "cannot read the kernel's records by eBPF";

/// The program, ready to be asked. Loading takes up to a tenth of a second, asking some ten microseconds.
#[derive(Debug)]
pub(super) struct KernelMemory {
    ebpf: Ebpf,
    open_files: OpenFiles,
}

/// Where the open files of a task are, bytes within the structs.
#[derive(Debug)]
struct OpenFiles {
    of_task: u64,
    table: u64,
    array: u64,
}

impl KernelMemory {
    /// Loads the program. Needs Linux 6.1.
    pub(super) fn load(btf: &Btf) -> Result<KernelMemory> {
        let offset = |of: &str, path: &str| btf.offset_of(of, path).map(u64::from).map_err(missing);
        let open_files = OpenFiles {
            of_task: offset("task_struct", "files")?,
            table: offset("files_struct", "fdt")?,
            array: offset("fdtable", "fd")?,
        };
        let page = u32::try_from(PAGE_SIZE).unwrap_or(u32::MAX);
        let mut loader = EbpfLoader::new();
        // The log of write faults is in the same object, and of no use here.
        loader.map_max_entries(FAULTS, page);
        let mut ebpf = load(&mut loader)?;
        let kernel = AyaBtf::from_sys_fs().map_err(|e| EbpfError::new(DOING, e))?;
        let program = ebpf.program_mut(PROGRAM).ok_or_else(|| EbpfError::unexpected(DOING, "it is not in the object"))?;
        let program: &mut Iter = program.try_into().map_err(|e: ProgramError| EbpfError::new(DOING, e))?;
        program.load("task", &kernel).map_err(|e| EbpfError::new(DOING, e))?;
        Ok(KernelMemory { ebpf, open_files })
    }

    /// The address of the task_struct of a process.
    pub(super) fn task(&mut self, pid: Pid) -> Result<u64> {
        number(&self.ask(pid, 0, 8)?)
    }

    /// The address of the struct file behind a descriptor of this process.
    pub(super) fn open_file(&mut self, fd: RawFd) -> Result<u64> {
        let task = self.task(own_pid())?;
        let files = self.number(task + self.open_files.of_task)?;
        let table = self.number(files + self.open_files.table)?;
        let array = self.number(table + self.open_files.array)?;
        self.number(array + fd as u64 * 8)
    }

    /// An address, or another number of 64 bits.
    pub(super) fn number(&mut self, address: u64) -> Result<u64> {
        number(&self.ask(own_pid(), address, 8)?)
    }

    /// Any number of bytes.
    pub(super) fn bytes(&mut self, address: u64, length: usize) -> Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(length);
        while bytes.len() < length {
            let part = (length - bytes.len()).min(LENGTH_MAX);
            bytes.extend(self.ask(own_pid(), address + bytes.len() as u64, part)?);
        }
        Ok(bytes)
    }

    fn ask(&mut self, pid: Pid, address: u64, length: usize) -> Result<Vec<u8>> {
        let request = self.ebpf.map_mut(REQUEST).ok_or_else(|| EbpfError::unexpected(DOING, "its map is not in the object"))?;
        let mut request: Array<_, u64> = Array::try_from(request).map_err(|e| EbpfError::new(DOING, e))?;
        for (index, value) in [(ADDRESS, address), (LENGTH, length as u64)] {
            request.set(index, value, 0).map_err(|e| EbpfError::new(DOING, e))?;
        }
        let program = self.ebpf.program(PROGRAM).ok_or_else(|| EbpfError::unexpected(DOING, "the program is not loaded"))?;
        let program: &Iter = program.try_into().map_err(|e: ProgramError| EbpfError::new(DOING, e))?;
        let fd = program.fd().map_err(|e| EbpfError::new(DOING, e))?;
        let mut bytes = Vec::with_capacity(length);
        let read = task_iterator(fd.as_fd(), Visited::Threads(pid)).and_then(|mut file| file.read_to_end(&mut bytes));
        read.map_err(|e| EbpfError::new(DOING, e))?;
        if bytes.len() != length {
            return Err(EbpfError::unexpected(DOING, "there is no memory where some was expected"));
        }
        Ok(bytes)
    }
}

fn own_pid() -> Pid {
    Pid(std::process::id() as i32)
}

fn number(bytes: &[u8]) -> Result<u64> {
    let bytes = bytes.try_into().map_err(|_| EbpfError::unexpected(DOING, "a number is too short"))?;
    Ok(u64::from_ne_bytes(bytes))
}

/// A kernel whose structs are others.
pub(super) fn missing(error: BtfError) -> EbpfError {
    EbpfError::unsupported(DOING, error.to_string())
}
