//! An address space: where its parts are, and how it is built up again in a new task.
//!
//! The new task begins with ckpt's own address space. A small workspace is mapped in a gap that neither uses, everything else is
//! unmapped, and the image's mappings take their places. Protections that would keep the pages out wait until they are in.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::fd::{AsRawFd, BorrowedFd};

use rangemap::RangeSet;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::gaps::{Gaps, TASK_SIZE};
use super::mapped_file::intern_file;
use super::sysv_shm::{self, SegmentRecord};
use super::vma::{Backing, VmaRecord};
use super::{Collector, Restorer};
use crate::error::{Doing, Error, Result};
use crate::ids::{Addr, ObjRef, PAGE_SIZE, PageRange, Pid};
use crate::sys::procfs;
use crate::sys::ptrace_state::rseq_configuration;
use crate::tracee::batch::{Arg, Batch};
use crate::tracee::maps::{self, Mapping, MappingKind, VmFlags};
use crate::tracee::memory::ProcessMemory;
use crate::tracee::remote::RemoteTask;

/// The name of the section.
pub const KIND: &str = "mm";

/// What the kernel keeps of an address space beside its mappings (struct prctl_mm_map).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MmRecord {
    /// First and last byte of the program's code.
    pub code: (Addr, Addr),
    /// First and last byte of its data.
    pub data: (Addr, Addr),
    /// Where the heap begins.
    pub start_brk: Addr,
    /// Where the stack began.
    pub start_stack: Addr,
    /// The argument strings.
    pub args: (Addr, Addr),
    /// The environment strings.
    pub environment: (Addr, Addr),
    /// The auxiliary vector.
    #[serde(with = "serde_bytes")]
    pub auxv: Vec<u8>,
    /// The executable.
    pub exe: Option<ObjRef>,
    /// Checksum of the vdso's code: programs keep addresses inside it.
    pub vdso_checksum: u64,
}

/// struct prctl_mm_map (linux/prctl.h).
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct PrctlMmMap {
    start_code: u64,
    end_code: u64,
    start_data: u64,
    end_data: u64,
    start_brk: u64,
    brk: u64,
    start_stack: u64,
    arg_start: u64,
    arg_end: u64,
    env_start: u64,
    env_end: u64,
    auxv: u64,
    auxv_size: u32,
    exe_fd: u32,
}

const _: () = assert!(size_of::<PrctlMmMap>() == 104);

/// PR_SET_MM and PR_SET_MM_MAP (linux/prctl.h).
const PR_SET_MM: i32 = 35;
const PR_SET_MM_MAP: i32 = 14;
/// ARCH_MAP_VDSO_64 (asm/prctl.h).
const ARCH_MAP_VDSO_64: i32 = 0x2003;
/// MADV_GUARD_INSTALL (Linux 6.13).
const MADV_GUARD_INSTALL: i32 = 102;
/// MAP_DROPPABLE (Linux 6.11).
const MAP_DROPPABLE: i32 = 0x08;

/// Collects the record.
pub fn collect(cx: &mut Collector<'_>, pid: Pid, mappings: &[Mapping], memory: &ProcessMemory) -> Result<MmRecord> {
    let stat = procfs::stat(pid)?;
    let pair = |a: Option<u64>, b: Option<u64>| (Addr(a.unwrap_or(0)), Addr(b.unwrap_or(0)));
    let auxv = procfs::read(format!("/proc/{pid}/auxv")).doing(|| format!("cannot read the auxiliary vector of pid {pid}"))?;
    Ok(MmRecord {
        code: (Addr(stat.startcode), Addr(stat.endcode)),
        data: pair(stat.start_data, stat.end_data),
        start_brk: Addr(stat.start_brk.unwrap_or(0)),
        start_stack: Addr(stat.startstack),
        args: pair(stat.arg_start, stat.arg_end),
        environment: pair(stat.env_start, stat.env_end),
        auxv,
        exe: executable(cx, pid)?,
        vdso_checksum: vdso_checksum(mappings, memory)?,
    })
}

