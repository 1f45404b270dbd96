//! io_uring(7), as little of it as one read takes.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};

use super::memory::Region;
use super::raw::{Arg, call};

/// Where the kernel writes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Buffer {
    /// An address, as of read(2).
    Address,
    /// A buffer that was registered: the kernel holds its pages, and writes to them past the page tables.
    Registered,
}

/// struct io_sqring_offsets and struct io_cqring_offsets (linux/io_uring.h), where they are the same.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Offsets {
    head: u32,
    tail: u32,
    ring_mask: u32,
    ring_entries: u32,
    more: [u32; 4],
    user_addr: u64,
}

/// struct io_uring_params.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Params {
    sq_entries: u32,
    cq_entries: u32,
    flags: u32,
    sq_thread_cpu: u32,
    sq_thread_idle: u32,
    features: u32,
    wq_fd: u32,
    resv: [u32; 3],
    sq_off: Offsets,
    cq_off: Offsets,
}

/// struct io_uring_sqe.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    opcode: u8,
    flags: u8,
    ioprio: u16,
    fd: i32,
    off: u64,
    addr: u64,
    len: u32,
    rw_flags: u32,
    user_data: u64,
    buf_index: u16,
    personality: u16,
    splice_fd_in: i32,
    addr3: u64,
    pad: u64,
}

/// struct io_uring_cqe.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
struct Completion {
    user_data: u64,
    res: i32,
    flags: u32,
}

const _: () = assert!(size_of::<Params>() == 120 && size_of::<Entry>() == 64 && size_of::<Completion>() == 16);

const OFFSET_OF_ENTRIES: usize = 0x1000_0000;
const ENTER_GETEVENTS: u32 = 1;
const REGISTER_BUFFERS: u32 = 0;
const READ_FIXED: u8 = 4;
const READ: u8 = 22;
/// At the current position.
const HERE: u64 = u64::MAX;

/// Reads into the region until it is full, with a ring that is made for it and is gone at the end.
pub fn read_into(region: Region, from: BorrowedFd<'_>, buffer: Buffer) -> io::Result<()> {
    let mut params = Params::default();
    let fd = call(libc::SYS_io_uring_setup, &[1_u32.into(), Arg::to(&mut params)])?;
    // SAFETY: the call has just returned it.
    let ring = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    // One mapping holds both rings (IORING_FEAT_SINGLE_MMAP, Linux 5.4). The array of the one and the entries of the other come last in them.
    let array_end = params.sq_off.more[2] + params.sq_entries * 4;
    let completions_end = params.cq_off.more[1] + params.cq_entries * size_of::<Completion>() as u32;
    let map = |len, offset| {
        Region::map(len, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_POPULATE, Some((ring.as_fd(), offset)))
    };
    let rings = map(array_end.max(completions_end) as usize, 0)?;
    let entries = map(params.sq_entries as usize * size_of::<Entry>(), OFFSET_OF_ENTRIES)?;
    let result = read_once(&ring, &params, rings, entries, region, from, buffer);
    entries.unmap()?;
    rings.unmap()?;
    result
}

fn read_once(
    ring: &OwnedFd,
    params: &Params,
    rings: Region,
    entries: Region,
    region: Region,
    from: BorrowedFd<'_>,
    buffer: Buffer,
) -> io::Result<()> {
    let ring = ring.as_raw_fd();
    if buffer == Buffer::Registered {
        let mut all = [region.start, region.len];
        call(libc::SYS_io_uring_register, &[ring.into(), REGISTER_BUFFERS.into(), Arg::to(&mut all), 1_u32.into()])?;
    }
    let opcode = if buffer == Buffer::Registered { READ_FIXED } else { READ };
    let entry =
        Entry { opcode, fd: from.as_raw_fd(), off: HERE, addr: region.start as u64, len: region.len as u32, ..Entry::default() };
    // SAFETY: the first entry is mapped, and the kernel looks at it only when it is told of.
    unsafe { (entries.start as *mut Entry).write_volatile(entry) };
    // SAFETY: the kernel has told where these numbers are in the mapping; the kernel and this thread alone use them.
    let number = |at: u32| unsafe { &*((rings.start + at as usize) as *const AtomicU32) };
    number(params.sq_off.more[2]).store(0, Ordering::Relaxed);
    number(params.sq_off.tail).store(1, Ordering::Release);
    let mut submit = 1_u32;
    while number(params.cq_off.tail).load(Ordering::Acquire) == 0 {
        let arguments = [ring.into(), submit.into(), 1_u32.into(), ENTER_GETEVENTS.into(), Arg::NULL, 0_u32.into()];
        match call(libc::SYS_io_uring_enter, &arguments) {
            Ok(taken) => submit -= taken as u32,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    // SAFETY: the first completion is there.
    let done = unsafe { ((rings.start + params.cq_off.more[1] as usize) as *const Completion).read_volatile() };
    match done.res {
        res if res < 0 => Err(io::Error::from_raw_os_error(-res)),
        res if res as usize == region.len => Ok(()),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}
