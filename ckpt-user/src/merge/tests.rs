//! Chains of images of made-up memory, merged at any time and interrupted anywhere: each image that is left holds what it held.

use std::collections::BTreeMap;
use std::fs;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Mutex;

use proptest::prelude::*;
use tempfile::{TempDir, tempdir};

use super::*;
use crate::ids::{Addr, ImageId, ObjRef, PAGE_SIZE, PageRange, Pid};
use crate::image::model::{Container, Object, ParentRef, Section, TaskState, TaskTable};
use crate::image::{read_stored, verify_stored};
use crate::page_set::PageSet;
use crate::pipeline::{Changes, DumpOptions, Extent, ExtentKind, PageSink, PageSource, increment, pages_by_owner};
use crate::resources::memory::{self, MemoryRecord};
use crate::resources::vma::Backing;
use crate::store::{Chains, Entry, Folder, Lock, Past, Step, past, steps};
use crate::tracee::maps::{Prot, VmFlags};

/// The last page number of the made-up memory, and one more.
const PAGES: u64 = 40;
/// A file whose contents are in every image.
const FILE: ObjRef = ObjRef(9);

/// What a memory holds: pages by the byte that they are full of, and how many pages from the first on are mapped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct State {
    mapped: u64,
    pages: BTreeMap<u64, u8>,
}

impl State {
    fn plan(&self, owner: ObjRef) -> Vec<Extent> {
        let one = |&start: &u64| Extent { owner, pages: PageRange { start, count: 1 }, kind: ExtentKind::Read };
        self.pages.keys().map(one).collect()
    }
}

/// Gives the pages of a state, and those of the file: full of the number of the image.
struct Source<'a>(&'a State, u8);

impl PageSource for Source<'_> {
    fn read(&self, owner: ObjRef, ranges: &[PageRange], buf: &mut [u8]) -> Result<()> {
        let pages = ranges.iter().flat_map(|range| range.numbers());
        for (page, bytes) in pages.zip(buf.chunks_exact_mut(PAGE_SIZE as usize)) {
            bytes.fill(if owner == FILE { self.1 } else { self.0.pages[&page] });
        }
        Ok(())
    }
}

/// What comes out of a chain, by owner and page.
#[derive(Default)]
struct Memory(Mutex<BTreeMap<(ObjRef, u64), u8>>);

impl PageSink for Memory {
    fn data(&self, owner: ObjRef, ranges: &[PageRange], bytes: &[u8]) -> Result<()> {
        let pages = ranges.iter().flat_map(|range| range.numbers());
        for (page, bytes) in pages.zip(bytes.chunks_exact(PAGE_SIZE as usize)) {
            assert!(bytes.iter().all(|byte| *byte == bytes[0]), "page {page} is torn");
            assert!(self.0.lock().unwrap().insert((owner, page), bytes[0]).is_none(), "page {page} comes twice");
        }
        Ok(())
    }

    fn zero(&self, owner: ObjRef, pages: PageRange) -> Result<()> {
        let all: Vec<PageRange> = pages.numbers().map(|start| PageRange { start, count: 1 }).collect();
        self.data(owner, &all, &vec![0; pages.bytes() as usize])
    }

    fn hole(&self, _: ObjRef, _: PageRange) -> Result<()> {
        Ok(())
    }
}

/// A folder like that of a watch, and what its images should hold.
struct Chain {
    _place: TempDir,
    folder: Folder,
    lock: Lock,
    before: State,
    last: Option<ParentRef>,
    states: BTreeMap<u64, State>,
}

impl Chain {
    fn new() -> Chain {
        let place = tempdir().unwrap();
        let folder = Folder::create(place.path()).unwrap();
        let lock = folder.lock().unwrap();
        Chain { _place: place, folder, lock, before: State::default(), last: None, states: BTreeMap::new() }
    }

    /// The number by which the image `number` calls the memory: not always the same.
    fn memory(number: u64) -> ObjRef {
        ObjRef(1 + number as u32 % 3)
    }

