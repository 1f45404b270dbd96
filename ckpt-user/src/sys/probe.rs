//! Does this kernel have it, and may we use it? Each probe makes the very call that ckpt would make, on a process or a descriptor of
//! its own, and leaves nothing behind. The kernel's version is never asked.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::null_mut;

use super::child;
use super::clone::{self, Cloned, Leash};
use super::pagemap::{Page, PageMap, TABLE, Taken};
use super::userfaultfd::{self, WriteNotes};
use crate::error::{Doing, Result};
use crate::ids::{PAGE_SIZE, PageRange, Pid};

/// PR_SET_MM_MAP_SIZE (linux/prctl.h).
const PR_SET_MM_MAP_SIZE: libc::c_int = 15;
/// ARCH_MAP_VDSO_64 (asm/prctl.h).
const ARCH_MAP_VDSO_64: libc::c_int = 0x2003;
/// TFD_IOC_SET_TICKS (linux/timerfd.h) and INOTIFY_IOC_SETNEXTWD (linux/inotify.h).
const TFD_IOC_SET_TICKS: libc::c_ulong = 0x4008_5400;
const INOTIFY_IOC_SETNEXTWD: libc::c_ulong = 0x4004_4900;
/// PR_TIMER_CREATE_RESTORE_IDS and its "get" (linux/prctl.h, Linux 6.15).
const PR_TIMER_CREATE_RESTORE_IDS: libc::c_int = 77;
const PR_TIMER_CREATE_RESTORE_IDS_GET: libc::c_ulong = 2;
/// MADV_GUARD_INSTALL (Linux 6.13).
const MADV_GUARD_INSTALL: libc::c_int = 102;
/// TCP_REPAIR (linux/tcp.h).
const TCP_REPAIR: libc::c_int = 19;
/// bpf(2) commands and the type of program (linux/bpf.h).
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_RAW_TRACEPOINT_OPEN: libc::c_int = 17;
const BPF_PROG_TYPE_RAW_TRACEPOINT: u32 = 17;

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    let fd = check(result)? as RawFd;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A child of ours that does nothing, to try things on. It ends when this is dropped.
#[derive(Debug)]
pub struct Dummy {
    /// Its pid.
    pub pid: Pid,
    _leash: Leash,
}

impl Dummy {
    /// Makes one.
    pub fn new() -> io::Result<Dummy> {
        let leash = Leash::new()?;
        // SAFETY: the child makes only system calls, which is safe after a fork of a process with threads.
        match unsafe { libc::fork() } {
            -1 => Err(io::Error::last_os_error()),
            0 => leash.wait(),
            pid => Ok(Dummy { pid: Pid(pid), _leash: leash }),
        }
    }
}

impl Drop for Dummy {
    fn drop(&mut self) {
        // SAFETY: only numbers are passed, and no status is asked for; the process is a child that nobody else waits for. Neither
        // call can fail for such a child, but the second may be interrupted.
        unsafe {
            libc::kill(self.pid.0, libc::SIGKILL);
            while libc::waitpid(self.pid.0, null_mut(), libc::__WALL) < 0 && *libc::__errno_location() == libc::EINTR {}
        }
    }
}

/// clone3(2) with a chosen pid: makes a process with the pid of one that has just ended.
pub fn choose_pid() -> io::Result<()> {
    const ATTEMPTS: usize = 8;
    let mut result = Ok(());
    for _ in 0..ATTEMPTS {
        let leash = Leash::new()?;
        let freed = Dummy::new()?.pid;
        result = match clone::child_with_pid(freed, 0) {
            Ok(Cloned::Child) => leash.wait(),
            Ok(Cloned::Parent(pid)) => {
                drop(Dummy { pid, _leash: leash });
                return Ok(());
            }
            Err(error) => Err(error),
        };
        // Somebody else was given the pid in between.
        if !matches!(&result, Err(e) if e.raw_os_error() == Some(libc::EEXIST)) {
            break;
        }
    }
    result
}

/// userfaultfd(2): the UFFD_FEATURE_* bits that the kernel offers.
pub fn userfaultfd() -> io::Result<u64> {
    // SAFETY: only numbers are passed.
    let fd = owned(unsafe { libc::syscall(libc::SYS_userfaultfd, userfaultfd::USER_MODE_ONLY | libc::O_CLOEXEC) })?;
    // struct uffdio_api: api, features, ioctls.
    let mut api = [userfaultfd::API, 0, 0];
    // SAFETY: the request takes a struct of three 64-bit numbers, which outlives the call.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), userfaultfd::UFFDIO_API, &raw mut api) }.into())?;
    Ok(api[1])
}

