//! From a source into an image.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use crossbeam_channel::{Receiver, Sender, bounded};

use super::plan::{self, Extent, Piece, Pieces};
use super::stop::Stop;
use super::{KnownPages, LivePages, MAX_WORKERS, PageSource, default_workers, zero};
use crate::error::{Error, Result};
use crate::ids::{ObjRef, PAGE_SIZE, PageRange};
use crate::image::chunk::{ChunkBuffer, MAX_DATA, MAX_DATA_PAGES, Run, RunKind, SealedChunk};
use crate::image::{Codec, ImageWriter, PageCounts, codec};

/// How to dump.
#[derive(Clone, Copy)]
pub struct DumpOptions<'a> {
    /// How to store pages. With LZ4, a chunk that does not shrink is stored raw.
    pub codec: Codec,
    /// Threads that read and compress: 1 to [`MAX_WORKERS`].
    pub workers: usize,
    /// Pages that are left out.
    pub known: Option<&'a dyn KnownPages>,
    /// Pages that change meanwhile.
    pub live: Option<&'a dyn LivePages>,
}

impl Default for DumpOptions<'_> {
    fn default() -> Self {
        DumpOptions { codec: Codec::default(), workers: default_workers(), known: None, live: None }
    }
}

impl fmt::Debug for DumpOptions<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let DumpOptions { codec, workers, known, live } = self;
        let (known, live) = (known.is_some(), live.is_some());
        write!(f, "DumpOptions {{ codec: {codec:?}, workers: {workers}, known: {known}, live: {live} }}")
    }
}

/// What a dump wrote.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DumpStats {
    /// Pages whose contents were written.
    pub pages_data: u64,
    /// Pages that are all zeros: those known before, and those found.
    pub pages_zero: u64,
    /// Pages that are not there.
    pub pages_hole: u64,
    /// Bytes of the data pages.
    pub bytes_raw: u64,
    /// Bytes that they take up in the image.
    pub bytes_stored: u64,
}

impl std::ops::AddAssign for DumpStats {
    fn add_assign(&mut self, other: DumpStats) {
        self.pages_data += other.pages_data;
        self.pages_zero += other.pages_zero;
        self.pages_hole += other.pages_hole;
        self.bytes_raw += other.bytes_raw;
        self.bytes_stored += other.bytes_stored;
    }
}

impl DumpStats {
    fn add(&mut self, chunk: &Written) {
        self.pages_data += chunk.counts.data;
        self.pages_zero += chunk.counts.zero;
        self.pages_hole += chunk.counts.hole;
        self.bytes_raw += chunk.counts.data * PAGE_SIZE;
        self.bytes_stored += chunk.stored;
    }
}

const PAGE: usize = PAGE_SIZE as usize;

/// What a worker tells of a piece.
struct Written {
    counts: PageCounts,
    stored: u64,
    /// Pages of it that were planned to be read from the source.
    read: u64,
    /// The chunk, if it is still to be written.
    chunk: Option<SealedChunk>,
}

/// Saves the pages of `plan`. An image may be made of several plans; [`end_owners`] comes last. `progress` is called on this thread with the pages
/// done so far, out of [`super::pages_to_read`]: after each piece, so some hundred times a second.
///
/// # Errors
/// The first error of the source or the writer. All threads have ended by then: each finishes the call to the source or the write
/// that it is in, and does no other.
pub fn dump(
    plan: &[Extent],
    source: &dyn PageSource,
    writer: &mut ImageWriter<'_>,
    options: &DumpOptions<'_>,
    progress: &dyn Fn(u64),
) -> Result<DumpStats> {
    plan::check(plan)?;
    let writer = &*writer;
    let stop = Stop::default();
    let DumpOptions { codec, known, live, .. } = *options;
    let pieces = Pieces::of(plan).take(MAX_WORKERS).count();
    if pieces == 0 && live.is_none() {
        return Ok(DumpStats::default());
    }
    let workers = options.workers.min(pieces).clamp(1, MAX_WORKERS);
    // A worker holds one buffer to read into and one to compress into, and as many again may wait to be written.
    let buffers = 3 * workers + 2;
    let shared = Shared {
        pieces: Mutex::new(Pieces::of(plan)),
        source,
        writer,
        codec,
        known,
        live,
        stop: &stop,
        buffers_left: AtomicUsize::new(buffers),
    };
    let stats = thread::scope(|scope| {
        let (give, idle) = bounded(buffers);
        let (tell, told) = bounded(workers + 2);
        for n in 0..workers {
            let (shared, idle, tell) = (&shared, idle.clone(), tell.clone());
            stop.spawn(scope, format!("ckpt-dump-{n}"), || Worker { shared, idle, tell, spare: Vec::new() }.run());
        }
        drop((idle, tell));
        collect(&shared, &told, &give, progress)
    });
    stop.into_result()?;
    Ok(stats)
}

