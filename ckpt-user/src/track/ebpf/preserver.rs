//! The programs that save the old contents of pages before they change (`ckpt_ebpf::preserve`), as user space deals with them.
//!
//! A [`Preserver`] is loaded once and serves cut after cut: [`Preserver::publish`], while every thread of the process is stopped, makes a
//! [`LiveCut`], with which the pages are then copied while the process runs.

use std::fmt;
use std::fs;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use aya::maps::{Array, HashMap as BpfHashMap, Map, MapData, RingBuf};
use aya::programs::{ProgramError, RawTracePoint, RawTracePointRunOptions, TestRun};
use aya::{Ebpf, EbpfLoader};
use ckpt_ebpf::faults::{FAULTS, FAULTS_BYTES, KERNEL_PROGRAM, REGIONS, REGIONS_MAX, USER_PROGRAM};
use ckpt_ebpf::preserve::{self, Memory, PageTables, PreImage, Tally, WINDOWS_MAX, Window};

use super::fault_log::FaultLog;
use super::inspector::MemoryState;
use super::live_cut::{LiveCut, Part};
use super::windows::Layout;
use super::writes::WriteWatch;
use super::{EbpfError, Result, attach, load, map};
use crate::ids::{ObjRef, PAGE_SIZE, PageRange, Pid, union};
use crate::sys::btf::{Btf, BtfError};
use crate::sys::pagemap::PageMap;
use crate::sys::shared_words::SharedWords;

/// Bytes of a page in the ring: the page, what is said of it, and the kernel's own header.
pub(super) const ENTRY_BYTES: u64 = size_of::<PreImage>() as u64 + 8;

/// How much memory the programs are given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Of the ring buffer, bytes: a power of two, at least [`Room::RING_LEAST`].
    pub ring_bytes: u32,
    /// Pages that can be copied in one cut, with what lies between them.
    pub pages: u64,
    /// Of the log of write faults, bytes; rounded up to a power of two. A fault takes 32 bytes of it until it is read.
    pub log_bytes: u32,
    /// Regions in which write faults are counted by themselves.
    pub regions: u32,
}

impl Room {
    /// The smallest ring.
    pub const RING_LEAST: u32 = 1 << 20;

    /// With the usual log of write faults.
    pub fn new(ring_bytes: u32, pages: u64) -> Room {
        Room { ring_bytes, pages, log_bytes: FAULTS_BYTES, regions: REGIONS_MAX }
    }
}

/// See the module. Dropping it detaches the programs.
pub struct Preserver {
    /// Keeps the programs attached.
    _ebpf: Ebpf,
    room: Room,
    memories: BpfHashMap<MapData, u64, MemoryBytes>,
    page_tables: Array<MapData, PageTablesWords>,
    tables: PageTables,
    windows: SharedWords,
    claimed: SharedWords,
    faulted: SharedWords,
    tallies: SharedWords,
    ring: Mutex<RingBuf<MapData>>,
    writes: WriteWatch,
    cuts: u32,
}

/// Pages of a memory that are to be saved before they change.
#[derive(Debug)]
pub struct ToPreserve {
    /// A process that has it.
    pub pid: Pid,
    /// Which memory that is now.
    pub memory: MemoryState,
    /// As the image calls it.
    pub owner: ObjRef,
    /// In order.
    pub pages: Vec<PageRange>,
    /// Of which it is to be proved that nobody has written to them since they were protected: in order, too, and some may be the same.
    pub passed_over: Vec<PageRange>,
}

/// As plain numbers, which is what aya takes.
type MemoryBytes = [u8; size_of::<Memory>()];
type PageTablesWords = [u64; size_of::<PageTables>() / 8];

const WINDOW_WORDS: usize = size_of::<Window>() / 8;

