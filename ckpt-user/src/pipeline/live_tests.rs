//! Pages that change while they are saved, in a model of memory: threads that write to it at full speed, each doing before a write what the eBPF
//! programs do, and the same rule of claims on the side of the pipeline. What is saved must be what the pages held at the cut.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

use proptest::prelude::*;

use super::*;
use crate::error::Error;
use crate::ids::PAGE_SIZE;
use crate::image::model::{Container, Header, Object, Section, TaskTable};
use crate::image::{Codec, ImageReader, ImageWriter, read_metadata};

const PAGE: usize = PAGE_SIZE as usize;
/// Two memories, with pages of the same numbers: those of the cells with an even number, and the others.
const OWNERS: [ObjRef; 2] = [ObjRef(1), ObjRef(2)];
/// Where the memories begin.
const FIRST: u64 = 1000;

/// A page that somebody writes to and somebody else reads: its value stands for all its bytes.
#[derive(Default)]
struct Cell {
    value: AtomicU64,
    protected: AtomicBool,
    claimed: AtomicBool,
    faulted: AtomicBool,
}

struct Model {
    cells: Vec<Cell>,
    ring: Mutex<VecDeque<(u64, u64)>>,
    ring_room: usize,
    settled: AtomicU64,
    taken: AtomicU64,
}

impl Model {
    /// Each page holds its number, and is protected.
    fn at_the_cut(pages: usize, ring_room: usize) -> Model {
        let cell = |n| Cell { value: AtomicU64::new(n as u64), protected: AtomicBool::new(true), ..Cell::default() };
        let (settled, taken) = (AtomicU64::new(0), AtomicU64::new(0));
        Model { cells: (0..pages).map(cell).collect(), ring: Mutex::default(), ring_room, settled, taken }
    }

    /// A write by the process: a fault, if the page is protected, at the start of which the program runs.
    fn write(&self, n: usize, value: u64) {
        let cell = &self.cells[n];
        if cell.protected.load(Ordering::SeqCst) {
            self.before_write(n);
            cell.protected.store(false, Ordering::SeqCst);
        }
        cell.value.store(value, Ordering::SeqCst);
    }

    /// A write past the page fault.
    fn write_directly(&self, n: usize, value: u64) {
        self.cells[n].protected.store(false, Ordering::SeqCst);
        self.cells[n].value.store(value, Ordering::SeqCst);
    }

    fn before_write(&self, n: usize) {
        let cell = &self.cells[n];
        if !cell.claimed.load(Ordering::SeqCst) {
            let old = cell.value.load(Ordering::SeqCst);
            let mut ring = self.ring.lock().unwrap();
            // Another writer that finds it claimed goes on at once, so this comes before.
            if ring.len() == self.ring_room || !cell.protected.load(Ordering::SeqCst) {
                return;
            }
            if !cell.claimed.swap(true, Ordering::SeqCst) {
                ring.push_back((n as u64, old));
            }
        }
        if cell.protected.load(Ordering::SeqCst) {
            cell.faulted.store(true, Ordering::SeqCst);
        }
    }

    fn cell(&self, owner: ObjRef, page: u64) -> &Cell {
        &self.cells[number_of(owner, page)]
    }
}

fn number_of(owner: ObjRef, page: u64) -> usize {
    2 * (page - FIRST) as usize + usize::from(owner == OWNERS[1])
}

fn page_of(number: usize) -> (ObjRef, u64) {
    (OWNERS[number % 2], FIRST + number as u64 / 2)
}

/// A page full of a value, and never of zeros.
fn bytes_of(value: u64) -> [u8; PAGE] {
    let mut bytes = [0; PAGE];
    bytes.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&(value + 1).to_le_bytes()));
    bytes
}

impl PageSource for Model {
    fn read(&self, owner: ObjRef, ranges: &[PageRange], buf: &mut [u8]) -> Result<()> {
        for (page, bytes) in ranges.iter().flat_map(|range| range.numbers()).zip(buf.chunks_exact_mut(PAGE)) {
            bytes.copy_from_slice(&bytes_of(self.cell(owner, page).value.load(Ordering::SeqCst)));
        }
        Ok(())
    }
}

impl LivePages for Model {
    fn has(&self, owner: ObjRef) -> bool {
        OWNERS.contains(&owner)
    }

    fn left(&self, owner: ObjRef, ranges: &[PageRange]) -> Vec<PageRange> {
        let pages = ranges.iter().flat_map(|range| range.numbers());
        let free = pages.filter(|&page| !self.cell(owner, page).claimed.load(Ordering::SeqCst));
        free.map(|start| PageRange { start, count: 1 }).collect()
    }

    fn settle(&self, owner: ObjRef, ranges: &[PageRange]) -> Result<Vec<u64>> {
        let pages: Vec<u64> = ranges.iter().flat_map(|range| range.numbers()).collect();
        let claim = |page: &u64| self.cell(owner, *page).claimed.swap(true, Ordering::SeqCst);
        let lost: Vec<u64> = pages.iter().copied().filter(claim).collect();
        for page in pages.iter().filter(|page| !lost.contains(page)) {
            let cell = self.cell(owner, *page);
            if !cell.protected.load(Ordering::SeqCst) && !cell.faulted.load(Ordering::SeqCst) {
                return Err(Error::Void(format!("page {page}")));
            }
        }
        self.settled.fetch_add((pages.len() - lost.len()) as u64, Ordering::SeqCst);
        Ok(lost)
    }

