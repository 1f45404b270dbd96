//! The format as a whole: what is written comes back, and whatever is changed in it is noticed.

use std::fs::File;
use std::io::{self, Read, Seek};

use proptest::prelude::*;

use super::chunk::{Chunk, ChunkBuffer, MAX_DATA, MAX_DATA_PAGES, MAX_RUNS, Run, RunKind, SealedChunk};
use super::model::{Header, Object, Section, TaskEntry, TaskKind, TaskState, TaskTable, ThreadState};
use super::output::{FileOutput, Output};
use super::wire::{FLAG_CRITICAL, FRAME_LEN, Frame, PREAMBLE_LEN};
use super::*;
use crate::ids::{ImageId, ObjRef, PAGE_SIZE, PageRange, Pid, Tid};

const PAGE: usize = PAGE_SIZE as usize;

/// A chunk to be written: runs, and a byte that its data pages are full of (noise, if it is odd).
type ChunkPlan = (u32, Vec<(u64, RunKind)>, u8);

fn metadata(objects: u32, vmas: u64) -> Metadata {
    let section = Section { kind: "pipe".to_owned(), body: vec![1, 2, 3] };
    let thread = ThreadState { tid: Tid(7), sections: vec![section.clone()] };
    let entry = TaskEntry {
        pid: Pid(7),
        ppid: Pid(1),
        pgid: Pid(7),
        sid: Pid(7),
        threads: vec![Tid(7)],
        kind: TaskKind::Zombie(9),
        stopped_by: Some(19),
        stop_untold: true,
        exit_signal: 17,
        shares: model::Shares { files: Some(Pid(3)), ..model::Shares::default() },
        comm: "a\0b".to_owned(),
    };
    Metadata {
        header: Header { image_id: Some(ImageId(5)), page_size: PAGE as u32, time: (-1, 2), ..Header::default() },
        container: model::Container { is_container: true, ..Default::default() },
        tasks: TaskTable { tasks: vec![entry] },
        objects: (1..=objects).map(|n| Object { objref: ObjRef(n), section: section.clone() }).collect(),
        task_states: vec![TaskState { pid: Pid(7), sections: vec![], threads: vec![thread] }],
        vmas: (0..vmas).map(|n| EncodedVma(rmp_serde::to_vec_named(&(n, "rw-p")).unwrap())).collect(),
    }
}

fn write_metadata(writer: &mut ImageWriter<'_>, metadata: &Metadata) -> Result<(), ImageError> {
    writer.header(&metadata.header)?;
    writer.container(&metadata.container)?;
    writer.tasks(&metadata.tasks)?;
    metadata.objects.iter().try_for_each(|object| writer.object(object))?;
    metadata.task_states.iter().try_for_each(|state| writer.task_state(state))?;
    (0..metadata.vmas.len() as u64).try_for_each(|n| writer.vma(&(n, "rw-p")))
}

fn seal(owner: u32, runs: &[Run], fill: u8, codec: Codec) -> SealedChunk {
    let data: usize = runs.iter().filter(|run| run.kind == RunKind::Data).map(|run| run.pages.bytes() as usize).sum();
    let mut noise = u64::from(fill) | 1;
    let pages: Vec<u8> = (0..data)
        .map(|_| {
            noise = noise.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            if fill % 2 == 1 { (noise >> 56) as u8 } else { fill }
        })
        .collect();
    let mut buffer = ChunkBuffer::new();
    if codec == Codec::Lz4
        && let Some(len) = codec::pack(&pages, buffer.data())
    {
        return buffer.seal(ObjRef(owner), Codec::Lz4, runs, len);
    }
    buffer.data()[..data].copy_from_slice(&pages);
    buffer.seal(ObjRef(owner), Codec::Raw, runs, data)
}

/// Gives the planned runs pages one after another, with gaps, so that none comes twice.
fn chunks(plans: &[ChunkPlan], codec: Codec) -> Vec<SealedChunk> {
    let mut next = 0x7f00;
    let mut sealed = Vec::new();
    for (owner, runs, fill) in plans {
        let mut data = 0;
        let mut placed = Vec::new();
        for &(count, kind) in runs {
            let count = if kind == RunKind::Data { count.min(MAX_DATA_PAGES as u64 - data) } else { count };
            if count > 0 {
                data += if kind == RunKind::Data { count } else { 0 };
                placed.push(Run { pages: PageRange { start: next, count }, kind });
                next += count + u64::from(*fill) % 3;
            }
        }
        if !placed.is_empty() {
            sealed.push(seal(*owner, &placed, *fill, codec));
        }
    }
    sealed
}