/// Does a scan for written pages find pages that were there, protected, and were dropped: a single one, and a whole page table of them, which the kernel may
/// take away with them?
pub fn scan_tells_what_is_gone() -> Result<bool> {
    let doing = || "cannot try what a scan of page tables tells";
    // SAFETY: only numbers are passed.
    let fd =
        owned(unsafe { libc::syscall(libc::SYS_userfaultfd, userfaultfd::USER_MODE_ONLY | libc::O_CLOEXEC) }).doing(doing)?;
    let notes = WriteNotes::begin(fd).doing(doing)?;
    let page_map = PageMap::open(Pid(std::process::id() as i32))?;
    let memory = Anonymous::new(5 * TABLE).doing(doing)?;
    let first = memory.pages.start.next_multiple_of(TABLE);
    let (table, single) = (PageRange { start: first, count: TABLE }, PageRange { start: first + TABLE + 7, count: 1 });
    // Never written to, so there is no page table: a huge page that is dropped leaves no more.
    let hole = PageRange { start: first + 2 * TABLE, count: TABLE };
    let all = PageRange { start: first, count: 3 * TABLE };
    notes.register(all).doing(doing)?;
    let touched = || {
        let mut taken = Taken::default();
        page_map.take_written(all, Page::empty(), &mut taken).map(|()| taken.touched)
    };
    for page in [first, single.start, single.start + 1] {
        memory.write(page);
    }
    touched()?;
    let before = touched()?;
    memory.advise(table, libc::MADV_DONTNEED).doing(doing)?;
    memory.advise(single, libc::MADV_DONTNEED).doing(doing)?;
    let after = touched()?;
    let has = |found: &[PageRange], pages: PageRange| found.iter().any(|f| f.start <= pages.start && pages.end() <= f.end());
    let there = [first, single.start, single.start + 1].map(|start| PageRange { start, count: 1 });
    let tells = [hole, table, single].iter().all(|gone| has(&after, *gone));
    Ok(!there.iter().any(|page| has(&before, *page)) && tells && !has(&after, there[2]))
}

/// Memory of our own, without huge pages.
struct Anonymous {
    at: *mut libc::c_void,
    pages: PageRange,
}

impl Anonymous {
    fn new(count: u64) -> io::Result<Anonymous> {
        let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: new memory, wherever the kernel wants it.
        let at = unsafe { libc::mmap(null_mut(), (count * PAGE_SIZE) as usize, prot, flags, -1, 0) };
        if at == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let memory = Anonymous { at, pages: PageRange { start: at.addr() as u64 / PAGE_SIZE, count } };
        match memory.advise(memory.pages, libc::MADV_NOHUGEPAGE) {
            // A kernel that has none refuses.
            Err(e) if e.raw_os_error() != Some(libc::EINVAL) => Err(e),
            _ => Ok(memory),
        }
    }

    fn address(&self, page: u64) -> *mut libc::c_void {
        assert!(self.pages.numbers().contains(&page));
        self.at.wrapping_byte_add(((page - self.pages.start) * PAGE_SIZE) as usize)
    }

    fn write(&self, page: u64) {
        // SAFETY: within the memory, to which nothing refers.
        unsafe { self.address(page).cast::<u8>().write_volatile(1) }
    }

    fn advise(&self, pages: PageRange, advice: libc::c_int) -> io::Result<()> {
        assert!(pages.end() <= self.pages.end());
        // SAFETY: within the memory, to which nothing refers.
        check(unsafe { libc::madvise(self.address(pages.start), pages.bytes() as usize, advice) }.into()).map(drop)
    }
}

impl Drop for Anonymous {
    fn drop(&mut self) {
        // SAFETY: the memory is our own, and nothing refers to it. It cannot fail for whole mappings.
        unsafe { libc::munmap(self.at, self.pages.bytes() as usize) };
    }
}

/// prctl PR_SET_MM_MAP: the length of the struct that it takes.
pub fn set_mm_map() -> io::Result<u32> {
    let mut size = 0u32;
    // SAFETY: the kernel writes a 32-bit number, which outlives the call.
    check(unsafe { libc::prctl(libc::PR_SET_MM, PR_SET_MM_MAP_SIZE, &raw mut size, 0, 0) }.into())?;
    Ok(size)
}

/// arch_prctl ARCH_MAP_VDSO_64, which maps the vdso at a chosen address. A process that has one is told so, by a kernel that could.
pub fn map_vdso() -> io::Result<()> {
    // SAFETY: changes nothing, as we have a vdso.
    match check(unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_MAP_VDSO_64, 0) }) {
        Err(e) if e.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        other => other.map(drop),
    }
}

