//! What two lists of records have in common: whole records first, then the parts of those that changed.

use std::collections::HashMap;
use std::ops::Range;

use xxhash_rust::xxh3::xxh3_64;

use super::delta::Script;
use super::records::Records;

/// A copy in place of what stands there costs about three bytes, so it must give more.
const SHORTEST_IN_PLACE: usize = 4;
/// What has moved is found by this many bytes.
const WINDOW: usize = 16;
/// The bytes of every so many places of the old record are remembered.
const STRIDE: usize = 8;

/// Writes how `new` is made from `old`.
///
/// A record that is still there is found by its bytes, wherever it stands. One that is not is held against the old one of its type that would come
/// next: of records that changed in place that is their old state; or else, as for one that is new, against the last one of its type.
pub(super) fn find(old: &Records, new: &Records, script: &mut Script) {
    let ranges: Vec<Range<usize>> = old.ranges().collect();
    let old = old.bytes();
    let mut places = HashMap::with_capacity(ranges.len());
    for (n, range) in ranges.iter().enumerate() {
        places.entry(xxh3_64(&old[range.clone()])).or_insert(n);
    }
    let mut next = 0;
    for record in new.ranges() {
        let record = &new.bytes()[record];
        let same = |n: &usize| ranges.get(*n).is_some_and(|range| &old[range.clone()] == record);
        if let Some(n) = Some(next).filter(same).or_else(|| places.get(&xxh3_64(record)).copied().filter(same)) {
            script.copy(ranges[n].clone());
            next = n + 1;
        } else {
            // The type is the first thing in a record.
            let alike = |range: &&Range<usize>| old[(*range).clone()].first_chunk::<4>() == record.first_chunk::<4>();
            let from = next.min(ranges.len());
            let base = match ranges[from..].iter().position(|range| alike(&range)) {
                Some(further) => {
                    next = from + further + 1;
                    Some(&ranges[from + further])
                }
                None => ranges[..from].iter().rev().find(alike),
            };
            within(old, base.cloned().unwrap_or(0..0), record, script);
        }
    }
}

/// Writes how `new` is made from the bytes `base` of `old`.
fn within(old: &[u8], base: Range<usize>, new: &[u8], script: &mut Script) {
    let windows = Windows::of(&old[base.clone()]);
    let (old, offset) = (&old[base.clone()], base.start);
    // `in_place`: where the bytes at `at` were if they did not move since the last copy.
    let (mut at, mut in_place, mut written) = (0, 0, 0);
    while at < new.len() {
        let (mut start, mut len) = (in_place, common(old.get(in_place..).unwrap_or_default(), &new[at..]));
        if let Some(moved) = windows.find(&new[at..]) {
            let found = common(&old[moved..], &new[at..]);
            if found > len && found >= WINDOW {
                (start, len) = (moved, found);
            }
        }
        if len < SHORTEST_IN_PLACE {
            (at, in_place) = (at + 1, in_place + 1);
            continue;
        }
        let before = old[..start].iter().rev().zip(new[written..at].iter().rev()).take_while(|(a, b)| a == b).count();
        script.insert(&new[written..at - before]);
        script.copy(offset + start - before..offset + start + len);
        (at, in_place) = (at + len, start + len);
        written = at;
    }
    script.insert(&new[written..]);
}

fn common(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// Where the bytes of some windows stand. Of those that look alike, the first.
struct Windows(Vec<u32>);

impl Windows {
    /// The windows of `bytes`, of which there are less than 4 GiB.
    fn of(bytes: &[u8]) -> Windows {
        let mut slots = vec![0; (bytes.len() / STRIDE * 2).next_power_of_two()];
        for (n, window) in bytes.windows(WINDOW).enumerate().step_by(STRIDE) {
            let slot = slot(window, slots.len());
            if slots[slot] == 0 {
                slots[slot] = n as u32 + 1;
            }
        }
        Windows(slots)
    }

    /// Where bytes that begin like these may stand.
    fn find(&self, bytes: &[u8]) -> Option<usize> {
        let place = self.0[slot(bytes.get(..WINDOW)?, self.0.len())];
        (place as usize).checked_sub(1)
    }
}

/// `slots` is a power of two.
fn slot(window: &[u8], slots: usize) -> usize {
    xxh3_64(window) as usize & (slots - 1)
}