fn finish(mut writer: ImageWriter<'_>, metadata: &Metadata, chunks: &[SealedChunk]) -> Result<TrailerInfo, ImageError> {
    write_metadata(&mut writer, metadata)?;
    chunks.iter().try_for_each(|chunk| writer.chunk(chunk))?;
    metadata.objects.iter().try_for_each(|object| writer.end_owner(object.objref))?;
    writer.finish()
}

fn to_stream(metadata: &Metadata, chunks: &[SealedChunk]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let info = finish(ImageWriter::new(&mut bytes).unwrap(), metadata, chunks).unwrap();
    assert_eq!(info.bytes, bytes.len() as u64);
    bytes
}

fn to_file(metadata: &Metadata, chunks: &[SealedChunk]) -> (File, Vec<u8>) {
    let file = tempfile::tempfile().unwrap();
    let info = finish(ImageWriter::to_file(&file).unwrap(), metadata, chunks).unwrap();
    let mut bytes = vec![0; info.bytes as usize];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, 0).unwrap();
    assert_eq!(file.metadata().unwrap().len(), info.bytes);
    (file, bytes)
}

fn check(bytes: &[u8]) -> Result<(Metadata, Summary), ImageError> {
    verify(&mut ImageReader::new(bytes)?)
}

/// A small image of both kinds: with and without index.
fn samples() -> [Vec<u8>; 2] {
    let run = |start, count, kind| Run { pages: PageRange { start, count }, kind };
    let sealed = [
        seal(1, &[run(5, 1, RunKind::Data), run(6, 9, RunKind::Zero)], 2, Codec::Lz4),
        seal(2, &[run(5, 7, RunKind::Hole)], 0, Codec::Raw),
    ];
    let metadata = metadata(2, 2);
    [to_stream(&metadata, &sealed), to_file(&metadata, &sealed).1]
}

/// The records of an image: where each begins and ends.
fn records(bytes: &[u8]) -> Vec<std::ops::Range<usize>> {
    let mut at = PREAMBLE_LEN;
    let mut found = Vec::new();
    while at < bytes.len() {
        let frame = Frame::from_bytes(bytes[at..at + FRAME_LEN].try_into().unwrap());
        let end = at + FRAME_LEN + frame.len as usize;
        found.push(at..end);
        at = end;
    }
    found
}

fn run_kinds() -> impl Strategy<Value = RunKind> {
    prop_oneof![Just(RunKind::Data), Just(RunKind::Zero), Just(RunKind::Hole)]
}

fn plans() -> impl Strategy<Value = Vec<ChunkPlan>> {
    let runs = proptest::collection::vec((1..40u64, run_kinds()), 0..12);
    proptest::collection::vec((1..4u32, runs, any::<u8>()), 0..8)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_written_comes_back(plans in plans(), vmas in 0..5u64, lz4: bool) {
        let codec = if lz4 { Codec::Lz4 } else { Codec::Raw };
        let (metadata, sealed) = (metadata(3, vmas), chunks(&plans, codec));
        let expected: Vec<Vec<u8>> = sealed.iter().map(|chunk| chunk.record()[FRAME_LEN..].to_vec()).collect();
        let (file, in_file) = to_file(&metadata, &sealed);
        for bytes in [to_stream(&metadata, &sealed), in_file] {
            let (found, summary) = check(&bytes).unwrap();
            prop_assert_eq!(&found, &metadata);
            prop_assert_eq!(summary.records[&RecordType::Chunk], sealed.len() as u64 + 3);

            let mut reader = ImageReader::new(bytes.as_slice()).unwrap();
            read_metadata(&mut reader).unwrap();
            let mut payload = Payload::default();
            for expected in &expected {
                reader.next_checked(&mut payload).unwrap().unwrap();
                prop_assert_eq!(payload.bytes(), expected.as_slice());
            }
        }
        let (index, trailer) = Index::find(&file).unwrap().unwrap();
        prop_assert_eq!(index.chunks.len(), sealed.len() + 3);
        prop_assert_eq!(trailer.records, (index.chunks.len() + index.records.len()) as u64);
    }

    #[test]
    fn random_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
        let _ = Chunk::parse(&bytes, Place::default()).map(|chunk| chunk.data(&mut vec![0; MAX_DATA], Place::default()).map(drop));
        let _ = check(&bytes);
        // The same behind what makes them look like an image: with right checksums everything in them is decoded.
        for record_type in RecordType::ALL {
            let sample = &samples()[0];
            let upto = records(sample).into_iter().find(|r| sample[r.start] >= (record_type as u8).min(9)).unwrap().start;
            let image = [&sample[..upto], &Frame::of(record_type, &bytes).to_bytes(), &bytes].concat();
            prop_assert!(check(&image).is_err());
        }
    }

    #[test]
    fn random_changes_with_right_checksums_never_panic(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4), which in 0..2usize,
    ) {
        let mut bytes = samples()[which].clone();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            let record = records(&samples()[which]).into_iter().find(|r| (r.start + FRAME_LEN..r.end).contains(&at));
            if let Some(record) = record {
                bytes[at] = value;
                let record_type = RecordType::from_number(bytes[record.start].into()).unwrap();
                let frame = Frame::of(record_type, &bytes[record.start + FRAME_LEN..record.end]);
                bytes[record.start..record.start + FRAME_LEN].copy_from_slice(&frame.to_bytes());
            }
        }
        let _ = check(&bytes);
    }
}