fn executable(cx: &mut Collector<'_>, pid: Pid) -> Result<Option<ObjRef>> {
    let path = format!("/proc/{pid}/exe");
    let link = std::fs::read_link(&path).doing(|| format!("cannot tell the executable of pid {pid}"))?;
    let file = std::fs::File::open(&path).doing(|| format!("cannot open the executable of pid {pid}"))?;
    cx.attempt(|cx| intern_file(cx, pid, &file.into(), link.into_os_string(), false, "the executable"))
}

/// The checksum of what the vdso's ELF headers cover: behind them lies the slack, where a stub of ours may stand.
fn vdso_checksum(mappings: &[Mapping], memory: &ProcessMemory) -> Result<u64> {
    let Some(vdso) = mappings.iter().find(|m| m.kind == MappingKind::Vdso) else { return Ok(0) };
    let mut bytes = vec![0; (vdso.end.0 - vdso.start.0) as usize];
    memory.read(vdso.start, &mut bytes)?;
    let field = |at: usize, len: usize| bytes[at..at + len].iter().rev().fold(0u64, |n, &b| n << 8 | u64::from(b));
    // e_shoff, e_shentsize, e_shnum of the ELF header: the section headers are the last thing in the file.
    let end = field(0x28, 8).saturating_add(field(0x3a, 2) * field(0x3c, 2)).min(bytes.len() as u64);
    Ok(xxh3_64(&bytes[..end as usize]))
}

/// Room in the new task for the stub and for the arguments of calls.
#[derive(Clone, Copy, Debug)]
pub struct Workspace {
    code: Addr,
    data: Addr,
    end: Addr,
}

const WORKSPACE_DATA: u64 = 1 << 20;

/// Maps the workspace where none of `vmas` is, and empties the address space around it. The stub moves into the workspace.
pub fn clear<'a>(task: &mut RemoteTask<'_>, vmas: impl IntoIterator<Item = &'a VmaRecord>) -> Result<Workspace> {
    forget_rseq(task)?;
    let now = maps::read(task.pid())?;
    let taken = vmas.into_iter().map(|v| (v.start.0, v.end.0)).chain(now.iter().map(|m| (m.start.0, m.end.0)));
    let len = PAGE_SIZE + WORKSPACE_DATA;
    let code = Gaps::between(taken)
        .take(len)
        .ok_or_else(|| Error::Restart("the address space of the image has no gap of 1 MiB".into()))?;
    let workspace = Workspace { code, data: code.offset(PAGE_SIZE), end: code.offset(len) };
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    let mut map = |at: Addr, len: u64, prot: i32| {
        let args = [at.into(), len.into(), prot.into(), flags.into(), Arg::from(-1i64), Arg::from(0u64)];
        task.call("cannot map the workspace", libc::SYS_mmap, args)
    };
    map(workspace.code, PAGE_SIZE, libc::PROT_READ | libc::PROT_EXEC)?;
    map(workspace.data, WORKSPACE_DATA, libc::PROT_READ | libc::PROT_WRITE)?;
    task.move_to(workspace.code, workspace.data, WORKSPACE_DATA)?;
    for (start, end) in [(0, workspace.code.0), (workspace.end.0, TASK_SIZE)] {
        task.call("cannot clear the address space", libc::SYS_munmap, [start.into(), (end - start).into()])?;
    }
    Ok(workspace)
}

/// The kernel writes to a registered rseq area whenever the task goes back to user mode: it must not be unmapped under it.
fn forget_rseq(task: &mut RemoteTask<'_>) -> Result<()> {
    const RSEQ_FLAG_UNREGISTER: i32 = 1;
    let registered = rseq_configuration(task.tid()).doing(|| "cannot ask for the rseq registration of the new process")?;
    let Some(rseq) = registered.filter(|rseq| rseq.area != 0) else { return Ok(()) };
    let args = [rseq.area.into(), rseq.size.into(), RSEQ_FLAG_UNREGISTER.into(), rseq.signature.into()];
    task.call("cannot unregister rseq", libc::SYS_rseq, args).map(drop)
}

