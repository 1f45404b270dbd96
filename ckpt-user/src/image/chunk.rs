//! Chunk records: at most a mebibyte of pages of one owner, and runs that say which pages of it they are, which are zeros and which are
//! not there (docs/format.md, "Chunk").
//!
//! Reading ([`Chunk::parse`]) believes nothing: any bytes give a chunk that keeps the rules, or an error. Writing goes through a
//! [`ChunkBuffer`], where frame, head, runs and pages come to stand side by side, so that a record is one write.

use std::ops::Range;

use super::codec::{self, Codec};
use super::error::{ImageError, Place};
use super::wire::{FRAME_LEN, Frame, PageCounts, RecordType, words32, words64};
use crate::ids::{ObjRef, PAGE_SIZE, PageRange};

/// The most pages whose data one chunk carries.
pub const MAX_DATA_PAGES: usize = 256;
/// The most runs of one chunk.
pub const MAX_RUNS: usize = 1024;
/// Bytes of the data of a full chunk.
pub const MAX_DATA: usize = MAX_DATA_PAGES * PAGE_SIZE as usize;
/// The longest payload: a full chunk with the most runs.
pub const MAX_PAYLOAD: usize = HEAD_LEN + MAX_RUNS * RUN_LEN + MAX_DATA;
/// Page numbers are below this: the address of every byte is a 64-bit number.
pub const PAGES_END: u64 = 1 << 52;

const HEAD_LEN: usize = 16;
const RUN_LEN: usize = 16;
/// Where the data begins in a [`ChunkBuffer`]: room for all that may stand before it.
const FRONT: usize = FRAME_LEN + HEAD_LEN + MAX_RUNS * RUN_LEN;

/// What a run says of its pages. The numbers are the format's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum RunKind {
    /// Their contents are in this chunk.
    Data = 0,
    /// They are all zeros.
    Zero = 1,
    /// They are not there: never touched, or given back. In an increment: no longer there.
    Hole = 2,
}

/// A run of pages of one kind. It has at least one page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Which pages; at most `u32::MAX` of them.
    pub pages: PageRange,
    /// What they are.
    pub kind: RunKind,
}

/// How many pages of which kind are in `runs`.
pub fn counts(runs: &[Run]) -> PageCounts {
    let mut counts = PageCounts::default();
    for run in runs {
        match run.kind {
            RunKind::Data => counts.data += run.pages.count,
            RunKind::Zero => counts.zero += run.pages.count,
            RunKind::Hole => counts.hole += run.pages.count,
        }
    }
    counts
}

/// The pages from the first to the last that `runs` speak of, those in between included. No pages for no runs.
fn span(runs: &[Run]) -> PageRange {
    let start = runs.iter().map(|run| run.pages.start).min().unwrap_or(0);
    let end = runs.iter().map(|run| run.pages.end()).max().unwrap_or(0);
    PageRange { start, count: end - start }
}

/// A chunk that keeps the rules of the format.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk<'a> {
    /// The object whose pages these are.
    pub owner: ObjRef,
    /// How the data is stored.
    pub codec: Codec,
    /// Which pages, in the order of the data. None: the pages of the owner end here (SEED S16).
    pub runs: Vec<Run>,
    stored: &'a [u8],
}