#[test]
fn every_flipped_bit_is_noticed() {
    for sample in samples() {
        assert!(check(&sample).is_ok());
        for bit in 0..sample.len() * 8 {
            let mut bytes = sample.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(check(&bytes).is_err(), "bit {} of byte {}", bit % 8, bit / 8);
        }
    }
}

#[test]
fn every_truncation_is_noticed() {
    for sample in samples() {
        for len in 0..sample.len() {
            let error = check(&sample[..len]).unwrap_err();
            let expected =
                if len == 0 { matches!(error, ImageError::NotAnImage) } else { matches!(error, ImageError::Truncated(_)) };
            assert!(expected, "{len} bytes: {error}");
        }
    }
}

#[test]
fn records_cannot_be_swapped_dropped_repeated_or_taken_from_elsewhere() {
    let bytes = &samples()[0];
    let records = records(bytes);
    let rebuilt = |order: &[usize]| {
        let mut image = bytes[..PREAMBLE_LEN].to_vec();
        order.iter().for_each(|&n| image.extend_from_slice(&bytes[records[n].clone()]));
        check(&image)
    };
    let all: Vec<usize> = (0..records.len()).collect();
    assert!(rebuilt(&all).is_ok());
    for n in 0..all.len() {
        let mut dropped = all.clone();
        dropped.remove(n);
        assert!(rebuilt(&dropped).is_err(), "record {n} dropped");
        let mut repeated = all.clone();
        repeated.insert(n, n);
        assert!(rebuilt(&repeated).is_err(), "record {n} repeated");
        for m in 0..n {
            let mut swapped = all.clone();
            swapped.swap(n, m);
            assert!(rebuilt(&swapped).is_err(), "records {n} and {m} swapped");
        }
    }
}

/// The image with one bit of the payload of a record changed (the last one is 0), and that record's checksum made right.
fn forge(bytes: &[u8], from_end: usize, at: usize) -> Vec<u8> {
    let mut forged = bytes.to_vec();
    let record = records(bytes).into_iter().nth_back(from_end).unwrap();
    forged[record.start + FRAME_LEN + at] ^= 1;
    let record_type = RecordType::from_number(bytes[record.start].into()).unwrap();
    let frame = Frame::of(record_type, &forged[record.start + FRAME_LEN..record.end]);
    forged[record.start..record.start + FRAME_LEN].copy_from_slice(&frame.to_bytes());
    forged
}

#[test]
fn a_trailer_or_index_that_tells_other_things_is_noticed() {
    let [stream, file] = samples();
    for (at, what) in [(16, "records"), (24, "checksums"), (32, "pages"), (40, "pages"), (48, "pages")] {
        let error = check(&forge(&stream, 0, at)).unwrap_err();
        assert!(matches!(&error, ImageError::Chain { what: found, .. } if found.contains(what)), "{error}");
    }
    let index =
        Index::parse(&file[records(&file).last().unwrap().start + FRAME_LEN..], Place { record: 0, offset: file.len() as u64 });
    assert!(matches!(index.unwrap_err(), ImageError::Malformed { .. }), "an index in another place");
    // The type of the first record, and the owner of the first chunk behind the entries of seven records.
    for at in [32 + 8, 32 + 7 * 16 + 8] {
        let error = check(&forge(&file, 0, at)).unwrap_err();
        assert!(matches!(&error, ImageError::Chain { what: "its index names other records", .. }), "{error}");
    }
    assert!(check(&forge(&file, 0, 8)).is_err(), "the index of another trailer");
}