/// Ends every owner that appears in `plan` by its empty chunk (SEED S16).
///
/// # Errors
/// The plan holds a page twice, or the image cannot be written.
pub fn end_owners(plan: &[Extent], writer: &mut ImageWriter<'_>) -> Result<()> {
    for owner in plan::check(plan)? {
        writer.end_owner(owner)?;
    }
    Ok(())
}

/// What all threads of a dump see.
struct Shared<'a> {
    pieces: Mutex<Pieces<'a>>,
    source: &'a dyn PageSource,
    writer: &'a ImageWriter<'a>,
    codec: Codec,
    known: Option<&'a dyn KnownPages>,
    live: Option<&'a dyn LivePages>,
    stop: &'a Stop,
    /// How many more may be made: to make one means to clear it.
    buffers_left: AtomicUsize,
}

/// The part of the calling thread: writes what the workers could not write themselves, gives their buffers back, and counts. Goes on
/// until all workers have ended, so that none of them waits in vain.
fn collect(shared: &Shared<'_>, told: &Receiver<Written>, give: &Sender<ChunkBuffer>, progress: &dyn Fn(u64)) -> DumpStats {
    let mut stats = DumpStats::default();
    let mut read = 0;
    for mut piece in told {
        if let Some(chunk) = piece.chunk.take() {
            if !shared.stop.stopped()
                && let Err(e) = shared.writer.chunk(&chunk)
            {
                shared.stop.fail(e);
            }
            // There is room for every buffer; should there be none, it is not missed.
            let _ = give.try_send(chunk.into_buffer());
        }
        if !shared.stop.stopped() {
            stats.add(&piece);
            read += piece.read;
            progress(read);
        }
    }
    stats
}

/// A thread that takes pieces through all steps.
struct Worker<'a> {
    shared: &'a Shared<'a>,
    idle: Receiver<ChunkBuffer>,
    tell: Sender<Written>,
    /// Buffers it has used already, and that are still in its cache.
    spare: Vec<ChunkBuffer>,
}

