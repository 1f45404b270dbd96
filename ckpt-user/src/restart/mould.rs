//! Pages that processes share since a fork, shared again: what they share is put into the first process before it makes the others, so that all of them are
//! born with it, at the same addresses. Each then keeps what it has of that, and gives up the rest.
//!
//! Of a page that several have in common, and that the process which has forked them has written to since, it is theirs that all are born with, not its
//! own. What was moved to other addresses (mremap), and stacks and huge pages, are not shared again, but copied.

use std::collections::{HashMap, HashSet};

use rangemap::{RangeMap, RangeSet};

use super::plan::Plan;
use crate::error::Result;
use crate::ids::{Addr, ObjRef, PAGE_SIZE, PageRange, common};
use crate::pipeline::PageSink;
use crate::resources::vma::{Backing, VmaRecord};
use crate::store::same::Same;
use crate::tracee::maps::{Prot, VmFlags};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Mould {
    /// What the first process maps.
    pub(super) mappings: Vec<VmaRecord>,
    /// Whose pages it is filled with.
    owners: RangeMap<u64, ObjRef>,
    parts: HashMap<ObjRef, Part>,
}

/// What a memory keeps.
#[derive(Debug, Default)]
pub(super) struct Part {
    /// The mappings, by where they start.
    pub(super) mappings: HashSet<Addr>,
    /// All of them together.
    mapped: RangeSet<u64>,
    /// The pages.
    pub(super) pages: RangeSet<u64>,
}

impl Mould {
    /// Of what the memories of an image share.
    pub(super) fn of(plan: &Plan) -> Mould {
        let vmas: Vec<(ObjRef, &[VmaRecord])> = plan.memories.iter().map(|(&mm, memory)| (mm, &memory.vmas[..])).collect();
        Mould::new(&vmas, &plan.same)
    }

    fn new(memories: &[(ObjRef, &[VmaRecord])], same: &[Same]) -> Mould {
        let here: Vec<&Same> = same.iter().filter(|same| same.first == same.pages.start).collect();
        let mut lent: HashMap<ObjRef, u64> = HashMap::new();
        here.iter().for_each(|same| *lent.entry(same.owner).or_default() += same.pages.count);
        let mut by_owner = here.clone();
        by_owner.sort_by_key(|same| (std::cmp::Reverse(lent.get(&same.owner)), same.owner));
        let mut owners: RangeMap<u64, ObjRef> = RangeMap::new();
        for same in by_owner {
            let gaps: Vec<_> = owners.gaps(&same.pages.numbers()).collect();
            gaps.into_iter().for_each(|gap| owners.insert(gap, same.owner));
        }
        // Of each memory, the pages that could be those of the mould.
        let mut pages: HashMap<ObjRef, RangeSet<u64>> = HashMap::new();
        for same in &here {
            for (part, _) in owners.overlapping(&same.pages.numbers()).filter(|(_, owner)| **owner == same.owner) {
                let part = common(part, &same.pages.numbers());
                pages.entry(same.owner).or_default().insert(part.clone());
                pages.entry(same.memory).or_default().insert(part);
            }
        }
        let wanted = |mm: &ObjRef, vma: &VmaRecord| {
            can_be_inherited(vma) && pages.get(mm).is_some_and(|pages| pages.overlaps(&vma.pages().numbers()))
        };
        let mut all: Vec<&VmaRecord> = memories.iter().flat_map(|(mm, vmas)| vmas.iter().filter(|vma| wanted(mm, vma))).collect();
        all.sort_by_key(|vma| vma.start);
        let mut mappings: Vec<VmaRecord> = Vec::new();
        for vma in all {
            match mappings.last_mut() {
                Some(last) if last.end > vma.start => {
                    if is_part_of_kind(vma, last) {
                        last.end = last.end.max(vma.end);
                    }
                }
                _ => mappings.push(first_of(vma)),
            }
        }
        let mut mould = Mould { mappings, owners, parts: HashMap::new() };
        for (mm, vmas) in memories {
            let mut part = Part::default();
            for vma in vmas.iter().filter(|vma| wanted(mm, vma) && mould.covers(vma)) {
                part.mappings.insert(vma.start);
                let all = vma.pages().numbers();
                part.mapped.insert(all.clone());
                let kept = pages.get(mm).into_iter().flat_map(|pages| pages.overlapping(&all));
                kept.for_each(|kept| part.pages.insert(common(kept, &all)));
            }
            mould.parts.insert(*mm, part);
        }
        mould
    }

