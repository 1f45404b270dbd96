//! The programs on the page-fault tracepoints, attached to this very process: they note its write faults, all of them and nothing
//! else.

use std::error::Error;
use std::io::Read;
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::{io, iter, process, ptr, slice};

use aya::maps::{Array, HashMap, Map, MapData, MapError, RingBuf};
use aya::programs::RawTracePoint;
use aya::{Ebpf, EbpfError, EbpfLoader};
use ckpt_ebpf::faults::{
    CONTROL, COUNTERS, Control, Counter, Entry, FAULTS, KERNEL_PROGRAM, REGION_SHIFT, REGIONS, Region, TRACKED, TaskInfo,
    USER_PROGRAM, WRITE,
};
use ckpt_tests::skip;

const PAGE: usize = 4096;
const PRESENT: u64 = 1 << 0;
const USER: u64 = 1 << 2;

macro_rules! attach_with {
    ($ring_bytes:expr, $regions:expr) => {
        match Log::attach($ring_bytes, $regions) {
            Ok(log) => log,
            Err(e) if is_refusal(&e) => skip!("eBPF cannot be used here: {e}"),
            Err(e) => panic!("{e}: {e:?}"),
        }
    };
}

/// Skips the test where eBPF is not to be had; an object that the kernel does not take is a failure.
macro_rules! attach {
    ($ring_bytes:expr) => {
        attach_with!($ring_bytes, 1000)
    };
}

/// Does the kernel not permit eBPF (EPERM; the verifier's no is EACCES), or not have it?
fn is_refusal(error: &(dyn Error + 'static)) -> bool {
    let mut chain = iter::successors(Some(error), |&e| e.source());
    let errno = chain.find_map(|e| e.downcast_ref::<io::Error>()?.raw_os_error());
    matches!(errno, Some(libc::EPERM | libc::ENOSYS))
}

#[test]
fn first_writes_are_noted_with_page_and_epoch() {
    let mut log = attach!(1 << 20);
    let memory = Memory::new(64);
    log.track();
    log.set_epoch(7);
    memory.write(0..32);
    log.set_epoch(8);
    memory.write(32..64);
    let faults = log.take(&memory);
    assert_eq!(faults.iter().map(|fault| fault.value).collect::<Vec<_>>(), memory.pages(0..64));
    for (i, fault) in faults.iter().enumerate() {
        assert_eq!(fault.epoch, if i < 32 { 7 } else { 8 });
        assert_eq!(fault.tgid, process::id());
        assert_eq!(u64::from(fault.error_code) & (WRITE | USER | PRESENT), WRITE | USER, "{fault:?}");
    }
    assert_eq!(log.count(Counter::Lost), 0);
    assert!(log.info().write_faults >= 64);
}

#[test]
fn second_writes_and_reads_are_not_noted() {
    let mut log = attach!(1 << 20);
    let memory = Memory::new(8);
    memory.write(0..4);
    log.track();
    memory.write(0..4);
    memory.read(4..8);
    assert_eq!(log.take(&memory), []);
    // The pages that were read are shared zeros now; a write to one faults on a page that is present.
    memory.write(4..8);
    let faults = log.take(&memory);
    assert_eq!(faults.iter().map(|fault| fault.value).collect::<Vec<_>>(), memory.pages(4..8));
    assert!(faults.iter().all(|fault| u64::from(fault.error_code) & PRESENT != 0));
}

#[test]
fn writes_by_the_kernel_for_the_process_are_noted() {
    let mut log = attach!(1 << 20);
    let memory = Memory::new(2);
    log.track();
    let (sender, mut receiver) = UnixStream::pair().unwrap();
    io::Write::write_all(&mut &sender, &[1; PAGE]).unwrap();
    receiver.read_exact(memory.bytes(0..1)).unwrap();
    let faults = log.take(&memory);
    assert_eq!(faults.iter().map(|fault| fault.value).collect::<Vec<_>>(), memory.pages(0..1));
    assert_eq!(u64::from(faults[0].error_code) & (WRITE | USER), WRITE);
}

#[test]
fn other_processes_are_not_noted() {
    let mut log = attach!(1 << 20);
    let memory = Memory::new(4);
    memory.write(0..4);
    assert_eq!(log.take(&memory), []);
    assert_eq!(log.count(Counter::Logged) + log.count(Counter::Lost), 0);
}

#[test]
fn what_does_not_fit_is_counted() {
    // A page of ring: 32 bytes each, so 128 entries at most.
    let mut log = attach!(PAGE as u32);
    let memory = Memory::new(1000);
    log.track();
    memory.write(0..1000);
    let info = log.info();
    let (logged, lost) = (log.count(Counter::Logged), log.count(Counter::Lost));
    assert!(lost >= 1000 - 128, "{lost}");
    assert_eq!(info.lost, lost);
    assert_eq!(info.write_faults, logged + lost);
    // A reader makes room.
    assert!(!log.take(&memory).is_empty());
    let more = Memory::new(1);
    more.write(0..1);
    assert_eq!(log.take(&more).len(), 1);
}

#[test]
fn faults_are_counted_in_their_regions() {
    const REGION: usize = 1 << REGION_SHIFT;
    let mut log = attach!(PAGE as u32);
    let memory = Memory::new(4 * REGION / PAGE);
    // The first page of a whole region.
    let first = (memory.start as usize).next_multiple_of(REGION);
    let at = (first - memory.start as usize) / PAGE;
    log.track();
    log.set_epoch(3);
    memory.write(at..at + 200);
    memory.write(at + 512..at + 515);
    log.set_epoch(4);
    memory.write(at + 200..at + 210);
    let region =
        |n: usize, epoch| Region { number: (first >> REGION_SHIFT) as u64 + n as u64, epoch, tgid: process::id(), execs: 0 };
    // More than the ring had room for.
    let counts = [region(0, 3), region(1, 3), region(0, 4), region(1, 4)].map(|region| log.in_region(region));
    assert_eq!(counts, [Some(200), Some(3), Some(10), None]);
    assert_eq!(log.count(Counter::Unplaced), 0);
}

#[test]
fn regions_without_room_are_counted() {
    let mut log = attach_with!(PAGE as u32, 1);
    let memory = Memory::new(4 << REGION_SHIFT >> 12);
    log.track();
    // Pages of four regions at least.
    memory.write(0..memory.pages);
    let info = log.info();
    // The table may have room for somewhat more than it was made for.
    let unplaced = log.count(Counter::Unplaced);
    assert!(unplaced > 0 && unplaced < info.write_faults, "{unplaced} of {}", info.write_faults);
}

/// The programs, loaded and attached.
struct Log {
    ebpf: Ebpf,
    ring: RingBuf<MapData>,
}

impl Log {
    fn attach(ring_bytes: u32, regions: u32) -> Result<Log, EbpfError> {
        let mut loader = EbpfLoader::new();
        let mut ebpf = loader.map_max_entries(FAULTS, ring_bytes).map_max_entries(REGIONS, regions).load(ckpt_ebpf::OBJECT)?;
        for name in [USER_PROGRAM, KERNEL_PROGRAM] {
            let program: &mut RawTracePoint = ebpf.program_mut(name).unwrap().try_into()?;
            program.load()?;
            program.attach(name)?;
        }
        let ring = RingBuf::try_from(ebpf.take_map(FAULTS).unwrap())?;
        Ok(Log { ebpf, ring })
    }

    fn map<'a, T: TryFrom<&'a mut Map, Error = MapError>>(&'a mut self, name: &str) -> T {
        self.ebpf.map_mut(name).unwrap().try_into().unwrap()
    }

    fn track(&mut self) {
        let mut tracked: HashMap<_, u32, [u8; size_of::<TaskInfo>()]> = self.map(TRACKED);
        tracked.insert(process::id(), [0; size_of::<TaskInfo>()], 0).unwrap();
    }

    fn info(&mut self) -> TaskInfo {
        let tracked: HashMap<_, u32, [u8; size_of::<TaskInfo>()]> = self.map(TRACKED);
        let bytes = tracked.get(&process::id(), 0).unwrap();
        let half = |at| u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap());
        TaskInfo { write_faults: half(0), lost: half(8), ..TaskInfo::default() }
    }

    fn in_region(&mut self, region: Region) -> Option<u64> {
        let regions: HashMap<_, [u8; size_of::<Region>()], u64> = self.map(REGIONS);
        match regions.get(&bytemuck::cast(region), 0) {
            Ok(count) => Some(count),
            Err(MapError::KeyNotFound) => None,
            Err(error) => panic!("{error}"),
        }
    }

    fn set_epoch(&mut self, epoch: u64) {
        let mut control: Array<_, [u64; 3]> = self.map(CONTROL);
        control.set(0, bytemuck::cast::<Control, [u64; 3]>(Control { epoch, ..Control::default() }), 0).unwrap();
    }

    fn count(&mut self, counter: Counter) -> u64 {
        let counters: Array<_, u64> = self.map(COUNTERS);
        counters.get(&(counter as u32), 0).unwrap()
    }

    /// Empties the ring, and returns what it had of this memory. The rest of the process writes to memory of its own.
    fn take(&mut self, memory: &Memory) -> Vec<Entry> {
        let pages = memory.pages(0..memory.pages);
        let mut faults = Vec::new();
        while let Some(item) = self.ring.next() {
            let fault = bytemuck::pod_read_unaligned::<Entry>(&item);
            if pages.contains(&fault.value) {
                faults.push(fault);
            }
        }
        faults
    }
}