/// Takes the workspace away: the last call of all, since the stub goes with it.
pub fn leave_workspace(task: &mut RemoteTask<'_>, workspace: Workspace) -> Result<()> {
    let len = workspace.end.0 - workspace.code.0;
    task.call("cannot unmap the workspace", libc::SYS_munmap, [workspace.code.into(), len.into()]).map(drop)
}

/// Maps everything but what starts at the addresses `born`, which is there already, and tells the kernel where the parts are. `files` are descriptors that the
/// task has inherited.
#[expect(clippy::too_many_arguments, reason = "an address space has all of these")]
pub fn map(
    task: &mut RemoteTask<'_>,
    mm: &MmRecord,
    brk: Addr,
    vmas: &[VmaRecord],
    files: &HashMap<ObjRef, BorrowedFd<'_>>,
    shared: &SharedMemory,
    segments: &HashMap<ObjRef, SegmentRecord>,
    born: &HashSet<Addr>,
) -> Result<()> {
    map_vdso(task, mm, vmas)?;
    let mut plain: Vec<&VmaRecord> = Vec::new();
    for vma in vmas.iter().filter(|vma| !born.contains(&vma.start)) {
        match vma.backing {
            Backing::Anonymous | Backing::File { .. } => plain.push(vma),
            Backing::Vdso | Backing::Vvar | Backing::SharedAnonymous { .. } | Backing::SysV { .. } => {}
        }
    }
    map_plain(task, &plain, files)?;
    shared.place(task, vmas)?;
    sysv_shm::map(task, vmas, segments, |task, size| gaps(task, vmas)?.take(size).ok_or_else(|| no_gap(size)))?;
    set_mm(task, mm, brk, files)
}

/// Maps private memory and files.
pub fn map_plain(task: &mut RemoteTask<'_>, vmas: &[&VmaRecord], files: &HashMap<ObjRef, BorrowedFd<'_>>) -> Result<()> {
    for part in vmas.chunks(256) {
        let mut batch = Batch::new();
        let mut ids = Vec::new();
        for vma in part {
            ids.push(batch.call(libc::SYS_mmap, mmap_args(vma, files)?));
        }
        let answers = task.run(batch)?;
        for (vma, id) in part.iter().zip(ids) {
            check_placed(vma, answers.ret(id))?;
        }
    }
    Ok(())
}

/// Of what a process was born with, unmaps some, and gives up pages of the rest. `kept`: mappings that it keeps, which it was born with readable and writable.
pub fn keep<'a>(
    task: &mut RemoteTask<'_>,
    unmap: &[PageRange],
    give_up: &[PageRange],
    kept: impl Iterator<Item = &'a VmaRecord>,
) -> Result<()> {
    let calls = unmap.iter().map(|pages| (libc::SYS_munmap, *pages, 0));
    let calls = calls.chain(give_up.iter().map(|pages| (libc::SYS_madvise, *pages, libc::MADV_DONTNEED)));
    const BORN: i32 = libc::PROT_READ | libc::PROT_WRITE;
    let prots = kept.map(|vma| (vma.pages(), first_prot(vma))).filter(|(_, prot)| *prot != BORN);
    let calls: Vec<_> = calls.chain(prots.map(|(pages, prot)| (libc::SYS_mprotect, pages, prot))).collect();
    for some in calls.chunks(1024) {
        let mut batch = Batch::new();
        let asked: Vec<_> = some
            .iter()
            .map(|&(call, pages, what)| batch.call(call, [pages.addr().into(), pages.bytes().into(), what.into()]))
            .collect();
        let answers = task.run(batch)?;
        for (id, (_, pages, _)) in asked.into_iter().zip(some) {
            answers.ret(id).doing(|| format!("cannot change what is shared at {}", pages.addr()))?;
        }
    }
    Ok(())
}

fn check_placed(vma: &VmaRecord, result: Result<u64, nix::errno::Errno>) -> Result<()> {
    let doing = || format!("cannot map {} bytes at {}", vma.end.0 - vma.start.0, vma.start);
    match result.doing(doing)? {
        at if at == vma.start.0 => Ok(()),
        at => Err(Error::Unexpected(format!("{}: the kernel chose {at:#x} instead", doing()))),
    }
}

