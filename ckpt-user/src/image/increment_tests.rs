//! Increments as a whole: what they hold of the metadata comes back with that of their parents, and whatever is wrong with it is noticed.

use proptest::prelude::*;

use super::model::{Container, Header, Object, ParentRef, Section, TaskState, TaskTable, ThreadState};
use super::wire::{FRAME_LEN, Frame, PREAMBLE_LEN};
use super::*;
use crate::ids::{ImageId, ObjRef, PAGE_SIZE, Pid, Tid};

fn header(id: u128) -> Header {
    let parent = (id > 0).then(|| ParentRef { image_id: ImageId(id - 1), trailer_checksum: 7 });
    Header { image_id: Some(ImageId(id)), parent, page_size: PAGE_SIZE as u32, ..Header::default() }
}

/// A process of which a register has a value.
fn records(register: u64) -> Records {
    let mut records = Records::default();
    records.push(RecordType::Container, &Container::default()).unwrap();
    records.push(RecordType::Tasks, &TaskTable::default()).unwrap();
    let section = |body: Vec<u8>| Section { kind: "cpu".to_owned(), body };
    for objref in (1..50).map(ObjRef) {
        records.push(RecordType::Object, &Object { objref, section: section(vec![3; 60]) }).unwrap();
    }
    let thread =
        |tid| ThreadState { tid: Tid(tid), sections: vec![section([vec![0; 800], register.to_be_bytes().to_vec()].concat())] };
    let state = TaskState { pid: Pid(1), sections: vec![], threads: (1..9).map(thread).collect() };
    records.push(RecordType::TaskState, &state).unwrap();
    records
}

fn image(id: u128, records: &Records, parent: Option<&Records>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut writer = ImageWriter::new(&mut bytes).unwrap();
    writer.metadata(&header(id), records, parent).unwrap();
    writer.end_owner(ObjRef(1)).unwrap();
    writer.finish().unwrap();
    bytes
}

fn stored(bytes: &[u8]) -> Result<Stored, ImageError> {
    verify_stored(&mut ImageReader::new(bytes)?).map(|(stored, _)| stored)
}

#[test]
fn a_long_chain_comes_back_and_each_link_is_small() {
    let mut parent = records(0);
    let mut resolved = stored(&image(0, &parent, None)).unwrap().resolve(None).unwrap();
    for n in 1..50 {
        let new = records(n * 0x0101_0101_0101);
        let bytes = image(n.into(), &new, Some(&parent));
        assert!(bytes.len() < 1024, "increment {n} has {} bytes", bytes.len());
        resolved = stored(&bytes).unwrap().resolve(Some(&resolved)).unwrap();
        assert_eq!(resolved, new);
        parent = new;
    }
    // What comes out of the chain makes a whole image, as if there had been no chain.
    let whole = image(0, &resolved, None);
    assert_eq!(whole, image(0, &parent, None));
    assert_eq!(verify(&mut ImageReader::new(whole.as_slice()).unwrap()).unwrap().0.objects.len(), 49);
}

#[test]
fn without_its_parent_an_increment_says_whose_it_is() {
    let bytes = image(5, &records(1), Some(&records(0)));
    let error = read_metadata(&mut ImageReader::new(bytes.as_slice()).unwrap()).unwrap_err();
    assert!(matches!(error, ImageError::NeedsParent(Some(ImageId(4)))), "{error}");
    let error = stored(&bytes).unwrap().resolve(Some(&records(2))).unwrap_err().to_string();
    assert!(error.contains("not that of the parent"), "{error}");
}

/// The second record of an increment.
fn changes(bytes: &[u8]) -> std::ops::Range<usize> {
    let frame = |at: usize| Frame::from_bytes(bytes[at..at + FRAME_LEN].try_into().unwrap());
    let start = PREAMBLE_LEN + FRAME_LEN + frame(PREAMBLE_LEN).len as usize;
    start..start + FRAME_LEN + frame(start).len as usize
}

#[test]
fn changes_are_critical_and_need_a_parent() {
    let bytes = image(5, &records(1), Some(&records(0)));
    let at = changes(&bytes).start;
    assert_eq!(bytes[at..at + 8], [11, 0, 0, 0, 1, 0, 0, 0], "type and flags");
    let mut tame = bytes.clone();
    tame[at + 4] = 0;
    assert!(matches!(stored(&tame).unwrap_err(), ImageError::UnknownFlags { .. }));
    let orphan = image(0, &records(1), Some(&records(0)));
    assert!(matches!(stored(&orphan).unwrap_err(), ImageError::Malformed { .. }));
}

#[test]
fn every_flipped_bit_and_every_truncation_is_noticed() {
    let bytes = image(5, &records(1), Some(&records(0)));
    for bit in 0..bytes.len() * 8 {
        let mut flipped = bytes.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(stored(&flipped).is_err(), "bit {} of byte {}", bit % 8, bit / 8);
    }
    assert!((0..bytes.len()).all(|len| stored(&bytes[..len]).is_err()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn hostile_changes_with_right_checksums_never_panic(edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..5)) {
        let (old, new) = (records(0), records(1));
        let mut bytes = image(5, &new, Some(&old));
        let range = changes(&bytes);
        for (at, value) in edits {
            let payload = range.start + FRAME_LEN..range.end;
            bytes[payload.start + at.index(payload.len())] = value;
        }
        let frame = Frame::of(RecordType::Delta, &bytes[range.start + FRAME_LEN..range.end]);
        bytes[range.start..range.start + FRAME_LEN].copy_from_slice(&frame.to_bytes());
        let stored = read_stored(&mut ImageReader::new(bytes.as_slice()).unwrap()).unwrap();
        prop_assert!(stored.resolve(Some(&old)).map_or(true, |resolved| resolved == new));
    }
}
