//! The streams as a whole: every page arrives, whatever the threads do, and every failure ends everything.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use proptest::prelude::*;

use super::*;
use crate::error::Error;
use crate::ids::PAGE_SIZE;
use crate::image::model::{Container, Header, Object, Section, TaskTable};
use crate::image::wire::{FRAME_LEN, Frame, TRAILER_LEN};
use crate::image::{Codec, ImageError, ImageReader, ImageWriter, RecordType, read_metadata, verify};

const PAGE: usize = PAGE_SIZE as usize;

/// What a page is full of: every third all zeros, every third noise, the others of one byte.
fn page_of(owner: ObjRef, page: u64) -> Vec<u8> {
    let mut noise = (u64::from(owner.0) << 40) ^ page | 1;
    let mut next = || {
        noise = noise.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (noise >> 56) as u8
    };
    match page % 3 {
        0 => vec![0; PAGE],
        1 => (0..PAGE).map(|_| next()).collect(),
        _ => vec![next() | 1; PAGE],
    }
}

/// Gives [`page_of`], but no page from `broken` on.
struct Pattern {
    broken: u64,
}

const WHOLE: Pattern = Pattern { broken: u64::MAX };

impl PageSource for Pattern {
    fn read(&self, owner: ObjRef, ranges: &[PageRange], buf: &mut [u8]) -> Result<()> {
        assert_eq!(buf.len() as u64, ranges.iter().map(|range| range.bytes()).sum::<u64>());
        let pages = ranges.iter().flat_map(|range| range.start..range.end());
        for (page, bytes) in pages.zip(buf.chunks_exact_mut(PAGE)) {
            if page >= self.broken {
                return Err(Error::Unexpected(format!("page {page} cannot be read")));
            }
            bytes.copy_from_slice(&page_of(owner, page));
        }
        Ok(())
    }
}

/// Every page of every owner; `None` is a hole.
type Pages = BTreeMap<(ObjRef, u64), Option<Vec<u8>>>;

/// Remembers every page.
#[derive(Default)]
struct Memory {
    pages: Mutex<Pages>,
    broken: Option<u64>,
}

impl Memory {
    fn put(&self, owner: ObjRef, page: u64, bytes: Option<Vec<u8>>) -> Result<()> {
        if self.broken.is_some_and(|broken| page >= broken) {
            return Err(Error::Unexpected(format!("page {page} cannot be written")));
        }
        assert!(self.pages.lock().unwrap().insert((owner, page), bytes).is_none());
        Ok(())
    }
}

impl PageSink for Memory {
    fn data(&self, owner: ObjRef, ranges: &[PageRange], bytes: &[u8]) -> Result<()> {
        let pages = ranges.iter().flat_map(|range| range.start..range.end());
        pages.zip(bytes.chunks_exact(PAGE)).try_for_each(|(page, bytes)| self.put(owner, page, Some(bytes.to_vec())))
    }

    fn zero(&self, owner: ObjRef, pages: PageRange) -> Result<()> {
        (pages.start..pages.end()).try_for_each(|page| self.put(owner, page, Some(vec![0; PAGE])))
    }

    fn hole(&self, owner: ObjRef, pages: PageRange) -> Result<()> {
        (pages.start..pages.end()).try_for_each(|page| self.put(owner, page, None))
    }
}

fn begin(writer: &mut ImageWriter<'_>) {
    writer.header(&Header { page_size: PAGE as u32, ..Header::default() }).unwrap();
    writer.container(&Container::default()).unwrap();
    writer.tasks(&TaskTable::default()).unwrap();
    for n in 1..=3 {
        let section = Section { kind: "mm".to_owned(), body: Vec::new() };
        writer.object(&Object { objref: ObjRef(n), section }).unwrap();
    }
}

fn extent(owner: u32, start: u64, count: u64, kind: ExtentKind) -> Extent {
    Extent { owner: ObjRef(owner), pages: PageRange { start, count }, kind }
}

fn options(codec: Codec, workers: usize) -> DumpOptions<'static> {
    DumpOptions { codec, workers, known: None, live: None }
}

fn dump_to(out: impl Write + Send, plan: &[Extent], codec: Codec, workers: usize) -> DumpStats {
    let mut writer = ImageWriter::new(out).unwrap();
    begin(&mut writer);
    let last = std::cell::Cell::new(0);
    let progress = |pages| assert!(last.replace(pages) <= pages);
    let stats = dump(plan, &WHOLE, &mut writer, &options(codec, workers), &progress).unwrap();
    end_owners(plan, &mut writer).unwrap();
    assert_eq!(last.get(), pages_to_read(plan));
    writer.finish().unwrap();
    stats
}

fn load_from(input: impl Read, sink: &Memory, workers: usize) -> Result<LoadStats> {
    let mut reader = ImageReader::new(input)?;
    read_metadata(&mut reader)?;
    load(&mut reader, sink, &LoadOptions { workers }, &|_| ())
}