impl Preserver {
    /// Loads the programs, finds the page tables, and attaches. Nothing is saved before something is published. Takes some hundred
    /// milliseconds: to be done before a freeze.
    pub fn load(room: Room) -> Result<Preserver> {
        let words = usize::try_from(room.pages.div_ceil(64)).unwrap_or(usize::MAX);
        let bitmap = u32::try_from(words).map_err(|_| EbpfError::unexpected(DOING, "too many pages"))?;
        let mut ebpf = load(
            EbpfLoader::new()
                .map_max_entries(preserve::WINDOWS, WINDOWS_MAX)
                .map_max_entries(preserve::CLAIMED, bitmap)
                .map_max_entries(preserve::FAULTED, bitmap)
                .map_max_entries(preserve::PRE_IMAGES, room.ring_bytes)
                .map_max_entries(FAULTS, room.log_bytes)
                .map_max_entries(REGIONS, room.regions),
        )?;
        let btf = Btf::of_kernel().map_err(|e| EbpfError::unsupported(DOING, e.to_string()))?;
        let writes = WriteWatch::new(FaultLog::of(&mut ebpf, &btf)?);
        let mut page_tables: Array<MapData, PageTablesWords> = map(&mut ebpf, preserve::PAGE_TABLES)?;
        let tables = calibrate(&mut ebpf, &mut page_tables, &btf)?;
        let mut shared = |name, len| shared(&mut ebpf, name, len);
        Ok(Preserver {
            room,
            windows: shared(preserve::WINDOWS, WINDOWS_MAX as usize * WINDOW_WORDS)?,
            claimed: shared(preserve::CLAIMED, words)?,
            faulted: shared(preserve::FAULTED, words)?,
            tallies: shared(preserve::TALLIES, Tally::COUNT as usize)?,
            memories: map(&mut ebpf, preserve::MEMORIES)?,
            page_tables,
            tables,
            ring: Mutex::new(map(&mut ebpf, preserve::PRE_IMAGES)?),
            writes,
            _ebpf: {
                let programs = [USER_PROGRAM, KERNEL_PROGRAM, preserve::SYSCALL_PROGRAM];
                attach(ebpf, &[&programs[..], &FaultLog::PROGRAMS[..]].concat())?
            },
            cuts: 0,
        })
    }

    /// What it was loaded with.
    pub fn room(&self) -> Room {
        self.room
    }

    /// What a process writes between cuts.
    pub fn writes(&mut self) -> &mut WriteWatch {
        &mut self.writes
    }

