//! Finding the pages whose contents need not be stored, and leaving those out.

use crate::ids::{PAGE_SIZE, PageRange};
use crate::image::chunk::{Run, RunKind};

const PAGE: usize = PAGE_SIZE as usize;

/// Is every byte zero? Most pages that are not say so in their first bytes.
fn is_zero(page: &[u8]) -> bool {
    page.as_chunks::<128>().0.iter().all(|piece| piece.iter().fold(0, |all, byte| all | byte) == 0)
}

/// What becomes of a page.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Kept,
    Zero,
    /// It is in a parent image.
    Known,
}

/// Takes the pages that are all zeros out of `bytes`, which holds the pages of the data runs one after another, those that are `known`, too,
/// and moves the others together at its front. Returns the runs as they are then, and the bytes left.
pub(super) fn squeeze(planned: &[Run], bytes: &mut [u8], known: impl Fn(u64, &[u8]) -> bool) -> (Vec<Run>, usize) {
    let fate = |page: u64, bytes: &[u8]| match () {
        () if known(page, bytes) => Fate::Known,
        () if is_zero(bytes) => Fate::Zero,
        () => Fate::Kept,
    };
    let mut runs: Vec<Run> = Vec::with_capacity(planned.len());
    let (mut from, mut kept) = (0, 0);
    for run in planned {
        if run.kind != RunKind::Data {
            push(&mut runs, *run);
            continue;
        }
        // Alike pages side by side are handled together.
        let mut pages = run.pages;
        while pages.count > 0 {
            let fate_of = |n: usize| fate(pages.start + n as u64, &bytes[from + n * PAGE..from + (n + 1) * PAGE]);
            let first = fate_of(0);
            let mut alike = 1;
            while alike < pages.count as usize && fate_of(alike) == first {
                alike += 1;
            }
            let len = alike * PAGE;
            if first == Fate::Kept {
                if from != kept {
                    bytes.copy_within(from..from + len, kept);
                }
                kept += len;
            }
            let here = PageRange { start: pages.start, count: alike as u64 };
            match first {
                Fate::Kept => push(&mut runs, Run { pages: here, kind: RunKind::Data }),
                Fate::Zero => push(&mut runs, Run { pages: here, kind: RunKind::Zero }),
                Fate::Known => {}
            }
            from += len;
            pages = PageRange { start: pages.start + alike as u64, count: pages.count - alike as u64 };
        }
    }
    (runs, kept)
}

/// Adds a run, as part of the last one if it goes on there.
fn push(runs: &mut Vec<Run>, run: Run) {
    match runs.last_mut() {
        Some(last)
            if last.kind == run.kind
                && last.pages.end() == run.pages.start
                && last.pages.count + run.pages.count <= u32::MAX.into() =>
        {
            last.pages.count += run.pages.count;
        }
        _ => runs.push(run),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn keeps_every_page_and_no_zeros(planned in proptest::collection::vec((0..3u8, 1..6u64, 0..2u64, any::<u8>()), 0..12)) {
            let (mut next, mut runs, mut bytes, mut expected) = (0, Vec::new(), Vec::new(), Vec::new());
            for (kind, count, gap, zeros) in planned {
                let kind = [RunKind::Data, RunKind::Zero, RunKind::Hole][kind as usize];
                runs.push(Run { pages: PageRange { start: next, count }, kind });
                for n in 0..count {
                    let mut page = vec![0; PAGE];
                    if kind == RunKind::Data {
                        // The last byte: nothing less than the whole page tells.
                        page[PAGE - 1] = if zeros >> (n % 8) & 1 == 1 { 0 } else { 1 + n as u8 };
                        bytes.extend_from_slice(&page);
                    }
                    let kind = if kind == RunKind::Data && page[PAGE - 1] == 0 { RunKind::Zero } else { kind };
                    expected.push((next + n, kind, page));
                }
                next += count + gap;
            }
            let (squeezed, kept) = squeeze(&runs, &mut bytes, |_, _| false);
            let mut pages = bytes[..kept].chunks(PAGE);
            let mut found = Vec::new();
            for run in &squeezed {
                for n in 0..run.pages.count {
                    let page = if run.kind == RunKind::Data { pages.next().unwrap().to_vec() } else { vec![0; PAGE] };
                    found.push((run.pages.start + n, run.kind, page));
                }
            }
            prop_assert!(pages.next().is_none());
            prop_assert!(squeezed.windows(2).all(|w| w[0].kind != w[1].kind || w[0].pages.end() < w[1].pages.start));
            prop_assert_eq!(found, expected);
        }
    }
}
