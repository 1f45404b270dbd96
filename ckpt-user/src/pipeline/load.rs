//! From an image into a sink.

use std::io::Read;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use crossbeam_channel::{Receiver, Sender, bounded};

use super::stop::Stop;
use super::{MAX_WORKERS, PageSink, default_workers};
use crate::error::Result;
use crate::ids::{ObjRef, PAGE_SIZE, PageRange};
use crate::image::chunk::{Chunk, MAX_DATA, RunKind};
use crate::image::owners::Owners;
use crate::image::reader::RawRecord;
use crate::image::verify::check_pages;
use crate::image::{ImageError, ImageReader, PageCounts, Payload, Place, RecordType};

/// How to load.
#[derive(Clone, Copy, Debug)]
pub struct LoadOptions {
    /// Threads that verify, decompress and give pages to the sink: 1 to [`MAX_WORKERS`].
    pub workers: usize,
}

impl Default for LoadOptions {
    fn default() -> LoadOptions {
        LoadOptions { workers: default_workers() }
    }
}

/// What a load found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LoadStats {
    /// Pages whose contents were in the image.
    pub pages_data: u64,
    /// Pages that are all zeros.
    pub pages_zero: u64,
    /// Pages that are not there.
    pub pages_hole: u64,
    /// Bytes of the data pages.
    pub bytes_raw: u64,
    /// Bytes that they take up in the image.
    pub bytes_stored: u64,
    /// Everyone whose pages were there, ended properly: to be compared with those that should have been.
    pub owners: Vec<ObjRef>,
    /// The checksum of the trailer record, by which an increment names its parent.
    pub trailer_checksum: u64,
}

/// Reads the chunks of an image, from where [`crate::image::read_metadata`] left the reader up to the trailer, and gives their pages to the
/// sink. `progress` is called on this thread with the pages of data that the sink took so far.
///
/// Each chunk is verified before the sink sees any of it, the image as a whole only with its trailer: nothing that was loaded may
/// run before this has returned `Ok`.
///
/// # Errors
/// The first error of the image or the sink, and then all threads have ended; while the image comes from a pipe in which nothing moves,
/// an error of the sink waits until something does.
pub fn load<R: Read>(
    reader: &mut ImageReader<R>,
    sink: &dyn PageSink,
    options: &LoadOptions,
    progress: &dyn Fn(u64),
) -> Result<LoadStats> {
    let workers = options.workers.clamp(1, MAX_WORKERS);
    let stop = Stop::default();
    let shared = Shared { sink, owners: Mutex::default(), found: Mutex::default(), taken: AtomicU64::new(0), stop: &stop };
    thread::scope(|scope| {
        let (give, idle) = bounded(2 * workers + 2);
        let (hand, handed) = bounded(workers + 2);
        while give.try_send(Payload::default()).is_ok() {}
        for n in 0..workers {
            let (shared, handed, give) = (&shared, handed.clone(), give.clone());
            stop.spawn(scope, format!("ckpt-load-{n}"), move || work(shared, &handed, &give));
        }
        drop((give, handed));
        if let Err(e) = read(&shared, reader, &idle, &hand, progress) {
            stop.fail(e);
        }
    });
    let Shared { owners, found, taken, .. } = shared;
    stop.into_result()?;
    progress(taken.into_inner());
    let Found { pages, bytes_stored } = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    let Some(ending) = reader.ending() else { return Err(ImageError::Truncated(Place::default()).into()) };
    let owners = owners.into_inner().unwrap_or_else(PoisonError::into_inner).finish(ending.at)?;
    check_pages(ending.trailer.pages, pages, ending.at)?;
    Ok(LoadStats {
        pages_data: pages.data,
        pages_zero: pages.zero,
        pages_hole: pages.hole,
        bytes_raw: pages.data * PAGE_SIZE,
        bytes_stored,
        owners,
        trailer_checksum: ending.checksum,
    })
}

/// What all threads of a load see.
struct Shared<'a> {
    sink: &'a dyn PageSink,
    owners: Mutex<Owners>,
    found: Mutex<Found>,
    /// Pages of data that the sink took.
    taken: AtomicU64,
    stop: &'a Stop,
}

/// Sums over all chunks.
#[derive(Default)]
struct Found {
    pages: PageCounts,
    bytes_stored: u64,
}

/// A chunk that was read and not looked at.
type Job = (RawRecord, Payload);

/// The part of the calling thread: reads records and hands them to the workers, up to the trailer or until all workers have ended.
fn read<R: Read>(
    shared: &Shared<'_>,
    reader: &mut ImageReader<R>,
    idle: &Receiver<Payload>,
    hand: &Sender<Job>,
    progress: &dyn Fn(u64),
) -> Result<()> {
    while !shared.stop.stopped() {
        let Ok(mut payload) = idle.recv() else { break };
        let Some(record) = reader.next_raw(&mut payload)? else { break };
        if record.record_type != RecordType::Chunk {
            let (at, found) = (record.at, record.record_type);
            return Err(ImageError::OutOfOrder { at, found, expected: "a chunk or the trailer" }.into());
        }
        if hand.send((record, payload)).is_err() {
            break;
        }
        progress(shared.taken.load(Ordering::Relaxed));
    }
    Ok(())
}

/// The part of a worker: takes chunks until there are no more.
fn work(shared: &Shared<'_>, handed: &Receiver<Job>, give: &Sender<Payload>) -> Result<()> {
    let mut scratch = vec![0; MAX_DATA];
    for (record, payload) in handed {
        if shared.stop.stopped() {
            break;
        }
        record.check(&payload)?;
        place(shared, payload.bytes(), record.at, &mut scratch)?;
        // There is room for every buffer, unless the reader is gone.
        let _ = give.try_send(payload);
    }
    Ok(())
}

/// Gives the pages of a verified chunk to the sink.
fn place(shared: &Shared<'_>, payload: &[u8], at: Place, scratch: &mut [u8]) -> Result<()> {
    let chunk = Chunk::parse(payload, at)?;
    shared.owners.lock().unwrap_or_else(PoisonError::into_inner).admit(chunk.owner, &chunk.runs, at)?;
    let counts = chunk.counts();
    if counts.data > 0 {
        let bytes = chunk.data(scratch, at)?;
        let ranges: Vec<PageRange> = chunk.runs.iter().filter(|run| run.kind == RunKind::Data).map(|run| run.pages).collect();
        shared.sink.data(chunk.owner, &ranges, bytes)?;
    }
    for run in &chunk.runs {
        match run.kind {
            RunKind::Data => {}
            RunKind::Zero => shared.sink.zero(chunk.owner, run.pages)?,
            RunKind::Hole => shared.sink.hole(chunk.owner, run.pages)?,
        }
    }
    let mut found = shared.found.lock().unwrap_or_else(PoisonError::into_inner);
    found.pages += counts;
    found.bytes_stored += chunk.stored_len();
    shared.taken.fetch_add(counts.data, Ordering::Relaxed);
    Ok(())
}