/// Fresh anonymous memory.
struct Memory {
    start: *mut u8,
    pages: usize,
}

impl Memory {
    fn new(pages: usize) -> Memory {
        let (read_write, private) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a mapping at an address of the kernel's choice touches no other.
        let start = unsafe { libc::mmap(ptr::null_mut(), pages * PAGE, read_write, private, -1, 0) };
        assert_ne!(start, libc::MAP_FAILED);
        // A huge page would take one fault for all.
        // SAFETY: the range is the mapping.
        assert_eq!(unsafe { libc::madvise(start, pages * PAGE, libc::MADV_NOHUGEPAGE) }, 0);
        Memory { start: start.cast(), pages }
    }

    fn pages(&self, range: Range<usize>) -> Vec<u64> {
        range.map(|page| ((self.start as usize + page * PAGE) / PAGE) as u64).collect()
    }

    #[expect(clippy::mut_from_ref, reason = "the memory is raw, and each test uses it from one thread")]
    fn bytes(&self, range: Range<usize>) -> &mut [u8] {
        assert!(range.end <= self.pages);
        // SAFETY: the range is within the mapping, and nobody else refers to it.
        unsafe { slice::from_raw_parts_mut(self.start.add(range.start * PAGE), range.len() * PAGE) }
    }

    fn write(&self, range: Range<usize>) {
        for page in self.bytes(range).chunks_mut(PAGE) {
            // SAFETY: a reference to a byte is valid; volatile so that no write is merged with another.
            unsafe { ptr::from_mut(&mut page[0]).write_volatile(1) };
        }
    }

    fn read(&self, range: Range<usize>) {
        for page in self.bytes(range).chunks(PAGE) {
            // SAFETY: as for writes.
            let byte = unsafe { ptr::from_ref(&page[0]).read_volatile() };
            assert_eq!(byte, 0);
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours, and nothing refers to it any more.
        unsafe { libc::munmap(self.start.cast(), self.pages * PAGE) };
    }
}
