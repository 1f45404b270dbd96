//! Images as docs/format.md describes their frames: enough to find the records, and to damage them.

use std::fs;
use std::ops::Range;
use std::path::Path;

/// Bytes before the first record.
pub const PREAMBLE: usize = 16;
/// Bytes of a record's frame: type, flags, length of the payload, checksum.
const FRAME: usize = 24;

/// Where a record stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Its number, from 0 on.
    pub number: usize,
    /// What it is, by the table of docs/format.md.
    pub kind: &'static str,
    /// The offset of its frame.
    pub start: usize,
    /// Its payload.
    pub payload: Range<usize>,
}

/// The types, from 1 on.
const KINDS: &[&str] =
    &["header", "container", "tasks", "object", "task state", "vma", "chunk", "error", "trailer", "index", "delta"];

/// The bytes of an image.
pub fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()))
}

/// All records of a whole image, in order.
pub fn records(image: &[u8]) -> Vec<Record> {
    assert!(image.starts_with(b"CKPTIMG\n"), "this is no image");
    let (mut records, mut start) = (Vec::new(), PREAMBLE);
    while start < image.len() {
        let kind = u32::from_le_bytes(image[start..start + 4].try_into().expect("four bytes")) as usize;
        let len = u64::from_le_bytes(image[start + 8..start + 16].try_into().expect("eight bytes")) as usize;
        let payload = start + FRAME..start + FRAME + len;
        assert!(payload.end <= image.len(), "the image ends in the middle of a record");
        records.push(Record { number: records.len(), kind: KINDS[kind - 1], start, payload: payload.clone() });
        start = payload.end;
    }
    records
}

/// The first and the last record of every kind.
pub fn samples(records: &[Record]) -> Vec<&Record> {
    let ends = |kind| {
        let mut all = records.iter().filter(|record| record.kind == kind);
        let first = all.next();
        [first, all.next_back()]
    };
    KINDS.iter().flat_map(|&kind| ends(kind)).flatten().collect()
}