/// Setting how often a timerfd has expired.
pub fn timerfd_ticks() -> io::Result<()> {
    // SAFETY: only numbers are passed.
    let fd = owned(unsafe { libc::timerfd_create(libc::CLOCK_MONOTONIC, libc::TFD_CLOEXEC) }.into())?;
    let ticks = 1u64;
    // SAFETY: the kernel reads a 64-bit number, which outlives the call.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), TFD_IOC_SET_TICKS, &raw const ticks) }.into()).map(drop)
}

/// Choosing the number of the next inotify watch.
pub fn inotify_next_watch() -> io::Result<()> {
    // SAFETY: only numbers are passed.
    let fd = owned(unsafe { libc::inotify_init1(libc::IN_CLOEXEC) }.into())?;
    // SAFETY: only numbers are passed.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), INOTIFY_IOC_SETNEXTWD, 7) }.into()).map(drop)
}

/// Choosing the number of the next POSIX timer.
pub fn timer_ids() -> io::Result<()> {
    // SAFETY: only asks.
    check(unsafe { libc::prctl(PR_TIMER_CREATE_RESTORE_IDS, PR_TIMER_CREATE_RESTORE_IDS_GET, 0, 0, 0) }.into()).map(drop)
}

/// Guard pages without a mapping of their own.
pub fn guard_pages() -> io::Result<()> {
    let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a new page that only this function knows, unmapped before it returns.
    unsafe {
        let page = libc::mmap(null_mut(), PAGE_SIZE as usize, prot, flags, -1, 0);
        if page == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let result = check(libc::madvise(page, PAGE_SIZE as usize, MADV_GUARD_INSTALL).into());
        libc::munmap(page, PAGE_SIZE as usize);
        result.map(drop)
    }
}

/// Putting a TCP socket into repair mode.
pub fn tcp_repair() -> io::Result<()> {
    // SAFETY: only numbers are passed.
    let fd = owned(unsafe { libc::socket(libc::AF_INET, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) }.into())?;
    let on: libc::c_int = 1;
    let length = size_of_val(&on) as libc::socklen_t;
    // SAFETY: the option's value is an int, which outlives the call.
    let set = unsafe { libc::setsockopt(fd.as_raw_fd(), libc::IPPROTO_TCP, TCP_REPAIR, (&raw const on).cast(), length) };
    check(set.into()).map(drop)
}

/// Making a time namespace, in a child.
pub fn time_namespace() -> io::Result<()> {
    // SAFETY: the child makes only system calls, and ends at once.
    let child = match unsafe { libc::fork() } {
        -1 => return Err(io::Error::last_os_error()),
        // SAFETY: only numbers are passed; _exit runs nothing of the copied program.
        0 => unsafe {
            let made = libc::unshare(libc::CLONE_NEWTIME);
            libc::_exit(if made == 0 { 0 } else { *libc::__errno_location() })
        },
        child => child,
    };
    child::answer(Pid(child))
}

/// struct bpf_insn.
#[repr(C)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// union bpf_attr, as far as BPF_PROG_LOAD needs it.
#[repr(C)]
struct LoadAttr {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    /// log_level, log_size, log_buf, kern_version, prog_flags: none.
    rest: [u64; 3],
}

/// union bpf_attr, as far as BPF_RAW_TRACEPOINT_OPEN needs it.
#[repr(C)]
struct OpenAttr {
    name: u64,
    program: u32,
    padding: u32,
}

fn bpf<T>(command: libc::c_int, attr: &T) -> io::Result<OwnedFd> {
    // SAFETY: the attribute is the one of the command, its pointers and itself outlive the call, and the kernel only reads it. Both
    // commands that are used return a new descriptor.
    owned(unsafe { libc::syscall(libc::SYS_bpf, command, &raw const *attr, size_of::<T>()) })
}

/// Loads an eBPF program that does nothing, and attaches it for a moment to the raw tracepoint `name`.
pub fn raw_tracepoint(name: &CStr) -> io::Result<()> {
    // r0 = 0; exit
    let program = [
        Instruction { code: 0xb7, registers: 0, offset: 0, immediate: 0 },
        Instruction { code: 0x95, registers: 0, offset: 0, immediate: 0 },
    ];
    let load = LoadAttr {
        program_type: BPF_PROG_TYPE_RAW_TRACEPOINT,
        instruction_count: program.len() as u32,
        instructions: program.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        rest: [0; 3],
    };
    let program = bpf(BPF_PROG_LOAD, &load)?;
    let open = OpenAttr { name: name.as_ptr() as u64, program: program.as_raw_fd() as u32, padding: 0 };
    bpf(BPF_RAW_TRACEPOINT_OPEN, &open).map(drop)
}