impl Worker<'_> {
    fn run(mut self) -> Result<()> {
        while !self.shared.stop.stopped() {
            let Some(written) = self.next()? else { break };
            if self.tell.send(written).is_err() {
                break;
            }
        }
        Ok(())
    }

    /// Does one piece of what is to be done. `None`: there is nothing left, or the dump was given up.
    fn next(&mut self) -> Result<Option<Written>> {
        let full = |live: &&dyn LivePages| live.waiting() >= MAX_DATA_PAGES as u64;
        // What was saved elsewhere takes up room there, so it goes first.
        if let Some(live) = self.shared.live.filter(full)
            && let Some(written) = self.save_taken(live)?
        {
            return Ok(Some(written));
        }
        let piece = self.shared.pieces.lock().unwrap_or_else(PoisonError::into_inner).next();
        match (piece, self.shared.live) {
            (Some(piece), _) => self.save(&piece),
            (None, Some(live)) => self.save_rest(live),
            (None, None) => Ok(None),
        }
    }

    /// The last of what was saved elsewhere, or is about to be.
    fn save_rest(&mut self, live: &dyn LivePages) -> Result<Option<Written>> {
        while !self.shared.stop.stopped() && !live.is_complete()? {
            if let Some(written) = self.save_taken(live)? {
                return Ok(Some(written));
            }
            // Another worker has them, or they are there in a moment.
            thread::yield_now();
        }
        Ok(None)
    }

    fn save_taken(&mut self, live: &dyn LivePages) -> Result<Option<Written>> {
        let Some(mut taken) = self.buffer() else { return Ok(None) };
        let mut pages = live.take(&mut taken.data()[..MAX_DATA])?;
        let Some(&(owner, _)) = pages.first() else {
            self.spare.push(taken);
            return Ok(None);
        };
        if pages.iter().all(|(of, _)| *of == owner) {
            let Some(packed) = self.buffer() else { return Ok(None) };
            let numbers: Vec<u64> = pages.iter().map(|(_, page)| *page).collect();
            return self.write(owner, &runs_of(&numbers), Buffers { pages: taken, packed }, numbers.len() as u64);
        }
        // A chunk is of one owner.
        let mut places: Vec<usize> = (0..pages.len()).collect();
        places.sort_by_key(|&place| pages[place].0);
        pages.sort_by_key(|(owner, _)| *owner);
        let mut last = None;
        let mut at = 0;
        for group in pages.chunk_by(|a, b| a.0 == b.0) {
            let (Some(mut own), Some(packed)) = (self.buffer(), self.buffer()) else { return Ok(None) };
            for (to, from) in places[at..at + group.len()].iter().enumerate() {
                own.data()[to * PAGE..(to + 1) * PAGE].copy_from_slice(&taken.data()[from * PAGE..(from + 1) * PAGE]);
            }
            at += group.len();
            let numbers: Vec<u64> = group.iter().map(|(_, page)| *page).collect();
            let written = self.write(group[0].0, &runs_of(&numbers), Buffers { pages: own, packed }, numbers.len() as u64)?;
            if let Some(before) = std::mem::replace(&mut last, written)
                && self.tell.send(before).is_err()
            {
                return Ok(None);
            }
        }
        self.spare.push(taken);
        Ok(last)
    }

    /// Reads a piece, makes its chunk, and writes it if the writer takes chunks from many threads. `None` if the dump was given up.
    fn save(&mut self, piece: &Piece) -> Result<Option<Written>> {
        let (Some(mut pages), Some(packed)) = (self.buffer(), self.buffer()) else { return Ok(None) };
        match self.shared.live.filter(|live| live.has(piece.owner)) {
            Some(live) => {
                let (runs, planned) = (self.read_live(live, piece, &mut pages)?, planned(&piece.runs));
                self.write(piece.owner, &runs, Buffers { pages, packed }, planned)
            }
            None => {
                let read = self.read(piece.owner, &piece.runs, &mut pages)?;
                self.write(piece.owner, &piece.runs, Buffers { pages, packed }, read)
            }
        }
    }

    /// Reads the data runs into the buffer. Returns how many pages they are.
    fn read(&self, owner: ObjRef, runs: &[Run], pages: &mut ChunkBuffer) -> Result<u64> {
        let ranges: Vec<PageRange> = data_ranges(runs).collect();
        let read = planned(runs);
        if read > 0 {
            self.shared.source.read(owner, &ranges, &mut pages.data()[..(read * PAGE_SIZE) as usize])?;
        }
        Ok(read)
    }

    /// Reads the pages of a piece that nobody else has saved. Returns the runs that are in the buffer then, and the others of the piece.
    fn read_live(&self, live: &dyn LivePages, piece: &Piece, pages: &mut ChunkBuffer) -> Result<Vec<Run>> {
        let all: Vec<PageRange> = data_ranges(&piece.runs).collect();
        let rest = piece.runs.iter().filter(|run| run.kind != RunKind::Data);
        let mut left = live.left(piece.owner, &all);
        loop {
            let data = left.iter().map(|&pages| Run { pages, kind: RunKind::Data });
            let runs: Vec<Run> = data.chain(rest.clone().copied()).collect();
            match self.read(piece.owner, &runs, pages) {
                Ok(_) => {
                    let lost = live.settle(piece.owner, &left)?;
                    return Ok(keep_won(&runs, &lost, pages.data()));
                }
                Err(error) => {
                    // Pages that somebody has saved may be gone since.
                    let fewer = live.left(piece.owner, &left);
                    if fewer == left {
                        return Err(match error {
                            Error::Gone(_) => error,
                            other => Error::Void(other.to_string()),
                        });
                    }
                    left = fewer;
                }
            }
        }
    }

    /// Makes the chunk of the runs, whose data is in the buffer, and writes it if the writer takes chunks from many threads.
    fn write(&mut self, owner: ObjRef, runs: &[Run], buffers: Buffers, planned: u64) -> Result<Option<Written>> {
        let chunk = self.seal(owner, runs, buffers);
        let mut written = Written { counts: chunk.counts, stored: chunk.stored, read: planned, chunk: None };
        if chunk.counts == PageCounts::default() {
            // Nothing is left of it, and a chunk of no pages would end its owner.
            self.spare.push(chunk.into_buffer());
        } else if self.shared.writer.takes_parallel_chunks() {
            self.shared.writer.chunk(&chunk)?;
            self.spare.push(chunk.into_buffer());
        } else {
            written.chunk = Some(chunk);
        }
        Ok(Some(written))
    }

    fn seal(&mut self, owner: ObjRef, runs: &[Run], Buffers { mut pages, mut packed }: Buffers) -> SealedChunk {
        let bytes = &mut pages.data()[..(planned(runs) * PAGE_SIZE) as usize];
        let known = |page: u64, bytes: &[u8]| self.shared.known.is_some_and(|k| k.is_known(owner, page, bytes));
        let (runs, kept) = zero::squeeze(runs, bytes, known);
        let block = match self.shared.codec {
            Codec::Lz4 if kept > 0 => codec::pack(&bytes[..kept], packed.data()),
            _ => None,
        };
        let (buffer, spare, codec, len) = match block {
            Some(len) => (packed, pages, Codec::Lz4, len),
            None => (pages, packed, Codec::Raw, kept),
        };
        self.spare.push(spare);
        buffer.seal(owner, codec, &runs, len)
    }

    /// A buffer, once there is one. `None` if there will be none.
    fn buffer(&mut self) -> Option<ChunkBuffer> {
        let one_less = |left: usize| left.checked_sub(1);
        let left = &self.shared.buffers_left;
        let make = || left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_less).ok().map(|_| ChunkBuffer::new());
        self.spare.pop().or_else(|| self.idle.try_recv().ok()).or_else(make).or_else(|| self.idle.recv().ok())
    }
}