/// While pages are missing, what was accounted as writable memory is mapped writable.
fn first_prot(vma: &VmaRecord) -> i32 {
    let fill = vma.has_pages && !vma.shared && vma.flags.intersects(VmFlags::ACCOUNTED | VmFlags::NO_RESERVE);
    vma.prot.bits() | if fill { libc::PROT_READ | libc::PROT_WRITE } else { 0 }
}

fn mmap_args(vma: &VmaRecord, files: &HashMap<ObjRef, BorrowedFd<'_>>) -> Result<[Arg; 6]> {
    let mut flags = libc::MAP_FIXED_NOREPLACE | if vma.shared { libc::MAP_SHARED } else { libc::MAP_PRIVATE };
    let when = |on: VmFlags, bit: i32| if vma.flags.contains(on) { bit } else { 0 };
    flags |= when(VmFlags::GROWS_DOWN, libc::MAP_GROWSDOWN) | when(VmFlags::NO_RESERVE, libc::MAP_NORESERVE);
    let (fd, offset) = match vma.backing {
        Backing::File { file, offset } => {
            let fd = files.get(&file).ok_or_else(|| Error::Restart(format!("the image maps object {file}, which is no file")))?;
            (fd.as_raw_fd(), offset)
        }
        _ => {
            flags |= libc::MAP_ANONYMOUS;
            if vma.flags.contains(VmFlags::DROPPABLE) {
                flags = flags & !libc::MAP_PRIVATE | MAP_DROPPABLE;
            }
            if vma.flags.contains(VmFlags::HUGETLB) {
                flags |= libc::MAP_HUGETLB | (vma.page_size.trailing_zeros() << libc::MAP_HUGE_SHIFT) as i32;
            }
            (-1, 0)
        }
    };
    let len = vma.end.0 - vma.start.0;
    Ok([vma.start.into(), len.into(), first_prot(vma).into(), flags.into(), fd.into(), offset.into()])
}

/// Shared anonymous memory of an image, made once, where nothing else is: every process that is made later has it there, too, and each of its mappings
/// becomes a second view of its part.
#[derive(Debug, Default)]
pub struct SharedMemory {
    /// Address and size, by the number that the image has for it.
    made: BTreeMap<u64, (Addr, u64)>,
}

impl SharedMemory {
    /// Makes in a new process, before it has children, what these mappings show of it.
    pub fn make(task: &mut RemoteTask<'_>, vmas: &[&VmaRecord]) -> Result<SharedMemory> {
        let mut wanted: BTreeMap<u64, (u64, bool)> = BTreeMap::new();
        for vma in vmas {
            if let Backing::SharedAnonymous { id, offset } = vma.backing {
                let (size, no_reserve) = wanted.entry(id).or_default();
                *size = (*size).max(offset.saturating_add(vma.end.0 - vma.start.0));
                *no_reserve |= vma.flags.contains(VmFlags::NO_RESERVE);
            }
        }
        if wanted.is_empty() {
            return Ok(SharedMemory::default());
        }
        let mut wanted: Vec<(u64, u64, bool)> =
            wanted.into_iter().map(|(id, (size, no_reserve))| (size, id, no_reserve)).collect();
        wanted.sort_unstable();
        let mut gaps = gaps(task, vmas.iter().copied())?;
        let (mut made, mut calls) = (BTreeMap::new(), Vec::new());
        for (size, id, no_reserve) in wanted {
            let gap = gaps.take(size).ok_or_else(|| no_gap(size))?;
            let reserve = if no_reserve { libc::MAP_NORESERVE } else { 0 };
            let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE | reserve;
            let prot = libc::PROT_READ | libc::PROT_WRITE;
            calls.push([gap.into(), size.into(), prot.into(), flags.into(), (-1i64).into(), 0u64.into()]);
            made.insert(id, (gap, size));
        }
        call_all(task, "cannot make shared memory", libc::SYS_mmap, &calls)?;
        Ok(SharedMemory { made })
    }

