//! The metadata of an increment: how to make it from that of its parent, by copying what is still the same and inserting what is new.
//!
//! Bytes are copied, not records: of a task state with one register changed, the increment holds that register. The instructions are in
//! docs/format.md. Those of an image are hostile: every copy is checked against the parent and against the length of the result.

use xxhash_rust::xxh3::xxh3_64;

use super::diff;
use super::error::{ImageError, Place};
use super::number::{fold, number, put, unfold};
use super::records::Records;
use super::wire::{words32, words64};

/// Bytes of the longest result. Larger metadata stands in the increment as in a whole image.
pub(super) const MAX_RESULT: usize = 64 << 20;

const HEAD_LEN: usize = 20;

/// The payload of the record that makes `new` from `parent`. `None`: that would save nothing, or it is too large.
pub(super) fn between(parent: &Records, new: &Records) -> Option<Vec<u8>> {
    if parent.bytes().len().max(new.bytes().len()) > MAX_RESULT {
        return None;
    }
    let mut script = Script::default();
    diff::find(parent, new, &mut script);
    let mut payload = Vec::with_capacity(HEAD_LEN);
    payload.extend_from_slice(&xxh3_64(parent.bytes()).to_le_bytes());
    payload.extend_from_slice(&xxh3_64(new.bytes()).to_le_bytes());
    payload.extend_from_slice(&(new.bytes().len() as u32).to_le_bytes());
    payload.append(&mut script.finish());
    (payload.len() < new.bytes().len()).then_some(payload)
}

/// The reverse: what `payload`, of the record at `at`, makes of the metadata of the parent.
pub(super) fn apply(payload: &[u8], parent: &Records, at: Place) -> Result<Records, ImageError> {
    let malformed = |what: &'static str| ImageError::malformed(at, what);
    let (head, instructions) = payload.split_at_checked(HEAD_LEN).ok_or_else(|| malformed("it is too short"))?;
    let [parent_checksum, checksum] = words64(head);
    let [len] = words32(&head[16..]);
    if len as usize > MAX_RESULT {
        return Err(ImageError::TooLong { at, len: len.into(), limit: MAX_RESULT as u64 });
    }
    if xxh3_64(parent.bytes()) != parent_checksum {
        return Err(malformed("the metadata that it changes is not that of the parent"));
    }
    let bytes = run(instructions, parent.bytes(), len as usize).map_err(malformed)?;
    if xxh3_64(&bytes) != checksum {
        return Err(malformed("its result has another checksum than it says"));
    }
    Records::parse(bytes, at)
}

/// Carries out instructions, which must yield exactly `len` bytes.
fn run(mut instructions: &[u8], parent: &[u8], len: usize) -> Result<Vec<u8>, &'static str> {
    const SHORT: &str = "its instructions end too early";
    let mut result = Vec::new();
    // Where the last copy ended, moved on by what was inserted since: what only replaces bytes leaves the distance 0.
    let mut expected = 0_u64;
    while !instructions.is_empty() {
        let inserted = usize::try_from(number(&mut instructions).ok_or(SHORT)?).map_err(|_| SHORT)?;
        let (bytes, rest) = instructions.split_at_checked(inserted).ok_or(SHORT)?;
        instructions = rest;
        let copied = number(&mut instructions).ok_or(SHORT)?;
        if inserted as u64 + copied.min(len as u64 + 1) > (len - result.len()) as u64 {
            return Err("its instructions yield more than it says");
        }
        result.extend_from_slice(bytes);
        let distance = unfold(number(&mut instructions).ok_or(SHORT)?);
        let source = || {
            let start = expected.checked_add(inserted as u64)?.checked_add_signed(distance)?;
            let end = start.checked_add(copied)?;
            Some((parent.get(usize::try_from(start).ok()?..usize::try_from(end).ok()?)?, end))
        };
        let (bytes, end) = source().ok_or("it copies what the parent does not have")?;
        result.extend_from_slice(bytes);
        expected = end;
    }
    if result.len() == len { Ok(result) } else { Err("its instructions yield less than it says") }
}

/// Instructions being written. What can be one copy becomes one.
#[derive(Debug, Default)]
pub(super) struct Script {
    out: Vec<u8>,
    inserted: Vec<u8>,
    copied: std::ops::Range<usize>,
    expected: usize,
}

impl Script {
    /// Next come these bytes.
    pub(super) fn insert(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() && !self.copied.is_empty() {
            self.end_instruction();
        }
        self.inserted.extend_from_slice(bytes);
    }

    /// Next come these bytes of the parent.
    pub(super) fn copy(&mut self, range: std::ops::Range<usize>) {
        if !self.copied.is_empty() {
            if self.copied.end == range.start {
                self.copied.end = range.end;
                return;
            }
            self.end_instruction();
        }
        self.copied = range;
    }

    /// Insertions at the end copy nothing, from the first byte on: that always exists.
    fn end_instruction(&mut self) {
        let distance = self.copied.start as i64 - (self.expected + self.inserted.len()) as i64;
        put(&mut self.out, self.inserted.len() as u64);
        self.out.append(&mut self.inserted);
        put(&mut self.out, self.copied.len() as u64);
        put(&mut self.out, fold(distance));
        self.expected = self.copied.end;
        self.copied = 0..0;
    }