    /// Adds an image, an increment unless it is the first.
    fn add(&mut self, now: &State) {
        let (number, destination) = self.folder.next(&self.lock).unwrap();
        let mm = Chain::memory(number);
        let mut plan = now.plan(mm);
        if self.last.is_some() {
            let differs = now.pages.iter().filter(|(page, value)| self.before.pages.get(page) != Some(value));
            let written: PageSet = differs.map(|(&page, _)| page..page + 1).collect();
            let held = pages_by_owner(&self.before.plan(mm)).remove(&mm).unwrap_or_default();
            plan = increment(&plan, &[Changes { owner: mm, written: &written, held: &held }]);
        }
        plan.push(Extent { owner: FILE, pages: PageRange { start: 3, count: 2 }, kind: ExtentKind::Read });
        plan.push(Extent { owner: mm, pages: PageRange { start: 0, count: 0 }, kind: ExtentKind::Read });
        let image_id = ImageId(u128::from(number) + 100);
        let mut writer = ImageWriter::to_file(destination.writer()).unwrap();
        let before = self.last.map(|_| Chain::memory(number - 1));
        write_records(&mut writer, (image_id, self.last), (mm, before), now.mapped);
        pipeline::dump(&plan, &Source(now, number as u8), &mut writer, &DumpOptions::default(), &|_| {}).unwrap();
        pipeline::end_owners(&plan, &mut writer).unwrap();
        let trailer_checksum = writer.finish().unwrap().trailer_checksum;
        destination.commit().unwrap();
        self.last = Some(ParentRef { image_id, trailer_checksum });
        self.before = now.clone();
        self.states.insert(number, now.clone());
    }

    /// Does the first so many steps towards `keep` points.
    fn tidy(&self, keep: usize, at_most: usize) {
        let entries = self.folder.scan().unwrap();
        for step in steps(&entries, NonZeroUsize::new(keep).unwrap()).into_iter().take(at_most) {
            match step {
                Step::Merge(chain) => {
                    let into = self.folder.replace(&self.lock, chain[0].number).unwrap();
                    merge(&paths(&chain), into, &Background::default()).unwrap();
                }
                Step::Remove(entry) => self.folder.remove(&self.lock, entry.number).unwrap(),
            }
        }
    }

    /// Every image that is there is what it was. Returns their numbers.
    fn check(&self) -> Vec<u64> {
        let entries = self.folder.scan().unwrap();
        let chains = Chains::of(&entries);
        for (at, entry) in entries.iter().enumerate() {
            let chain = chains.chain(at).unwrap();
            let mut expected: BTreeMap<_, _> = self.states[&entry.number]
                .pages
                .iter()
                .map(|(&page, &value)| ((Chain::memory(entry.number), page), value))
                .collect();
            expected.extend([3, 4].map(|page| ((FILE, page), entry.number as u8)));
            assert_eq!(load(&chain), expected, "image {}", entry.number);
        }
        entries.iter().map(|entry| entry.number).collect()
    }
}

fn paths<'a>(chain: &[&'a Entry]) -> Vec<&'a Path> {
    chain.iter().map(|entry| entry.path.as_path()).collect()
}

fn write_records(
    writer: &mut ImageWriter<'_>,
    (image_id, parent): (ImageId, Option<ParentRef>),
    (mm, before): (ObjRef, Option<ObjRef>),
    mapped: u64,
) {
    let (image_id, page_size) = (Some(image_id), PAGE_SIZE as u32);
    writer.header(&Header { image_id, parent, page_size, codec: "lz4".to_owned(), ..Header::default() }).unwrap();
    writer.container(&Container::default()).unwrap();
    writer.tasks(&TaskTable::default()).unwrap();
    for objref in [mm, FILE] {
        writer.object(&Object { objref, section: Section { kind: "thing".to_owned(), body: vec![] } }).unwrap();
    }
    let past = Past { owners: before.into_iter().map(|before| (mm, before)).collect() };
    writer.object(&Object { objref: ObjRef(20), section: Section::encode(past::KIND, &past).unwrap() }).unwrap();
    let memory = MemoryRecord { mm, files: FILE, brk: Addr(0), xcomp_permitted: 0, lock_future: false };
    let sections = vec![Section::encode(memory::KIND, &memory).unwrap()];
    writer.task_state(&TaskState { pid: Pid(7), sections, threads: vec![] }).unwrap();
    let vma = VmaRecord {
        mm,
        start: Addr(0),
        end: Addr(mapped * PAGE_SIZE),
        prot: Prot::default(),
        shared: false,
        flags: VmFlags::default(),
        backing: Backing::Anonymous,
        page_size: PAGE_SIZE,
        anon_name: None,
        guards: vec![],
        has_pages: true,
    };
    writer.vma(&vma).unwrap();
}