    /// Places the views of a process, and takes away what they were made from.
    fn place(&self, task: &mut RemoteTask<'_>, vmas: &[VmaRecord]) -> Result<()> {
        let mut views = Vec::new();
        for vma in vmas {
            let Backing::SharedAnonymous { id, offset } = vma.backing else { continue };
            let (from, _) = self.made.get(&id).ok_or_else(|| Error::Unexpected(format!("shared memory {id} was not made")))?;
            let len = vma.end.0 - vma.start.0;
            let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
            views.push([from.offset(offset).into(), 0u64.into(), len.into(), flags.into(), vma.start.into()]);
        }
        call_all(task, "cannot place a view of shared memory", libc::SYS_mremap, &views)?;
        let made: Vec<[Arg; 2]> = self.made.values().map(|&(at, size)| [at.into(), size.into()]).collect();
        call_all(task, "cannot unmap", libc::SYS_munmap, &made)
    }
}

/// Makes a call again and again, each time with other arguments.
fn call_all<const N: usize>(task: &mut RemoteTask<'_>, doing: &str, number: libc::c_long, all: &[[Arg; N]]) -> Result<()> {
    for part in all.chunks(256) {
        let mut batch = Batch::new();
        let calls: Vec<_> = part.iter().map(|arguments| batch.call(number, *arguments)).collect();
        let answers = task.run(batch)?;
        calls.into_iter().try_for_each(|id| answers.ret(id).doing(|| format!("{doing} in pid {}", task.pid())).map(drop))?;
    }
    Ok(())
}

/// Where nothing is, and nothing of the image comes.
fn gaps<'a>(task: &RemoteTask<'_>, vmas: impl IntoIterator<Item = &'a VmaRecord>) -> Result<Gaps> {
    Ok(Gaps::between(vmas.into_iter().map(|v| (v.start.0, v.end.0)).chain(taken_now(task)?)))
}

fn no_gap(size: u64) -> Error {
    Error::Restart(format!("there is no gap of {size} bytes to make shared memory in"))
}

fn taken_now(task: &RemoteTask<'_>) -> Result<Vec<(u64, u64)>> {
    Ok(maps::read(task.pid())?.iter().map(|m| (m.start.0, m.end.0)).collect())
}

/// The vdso comes from the kernel; what the image can ask for is that it is the same code at the same address. Of its mappings the program
/// may have unmapped some (Valgrind does): then they go here as well, before anything else takes their place.
fn map_vdso(task: &mut RemoteTask<'_>, mm: &MmRecord, vmas: &[VmaRecord]) -> Result<()> {
    let of_kernel = |v: &&VmaRecord| matches!(v.backing, Backing::Vdso | Backing::Vvar);
    let wanted: Vec<_> = vmas.iter().filter(of_kernel).map(|v| (v.backing == Backing::Vdso, v.start, v.end)).collect();
    let Some(&(_, first, _)) = wanted.first() else { return Ok(()) };
    task.call("cannot map the vdso", libc::SYS_arch_prctl, [ARCH_MAP_VDSO_64.into(), first.into()])?;
    let mappings = maps::read(task.pid())?;
    let kernel = |m: &&Mapping| matches!(m.kind, MappingKind::Vdso | MappingKind::Vvar);
    let got: Vec<_> = mappings.iter().filter(kernel).map(|m| (m.kind == MappingKind::Vdso, m.start, m.end)).collect();
    let has_code = wanted.iter().any(|&(is_code, ..)| is_code);
    let is_other_code = has_code && vdso_checksum(&mappings, task.memory())? != mm.vdso_checksum;
    if is_other_code || !wanted.iter().all(|part| got.contains(part)) {
        return Err(Error::Restart(
            "the vdso of this kernel is not the one that the image was made with, and the program may hold addresses inside it; \
             restart on the kernel that `ckpt info` names"
                .into(),
        ));
    }
    for (_, start, end) in got.iter().copied().filter(|part| !wanted.contains(part)) {
        let len = end.0 - start.0;
        task.call("cannot unmap what the program had unmapped of the vdso", libc::SYS_munmap, [start.into(), len.into()])?;
    }
    Ok(())
}