    fn waiting(&self) -> u64 {
        self.ring.lock().unwrap().len() as u64
    }

    fn take(&self, buf: &mut [u8]) -> Result<Vec<(ObjRef, u64)>> {
        let mut ring = self.ring.lock().unwrap();
        let count = ring.len().min(buf.len() / PAGE);
        let entries: Vec<(u64, u64)> = ring.drain(..count).collect();
        drop(ring);
        for ((_, value), bytes) in entries.iter().zip(buf.chunks_exact_mut(PAGE)) {
            bytes.copy_from_slice(&bytes_of(*value));
        }
        self.taken.fetch_add(count as u64, Ordering::SeqCst);
        Ok(entries.into_iter().map(|(n, _)| page_of(n as usize)).collect())
    }

    fn is_complete(&self) -> Result<bool> {
        let done = self.settled.load(Ordering::SeqCst) + self.taken.load(Ordering::SeqCst);
        Ok(done == self.cells.len() as u64)
    }
}

/// Saves the pages of the model while `writers` write to it, until the dump is done, as `write` does it.
fn save_under_fire(model: &Model, workers: usize, writers: usize, write: impl Fn(usize, u64) + Sync) -> Result<Vec<u8>> {
    let all = model.cells.len() as u64;
    let extent = |owner, count| Extent { owner, pages: PageRange { start: FIRST, count }, kind: ExtentKind::Read };
    let plan = [extent(OWNERS[0], all.div_ceil(2)), extent(OWNERS[1], all / 2)];
    let mut image = Vec::new();
    let mut writer = ImageWriter::new(&mut image).unwrap();
    writer.header(&Header { page_size: PAGE_SIZE as u32, ..Header::default() }).unwrap();
    writer.container(&Container::default()).unwrap();
    writer.tasks(&TaskTable::default()).unwrap();
    let section = Section { kind: "mm".to_owned(), body: Vec::new() };
    OWNERS.iter().for_each(|&objref| writer.object(&Object { objref, section: section.clone() }).unwrap());
    let done = AtomicBool::new(false);
    let dumped = thread::scope(|scope| {
        for seed in 0..writers {
            let (done, write) = (&done, &write);
            scope.spawn(move || {
                let mut random = seed as u64 * 77 + 1;
                while !done.load(Ordering::Relaxed) {
                    random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                    write((random >> 33) as usize % model.cells.len(), random | 1 << 40);
                }
            });
        }
        let options = DumpOptions { codec: Codec::Lz4, workers, live: Some(model), ..DumpOptions::default() };
        let dumped = dump(&plan, model, &mut writer, &options, &|_| ());
        done.store(true, Ordering::Relaxed);
        dumped
    });
    dumped?;
    end_owners(&plan, &mut writer).unwrap();
    writer.finish().unwrap();
    Ok(image)
}

#[derive(Default)]
struct Pages(Mutex<BTreeMap<usize, Vec<u8>>>);

impl PageSink for Pages {
    fn data(&self, owner: ObjRef, ranges: &[PageRange], bytes: &[u8]) -> Result<()> {
        for (page, bytes) in ranges.iter().flat_map(|range| range.numbers()).zip(bytes.chunks_exact(PAGE)) {
            assert!(self.0.lock().unwrap().insert(number_of(owner, page), bytes.to_vec()).is_none(), "page {page} comes twice");
        }
        Ok(())
    }

    fn zero(&self, _: ObjRef, pages: PageRange) -> Result<()> {
        panic!("there are no zeros: {pages:?}")
    }

    fn hole(&self, _: ObjRef, pages: PageRange) -> Result<()> {
        panic!("there are no holes: {pages:?}")
    }
}

fn holds_the_cut(image: &[u8], pages: usize) {
    let mut reader = ImageReader::new(image).unwrap();
    read_metadata(&mut reader).unwrap();
    let found = Pages::default();
    load(&mut reader, &found, &LoadOptions::default(), &|_| ()).unwrap();
    let found = found.0.into_inner().unwrap();
    assert_eq!(found.len(), pages);
    for (number, bytes) in found {
        assert!(bytes == bytes_of(number as u64), "page {:?} is of another instant", page_of(number));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn what_is_saved_is_what_was_there_at_the_cut(pages in 1..3000usize, workers in 1..4usize, writers in 1..4usize) {
        let model = Model::at_the_cut(pages, usize::MAX);
        let image = save_under_fire(&model, workers, writers, |n, value| model.write(n, value)).unwrap();
        holds_the_cut(&image, pages);
    }

    /// Where not all can be followed, there is no image, or it is right.
    #[test]
    fn a_cut_that_cannot_be_followed_is_void(pages in 300..3000usize, room in 0..8usize, direct in 0..3000u64) {
        let model = Model::at_the_cut(pages, room);
        let write = |n, value: u64| if value % 3000 < direct { model.write_directly(n, value) } else { model.write(n, value) };
        match save_under_fire(&model, 2, 2, write) {
            Ok(image) => holds_the_cut(&image, pages),
            Err(Error::Void(_)) => {}
            Err(other) => panic!("{other}"),
        }
    }
}