#[test]
fn unknown_records_are_passed_over_unless_they_are_critical() {
    let sample = &samples()[0];
    let first = records(sample)[1].clone();
    for (flags, len, lie) in [(0, 3, 0), (0, 0, 0), (FLAG_CRITICAL, 3, 0), (2, 3, 0), (0, 3, 1)] {
        let frame = Frame { record_type: 77, flags, len, checksum: xxhash_rust::xxh3::xxh3_64(&b"abc"[..len as usize]) + lie };
        let image = [&sample[..first.start], &frame.to_bytes(), &b"abc"[..len as usize], &sample[first.start..]].concat();
        let error = check(&image).unwrap_err();
        match (flags, lie) {
            // Passed over: only the trailer, which was not made for it, objects.
            (0, 0) => assert!(matches!(error, ImageError::Chain { .. }), "{error}"),
            (FLAG_CRITICAL, _) => assert!(matches!(error, ImageError::UnknownCritical { record_type: 77, .. }), "{error}"),
            (2, _) => assert!(matches!(error, ImageError::UnknownFlags { flags: 2, .. }), "{error}"),
            _ => assert!(matches!(error, ImageError::Checksum(_)), "{error}"),
        }
    }
}

#[test]
fn a_length_that_lies_costs_no_memory() {
    struct Endless(u64);
    impl Read for Endless {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            self.0 += buf.len() as u64;
            assert!(self.0 < 3 << 20, "the length was believed");
            buf.fill(0x90);
            Ok(buf.len())
        }
    }
    for (record_type, len) in [(RecordType::Header, 1 << 20), (RecordType::Chunk, 2 << 20), (RecordType::Object, u64::MAX)] {
        let sample = &samples()[0];
        let upto = records(sample).into_iter().find(|r| u32::from(sample[r.start]) >= record_type as u32).unwrap().start;
        let frame = Frame { record_type: record_type as u32, flags: 0, len, checksum: 0 };
        let image = [&sample[..upto], &frame.to_bytes()].concat();
        let error = verify(&mut ImageReader::new(image.chain(Endless(0))).unwrap()).unwrap_err();
        assert!(matches!(error, ImageError::TooLong { .. }), "{error}");
    }
    let mut payload = Payload::default();
    let frame = Frame { record_type: RecordType::Object as u32, flags: 0, len: 60 << 20, checksum: 0 };
    let image = [&samples()[0][..records(&samples()[0])[3].start], &frame.to_bytes(), b"short"].concat();
    let mut reader = ImageReader::new(image.as_slice()).unwrap();
    let error = (0..4).map(|_| reader.next_raw(&mut payload)).find_map(Result::err).unwrap();
    assert!(matches!(error, ImageError::Truncated(_)), "{error}");
    assert!(payload.capacity() < 2 << 20);
}

#[test]
fn deep_nesting_is_an_error_and_no_overflow() {
    for (nested, depth) in [(0x91, 60_000), (0x81, 60_000)] {
        // A header with one field that is not known, which must be passed over.
        let payload = [b"\x81\xa2zz" as &[u8], &vec![nested; depth]].concat();
        let image = [&wire::preamble() as &[u8], &Frame::of(RecordType::Header, &payload).to_bytes(), &payload].concat();
        let error = check(&image).unwrap_err();
        assert!(matches!(error, ImageError::Decode { .. }), "{error}");
    }
}

#[test]
fn a_failure_stands_at_the_end_of_the_image() {
    let mut bytes = Vec::new();
    let mut writer = ImageWriter::new(&mut bytes).unwrap();
    write_metadata(&mut writer, &metadata(1, 0)).unwrap();
    writer.fail("pid 7 has \x1b[2J in its name").unwrap();
    assert!(bytes.ends_with(b"\0pid 7 has \x1b[2J in its name"));
    let error = check(&bytes).unwrap_err();
    assert!(matches!(&error, ImageError::RecordedFailure(text) if text == "pid 7 has \u{fffd}[2J in its name"), "{error}");

    let mut bytes = Vec::new();
    ImageWriter::new(&mut bytes).unwrap().fail(&"é".repeat(50_000)).unwrap();
    assert!(matches!(check(&bytes).unwrap_err(), ImageError::RecordedFailure(_)));
}

/// A file on a disk that has room for so many bytes.
#[derive(Debug)]
struct SmallDisk<'f>(FileOutput<'f>, u64);

impl Output for SmallDisk<'_> {
    fn seekable(&self) -> bool {
        true
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let room = self.1.saturating_sub(offset).min(bytes.len() as u64) as usize;
        self.0.write_at(&bytes[..room], offset)?;
        if room < bytes.len() { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }

    fn cut_back(&self, offset: u64) -> io::Result<bool> {
        self.0.cut_back(offset)
    }

    fn finish(&self, end: u64) -> io::Result<()> {
        self.0.finish(end)
    }
}