    fn finish(mut self) -> Vec<u8> {
        if !self.inserted.is_empty() || !self.copied.is_empty() {
            self.end_instruction();
        }
        self.out
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::wire::RecordType;
    use super::*;

    /// A container, tasks and objects with these payloads.
    fn records(payloads: &[Vec<u8>]) -> Records {
        let mut records = Records::default();
        records.push_payload(RecordType::Container, b"c");
        records.push_payload(RecordType::Tasks, b"t");
        payloads.iter().for_each(|payload| records.push_payload(RecordType::Object, payload));
        records
    }

    /// Bytes with few values, so that much of it looks alike.
    fn payloads() -> impl Strategy<Value = Vec<Vec<u8>>> {
        proptest::collection::vec(proptest::collection::vec(0..3u8, 0..200), 0..12)
    }

    /// An edit: which record, where in it, how many bytes give way, and what takes their place.
    type Edit = (prop::sample::Index, prop::sample::Index, usize, Vec<u8>);

    fn edit(payloads: &mut Vec<Vec<u8>>, (which, at, gone, new): &Edit) {
        if payloads.is_empty() || *gone == 7 {
            payloads.push(new.clone());
        } else if *gone == 6 {
            payloads.remove(which.index(payloads.len()));
        } else {
            let len = payloads.len();
            let payload = &mut payloads[which.index(len)];
            let at = at.index(payload.len() + 1);
            payload.splice(at..(at + gone).min(payload.len()), new.iter().copied());
        }
    }

    fn edits() -> impl Strategy<Value = Vec<Edit>> {
        let edit =
            (any::<prop::sample::Index>(), any::<prop::sample::Index>(), 0..8usize, proptest::collection::vec(any::<u8>(), 0..9));
        proptest::collection::vec(edit, 0..6)
    }

    proptest! {
        #[test]
        fn what_was_edited_comes_back(old in payloads(), edits in edits()) {
            let mut new = old.clone();
            edits.iter().for_each(|e| edit(&mut new, e));
            let (old, new) = (records(&old), records(&new));
            if let Some(payload) = between(&old, &new) {
                prop_assert_eq!(apply(&payload, &old, Place::default()).unwrap(), new.clone());
            }
            let mut script = Script::default();
            diff::find(&old, &new, &mut script);
            prop_assert_eq!(run(&script.finish(), old.bytes(), new.bytes().len()).unwrap(), new.bytes());
        }

        #[test]
        fn hostile_instructions_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..60), old in payloads(), len in 0..5000usize) {
            let old = records(&old);
            let _ = apply(&bytes, &old, Place::default());
            prop_assert!(run(&bytes, old.bytes(), len).map_or(true, |result| result.len() == len));
            let mut payload = xxh3_64(old.bytes()).to_le_bytes().to_vec();
            payload.extend_from_slice(&bytes);
            let _ = apply(&payload, &old, Place::default());
            let _ = Records::parse(bytes, Place::default()).map(|records| records.iter().count());
        }

        #[test]
        fn changed_instructions_never_panic(old in payloads(), edits in edits(), at: prop::sample::Index, value: u8) {
            let mut new = old.clone();
            edits.iter().for_each(|e| edit(&mut new, e));
            let (old, new) = (records(&old), records(&new));
            if let Some(mut payload) = between(&old, &new) {
                let at = at.index(payload.len());
                payload[at] ^= value;
                prop_assert!(apply(&payload, &old, Place::default()).map_or(true, |result| result == new));
            }
        }
    }

    fn noise(seed: u64, len: usize) -> Vec<u8> {
        let mut state = seed;
        let next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 56) as u8
        };
        std::iter::repeat_with(next).take(len).collect()
    }

    #[test]
    fn what_did_not_change_costs_nothing_and_a_register_costs_its_bytes() {
        let old: Vec<Vec<u8>> = (0..1000).map(|n| noise(n, 150)).collect();
        let size = |new: &[Vec<u8>]| between(&records(&old), &records(new)).unwrap().len();
        assert!(size(&old) < 32, "{}", size(&old));

        let mut register = old.clone();
        register[500][70..78].copy_from_slice(b"register");
        assert!(size(&register) < 50, "{}", size(&register));

        // One more, one less, and one that became longer: everything behind them is still the same.
        let mut moved = old.clone();
        moved.insert(10, noise(5000, 150));
        moved.remove(800);
        moved[300].splice(20..21, [0xce, 1, 2, 3]);
        assert!(size(&moved) < 250, "{}", size(&moved));
    }

    #[test]
    fn another_parent_is_noticed() {
        let (old, new) = (records(&[noise(1, 100)]), records(&[noise(1, 100), vec![1]]));
        let payload = between(&old, &new).unwrap();
        let error = apply(&payload, &new, Place::default()).unwrap_err().to_string();
        assert!(error.contains("not that of the parent"), "{error}");
    }
}
