//! The mappings of another process, from /proc/PID/smaps: what mmap made, and what madvise, mlock and friends added.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use bitflags::bitflags;
use serde::{Deserialize, Serialize};

use crate::error::{Doing, Error, Result};
use crate::ids::{Addr, PAGE_SIZE, PageRange, Pid};
use crate::sys::procfs;

/// What a mapping allows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prot {
    /// PROT_READ.
    pub read: bool,
    /// PROT_WRITE.
    pub write: bool,
    /// PROT_EXEC.
    pub exec: bool,
}

impl Prot {
    /// The PROT_* bits.
    pub fn bits(self) -> i32 {
        let bit = |on: bool, bit: i32| if on { bit } else { 0 };
        bit(self.read, libc::PROT_READ) | bit(self.write, libc::PROT_WRITE) | bit(self.exec, libc::PROT_EXEC)
    }
}

bitflags! {
    /// The flags of a mapping that somebody asked for, and that must be asked for again ("VmFlags:" in smaps, proc(5)).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
    pub struct VmFlags: u32 {
        /// gd: grows down, a stack.
        const GROWS_DOWN = 1 << 0;
        /// lo: locked.
        const LOCKED = 1 << 1;
        /// sr: MADV_SEQUENTIAL.
        const SEQUENTIAL = 1 << 2;
        /// rr: MADV_RANDOM.
        const RANDOM = 1 << 3;
        /// dc: MADV_DONTFORK.
        const DONT_FORK = 1 << 4;
        /// nr: MAP_NORESERVE.
        const NO_RESERVE = 1 << 5;
        /// ht: pages of hugetlbfs.
        const HUGETLB = 1 << 6;
        /// wf: MADV_WIPEONFORK.
        const WIPE_ON_FORK = 1 << 7;
        /// dd: MADV_DONTDUMP.
        const DONT_DUMP = 1 << 8;
        /// hg: MADV_HUGEPAGE.
        const HUGE_PAGE = 1 << 9;
        /// nh: MADV_NOHUGEPAGE.
        const NO_HUGE_PAGE = 1 << 10;
        /// mg: MADV_MERGEABLE.
        const MERGEABLE = 1 << 11;
        /// um or ui: registered with a userfaultfd, whose owner handles faults.
        const USERFAULTFD = 1 << 12;
        /// ss: a shadow stack.
        const SHADOW_STACK = 1 << 13;
        /// sl: sealed by mseal(2).
        const SEALED = 1 << 14;
        /// dp: MAP_DROPPABLE.
        const DROPPABLE = 1 << 15;
        /// io or pf: memory of a device, or pages without a struct page.
        const DEVICE = 1 << 16;
        /// ac: accounted against the commit limit.
        const ACCOUNTED = 1 << 17;
        /// lf: MLOCK_ONFAULT.
        const LOCK_ON_FAULT = 1 << 18;
        /// mw: may be made writable; tells how the file behind a shared mapping was opened.
        const MAY_WRITE = 1 << 19;
        /// uw: registered with a userfaultfd for write protection, as ckpt itself does to learn of writes (and others to handle them).
        const WRITES_NOTED = 1 << 20;
    }
}

impl VmFlags {
    /// Parses "rd wr mr mw me ac". Flags that only follow from others (rd, mr, ...) are not kept.
    fn parse(words: &str) -> VmFlags {
        let flag = |word| match word {
            "gd" => VmFlags::GROWS_DOWN,
            "lo" => VmFlags::LOCKED,
            "sr" => VmFlags::SEQUENTIAL,
            "rr" => VmFlags::RANDOM,
            "dc" => VmFlags::DONT_FORK,
            "nr" => VmFlags::NO_RESERVE,
            "ht" => VmFlags::HUGETLB,
            "wf" => VmFlags::WIPE_ON_FORK,
            "dd" => VmFlags::DONT_DUMP,
            "hg" => VmFlags::HUGE_PAGE,
            "nh" => VmFlags::NO_HUGE_PAGE,
            "mg" => VmFlags::MERGEABLE,
            "um" | "ui" => VmFlags::USERFAULTFD,
            "uw" => VmFlags::WRITES_NOTED,
            "ss" => VmFlags::SHADOW_STACK,
            "sl" => VmFlags::SEALED,
            "dp" => VmFlags::DROPPABLE,
            "io" | "pf" => VmFlags::DEVICE,
            "ac" => VmFlags::ACCOUNTED,
            "lf" => VmFlags::LOCK_ON_FAULT,
            "mw" => VmFlags::MAY_WRITE,
            _ => VmFlags::empty(),
        };
        words.split_whitespace().map(flag).collect()
    }
}

