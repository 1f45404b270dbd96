use proptest::prelude::*;

use super::*;

fn vma(mm: u32, pages: std::ops::Range<u64>) -> VmaRecord {
    VmaRecord {
        mm: ObjRef(mm),
        start: Addr(pages.start * PAGE_SIZE),
        end: Addr(pages.end * PAGE_SIZE),
        prot: Prot { read: true, write: true, exec: false },
        shared: false,
        flags: VmFlags::ACCOUNTED,
        backing: Backing::Anonymous,
        page_size: PAGE_SIZE,
        anon_name: None,
        guards: Vec::new(),
        has_pages: true,
    }
}

fn same(memory: u32, pages: std::ops::Range<u64>, owner: u32) -> Same {
    Same { memory: ObjRef(memory), first: pages.start, pages: pages.into(), owner: ObjRef(owner) }
}

fn list(ranges: &[PageRange]) -> Vec<(u64, u64)> {
    ranges.iter().map(|range| (range.start, range.end())).collect()
}

/// A parent that has written to pages since; two children that have them still, of which one has written to others, and has mapped less.
#[test]
fn all_are_born_with_what_most_of_them_have() {
    let (parent, one, two) = ([vma(1, 10..30)], [vma(2, 10..25), vma(2, 40..50)], [vma(3, 10..30)]);
    let all = [(ObjRef(1), &parent[..]), (ObjRef(2), &one[..]), (ObjRef(3), &two[..])];
    let shared = [same(2, 12..15, 1), same(2, 18..25, 1), same(3, 10..15, 1), same(3, 15..18, 2), same(3, 18..30, 1)];
    let mould = Mould::new(&all, &shared);
    assert_eq!(mould.mappings.iter().map(|m| (m.pages().start, m.pages().end())).collect::<Vec<_>>(), [(10, 30)]);
    let rest = |mm| {
        let (unmap, give_up) = mould.rest(ObjRef(mm));
        (list(&unmap), list(&give_up))
    };
    assert_eq!(rest(1), (vec![], vec![(15, 18)]));
    assert_eq!(rest(2), (vec![(25, 30)], vec![(10, 12)]));
    assert_eq!(rest(3), (vec![], vec![]));
    assert_eq!(rest(4), (vec![(10, 30)], vec![]), "one that shares nothing");
    assert_eq!(mould.part(ObjRef(2)).unwrap().mappings, [Addr(10 * PAGE_SIZE)].into());
}

#[test]
fn what_is_mapped_otherwise_is_not_inherited() {
    let mut locked = vma(2, 10..20);
    locked.flags = VmFlags::NO_RESERVE;
    let mut stack = vma(3, 10..20);
    stack.flags |= VmFlags::GROWS_DOWN;
    let longer = vma(4, 5..20);
    let memories: Vec<Vec<VmaRecord>> = vec![vec![vma(1, 10..20)], vec![locked], vec![stack], vec![longer]];
    let all: Vec<(ObjRef, &[VmaRecord])> = (1..).map(ObjRef).zip(memories.iter().map(Vec::as_slice)).collect();
    let shared: Vec<Same> = (2..5).map(|memory| same(memory, 12..14, 1)).collect();
    let mould = Mould::new(&all, &shared);
    let kept: Vec<usize> = (1..5).map(|mm| mould.part(ObjRef(mm)).unwrap().mappings.len()).collect();
    assert_eq!(kept, [1, 0, 0, 1]);
}

proptest! {
    /// Whatever is shared: born with the mould, with what it gives up gone and the rest written, each memory has its pages, and no others.
    #[test]
    fn each_memory_is_what_it_was(groups in prop::collection::vec(prop::collection::vec(0..4u64, 6), 30), cuts in prop::collection::vec(0..30u64, 6)) {
        // What each page is in each of six memories: 0 is nothing, and the same number is the same page.
        let memories: Vec<Vec<VmaRecord>> = cuts.iter().enumerate().map(|(n, cut)| {
            let mm = n as u32 + 1;
            [vma(mm, 0..*cut), vma(mm, *cut..30)].into_iter().filter(|vma| vma.pages().count > 0).collect()
        }).collect();
        let all: Vec<(ObjRef, &[VmaRecord])> = (1..).map(ObjRef).zip(memories.iter().map(Vec::as_slice)).collect();
        let mut shared = Vec::new();
        for (page, groups) in (0..).zip(&groups) {
            for (n, group) in groups.iter().enumerate().filter(|(_, group)| **group != 0) {
                let owner = groups.iter().position(|of| of == group).unwrap();
                if owner != n {
                    shared.push(same(n as u32 + 1, page..page + 1, owner as u32 + 1));
                }
            }
        }
        let mould = Mould::new(&all, &shared);
        for n in 0..6usize {
            let mm = ObjRef(n as u32 + 1);
            let (unmap, give_up) = mould.rest(mm);
            let gone = |page: u64| unmap.iter().chain(&give_up).any(|range| range.numbers().contains(&page));
            for page in 0..30u64 {
                let mapped = mould.mappings.iter().any(|mapping| mapping.pages().numbers().contains(&page));
                let born = mould.owners.get(&page).filter(|_| mapped && !gone(page)).map(|owner| groups[page as usize][owner.0 as usize - 1]);
                let kept = mould.part(mm).unwrap().pages.contains(&page);
                prop_assert_eq!(born.is_some(), kept);
                let lent = |all: &[Same]| all.iter().any(|same| same.memory == mm && same.pages.numbers().contains(&page));
                prop_assert_eq!(lent(&mould.to_copy(&shared)), lent(&shared) && !kept);
                if kept {
                    prop_assert_eq!(born, Some(groups[page as usize][n]));
                }
            }
        }
    }
}