    fn covers(&self, vma: &VmaRecord) -> bool {
        let after = self.mappings.partition_point(|mapping| mapping.start <= vma.start);
        self.mappings[..after].last().is_some_and(|mapping| vma.end <= mapping.end && is_part_of_kind(vma, mapping))
    }

    /// Is nothing shared?
    pub(super) fn is_empty(&self) -> bool {
        self.mappings.is_empty()
    }

    /// What a memory keeps.
    pub(super) fn part(&self, mm: ObjRef) -> Option<&Part> {
        self.parts.get(&mm)
    }

    /// Of what memories share, what is still to be copied: nobody is born with it.
    pub(super) fn to_copy(&self, same: &[Same]) -> Vec<Same> {
        let left = |same: &Same| {
            let gap = |gap: PageRange| Same { pages: gap, first: same.first + (gap.start - same.pages.start), ..*same };
            match self.part(same.memory) {
                Some(part) => part.pages.gaps(&same.pages.numbers()).map(|pages| gap(pages.into())).collect(),
                None => vec![*same],
            }
        };
        same.iter().flat_map(left).collect()
    }

    /// What a memory must unmap, and of what it keeps, the pages that it must give up.
    pub(super) fn rest(&self, mm: ObjRef) -> (Vec<PageRange>, Vec<PageRange>) {
        let none = Part::default();
        let part = self.part(mm).unwrap_or(&none);
        let (mut unmap, mut give_up) = (Vec::new(), Vec::new());
        for mapping in &self.mappings {
            let all = mapping.pages().numbers();
            unmap.extend(part.mapped.gaps(&all).map(PageRange::from));
            for kept in part.mapped.overlapping(&all) {
                for (filled, _) in self.owners.overlapping(kept) {
                    give_up.extend(part.pages.gaps(&common(filled, kept)).map(PageRange::from));
                }
            }
        }
        (unmap, give_up)
    }
}

/// What a child can have from its parent as it is.
fn can_be_inherited(vma: &VmaRecord) -> bool {
    let plain = matches!(vma.backing, Backing::Anonymous | Backing::File { .. }) && !vma.shared && vma.page_size == PAGE_SIZE;
    let filled = vma.has_pages && vma.flags.intersects(VmFlags::ACCOUNTED | VmFlags::NO_RESERVE);
    plain && filled && !vma.flags.intersects(VmFlags::GROWS_DOWN | VmFlags::HUGETLB | VmFlags::DROPPABLE)
}

/// As it is asked for.
const KIND: VmFlags = VmFlags::ACCOUNTED.union(VmFlags::NO_RESERVE);

fn first_of(vma: &VmaRecord) -> VmaRecord {
    let prot = Prot { read: true, write: true, exec: false };
    VmaRecord { prot, flags: vma.flags & KIND, anon_name: None, guards: Vec::new(), ..vma.clone() }
}

/// Could both be one mapping? `mapping` begins first.
fn is_part_of_kind(vma: &VmaRecord, mapping: &VmaRecord) -> bool {
    let same_backing = match (vma.backing, mapping.backing) {
        (Backing::Anonymous, Backing::Anonymous) => true,
        (Backing::File { file, offset }, Backing::File { file: of, offset: from }) => {
            file == of && from.checked_add(vma.start.0 - mapping.start.0) == Some(offset)
        }
        _ => false,
    };
    same_backing && vma.flags & KIND == mapping.flags & KIND
}