    /// Gives the programs the pages of these memories: every one must be there, and protected by userfaultfd. To be called with every thread of their
    /// processes stopped; from its return on they may run.
    ///
    /// Errors: more pages, or more scattered ones, than there is room for; nothing is published then.
    pub fn publish(&mut self, memories: Vec<ToPreserve>) -> Result<LiveCut<'_>> {
        let (mut parts, mut bits, mut windows) = (Vec::new(), 0u64, 0);
        for ToPreserve { pid, memory, owner, pages, passed_over } in memories {
            let doing = || format!("cannot have the pages of pid {pid} saved before they change");
            let numbers = |range: &PageRange| range.numbers();
            let all: Vec<PageRange> =
                union(pages.iter().map(numbers), passed_over.iter().map(numbers)).into_iter().map(PageRange::from).collect();
            let layout = Layout::of(&all, bits.next_multiple_of(64));
            (bits, windows) = (layout.end(), windows + layout.windows.len());
            if bits > self.room.pages || windows > WINDOWS_MAX as usize {
                let reason = format!("{bits} pages in {windows} stretches are more than there is room for");
                return Err(EbpfError::unexpected(doing(), reason));
            }
            let page_map = PageMap::open(pid).map_err(|e| EbpfError::unexpected(doing(), e.to_string()))?;
            parts.push(Part { pid, memory, owner, layout, page_map, pages, passed_over });
        }
        let bitmap = bits.div_ceil(64) as usize;
        store_all(&self.faulted.words()[..bitmap], 0);
        store_all(&self.claimed.words()[..bitmap], !0);
        self.cuts = self.cuts.wrapping_add(1);
        // From here on, dropping it takes back what was published.
        let mut cut = LiveCut::new(self, parts);
        cut.publish()?;
        Ok(cut)
    }

    /// Gives the programs one memory, whose windows stand from `first` on.
    pub(super) fn give(&mut self, part: &Part, first: usize) -> Result<()> {
        let words = &self.windows.words()[first * WINDOW_WORDS..];
        for (window, words) in part.layout.windows.iter().zip(words.chunks_exact(WINDOW_WORDS)) {
            let values: [u64; WINDOW_WORDS] = bytemuck::cast(*window);
            words.iter().zip(values).for_each(|(word, value)| word.store(value, Ordering::Relaxed));
        }
        part.layout.for_each_mask(&part.pages, |word, mask| {
            self.claimed.words()[word as usize].fetch_and(!mask, Ordering::Relaxed);
        });
        let count = part.layout.windows.len() as u32;
        let memory = Memory { first: first as u32, count, owner: part.owner.0, cut: self.cuts };
        // The map update orders all of the above before it.
        let doing = "cannot have pages saved before they change";
        self.memories
            .insert(part.memory.space.mm, bytemuck::cast::<Memory, MemoryBytes>(memory), 0)
            .map_err(|e| EbpfError::new(doing, e))
    }

    /// So many memories are given to the programs now. `noting`: all of their pages are to be noted when they are taken away.
    pub(super) fn set_count(&mut self, memories: u32, noting: bool) -> Result<()> {
        let tables = PageTables { memories, noting: noting.into(), ..self.tables };
        let doing = "cannot have pages saved before they change";
        self.page_tables.set(0, bytemuck::cast::<PageTables, PageTablesWords>(tables), 0).map_err(|e| EbpfError::new(doing, e))
    }

    /// Takes one memory back.
    pub(super) fn take_back(&mut self, mm: u64) -> Result<()> {
        let doing = "cannot end the saving of pages before they change";
        self.memories.remove(&mm).map_err(|e| EbpfError::new(doing, e))
    }

    pub(super) fn cut(&self) -> u32 {
        self.cuts
    }

    pub(super) fn claimed(&self) -> &[AtomicU64] {
        self.claimed.words()
    }

    pub(super) fn faulted(&self) -> &[AtomicU64] {
        self.faulted.words()
    }

    pub(super) fn tally(&self, tally: Tally) -> u64 {
        self.tallies.words()[tally as usize].load(Ordering::SeqCst)
    }

    pub(super) fn ring(&self) -> &Mutex<RingBuf<MapData>> {
        &self.ring
    }
}

impl fmt::Debug for Preserver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Preserver").field("room", &self.room).field("cuts", &self.cuts).finish_non_exhaustive()
    }
}

const DOING: &str = "cannot load the eBPF programs that save pages before they change";

fn store_all(words: &[AtomicU64], value: u64) {
    words.iter().for_each(|word| word.store(value, Ordering::Relaxed));
}

fn shared(ebpf: &mut Ebpf, name: &str, len: usize) -> Result<SharedWords> {
    let doing = || format!("cannot map the eBPF map {name}");
    let map = ebpf.map_mut(name).ok_or_else(|| EbpfError::unexpected(doing(), "it is not in the object"))?;
    let Map::Array(data) = map else { return Err(EbpfError::unexpected(doing(), "it is no array")) };
    SharedWords::map(data.fd(), len).map_err(|e| EbpfError::new(doing(), e))
}