/// One to read into, and one to compress into.
struct Buffers {
    pages: ChunkBuffer,
    packed: ChunkBuffer,
}

fn data_ranges(runs: &[Run]) -> impl Iterator<Item = PageRange> + '_ {
    runs.iter().filter(|run| run.kind == RunKind::Data).map(|run| run.pages)
}

/// Pages of data.
fn planned(runs: &[Run]) -> u64 {
    data_ranges(runs).map(|range| range.count).sum()
}

/// Pages in any order, as runs of data in that order.
fn runs_of(pages: &[u64]) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for &page in pages {
        match runs.last_mut() {
            Some(last) if last.pages.end() == page => last.pages.count += 1,
            _ => runs.push(Run { pages: PageRange { start: page, count: 1 }, kind: RunKind::Data }),
        }
    }
    runs
}

/// Takes the pages `lost`, in order, out of the runs and out of `bytes`, which holds the data of the runs.
fn keep_won(runs: &[Run], lost: &[u64], bytes: &mut [u8]) -> Vec<Run> {
    if lost.is_empty() {
        return runs.to_vec();
    }
    let pages = data_ranges(runs).flat_map(PageRange::numbers).enumerate();
    let won: Vec<(usize, u64)> = pages.filter(|(_, page)| lost.binary_search(page).is_err()).collect();
    for (to, &(from, _)) in won.iter().enumerate().filter(|(to, (from, _))| to != from) {
        bytes.copy_within(from * PAGE..(from + 1) * PAGE, to * PAGE);
    }
    let numbers: Vec<u64> = won.iter().map(|&(_, page)| page).collect();
    runs_of(&numbers).into_iter().chain(runs.iter().filter(|run| run.kind != RunKind::Data).copied()).collect()
}
