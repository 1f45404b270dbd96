//! From a source into an image.

use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::thread;

use crossbeam_channel::{Receiver, Sender, bounded};

use super::plan::{self, Extent, Piece, Pieces};
use super::stop::Stop;
use super::{KnownPages, MAX_WORKERS, PageSource, default_workers, zero};
use crate::error::Result;
use crate::ids::PAGE_SIZE;
use crate::image::chunk::{ChunkBuffer, RunKind, SealedChunk};
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
}

impl Default for DumpOptions<'_> {
    fn default() -> Self {
        DumpOptions { codec: Codec::default(), workers: default_workers(), known: None }
    }
}

impl fmt::Debug for DumpOptions<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let DumpOptions { codec, workers, known } = self;
        write!(f, "DumpOptions {{ codec: {codec:?}, workers: {workers}, known: {} }}", known.is_some())
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

impl DumpStats {
    fn add(&mut self, chunk: &Written) {
        self.pages_data += chunk.counts.data;
        self.pages_zero += chunk.counts.zero;
        self.pages_hole += chunk.counts.hole;
        self.bytes_raw += chunk.counts.data * PAGE_SIZE;
        self.bytes_stored += chunk.stored;
    }
}

/// What a worker tells of a piece.
struct Written {
    counts: PageCounts,
    stored: u64,
    /// Pages of it that were read from the source.
    read: u64,
    /// The chunk, if it is still to be written.
    chunk: Option<SealedChunk>,
}

/// Saves the pages of `plan`, each owner's ended by its empty chunk (SEED S16). `progress` is called on this thread with the pages read
/// so far, out of [`super::pages_to_read`].
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
    let owners = plan::check(plan)?;
    let writer = &*writer;
    let workers = options.workers.clamp(1, MAX_WORKERS);
    let stop = Stop::default();
    let shared =
        Shared { pieces: Mutex::new(Pieces::of(plan)), source, writer, codec: options.codec, known: options.known, stop: &stop };
    let stats = thread::scope(|scope| {
        // A worker holds one buffer to read into and one to compress into, and as many again may wait to be written.
        let (give, idle) = bounded(3 * workers + 2);
        let (tell, told) = bounded(workers + 2);
        while give.try_send(ChunkBuffer::new()).is_ok() {}
        for n in 0..workers {
            let (shared, idle, tell) = (&shared, idle.clone(), tell.clone());
            stop.spawn(scope, format!("ckpt-dump-{n}"), || Worker { shared, idle, tell, spare: Vec::new() }.run());
        }
        drop((idle, tell));
        collect(&shared, &told, &give, progress)
    });
    stop.into_result()?;
    for owner in owners {
        writer.end_owner(owner)?;
    }
    Ok(stats)
}

/// What all threads of a dump see.
struct Shared<'a> {
    pieces: Mutex<Pieces<'a>>,
    source: &'a dyn PageSource,
    writer: &'a ImageWriter<'a>,
    codec: Codec,
    known: Option<&'a dyn KnownPages>,
    stop: &'a Stop,
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
            let piece = self.shared.pieces.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some(piece) = piece else { break };
            let Some(written) = self.save(&piece)? else { break };
            if self.tell.send(written).is_err() {
                break;
            }
        }
        Ok(())
    }

    /// Reads a piece, makes its chunk, and writes it if the writer takes chunks from many threads. `None` if the dump was given up.
    fn save(&mut self, piece: &Piece) -> Result<Option<Written>> {
        let (Some(pages), Some(packed)) = (self.buffer(), self.buffer()) else { return Ok(None) };
        let (chunk, read) = self.make(piece, pages, packed)?;
        let mut written = Written { counts: chunk.counts, stored: chunk.stored, read, chunk: None };
        if self.shared.writer.takes_parallel_chunks() {
            self.shared.writer.chunk(&chunk)?;
            self.spare.push(chunk.into_buffer());
        } else {
            written.chunk = Some(chunk);
        }
        Ok(Some(written))
    }

    fn make(&mut self, piece: &Piece, mut pages: ChunkBuffer, mut packed: ChunkBuffer) -> Result<(SealedChunk, u64)> {
        let ranges: Vec<_> = piece.runs.iter().filter(|run| run.kind == RunKind::Data).map(|run| run.pages).collect();
        let read: u64 = ranges.iter().map(|range| range.count).sum();
        let bytes = &mut pages.data()[..(read * PAGE_SIZE) as usize];
        if read > 0 {
            self.shared.source.read(piece.owner, &ranges, bytes)?;
        }
        let known = |page: u64, bytes: &[u8]| self.shared.known.is_some_and(|k| k.is_known(piece.owner, page, bytes));
        let (runs, kept) = zero::squeeze(&piece.runs, bytes, known);
        let block = match self.shared.codec {
            Codec::Lz4 if kept > 0 => codec::pack(&bytes[..kept], packed.data()),
            _ => None,
        };
        let (buffer, spare, codec, len) = match block {
            Some(len) => (packed, pages, Codec::Lz4, len),
            None => (pages, packed, Codec::Raw, kept),
        };
        self.spare.push(spare);
        Ok((buffer.seal(piece.owner, codec, &runs, len), read))
    }

    /// A buffer, once there is one. `None` if there will be none.
    fn buffer(&mut self) -> Option<ChunkBuffer> {
        self.spare.pop().or_else(|| self.idle.recv().ok())
    }
}