fn set_mm(task: &mut RemoteTask<'_>, mm: &MmRecord, brk: Addr, files: &HashMap<ObjRef, BorrowedFd<'_>>) -> Result<()> {
    let exe_fd = match mm.exe {
        None => u32::MAX,
        Some(exe) => {
            let fd = files.get(&exe).ok_or_else(|| Error::Restart(format!("the executable, object {exe}, is no file")))?;
            fd.as_raw_fd() as u32
        }
    };
    let mut batch = Batch::new();
    let auxv = batch.bytes(&mm.auxv);
    let mut map = PrctlMmMap {
        start_code: mm.code.0.0,
        end_code: mm.code.1.0,
        start_data: mm.data.0.0,
        end_data: mm.data.1.0,
        start_brk: mm.start_brk.0,
        brk: brk.0,
        start_stack: mm.start_stack.0,
        arg_start: mm.args.0.0,
        arg_end: mm.args.1.0,
        env_start: mm.environment.0.0,
        env_end: mm.environment.1.0,
        auxv: 0,
        auxv_size: mm.auxv.len() as u32,
        exe_fd,
    };
    map.auxv = task.address_of(auxv)?.0;
    let slot = batch.value(&map);
    let size = size_of::<PrctlMmMap>();
    let id = batch.call(libc::SYS_prctl, [PR_SET_MM.into(), PR_SET_MM_MAP.into(), slot.into(), size.into(), 0u64.into()]);
    let answers = task.run(batch)?;
    answers.ret(id).doing(|| "cannot set the layout of the address space (PR_SET_MM_MAP)").map(drop)
}

/// When the pages are in: protections, advice, locks, guards, seals.
pub fn finish(task: &mut RemoteTask<'_>, lock_future: bool, vmas: &[VmaRecord]) -> Result<()> {
    for part in vmas.chunks(128) {
        let mut batch = Batch::new();
        let mut asked = Vec::new();
        for vma in part {
            finish_one(&mut batch, vma, &mut asked);
        }
        let answers = task.run(batch)?;
        for (id, what, at) in asked {
            answers.ret(id).doing(|| format!("cannot {what} at {at}"))?;
        }
    }
    if lock_future {
        task.call("cannot lock future memory", libc::SYS_mlockall, [libc::MCL_FUTURE.into()])?;
    }
    Ok(())
}