/// What stands behind a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MappingKind {
    /// Private anonymous memory: the heap, stacks, malloc's arenas.
    Anonymous,
    /// A file with a name (or that had one).
    File,
    /// Shared anonymous memory ("/dev/zero (deleted)").
    SharedAnonymous,
    /// A System V shared memory segment ("/SYSV... (deleted)").
    SysVShm,
    /// Huge pages without a file ("/anon_hugepage (deleted)").
    AnonymousHuge,
    /// The kernel's code in user space.
    Vdso,
    /// The kernel's data beside it: [vvar], [vvar_vclock].
    Vvar,
    /// The page at the top of the address space that every process has.
    Vsyscall,
    /// Something else of the kernel's, by its name: "[uprobes]", "anon_inode:...", "/[aio]".
    Special,
}

/// One mapping.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// First address.
    pub start: Addr,
    /// One past the last address.
    pub end: Addr,
    /// What is allowed.
    pub prot: Prot,
    /// MAP_SHARED?
    pub shared: bool,
    /// Offset in the file, bytes.
    pub offset: u64,
    /// Major and minor number of the file's device.
    pub device: (u32, u32),
    /// The file's inode.
    pub inode: u64,
    /// The name that /proc shows: a path, "[heap]", or nothing.
    pub name: OsString,
    /// What stands behind it.
    pub kind: MappingKind,
    /// What madvise and friends added. Empty when read without them.
    pub flags: VmFlags,
    /// Bytes of a page here: 4096, or that of hugetlbfs.
    pub page_size: u64,
}

impl Mapping {
    /// Its pages.
    pub fn pages(&self) -> PageRange {
        PageRange { start: self.start.page(), count: (self.end.0 - self.start.0) / PAGE_SIZE }
    }

    /// Is it the same part of the same thing, at the same place, with the same access? Names and flags may differ.
    pub fn is_place_of(&self, other: &Mapping) -> bool {
        let look = |m: &Mapping| (m.start, m.end, m.prot, m.shared, m.offset, m.device, m.inode);
        look(self) == look(other)
    }

    /// For messages: "the mapping at 0x7f0000000000 of /a/file".
    pub fn describe(&self) -> String {
        if self.name.is_empty() {
            format!("the anonymous mapping at {}", self.start)
        } else {
            format!("the mapping at {} of {}", self.start, self.name.display())
        }
    }
}

/// The mappings of a process, without what only smaps tells.
pub fn read(pid: Pid) -> Result<Vec<Mapping>> {
    parse_file(pid, "maps")
}

/// The mappings of a process with their flags. Costs the kernel a walk over its page tables.
pub fn read_with_flags(pid: Pid) -> Result<Vec<Mapping>> {
    parse_file(pid, "smaps")
}

/// The link that leads to the very file behind the mapping of these bounds, whatever has become of its name.
pub fn file_of(pid: Pid, start: Addr, end: Addr) -> String {
    format!("/proc/{pid}/map_files/{:x}-{:x}", start.0, end.0)
}

fn parse_file(pid: Pid, file: &str) -> Result<Vec<Mapping>> {
    let text = procfs::read(format!("/proc/{pid}/{file}")).doing(|| format!("cannot read the mappings of pid {pid}"))?;
    parse(&text).ok_or_else(|| Error::Unexpected(format!("/proc/{pid}/{file} has a line that ckpt does not understand")))
}

fn parse(text: &[u8]) -> Option<Vec<Mapping>> {
    let mut mappings: Vec<Mapping> = Vec::new();
    for line in text.split(|&b| b == b'\n').filter(|l| !l.is_empty()) {
        let first = line.split(|&b| b == b' ').next()?;
        if first.ends_with(b":") {
            // A line of details: "KernelPageSize:        4 kB", "VmFlags: rd wr".
            let (mapping, line) = (mappings.last_mut()?, std::str::from_utf8(line).ok()?);
            if let Some(words) = line.strip_prefix("VmFlags:") {
                mapping.flags = VmFlags::parse(words);
            } else if let Some(size) = line.strip_prefix("KernelPageSize:") {
                mapping.page_size = size.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024;
            }
        } else {
            push(&mut mappings, parse_head(line)?);
        }
    }
    Some(mappings)
}

/// Of a process that runs, the kernel writes some mappings, and the others when it is asked for more. What has grown in between comes twice, and the second
/// time as it is now: no page may be of two mappings.
fn push(mappings: &mut Vec<Mapping>, mapping: Mapping) {
    while let Some(last) = mappings.last_mut().filter(|last| last.end > mapping.start) {
        if last.start < mapping.start {
            last.end = mapping.start;
        } else {
            mappings.pop();
        }
    }
    mappings.push(mapping);
}