/// Fills the mould: takes its pages, from whom they are, and nothing else. `inner` knows one memory, the first process's, by the name that is given.
#[derive(Debug)]
pub(super) struct Filling<'a> {
    pub(super) mould: &'a Mould,
    pub(super) inner: &'a dyn Sink,
    pub(super) name: ObjRef,
}

/// A sink that can be shown.
pub(super) trait Sink: PageSink + std::fmt::Debug {}

impl<T: PageSink + std::fmt::Debug> Sink for T {}

impl Filling<'_> {
    fn parts(&self, owner: ObjRef, pages: PageRange) -> Vec<PageRange> {
        let pages = pages.numbers();
        let filled = self.mould.owners.overlapping(&pages).filter(|(_, of)| **of == owner);
        let mut parts = Vec::new();
        for (filled, _) in filled {
            let wanted = common(filled, &pages);
            // What has found no place in it is not there.
            for mapping in self.mould.mappings.iter().map(VmaRecord::pages) {
                let part = common(&wanted, &mapping.numbers());
                if part.start < part.end {
                    parts.push(part.into());
                }
            }
        }
        parts
    }
}

impl PageSink for Filling<'_> {
    fn data(&self, owner: ObjRef, ranges: &[PageRange], bytes: &[u8]) -> Result<()> {
        let (parts, kept) = pick(ranges, bytes, |range| self.parts(owner, range));
        if parts.is_empty() { Ok(()) } else { self.inner.data(self.name, &parts, &kept) }
    }

    fn zero(&self, owner: ObjRef, pages: PageRange) -> Result<()> {
        self.parts(owner, pages).into_iter().try_for_each(|part| self.inner.zero(self.name, part))
    }

    fn hole(&self, _: ObjRef, _: PageRange) -> Result<()> {
        Ok(())
    }
}

/// Passes on what processes were not born with.
pub(super) struct Sieve<'a> {
    pub(super) mould: &'a Mould,
    pub(super) inner: &'a dyn PageSink,
}

impl Sieve<'_> {
    fn parts(&self, owner: ObjRef, pages: PageRange) -> Vec<PageRange> {
        match self.mould.part(owner) {
            Some(part) => part.pages.gaps(&pages.numbers()).map(PageRange::from).collect(),
            None => vec![pages],
        }
    }
}

impl PageSink for Sieve<'_> {
    fn data(&self, owner: ObjRef, ranges: &[PageRange], bytes: &[u8]) -> Result<()> {
        if self.mould.part(owner).is_none_or(|part| part.pages.is_empty()) {
            return self.inner.data(owner, ranges, bytes);
        }
        let (parts, kept) = pick(ranges, bytes, |range| self.parts(owner, range));
        if parts.is_empty() { Ok(()) } else { self.inner.data(owner, &parts, &kept) }
    }

    fn zero(&self, owner: ObjRef, pages: PageRange) -> Result<()> {
        self.parts(owner, pages).into_iter().try_for_each(|part| self.inner.zero(owner, part))
    }

    fn hole(&self, owner: ObjRef, pages: PageRange) -> Result<()> {
        self.inner.hole(owner, pages)
    }
}

/// Parts of ranges, and their bytes.
fn pick(ranges: &[PageRange], bytes: &[u8], parts_of: impl Fn(PageRange) -> Vec<PageRange>) -> (Vec<PageRange>, Vec<u8>) {
    let (mut parts, mut kept) = (Vec::new(), Vec::new());
    let mut rest = bytes;
    for range in ranges {
        let (here, after) = rest.split_at(range.bytes() as usize);
        for part in parts_of(*range) {
            let from = ((part.start - range.start) * PAGE_SIZE) as usize;
            kept.extend_from_slice(&here[from..from + part.bytes() as usize]);
            parts.push(part);
        }
        rest = after;
    }
    (parts, kept)
}

#[cfg(test)]
mod tests;