/// Reads a chain as a restart does.
fn load(chain: &[&Entry]) -> BTreeMap<(ObjRef, u64), u8> {
    for entry in chain {
        verify_stored(&mut ImageReader::new(File::open(&entry.path).unwrap()).unwrap()).unwrap();
    }
    let mut reader = ImageReader::new(File::open(&chain[0].path).unwrap()).unwrap();
    let stored = read_stored(&mut reader).unwrap();
    let header = stored.header.clone();
    let (images, theirs) =
        parents::read(chain[1..].iter().map(|entry| Box::new(Lazy::new(&entry.path)) as Input).collect()).unwrap();
    let records = stored.resolve(theirs.as_ref()).unwrap();
    let memories = parents::memories_of(&records).unwrap().into_values();
    let mapped = mm::mapped(&records.all(RecordType::Vma).unwrap(), memories).unwrap();
    let sink = Memory::default();
    let mut overlay = Overlay::new(&sink, mapped);
    pipeline::load(&mut reader, &overlay, &LoadOptions::default(), &|_| {}).unwrap();
    parents::load(header.parent, parents::past_of(&records).unwrap(), images, &mut overlay).unwrap();
    sink.0.into_inner().unwrap()
}

fn states() -> impl Strategy<Value = State> {
    // Mostly zeros, and mostly alike from one state to the next.
    (1..=PAGES, prop::collection::btree_map(0..PAGES, 0..4u8, 0..30)).prop_map(|(mapped, mut pages)| {
        pages.retain(|page, _| *page < mapped);
        State { mapped, pages }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Images come, and merging begins at any time and is interrupted after any step, and goes on later or not.
    #[test]
    fn every_image_that_is_left_holds_what_it_held(
        story in prop::collection::vec((states(), prop::option::of((1..4usize, 0..6usize))), 1..9),
        keep in 1..4usize,
    ) {
        let mut chain = Chain::new();
        for (state, tidied) in &story {
            chain.add(state);
            if let Some((keep, at_most)) = *tidied {
                chain.tidy(keep, at_most);
                chain.check();
            }
        }
        let before = chain.check();
        chain.tidy(keep, usize::MAX);
        let kept = before.len().min(keep);
        prop_assert_eq!(chain.check(), &before[before.len() - kept..]);
    }
}

fn full(value: u8) -> State {
    State { mapped: PAGES, pages: (0..PAGES).map(|page| (page, value)).collect() }
}

fn files(chain: &Chain) -> Vec<(PathBuf, Vec<u8>)> {
    chain.folder.scan().unwrap().into_iter().map(|entry| (entry.path.clone(), fs::read(&entry.path).unwrap())).collect()
}

/// The error of merging everything into the newest image, which must change nothing.
fn refused(chain: &Chain, stop: bool) -> String {
    let before = files(chain);
    let entries = chain.folder.scan().unwrap();
    let all: Vec<&Entry> = entries.iter().rev().collect();
    let into = chain.folder.replace(&chain.lock, all[0].number).unwrap();
    let background = Background::default();
    if stop {
        background.stop();
    }
    let error = merge(&paths(&all), into, &background).unwrap_err();
    assert_eq!(files(chain), before);
    assert_eq!(fs::read_dir(chain._place.path()).unwrap().count(), before.len() + 1, "something beside the lock is left");
    error.to_string()
}

#[test]
fn what_cannot_be_merged_stays() {
    let mut chain = Chain::new();
    for value in 1..4 {
        chain.add(&full(value));
    }
    assert!(refused(&chain, true).contains("stopped"));
    let damaged = chain.folder.scan().unwrap()[1].path.clone();
    let mut bytes = fs::read(&damaged).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&damaged, bytes).unwrap();
    let error = refused(&chain, false);
    assert!(error.contains("000002.ckpt") && error.contains("damaged"), "{error}");
}

/// A merged image tells that it is one, and what it holds is not more than the memory.
#[test]
fn a_merged_image_is_a_whole_one() {
    let mut chain = Chain::new();
    for value in 1..5 {
        chain.add(&full(value));
    }
    let child = chain.last;
    chain.tidy(1, usize::MAX);
    let entries = chain.folder.scan().unwrap();
    let [entry] = entries.as_slice() else { panic!("{entries:?}") };
    let (header, ending) = (entry.header.as_ref().unwrap(), entry.ending.unwrap());
    assert_eq!((header.parent, entry.number, ending.pages.data), (None, 4, PAGES + 2));
    assert_eq!(header.as_parent(ending.trailer_checksum), child);
    assert_ne!(Some(ending.trailer_checksum), header.stands_for);
}