/// "7f0000000000-7f0000001000 rw-p 00000000 fe:00 1234      /a/file"
fn parse_head(line: &[u8]) -> Option<Mapping> {
    let mut fields = line.splitn(6, |&b| b == b' ');
    let mut text = || std::str::from_utf8(fields.next()?).ok();
    let hex = |s: &str| u64::from_str_radix(s, 16).ok();
    let (start, end) = text()?.split_once('-')?;
    let perms = text()?.as_bytes();
    let offset = hex(text()?)?;
    let (major, minor) = text()?.split_once(':')?;
    let device = (u32::from_str_radix(major, 16).ok()?, u32::from_str_radix(minor, 16).ok()?);
    let inode: u64 = text()?.parse().ok()?;
    let name = fields.next().unwrap_or_default();
    let name = name.iter().position(|&b| b != b' ').map_or(&[][..], |at| &name[at..]);
    // seq_path escapes a newline so that lines stay lines; nothing else.
    let name = replace(name, b"\\012", b"\n");
    let shared = *perms.get(3)? == b's';
    let kind = kind_of(&name, inode, shared);
    Some(Mapping {
        start: Addr(hex(start)?),
        end: Addr(hex(end)?),
        prot: Prot { read: perms[0] == b'r', write: perms[1] == b'w', exec: perms[2] == b'x' },
        shared,
        offset,
        device,
        inode,
        name: OsString::from_vec(name),
        kind,
        flags: VmFlags::empty(),
        page_size: PAGE_SIZE,
    })
}

fn kind_of(name: &[u8], inode: u64, shared: bool) -> MappingKind {
    match name {
        b"[vdso]" => MappingKind::Vdso,
        b"[vsyscall]" => MappingKind::Vsyscall,
        b"/dev/zero (deleted)" if shared => MappingKind::SharedAnonymous,
        b"/anon_hugepage (deleted)" => MappingKind::AnonymousHuge,
        n if n.starts_with(b"[vvar") => MappingKind::Vvar,
        n if n.starts_with(b"/SYSV") && n.ends_with(b" (deleted)") => MappingKind::SysVShm,
        n if n.starts_with(b"/[") => MappingKind::Special,
        b"" | b"[heap]" | b"[stack]" => MappingKind::Anonymous,
        n if n.starts_with(b"[anon:") => MappingKind::Anonymous,
        n if n.starts_with(b"[anon_shmem:") => MappingKind::SharedAnonymous,
        n if n.starts_with(b"/") && inode != 0 => MappingKind::File,
        _ => MappingKind::Special,
    }
}

fn replace(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    let mut rest = bytes;
    while let Some(&first) = rest.first() {
        if let Some(after) = rest.strip_prefix(from) {
            out.extend_from_slice(to);
            rest = after;
        } else {
            out.push(first);
            rest = &rest[1..];
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
7f0000000000-7f0000003000 r-xp 00001000 fe:10 325843                     /usr/lib/with blank\\012line.so
Size:                 12 kB
KernelPageSize:        4 kB
VmFlags: rd ex mr mw me
7ffe00000000-7ffe00021000 rw-p 00000000 00:00 0                          [stack]
KernelPageSize:        4 kB
VmFlags: rd wr mr mw me gd ac lo wf
7fff00000000-7fff00001000 rw-s 00000000 00:01 77                         /dev/zero (deleted)
";

    /// A heap that has grown, and one that was unmapped in part, while they were read.
    #[test]
    fn what_changes_while_it_is_read_comes_once() {
        let text = "\
1000-3000 rw-p 00000000 00:00 0
5000-9000 rw-p 00000000 00:00 0                          [heap]
5000-b000 rw-p 00000000 00:00 0                          [heap]
c000-f000 rw-p 00000000 00:00 0
d000-10000 r--p 00000000 00:00 0
";
        let maps = parse(text.as_bytes()).unwrap();
        let places: Vec<_> = maps.iter().map(|mapping| (mapping.start.0, mapping.end.0)).collect();
        assert_eq!(places, [(0x1000, 0x3000), (0x5000, 0xb000), (0xc000, 0xd000), (0xd000, 0x10000)]);
    }

    #[test]
    fn smaps_are_understood() {
        let maps = parse(SMAPS.as_bytes()).unwrap();
        assert_eq!(maps.len(), 3);
        assert_eq!(maps[0].name, "/usr/lib/with blank\nline.so");
        assert_eq!(maps[0].device, (0xfe, 0x10));
        assert_eq!((maps[0].kind, maps[0].offset, maps[0].inode), (MappingKind::File, 0x1000, 325843));
        assert_eq!(maps[0].pages(), PageRange { start: 0x7f0000000, count: 3 });
        assert_eq!(
            maps[1].flags,
            VmFlags::GROWS_DOWN | VmFlags::LOCKED | VmFlags::WIPE_ON_FORK | VmFlags::ACCOUNTED | VmFlags::MAY_WRITE
        );
        assert_eq!(maps[2].kind, MappingKind::SharedAnonymous);
    }

    #[test]
    fn our_own_mappings_are_understood() {
        let maps = read_with_flags(Pid(std::process::id() as i32)).unwrap();
        assert!(maps.iter().any(|m| m.kind == MappingKind::Vdso));
        assert!(maps.iter().any(|m| m.flags.contains(VmFlags::GROWS_DOWN)));
    }
}