type Asked = Vec<(crate::tracee::batch::CallId, &'static str, Addr)>;

fn finish_one(batch: &mut Batch, vma: &VmaRecord, asked: &mut Asked) {
    let (start, len) = (vma.start, vma.end.0 - vma.start.0);
    if matches!(vma.backing, Backing::Vdso | Backing::Vvar) {
        return;
    }
    for &(flag, advice, what) in ADVICE {
        // Droppable memory has all its advice from the kernel.
        if vma.flags.contains(flag) && !vma.flags.contains(VmFlags::DROPPABLE) {
            asked.push((batch.call(libc::SYS_madvise, [start.into(), len.into(), advice.into()]), what, start));
        }
    }
    for guard in &vma.guards {
        let args = [guard.addr().into(), guard.bytes().into(), MADV_GUARD_INSTALL.into()];
        asked.push((batch.call(libc::SYS_madvise, args), "install a guard page (MADV_GUARD_INSTALL)", guard.addr()));
    }
    if vma.flags.contains(VmFlags::LOCKED) {
        let flags = if vma.flags.contains(VmFlags::LOCK_ON_FAULT) { libc::MLOCK_ONFAULT } else { 0 };
        asked.push((batch.call(libc::SYS_mlock2, [start.into(), len.into(), flags.into()]), "lock memory", start));
    }
    let shared_view = matches!(vma.backing, Backing::SharedAnonymous { .. } | Backing::SysV { .. });
    if shared_view || first_prot(vma) != vma.prot.bits() {
        let args = [start.into(), len.into(), vma.prot.bits().into()];
        asked.push((batch.call(libc::SYS_mprotect, args), "set the protection of memory", start));
    }
    if let Some(name) = &vma.anon_name {
        const PR_SET_VMA: i32 = 0x53_56_4d_41;
        let name = batch.c_string(name.as_bytes());
        let args = [PR_SET_VMA.into(), 0u64.into(), start.into(), len.into(), name.into()];
        asked.push((batch.call(libc::SYS_prctl, args), "name memory (PR_SET_VMA_ANON_NAME)", start));
    }
    if vma.flags.contains(VmFlags::SEALED) {
        const SYS_MSEAL: libc::c_long = 462;
        asked.push((batch.call(SYS_MSEAL, [start.into(), len.into(), 0u64.into()]), "seal memory (mseal)", start));
    }
}

const ADVICE: &[(VmFlags, i32, &str)] = &[
    (VmFlags::SEQUENTIAL, libc::MADV_SEQUENTIAL, "advise sequential access to memory"),
    (VmFlags::RANDOM, libc::MADV_RANDOM, "advise random access to memory"),
    (VmFlags::DONT_FORK, libc::MADV_DONTFORK, "keep memory from children (MADV_DONTFORK)"),
    (VmFlags::WIPE_ON_FORK, libc::MADV_WIPEONFORK, "wipe memory in children (MADV_WIPEONFORK)"),
    (VmFlags::DONT_DUMP, libc::MADV_DONTDUMP, "keep memory from core dumps (MADV_DONTDUMP)"),
    (VmFlags::HUGE_PAGE, libc::MADV_HUGEPAGE, "advise huge pages"),
    (VmFlags::NO_HUGE_PAGE, libc::MADV_NOHUGEPAGE, "advise against huge pages"),
    (VmFlags::MERGEABLE, libc::MADV_MERGEABLE, "make memory mergeable (MADV_MERGEABLE)"),
];

/// Every file that the address space needs, as descriptors of ours that the task will inherit.
pub fn files_of(mm: &MmRecord, vmas: &[VmaRecord]) -> Vec<ObjRef> {
    let mapped = vmas.iter().filter_map(|vma| match vma.backing {
        Backing::File { file, .. } => Some(file),
        _ => None,
    });
    let mut files: Vec<ObjRef> = mapped.chain(mm.exe).collect();
    files.sort_unstable();
    files.dedup();
    files
}

/// The mappings of one memory, in order of address, checked for what a damaged or hostile image could ask.
fn check<'a>(vmas: impl IntoIterator<Item = &'a VmaRecord>) -> Result<()> {
    let mut end = Addr(0);
    for vma in vmas {
        let aligned = vma.start.0 % PAGE_SIZE == 0 && vma.end.0 % PAGE_SIZE == 0;
        if !aligned || vma.start < end || vma.end <= vma.start || vma.end.0 > TASK_SIZE {
            return Err(Error::Restart(format!("the image holds an impossible mapping at {}-{}", vma.start, vma.end)));
        }
        end = vma.end;
    }
    Ok(())
}

/// The pages of these memories that are mapped; the mappings of each are checked.
pub fn mapped(vmas: &[VmaRecord], memories: impl IntoIterator<Item = ObjRef>) -> Result<HashMap<ObjRef, RangeSet<u64>>> {
    let of = |memory: ObjRef| {
        let own: Vec<&VmaRecord> = vmas.iter().filter(|vma| vma.mm == memory).collect();
        check(own.iter().copied())?;
        Ok((memory, own.iter().map(|vma| vma.pages().numbers()).collect()))
    };
    memories.into_iter().map(of).collect()
}

/// Makes the files behind the mappings and the executable; each object once.
pub fn restore_files(cx: &mut Restorer<'_>, files: &[ObjRef]) -> Result<HashMap<ObjRef, std::os::fd::OwnedFd>> {
    let mut opened = HashMap::new();
    for &objref in files {
        let section = cx.section(objref)?;
        let (fd, _) = (super::file::kind_of(&section)?.restore)(cx, &section)?;
        opened.insert(objref, fd);
    }
    Ok(opened)
}