#[test]
fn what_could_not_be_written_whole_is_cut_off_and_the_reason_recorded() {
    let mut file = tempfile::tempfile().unwrap();
    let mut writer = ImageWriter::to_output(Box::new(SmallDisk(FileOutput::new(&file).unwrap(), 100_000))).unwrap();
    write_metadata(&mut writer, &metadata(1, 1)).unwrap();
    let chunk = |start| seal(1, &[Run { pages: PageRange { start, count: 16 }, kind: RunKind::Data }], 1, Codec::Raw);
    writer.chunk(&chunk(0)).unwrap();
    assert!(matches!(writer.chunk(&chunk(16)).unwrap_err(), ImageError::Write { .. }));
    assert!(matches!(writer.chunk(&chunk(32)).unwrap_err(), ImageError::GivenUp));
    writer.fail("the disk is full").unwrap();
    file.rewind().unwrap();
    let error = verify(&mut ImageReader::new(&file).unwrap()).unwrap_err();
    assert!(matches!(&error, ImageError::RecordedFailure(text) if text == "the disk is full"), "{error}");
}

#[test]
fn a_stream_that_broke_is_given_up() {
    let (reader, pipe) = std::io::pipe().unwrap();
    let mut writer = ImageWriter::new(pipe).unwrap();
    drop(reader);
    assert!(matches!(write_metadata(&mut writer, &metadata(1, 1)).unwrap_err(), ImageError::Write { .. }));
    assert!(matches!(writer.end_owner(ObjRef(1)).unwrap_err(), ImageError::GivenUp));
    assert!(matches!(writer.fail("nobody will hear this").unwrap_err(), ImageError::GivenUp));
}

#[test]
fn chunks_of_many_threads_make_one_image() {
    let file = tempfile::tempfile().unwrap();
    let mut writer = ImageWriter::to_file(&file).unwrap();
    write_metadata(&mut writer, &metadata(4, 0)).unwrap();
    std::thread::scope(|scope| {
        for owner in 1..=4 {
            let writer = &writer;
            scope.spawn(move || {
                for start in 0..50 {
                    let runs = [Run { pages: PageRange { start, count: 1 }, kind: RunKind::Data }];
                    writer.chunk(&seal(owner, &runs, start as u8, Codec::Raw)).unwrap();
                }
                writer.end_owner(ObjRef(owner)).unwrap();
            });
        }
    });
    let info = writer.finish().unwrap();
    (&file).rewind().unwrap();
    let (_, summary) = verify(&mut ImageReader::new(&file).unwrap()).unwrap();
    assert_eq!((summary.pages.data, summary.owners.len()), (200, 4));
    assert_eq!(summary.trailer_checksum, info.trailer_checksum);
}

#[test]
fn an_image_may_stand_behind_other_bytes_and_before_others() {
    let mut file = tempfile::tempfile().unwrap();
    std::io::Write::write_all(&mut file, b"before").unwrap();
    finish(ImageWriter::to_file(&file).unwrap(), &metadata(1, 0), &[]).unwrap();
    std::io::Write::write_all(&mut file, b"after").unwrap();
    let mut bytes = Vec::new();
    file.rewind().unwrap();
    file.read_to_end(&mut bytes).unwrap();
    assert!(bytes.starts_with(b"before") && bytes.ends_with(b"after"));
    check(&bytes[6..bytes.len() - 5]).unwrap();

    let mut input = &bytes[6..];
    let mut reader = ImageReader::new(&mut input).unwrap();
    read_metadata(&mut reader).unwrap();
    while reader.next_checked(&mut Payload::default()).unwrap().is_some() {}
    assert!(reader.read_index().unwrap().is_some());
    assert_eq!(input, b"after");
}

#[test]
fn a_full_chunk_fits() {
    let mut runs: Vec<Run> = (0..MAX_RUNS as u64)
        .map(|n| Run { pages: PageRange { start: 2 * n, count: 1 }, kind: if n < 256 { RunKind::Data } else { RunKind::Hole } })
        .collect();
    runs[1023].pages.count = u32::MAX.into();
    for codec in [Codec::Raw, Codec::Lz4] {
        let sealed = seal(1, &runs, 6, codec);
        let chunk = Chunk::parse(&sealed.record()[FRAME_LEN..], Place::default()).unwrap();
        assert_eq!((chunk.codec, &chunk.runs), (codec, &runs));
        assert_eq!(chunk.data(&mut vec![0; MAX_DATA], Place::default()).unwrap(), vec![6; MAX_DATA]);
        assert_eq!(chunk.span(), sealed.span);
    }
}
