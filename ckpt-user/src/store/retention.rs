//! What is to be done so that only so many restart points are left in a folder.
//!
//! Every step by itself leaves the chain of each image that is still there as whole as it was, so a crash between any two of them does
//! no harm: an image that takes the place of another is named by children as that one was, and of what is not needed any more, the
//! newest goes first.

use std::collections::HashSet;
use std::num::NonZeroUsize;

use super::{Chains, Entry};

/// One change of the folder.
#[derive(Debug)]
pub enum Step<'a> {
    /// The first of these, which needs the others, becomes a whole image that holds what they hold together.
    Merge(Vec<&'a Entry>),
    /// Nothing needs it.
    Remove(&'a Entry),
}

/// The steps, in the order in which they must be done, that leave the newest `keep` of the points that can be restarted. Nothing newer than
/// the oldest of them is touched, and nothing that one of them needs.
pub fn steps(entries: &[Entry], keep: NonZeroUsize) -> Vec<Step<'_>> {
    let chains = Chains::of(entries);
    let whole: Vec<usize> = (0..entries.len()).filter(|&at| chains.is_whole(at)).collect();
    let Some(oldest) = whole.len().checked_sub(keep.get()).map(|at| whole[at]) else { return Vec::new() };
    let mut steps = Vec::new();
    if let Ok(chain) = chains.chain(oldest)
        && chain.len() > 1
    {
        steps.push(Step::Merge(chain));
    }
    let needed = needed(entries, &chains, oldest);
    let removed = entries[..oldest].iter().rev().filter(|entry| !needed.contains(&entry.number));
    steps.extend(removed.map(Step::Remove));
    steps
}

/// The numbers of the images older than `oldest` that something newer needs, once `oldest` needs nothing.
fn needed(entries: &[Entry], chains: &Chains<'_>, oldest: usize) -> HashSet<u64> {
    let mut needed = HashSet::from([entries[oldest].number]);
    for at in oldest + 1..entries.len() {
        let chain = chains.chain(at).unwrap_or_default();
        for entry in chain {
            // Whoever is in it already has brought its parents with it.
            if !needed.insert(entry.number) {
                break;
            }
        }
    }
    needed
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use proptest::prelude::*;

    use super::super::chains::tests::entry;
    use super::*;
    use crate::image::ImageError;

    fn told(entries: &[Entry], keep: usize) -> Vec<String> {
        let tell = |step: &Step<'_>| match step {
            Step::Merge(chain) => format!("merge {:?}", chain.iter().map(|e| e.number).collect::<Vec<_>>()),
            Step::Remove(entry) => format!("remove {}", entry.number),
        };
        steps(entries, NonZeroUsize::new(keep).unwrap()).iter().map(tell).collect()
    }

    fn unreadable(number: u64) -> Entry {
        Entry { header: Err(ImageError::NotAnImage), ending: None, ..entry(number, None) }
    }

    #[test]
    fn the_oldest_kept_point_is_merged_and_the_others_go_newest_first() {
        let chain = [entry(1, None), entry(2, Some(1)), entry(3, Some(2)), entry(4, Some(3))];
        assert_eq!(told(&chain, 2), ["merge [3, 2, 1]", "remove 2", "remove 1"]);
        assert_eq!(told(&chain, 1), ["merge [4, 3, 2, 1]", "remove 3", "remove 2", "remove 1"]);
        assert!(told(&chain, 4).is_empty() && told(&chain, 9).is_empty());
    }

    #[test]
    fn a_new_chain_lets_the_old_one_go() {
        let two = [entry(1, None), entry(2, Some(1)), entry(3, None), entry(4, Some(3))];
        assert_eq!(told(&two, 2), ["remove 2", "remove 1"]);
    }

    #[test]
    fn what_a_kept_point_needs_stays() {
        let branches = [entry(1, None), entry(2, Some(1)), entry(3, Some(2)), entry(4, Some(2))];
        assert_eq!(told(&branches, 2), ["merge [3, 2, 1]"]);
    }

    #[test]
    fn what_cannot_be_restarted_is_no_point() {
        let damaged = [unreadable(1), entry(2, None), entry(3, Some(2)), unreadable(4), entry(5, Some(99))];
        assert_eq!(told(&damaged, 2), ["remove 1"]);
        assert_eq!(told(&damaged, 1), ["merge [3, 2]", "remove 2", "remove 1"]);
        assert!(told(&[unreadable(1)], 1).is_empty());
    }

    proptest! {
        /// After each step everything that is still there, and was whole, is whole; in the end the newest so many are.
        #[test]
        fn no_step_breaks_a_chain(parents in prop::collection::vec(0..6u64, 1..20), keep in 1..8usize) {
            let link = |(at, back): (usize, &u64)| {
                let number = at as u64 + 1;
                entry(number, number.checked_sub(*back).filter(|parent| *parent > 0 && *back > 0))
            };
            let before: Vec<Entry> = parents.iter().enumerate().map(link).collect();
            let mut now: Vec<Entry> = parents.iter().enumerate().map(link).collect();
            for step in steps(&before, NonZeroUsize::new(keep).unwrap()) {
                match step {
                    Step::Merge(chain) => {
                        let merged = now.iter_mut().find(|e| e.number == chain[0].number).unwrap();
                        let header = merged.header.as_mut().unwrap();
                        (header.parent, header.stands_for) = (None, Some(merged.number));
                        merged.ending.as_mut().unwrap().trailer_checksum = 1000;
                    }
                    Step::Remove(entry) => now.retain(|e| e.number != entry.number),
                }
                let chains = Chains::of(&now);
                prop_assert!((0..now.len()).all(|at| chains.is_whole(at)));
            }
            let kept = before.len().min(keep);
            prop_assert!(now.len() >= kept);
            prop_assert_eq!(now[now.len() - kept..].iter().map(|e| &e.path).collect::<Vec<&PathBuf>>(),
                before[before.len() - kept..].iter().map(|e| &e.path).collect::<Vec<_>>());
            prop_assert!(told(&now, keep).is_empty(), "nothing is left to do");
        }
    }
}
