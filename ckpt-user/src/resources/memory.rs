//! What a process holds as a whole: its memory and its descriptor table; and where the pages of memories and files are, for the page streams.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use serde::{Deserialize, Serialize};

use super::collector::Content;
use crate::error::{Doing, Error, Result};
use crate::ids::{Addr, ObjRef, PAGE_SIZE, PageRange, Pid};
use crate::pipeline::PageSource;
use crate::sys::pagemap::{Page, PageMap};
use crate::sys::procfs;
use crate::sys::vm::{self, Piece};
use crate::tracee::batch::{Answers, Batch, CallId};
use crate::tracee::memory::ProcessMemory;

/// The name of the section.
pub const KIND: &str = "memory";

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryRecord {
    /// The address space.
    pub mm: ObjRef,
    /// The descriptor table.
    pub files: ObjRef,
    /// The program break.
    pub brk: Addr,
    /// Extended states that the process asked the kernel for (ARCH_GET_XCOMP_PERM): bit 18 is AMX.
    #[serde(default)]
    pub xcomp_permitted: u64,
    /// mlockall(MCL_FUTURE) is on.
    #[serde(default)]
    pub lock_future: bool,
}

/// The calls of [`ask`].
#[derive(Debug)]
pub struct Asked {
    brk: CallId,
    xcomp: CallId,
    xcomp_permitted: crate::tracee::batch::Slot,
}

/// ARCH_GET_XCOMP_PERM (asm/prctl.h).
const ARCH_GET_XCOMP_PERM: i32 = 0x1022;
/// ARCH_REQ_XCOMP_PERM.
pub const ARCH_REQ_XCOMP_PERM: i32 = 0x1023;

/// What must be asked in the task.
pub fn ask(batch: &mut Batch) -> Asked {
    let xcomp_permitted = batch.value(&0u64);
    Asked {
        brk: batch.call(libc::SYS_brk, [0u64.into()]),
        xcomp: batch.call(libc::SYS_arch_prctl, [ARCH_GET_XCOMP_PERM.into(), xcomp_permitted.into()]),
        xcomp_permitted,
    }
}

impl MemoryRecord {
    /// Reads the answers. `mm` and `files`: what the process holds; `lock_future`: a mapping made in the task for ckpt was locked by itself.
    pub fn collect((mm, files): (ObjRef, ObjRef), lock_future: bool, asked: &Asked, answers: &Answers) -> Result<MemoryRecord> {
        let brk = Addr(answers.ret(asked.brk).doing(|| "cannot ask for the program break")?);
        // EINVAL: a kernel before 5.16, on which there is nothing to ask for.
        let xcomp_permitted = match answers.ret(asked.xcomp) {
            Ok(_) => answers.value(asked.xcomp_permitted),
            Err(nix::errno::Errno::EINVAL) => 0,
            Err(error) => return Err(Error::os("cannot ask which processor extensions are permitted", error)),
        };
        Ok(MemoryRecord { mm, files, brk, xcomp_permitted, lock_future })
    }
}

/// Where the pages of each owner come from.
#[derive(Debug)]
pub struct MemorySource {
    memories: HashMap<ObjRef, Memory>,
    contents: HashMap<ObjRef, (File, u64)>,
}

/// An address space, seen through one of its processes.
#[derive(Debug)]
struct Memory {
    pid: Pid,
    file: ProcessMemory,
    /// To tell pages that others share since a fork. `None`: there are no others.
    page_map: Option<PageMap>,
}

impl MemorySource {
    /// The memories of these processes, and the contents of files. `forked`: the memories may share pages.
    pub fn new(memories: impl IntoIterator<Item = (ObjRef, Pid)>, forked: bool, contents: Vec<Content>) -> Result<MemorySource> {
        let file = |source: OwnedFd, size: u64| (File::from(source), size);
        let contents = contents.into_iter().map(|c| (c.owner, file(c.source, c.size))).collect();
        let open = |(mm, pid)| {
            let page_map = if forked { Some(PageMap::open(pid)?) } else { None };
            Ok((mm, Memory { pid, file: ProcessMemory::open(pid)?, page_map }))
        };
        Ok(MemorySource { memories: memories.into_iter().map(open).collect::<Result<_>>()?, contents })
    }