impl<'a> Chunk<'a> {
    /// Reads the payload of the chunk record at `at`.
    pub fn parse(payload: &'a [u8], at: Place) -> Result<Chunk<'a>, ImageError> {
        Chunk::parse_payload(payload).map_err(|what| ImageError::malformed(at, what))
    }

    fn parse_payload(payload: &'a [u8]) -> Result<Chunk<'a>, String> {
        let (head, rest) = payload.split_at_checked(HEAD_LEN).ok_or("a chunk is shorter than its head")?;
        let [owner, codec, pages, run_count] = words32(head);
        if owner == 0 {
            return Err("a chunk belongs to no object".to_owned());
        }
        let codec = Codec::from_number(codec).ok_or_else(|| format!("a chunk has the unknown codec {codec}"))?;
        if pages as usize > MAX_DATA_PAGES || run_count as usize > MAX_RUNS {
            return Err(format!(
                "a chunk has {pages} pages in {run_count} runs; at most {MAX_DATA_PAGES} in {MAX_RUNS} are allowed"
            ));
        }
        let (table, stored) =
            rest.split_at_checked(run_count as usize * RUN_LEN).ok_or("a chunk is shorter than its table of runs")?;
        let runs = table.as_chunks::<RUN_LEN>().0.iter().map(parse_run).collect::<Result<Vec<Run>, String>>()?;
        if counts(&runs).data != u64::from(pages) {
            return Err(format!("the runs of a chunk have {} pages of data, its head says {pages}", counts(&runs).data));
        }
        let raw_len = pages as usize * PAGE_SIZE as usize;
        let fits = match codec {
            Codec::Raw => stored.len() == raw_len,
            Codec::Lz4 => !stored.is_empty() && stored.len() < raw_len,
        };
        if !fits {
            return Err(format!("{} bytes of {} data cannot be {pages} pages", stored.len(), codec.name()));
        }
        Ok(Chunk { owner: ObjRef(owner), codec, runs, stored })
    }

    /// Does this chunk end the pages of its owner?
    pub fn ends_owner(&self) -> bool {
        self.runs.is_empty()
    }

    /// How many pages of which kind.
    pub fn counts(&self) -> PageCounts {
        counts(&self.runs)
    }

    /// From the first page to the last.
    pub fn span(&self) -> PageRange {
        span(&self.runs)
    }

    /// Bytes of the data as stored.
    pub fn stored_len(&self) -> u64 {
        self.stored.len() as u64
    }

    /// The contents of the data pages, decompressed into `scratch` (at least [`MAX_DATA`] bytes) if need be.
    pub fn data<'b>(&self, scratch: &'b mut [u8], at: Place) -> Result<&'b [u8], ImageError>
    where
        'a: 'b,
    {
        match self.codec {
            Codec::Raw => Ok(self.stored),
            Codec::Lz4 => {
                let pages = &mut scratch[..self.counts().data as usize * PAGE_SIZE as usize];
                codec::unpack(self.stored, pages).map_err(|what| ImageError::malformed(at, what))?;
                Ok(pages)
            }
        }
    }
}

fn parse_run(bytes: &[u8; RUN_LEN]) -> Result<Run, String> {
    let [start] = words64(bytes);
    let [_, _, count, kind] = words32(bytes);
    let kind = match kind {
        0 => RunKind::Data,
        1 => RunKind::Zero,
        2 => RunKind::Hole,
        other => return Err(format!("a run is of the unknown kind {other}")),
    };
    if count == 0 || start >= PAGES_END || PAGES_END - start < u64::from(count) {
        return Err(format!("a run of {count} pages from page {start:#x} is not within 64-bit addresses"));
    }
    Ok(Run { pages: PageRange { start, count: count.into() }, kind })
}

/// Memory to make a chunk record in: pages are put in its data part, then it is sealed.
#[derive(Debug)]
pub struct ChunkBuffer {
    bytes: Vec<u8>,
}

impl Default for ChunkBuffer {
    fn default() -> ChunkBuffer {
        ChunkBuffer::new()
    }
}

impl ChunkBuffer {
    /// A buffer with room for a full chunk, whatever its codec (about 1.2 MiB, taken from the system as it is used).
    pub fn new() -> ChunkBuffer {
        ChunkBuffer { bytes: vec![0; FRONT + codec::packed_max(MAX_DATA)] }
    }

    /// A small buffer, for chunks that carry no data.
    pub fn for_no_data() -> ChunkBuffer {
        ChunkBuffer { bytes: vec![0; FRONT] }
    }

    /// The data part: room for the pages, or for their compressed form.
    pub fn data(&mut self) -> &mut [u8] {
        &mut self.bytes[FRONT..]
    }

    /// Makes the record: `runs` of `owner`, and the first `stored_len` bytes of the data part, in the form that `codec` says.
    ///
    /// # Panics
    /// If there are more than [`MAX_RUNS`] runs, or a run longer than a run may be: errors in ckpt, which must never get into an image.
    pub fn seal(mut self, owner: ObjRef, codec: Codec, runs: &[Run], stored_len: usize) -> SealedChunk {
        let counts = counts(runs);
        assert!(runs.len() <= MAX_RUNS && counts.data <= MAX_DATA_PAGES as u64 && stored_len <= MAX_DATA);
        let payload = FRONT - runs.len() * RUN_LEN - HEAD_LEN..FRONT + stored_len;
        let (head, table) = self.bytes[payload.start..FRONT].split_at_mut(HEAD_LEN);
        for (at, number) in head.chunks_exact_mut(4).zip([owner.0, codec as u32, counts.data as u32, runs.len() as u32]) {
            at.copy_from_slice(&number.to_le_bytes());
        }
        for (at, run) in table.chunks_exact_mut(RUN_LEN).zip(runs) {
            let pages = u32::try_from(run.pages.count).expect("a run has at most u32::MAX pages");
            at[..8].copy_from_slice(&run.pages.start.to_le_bytes());
            at[8..12].copy_from_slice(&pages.to_le_bytes());
            at[12..].copy_from_slice(&(run.kind as u32).to_le_bytes());
        }
        let frame = Frame::of(RecordType::Chunk, &self.bytes[payload.clone()]);
        let record = payload.start - FRAME_LEN..payload.end;
        self.bytes[record.start..payload.start].copy_from_slice(&frame.to_bytes());
        SealedChunk { buffer: self, record, frame, owner, span: span(runs), counts, stored: stored_len as u64 }
    }
}

/// A chunk record, whole: frame, head, runs and data in one piece.
#[derive(Debug)]
pub struct SealedChunk {
    buffer: ChunkBuffer,
    record: Range<usize>,
    pub(super) frame: Frame,
    /// Whose pages.
    pub owner: ObjRef,
    /// From the first page to the last.
    pub span: PageRange,
    /// How many pages of which kind.
    pub counts: PageCounts,
    /// Bytes of the data as stored.
    pub stored: u64,
}

impl SealedChunk {
    /// The record as it stands in the image.
    pub fn record(&self) -> &[u8] {
        &self.buffer.bytes[self.record.clone()]
    }

    /// The buffer, to be used again.
    pub fn into_buffer(self) -> ChunkBuffer {
        self.buffer
    }
}
