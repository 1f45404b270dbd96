//! The example of docs/format.md is an image, and will stay one: what revision 1 wrote, every later version reads.

use super::chunk::{Chunk, MAX_DATA, Run, RunKind};
use super::*;
use crate::ids::{ImageId, ObjRef, PageRange};

const DOCUMENT: &str = include_str!("../../../docs/format.md");

/// The bytes in the page's hex dump: on each line an offset, the bytes, and a comment after a semicolon.
fn example() -> Vec<u8> {
    let (_, after) = DOCUMENT.split_once("```hex\n").expect("the page has a hex dump");
    let (dump, _) = after.split_once("```").expect("the hex dump ends");
    let mut bytes = Vec::new();
    for line in dump.lines().filter(|line| !line.is_empty()) {
        let (code, _comment) = line.split_once(';').unwrap_or((line, ""));
        let mut words = code.split_whitespace();
        let offset = words.next().map(|word| usize::from_str_radix(word, 16).unwrap());
        assert_eq!(offset, Some(bytes.len()), "{line}");
        bytes.extend(words.map(|word| u8::from_str_radix(word, 16).unwrap()));
    }
    bytes
}

#[test]
fn the_example_of_the_format_is_what_it_says() {
    let bytes = example();
    let (metadata, summary) = verify(&mut ImageReader::new(bytes.as_slice()).unwrap()).unwrap();
    assert_eq!(metadata.header.image_id, Some(ImageId(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef)));
    assert_eq!((metadata.header.codec.as_str(), metadata.header.scope.as_str()), ("lz4", "subtree"));
    assert_eq!((metadata.objects[0].objref, metadata.objects[0].section.kind.as_str()), (ObjRef(1), "mm"));
    assert_eq!(summary.pages, PageCounts { data: 1, zero: 15, hole: 0 });
    assert_eq!(summary.owners, [ObjRef(1)]);

    let mut reader = ImageReader::new(bytes.as_slice()).unwrap();
    read_metadata(&mut reader).unwrap();
    let mut payload = Payload::default();
    let record = reader.next_checked(&mut payload).unwrap().unwrap();
    let chunk = Chunk::parse(payload.bytes(), record.at).unwrap();
    let run = |start, count, kind| Run { pages: PageRange { start, count }, kind };
    assert_eq!(chunk.runs, [run(0x400, 1, RunKind::Data), run(0x401, 15, RunKind::Zero)]);
    assert_eq!(chunk.data(&mut vec![0; MAX_DATA], record.at).unwrap(), [b'*'; 4096]);
}

/// The page's table of lengths is the code's.
#[test]
fn the_limits_of_the_format_are_what_it_says() {
    for record_type in RecordType::ALL {
        let row = DOCUMENT.lines().find(|line| line.starts_with(&format!("| {} | {record_type} |", record_type as u32))).unwrap();
        let limit = record_type.limit();
        let said = match record_type {
            RecordType::Chunk => format!("1 MiB + 16 {} bytes", limit - (1 << 20) - 16_000),
            _ if limit >= 1 << 20 => format!("{} MiB", limit >> 20),
            _ => format!("{} KiB", limit >> 10),
        };
        assert!(row.ends_with(&format!("| {said} |")), "{row}: {said}");
    }
}