    fn read_content(&self, owner: ObjRef, ranges: &[PageRange], mut buf: &mut [u8]) -> Result<()> {
        let (file, size) = self
            .contents
            .get(&owner)
            .ok_or_else(|| Error::Unexpected(format!("object {owner} is to be saved, but nobody knows where its pages are")))?;
        for range in ranges {
            let (part, rest) = buf.split_at_mut(range.bytes() as usize);
            let start = range.addr().0;
            let held = size.saturating_sub(start).min(range.bytes()) as usize;
            file.read_exact_at(&mut part[..held], start).doing(|| format!("cannot read the contents of object {owner}"))?;
            part[held..].fill(0);
            buf = rest;
        }
        Ok(())
    }
}

impl Memory {
    /// To process_vm_readv, the kernel gives pages of a memory's own: of a page that is shared since a fork it makes a copy first (FAULT_FLAG_UNSHARE), and the
    /// tree would grow with each checkpoint. /proc/PID/mem reads the page that is there, but a page at a time.
    fn read(&self, ranges: &[PageRange], mut buf: &mut [u8]) -> Result<()> {
        let Some(page_map) = &self.page_map else { return self.read_own(ranges, buf) };
        let mut parts: Vec<(PageRange, bool)> = Vec::new();
        for range in ranges {
            let looked = page_map.entries(*range, |first, entries| {
                for (page, entry) in (first..).zip(entries) {
                    let own = entry.is_exclusive() || entry.page().contains(Page::FILE);
                    match parts.last_mut().filter(|(_, of)| *of == own) {
                        Some((part, _)) if part.end() == page => part.count += 1,
                        _ => parts.push((PageRange { start: page, count: 1 }, own)),
                    }
                }
            });
            looked.map_err(|error| self.gone_or(error))?;
        }
        for some in parts.chunk_by(|a, b| a.1 == b.1) {
            let ranges: Vec<PageRange> = some.iter().map(|(part, _)| *part).collect();
            let (now, rest) = buf.split_at_mut(ranges.iter().map(|range| range.bytes() as usize).sum());
            match some[0].1 {
                true => self.read_own(&ranges, now)?,
                false => self.read_shared(&ranges, now)?,
            }
            buf = rest;
        }
        Ok(())
    }

    fn read_shared(&self, ranges: &[PageRange], mut buf: &mut [u8]) -> Result<()> {
        for range in ranges {
            let (now, rest) = buf.split_at_mut(range.bytes() as usize);
            self.file.read(range.addr(), now).map_err(|error| self.gone_or(error))?;
            buf = rest;
        }
        Ok(())
    }

    /// The files of /proc that tell of a memory are empty when its process has ended.
    fn gone_or(&self, error: Error) -> Error {
        if procfs::is_ending(self.pid) { Error::Gone(self.pid) } else { error }
    }

    fn read_own(&self, ranges: &[PageRange], buf: &mut [u8]) -> Result<()> {
        let total: usize = ranges.iter().map(|r| r.bytes() as usize).sum();
        let mut done = 0;
        while done < total {
            let pieces = pieces_from(ranges, done);
            let want: usize = pieces.iter().map(|p| p.len).sum();
            let got = match vm::read(self.pid, &pieces, &mut buf[done..done + want]) {
                Ok(got) => got,
                Err(e) if e.raw_os_error() == Some(libc::EFAULT) => 0,
                Err(e) if e.raw_os_error() == Some(libc::ESRCH) => return Err(Error::Gone(self.pid)),
                Err(e) => return Err(e).doing(|| format!("cannot read the memory of pid {}", self.pid)),
            };
            done += got;
            if got < want {
                // A page that its owner may not read: /proc/PID/mem gives it all the same.
                let page = pieces_from(ranges, done)[0];
                let len = page.len.min(PAGE_SIZE as usize);
                self.file.read(page.addr, &mut buf[done..done + len])?;
                done += len;
            }
        }
        Ok(())
    }
}

/// The pieces of memory behind `ranges` from the byte `skip` on, as many as one call takes.
fn pieces_from(ranges: &[PageRange], mut skip: usize) -> Vec<Piece> {
    let mut pieces = Vec::new();
    for range in ranges {
        let len = range.bytes() as usize;
        if skip >= len {
            skip -= len;
            continue;
        }
        pieces.push(Piece { addr: range.addr().offset(skip as u64), len: len - skip });
        skip = 0;
        if pieces.len() == vm::PIECES_MAX {
            break;
        }
    }
    pieces
}

impl PageSource for MemorySource {
    fn read(&self, owner: ObjRef, ranges: &[PageRange], buf: &mut [u8]) -> Result<()> {
        match self.memories.get(&owner) {
            Some(memory) => memory.read(ranges, buf),
            None => self.read_content(owner, ranges, buf),
        }
    }
}
