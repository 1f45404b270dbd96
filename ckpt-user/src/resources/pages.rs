//! Where the pages of an image go: into the memories of the new processes, and into the files that were made for their contents.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::unix::fs::FileExt;

use super::Restorer;
use super::vma::{Backing, VmaRecord};
use crate::error::{Doing, Error, Result};
use crate::ids::{ObjRef, PAGE_SIZE, PageRange, Pid};
use crate::pipeline::PageSink;
use crate::sys::vm::{self, Piece};
use crate::tracee::memory::ProcessMemory;

/// See the module.
#[derive(Debug)]
pub struct PageTarget {
    memories: HashMap<ObjRef, Memory>,
    contents: HashMap<ObjRef, Contents>,
    /// Whose pages nobody wants.
    ignored: HashSet<ObjRef>,
}

/// An address space.
#[derive(Debug)]
struct Memory {
    pid: Pid,
    file: ProcessMemory,
    /// Where pages may go, in order; and whether zeros are there already.
    vmas: Vec<(PageRange, bool)>,
}

/// A file that was made for contents.
#[derive(Debug)]
struct Contents {
    file: File,
    /// Bytes. The last page may reach beyond them, and what is there is none of the file's.
    size: u64,
}

impl PageTarget {
    /// Memories, each with a process that has it and its mappings; and the contents that `cx` expects.
    pub fn new<'a>(memories: impl IntoIterator<Item = (ObjRef, Pid, &'a [VmaRecord])>, cx: &Restorer<'_>) -> Result<PageTarget> {
        let zeroed = |vma: &VmaRecord| !matches!(vma.backing, Backing::File { .. });
        let mut contents = HashMap::new();
        for (owner, fd) in cx.contents()? {
            let file = File::from(fd);
            let size = file.metadata().doing(|| format!("cannot look at the file for the contents of object {owner}"))?.len();
            contents.insert(owner, Contents { file, size });
        }
        let open = |(mm, pid, vmas): (ObjRef, Pid, &[VmaRecord])| {
            let vmas = vmas.iter().map(|vma| (vma.pages(), zeroed(vma))).collect();
            Ok((mm, Memory { pid, file: ProcessMemory::open(pid)?, vmas }))
        };
        let memories = memories.into_iter().map(open).collect::<Result<_>>()?;
        Ok(PageTarget { memories, contents, ignored: cx.ignored_contents().clone() })
    }

    /// Pages that can come at most, for the progress display.
    pub fn expected(&self) -> u64 {
        self.memories.values().flat_map(|memory| &memory.vmas).map(|(pages, _)| pages.count).sum()
    }

    /// `None`: they are not wanted.
    fn content(&self, owner: ObjRef) -> Result<Option<&Contents>> {
        match self.contents.get(&owner) {
            None if !self.ignored.contains(&owner) => {
                Err(Error::Restart(format!("the image holds pages of object {owner}, which is no memory and no file")))
            }
            contents => Ok(contents),
        }
    }
}

impl Memory {
    /// The parts of `range` by mapping. A page outside of every mapping is a damaged image.
    fn parts(&self, range: PageRange) -> Result<Vec<(PageRange, bool)>> {
        let mut parts = Vec::new();
        let mut at = range.start;
        let mut next = self.vmas.partition_point(|(pages, _)| pages.end() <= at);
        while at < range.end() {
            let Some((pages, zeroed)) = self.vmas.get(next).filter(|(pages, _)| pages.start <= at) else {
                return Err(Error::Restart(format!("the image holds a page at {:#x}, where no mapping is", at * PAGE_SIZE)));
            };
            let end = range.end().min(pages.end());
            parts.push((PageRange { start: at, count: end - at }, *zeroed));
            at = end;
            next += 1;
        }
        Ok(parts)
    }

    fn write(&self, ranges: &[PageRange], bytes: &[u8]) -> Result<()> {
        let mut pieces = Vec::with_capacity(ranges.len());
        for &range in ranges {
            pieces.extend(self.parts(range)?.iter().map(|(part, _)| Piece { addr: part.addr(), len: part.bytes() as usize }));
        }
        let mut bytes = bytes;
        for part in pieces.chunks(vm::PIECES_MAX) {
            let want: usize = part.iter().map(|p| p.len).sum();
            let (now, rest) = bytes.split_at(want);
            let written = match vm::write(self.pid, part, now) {
                Ok(written) => written,
                Err(e) if e.raw_os_error() == Some(libc::EFAULT) => 0,
                Err(e) => return Err(e).doing(|| format!("cannot write the memory of pid {}", self.pid)),
            };
            if written < want {
                self.write_protected(part, now, written)?;
            }
            bytes = rest;
        }
        Ok(())
    }

    /// From the byte `skip` on through /proc/PID/mem, which also reaches what its owner may not write.
    fn write_protected(&self, pieces: &[Piece], mut bytes: &[u8], mut skip: usize) -> Result<()> {
        for piece in pieces {
            let (now, rest) = bytes.split_at(piece.len);
            if skip < piece.len {
                self.file.write(piece.addr.offset(skip as u64), &now[skip..])?;
            }
            skip = skip.saturating_sub(piece.len);
            bytes = rest;
        }
        Ok(())
    }

    fn zero(&self, range: PageRange) -> Result<()> {
        static ZEROS: [u8; 64 * PAGE_SIZE as usize] = [0; 64 * PAGE_SIZE as usize];
        for (part, zeroed) in self.parts(range)? {
            if zeroed {
                continue;
            }
            // Private zeros over a file's page: they must be written, or the file would show.
            let mut at = part.start;
            while at < part.end() {
                let some = PageRange { start: at, count: (part.end() - at).min(64) };
                self.write(&[some], &ZEROS[..some.bytes() as usize])?;
                at = some.end();
            }
        }
        Ok(())
    }
}

impl PageSink for PageTarget {
    fn data(&self, owner: ObjRef, ranges: &[PageRange], bytes: &[u8]) -> Result<()> {
        if let Some(memory) = self.memories.get(&owner) {
            return memory.write(ranges, bytes);
        }
        let Some(Contents { file, size }) = self.content(owner)? else { return Ok(()) };
        let mut bytes = bytes;
        for range in ranges {
            let (now, rest) = bytes.split_at(range.bytes() as usize);
            let inside = size.saturating_sub(range.addr().0).min(range.bytes()) as usize;
            file.write_all_at(&now[..inside], range.addr().0).doing(|| format!("cannot write the contents of object {owner}"))?;
            bytes = rest;
        }
        Ok(())
    }

    fn zero(&self, owner: ObjRef, range: PageRange) -> Result<()> {
        match self.memories.get(&owner) {
            Some(memory) => memory.zero(range),
            // A new file reads as zeros already.
            None => self.content(owner).map(drop),
        }
    }

    fn hole(&self, owner: ObjRef, _: PageRange) -> Result<()> {
        // In memory a hole may also be where nothing is mapped (any more): it hides what the parents of an increment have there.
        if self.memories.contains_key(&owner) { Ok(()) } else { self.content(owner).map(drop) }
    }
}