/// Tells the programs where page tables are, and has them find where the kernel maps all memory: that is drawn at random when the machine starts, and
/// most kernels tell nobody.
fn calibrate(ebpf: &mut Ebpf, page_tables: &mut Array<MapData, PageTablesWords>, btf: &Btf) -> Result<PageTables> {
    let missing = |e: BtfError| EbpfError::unsupported(DOING, e.to_string());
    let (address_bits, levels) = processor()?;
    let mut tables = PageTables {
        frame_mask: ((1 << address_bits) - 1) & !(PAGE_SIZE - 1),
        levels,
        mm: btf.offset_of("task_struct", "mm").map_err(missing)?,
        pgd: btf.offset_of("mm_struct", "pgd").map_err(missing)?,
        brk: btf.offset_of("mm_struct", "brk").map_err(missing)?,
        ..PageTables::default()
    };
    let mut set = |tables| page_tables.set(0, bytemuck::cast::<PageTables, PageTablesWords>(tables), 0);
    set(tables).map_err(|e| EbpfError::new(DOING, e))?;
    let program = ebpf.program_mut(preserve::CALIBRATION_PROGRAM);
    let program = program.ok_or_else(|| EbpfError::unexpected(DOING, "one is not in the object"))?;
    let program: &mut RawTracePoint = program.try_into().map_err(|e: ProgramError| EbpfError::new(DOING, e))?;
    program.load().map_err(|e| EbpfError::new(DOING, e))?;
    let sample = Sample::draw()?;
    let mut options = RawTracePointRunOptions::new();
    options.args[..3].copy_from_slice(&[sample.frame()?, sample.address(), CANDIDATES]);
    program.test_run(options).map_err(|e| EbpfError::new(DOING, e))?;
    let bytes = page_tables.get(&0, 0).map_err(|e| EbpfError::new(DOING, e))?;
    tables.direct_map = bytemuck::cast::<PageTablesWords, PageTables>(bytes).direct_map;
    if tables.direct_map == 0 {
        return Err(EbpfError::unsupported(DOING, "the place where this kernel maps all memory was not found"));
    }
    Ok(tables)
}

/// Gibibytes below our page directory that are tried: as far as the directory can be from the beginning of all memory.
const CANDIDATES: u64 = 1 << 16;

/// A page of ours with random contents.
pub(super) struct Sample(Box<[u64; 2 * PAGE_SIZE as usize / 8]>);

impl Sample {
    pub(super) fn draw() -> Result<Sample> {
        let mut words = Box::new([0; 2 * PAGE_SIZE as usize / 8]);
        let random = fs::File::open("/dev/urandom");
        let read = random.and_then(|mut file| std::io::Read::read_exact(&mut file, bytemuck::cast_slice_mut(&mut words[..])));
        read.map_err(|e| EbpfError::new(DOING, e))?;
        Ok(Sample(words))
    }

    /// Of the whole page within.
    fn address(&self) -> u64 {
        (self.0.as_ptr().addr() as u64).next_multiple_of(PAGE_SIZE)
    }

    /// The whole page.
    pub(super) fn page(&self) -> &[u8] {
        let bytes: &[u8] = bytemuck::cast_slice(&self.0[..]);
        let before = self.address() as usize - bytes.as_ptr().addr();
        &bytes[before..before + PAGE_SIZE as usize]
    }

    /// Where the page is in physical memory.
    pub(super) fn frame(&self) -> Result<u64> {
        let frame = crate::sys::pagemap::frame_of_own_page(self.address() / PAGE_SIZE).map_err(|e| EbpfError::new(DOING, e))?;
        frame.ok_or_else(|| EbpfError::unsupported(DOING, "the kernel does not tell where pages are (CAP_SYS_ADMIN is needed)"))
    }
}

/// Bits of a physical address, and levels of page tables, from /proc/cpuinfo.
fn processor() -> Result<(u32, u32)> {
    let text = fs::read_to_string("/proc/cpuinfo").map_err(|e| EbpfError::new(DOING, e))?;
    let line = |key: &str| text.lines().find(|line| line.starts_with(key)).and_then(|line| line.split_once(':'));
    let bits = line("address sizes").and_then(|(_, sizes)| sizes.split_whitespace().next()?.parse::<u32>().ok());
    let bits = bits.filter(|bits| (32..=52).contains(bits));
    let bits = bits.ok_or_else(|| EbpfError::unsupported(DOING, "/proc/cpuinfo tells no size of physical addresses"))?;
    // The kernel takes the flag away where it was told not to use five levels.
    let five = line("flags").is_some_and(|(_, flags)| flags.split_whitespace().any(|flag| flag == "la57"));
    Ok((bits, if five { 5 } else { 4 }))
}