fn expected(plan: &[Extent]) -> Pages {
    let page = |e: &Extent, n| match e.kind {
        ExtentKind::Read => Some(page_of(e.owner, n)),
        ExtentKind::Zero => Some(vec![0; PAGE]),
        ExtentKind::Hole => None,
    };
    plan.iter().flat_map(|e| (e.pages.start..e.pages.end()).map(|n| ((e.owner, n), page(e, n)))).collect()
}

fn plans() -> impl Strategy<Value = Vec<Extent>> {
    let kinds = prop_oneof![3 => Just(ExtentKind::Read), 1 => Just(ExtentKind::Zero), 1 => Just(ExtentKind::Hole)];
    proptest::collection::vec((1..4u32, 0..400u64, 0..9u64, kinds), 0..20).prop_map(|raw| {
        let mut next = 1;
        raw.into_iter()
            .map(|(owner, count, gap, kind)| {
                let placed = extent(owner, next + gap, count, kind);
                next = placed.pages.end();
                placed
            })
            .collect()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn every_page_arrives(plan in plans(), lz4: bool, workers in 1..5usize, stream: bool) {
        let codec = if lz4 { Codec::Lz4 } else { Codec::Raw };
        let mut bytes = Vec::new();
        let dumped = if stream {
            dump_to(&mut bytes, &plan, codec, workers)
        } else {
            let mut file = tempfile::tempfile().unwrap();
            let mut writer = ImageWriter::to_file(&file).unwrap();
            begin(&mut writer);
            let stats = dump(&plan, &WHOLE, &mut writer, &options(codec, workers), &|_| ()).unwrap();
            end_owners(&plan, &mut writer).unwrap();
            writer.finish().unwrap();
            file.rewind().unwrap();
            file.read_to_end(&mut bytes).unwrap();
            stats
        };
        let memory = Memory::default();
        let loaded = load_from(bytes.as_slice(), &memory, workers).unwrap();
        prop_assert_eq!(memory.pages.into_inner().unwrap(), expected(&plan));
        let mut owners: Vec<ObjRef> = plan.iter().map(|e| e.owner).collect();
        owners.sort();
        owners.dedup();
        let LoadStats { pages_data, pages_zero, pages_hole, bytes_raw, bytes_stored, .. } = loaded;
        prop_assert_eq!(DumpStats { pages_data, pages_zero, pages_hole, bytes_raw, bytes_stored }, dumped);
        prop_assert_eq!(loaded.owners, owners);
        let (_, summary) = verify(&mut ImageReader::new(bytes.as_slice()).unwrap()).unwrap();
        prop_assert_eq!((summary.bytes_raw, summary.bytes_stored), (bytes_raw, bytes_stored));
        prop_assert!(!lz4 || bytes_raw < 100 * PAGE_SIZE || bytes_stored < bytes_raw * 3 / 4);
    }
}

/// A chunk of which nothing is left would end its owner.
#[test]
fn pieces_that_are_known_as_a_whole_are_left_out() {
    struct Known(u64);
    impl KnownPages for Known {
        fn is_known(&self, _: ObjRef, page: u64, _: &[u8]) -> bool {
            page >= self.0
        }
    }
    for unknown in [0, 1, 300] {
        let mut bytes = Vec::new();
        let mut writer = ImageWriter::new(&mut bytes).unwrap();
        begin(&mut writer);
        let known = Known(unknown);
        let options = DumpOptions { known: Some(&known), ..options(Codec::Raw, 2) };
        let plan = [extent(1, 0, 1000, ExtentKind::Read)];
        dump(&plan, &WHOLE, &mut writer, &options, &|_| ()).unwrap();
        end_owners(&plan, &mut writer).unwrap();
        writer.finish().unwrap();
        let memory = Memory::default();
        assert_eq!(load_from(bytes.as_slice(), &memory, 2).unwrap().owners, [ObjRef(1)]);
        assert_eq!(memory.pages.into_inner().unwrap(), expected(&[extent(1, 0, unknown, ExtentKind::Read)]));
    }
}

#[test]
fn an_image_goes_through_a_pipe_while_it_is_made() {
    let plan = [extent(1, 0, 5000, ExtentKind::Read), extent(2, 0, 700, ExtentKind::Read)];
    let (reader, writer) = io::pipe().unwrap();
    let memory = Memory::default();
    std::thread::scope(|scope| {
        scope.spawn(|| dump_to(writer, &plan, Codec::Lz4, 3));
        load_from(reader, &memory, 3).unwrap();
    });
    assert_eq!(memory.pages.into_inner().unwrap(), expected(&plan));
}

#[test]
fn an_error_of_the_source_ends_the_dump() {
    let plan = [extent(1, 0, 20_000, ExtentKind::Read)];
    for (broken, workers) in [(0, 1), (0, 4), (300, 1), (3000, 3), (19_999, 4)] {
        let file = tempfile::tempfile().unwrap();
        for mut writer in [ImageWriter::new(io::sink()).unwrap(), ImageWriter::to_file(&file).unwrap()] {
            begin(&mut writer);
            let error = dump(&plan, &Pattern { broken }, &mut writer, &options(Codec::Raw, workers), &|_| ()).unwrap_err();
            assert!(error.to_string().ends_with("cannot be read"), "{error}");
            writer.fail(&error.to_string()).unwrap();
        }
        (&file).rewind().unwrap();
        let error = verify(&mut ImageReader::new(&file).unwrap()).unwrap_err();
        assert!(matches!(&error, ImageError::RecordedFailure(text) if text.ends_with("cannot be read")), "{error}");
    }
}

/// Takes so many bytes, then says that the disk is full.
struct Full(u64);

impl Write for Full {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.0 = self.0.checked_sub(buf.len() as u64).ok_or(io::ErrorKind::StorageFull)?;
        Ok(buf.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn an_error_of_the_output_ends_the_dump() {
    let plan = [extent(1, 0, 20_000, ExtentKind::Read)];
    for (room, workers) in [(5_000, 1), (5_000, 4), (30 << 20, 4)] {
        let mut writer = ImageWriter::new(Full(room)).unwrap();
        begin(&mut writer);
        let error = dump(&plan, &WHOLE, &mut writer, &options(Codec::Raw, workers), &|_| ()).unwrap_err();
        assert!(matches!(error, Error::Image(ImageError::Write { .. })), "{error}");
    }
    // A character device is no regular file: the stream's way.
    let full = File::options().write(true).open("/dev/full").unwrap();
    assert!(matches!(ImageWriter::to_file(&full).unwrap_err(), ImageError::Write { .. }));
}

#[test]
fn an_error_of_the_sink_ends_the_load() {
    let plan = [extent(1, 0, 20_000, ExtentKind::Read)];
    let mut bytes = Vec::new();
    dump_to(&mut bytes, &plan, Codec::Lz4, 2);
    for (broken, workers) in [(0, 1), (0, 4), (5000, 2), (19_999, 4)] {
        let memory = Memory { broken: Some(broken), ..Memory::default() };
        let error = load_from(bytes.as_slice(), &memory, workers).unwrap_err();
        assert!(error.to_string().ends_with("cannot be written"), "{error}");
    }
}

#[test]
fn a_damaged_image_ends_the_load() {
    let plan = [extent(1, 0, 3000, ExtentKind::Read), extent(2, 7, 9, ExtentKind::Hole)];
    let mut bytes = Vec::new();
    dump_to(&mut bytes, &plan, Codec::Lz4, 2);
    for at in (20..bytes.len()).step_by(bytes.len() / 97) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x10;
        assert!(load_from(damaged.as_slice(), &Memory::default(), 2).is_err(), "byte {at} changed");
        assert!(load_from(&bytes[..at], &Memory::default(), 2).is_err(), "cut off at byte {at}");
    }
}

#[test]
fn a_trailer_that_counts_other_pages_ends_the_load() {
    let mut bytes = Vec::new();
    dump_to(&mut bytes, &[extent(1, 0, 30, ExtentKind::Read)], Codec::Raw, 2);
    load_from(bytes.as_slice(), &Memory::default(), 2).unwrap();
    let payload = bytes.len() - TRAILER_LEN;
    bytes[payload + 32] ^= 1;
    let frame = Frame::of(RecordType::Trailer, &bytes[payload..]);
    bytes[payload - FRAME_LEN..payload].copy_from_slice(&frame.to_bytes());
    let error = load_from(bytes.as_slice(), &Memory::default(), 2).unwrap_err();
    assert!(matches!(error, Error::Image(ImageError::Chain { what: "it counts other pages", .. })), "{error}");
}

#[test]
fn a_panicking_source_is_an_error_and_no_hang() {
    struct Panics(AtomicU64);
    impl PageSource for Panics {
        fn read(&self, _: ObjRef, _: &[PageRange], buf: &mut [u8]) -> Result<()> {
            buf.fill(1);
            assert!(self.0.fetch_add(1, Ordering::Relaxed) < 5, "on purpose");
            Ok(())
        }
    }
    let mut writer = ImageWriter::new(io::sink()).unwrap();
    begin(&mut writer);
    let plan = [extent(1, 0, 1 << 20, ExtentKind::Read)];
    let source = Panics(AtomicU64::new(0));
    let error = dump(&plan, &source, &mut writer, &options(Codec::Raw, 3), &|_| ()).unwrap_err();
    assert!(error.to_string().contains("panicked"), "{error}");
    assert!(source.0.into_inner() < 20);
}
