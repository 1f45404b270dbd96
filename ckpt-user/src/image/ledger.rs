//! The books of an image being written: where the next record goes, and what the trailer and the index will say.

use xxhash_rust::xxh3::Xxh3Default;

use super::chunk::SealedChunk;
use super::error::{ImageError, Place};
use super::index::{ChunkEntry, Index, RecordEntry};
use super::order::Order;
use super::wire::{FRAME_LEN, Frame, PREAMBLE_LEN, PageCounts, RecordType, TRAILER_HAS_INDEX, Trailer, preamble};

/// See the module. A record is entered before it is written: its place is settled then.
pub(super) struct Ledger {
    next: Place,
    order: Order,
    chain: Xxh3Default,
    pages: PageCounts,
    /// Kept if there may be one.
    index: Option<Index>,
    /// The offset of the first record that could not be written whole.
    broken_at: Option<u64>,
}

impl std::fmt::Debug for Ledger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ledger").field("next", &self.next).field("broken_at", &self.broken_at).finish_non_exhaustive()
    }
}

impl Ledger {
    /// The books of an image that holds its preamble only.
    pub(super) fn new(indexed: bool) -> Ledger {
        let mut chain = Xxh3Default::new();
        chain.update(&preamble());
        Ledger {
            next: Place { record: 0, offset: PREAMBLE_LEN as u64 },
            order: Order::default(),
            chain,
            pages: PageCounts::default(),
            index: indexed.then(Index::default),
            broken_at: None,
        }
    }

    /// Bytes entered so far.
    pub(super) fn offset(&self) -> u64 {
        self.next.offset
    }

    /// Enters a metadata record. Returns its place.
    pub(super) fn enter_metadata(&mut self, record_type: RecordType, frame: Frame) -> Result<Place, ImageError> {
        if matches!(record_type, RecordType::Chunk | RecordType::Error | RecordType::Trailer | RecordType::Index) {
            return Err(ImageError::OutOfOrder { at: self.next, found: record_type, expected: "a metadata record" });
        }
        let at = self.enter(record_type, frame)?;
        if let Some(index) = &mut self.index {
            index.records.push(RecordEntry { offset: at.offset, record_type: record_type as u32 });
        }
        Ok(at)
    }

    /// Enters a chunk. Returns its place.
    pub(super) fn enter_chunk(&mut self, chunk: &SealedChunk) -> Result<Place, ImageError> {
        let at = self.enter(RecordType::Chunk, chunk.frame)?;
        self.pages += chunk.counts;
        if let Some(index) = &mut self.index {
            index.chunks.push(ChunkEntry { offset: at.offset, owner: chunk.owner, span: chunk.span });
        }
        Ok(at)
    }

    fn enter(&mut self, record_type: RecordType, frame: Frame) -> Result<Place, ImageError> {
        let at = self.next;
        if self.is_broken() {
            return Err(ImageError::GivenUp);
        }
        if frame.len > record_type.limit() {
            return Err(ImageError::TooLong { at, len: frame.len, limit: record_type.limit() });
        }
        self.order.admit(record_type).map_err(|expected| ImageError::OutOfOrder { at, found: record_type, expected })?;
        self.chain.update(&frame.to_bytes());
        self.next = Place { record: at.record + 1, offset: at.offset + FRAME_LEN as u64 + frame.len };
        Ok(at)
    }

    /// The record at `at` could not be written whole.
    pub(super) fn give_up(&mut self, at: Place) {
        self.broken_at = Some(self.broken_at.map_or(at.offset, |earlier| earlier.min(at.offset)));
    }

    /// Could some record not be written whole?
    pub(super) fn is_broken(&self) -> bool {
        self.broken_at.is_some()
    }

    /// Every record before this offset was written whole.
    pub(super) fn whole_until(&self) -> u64 {
        self.broken_at.unwrap_or(self.next.offset)
    }

    /// The trailer, its offset, and the index if there is to be one.
    pub(super) fn close(mut self) -> Result<(Trailer, u64, Option<Index>), ImageError> {
        if self.is_broken() {
            return Err(ImageError::GivenUp);
        }
        let found = RecordType::Trailer;
        self.order.admit(found).map_err(|expected| ImageError::OutOfOrder { at: self.next, found, expected })?;
        // An image that is too large for an index does without: it can still be read from the front.
        let index = self.index.filter(|index| index.payload_len() <= RecordType::Index.limit());
        let flags = if index.is_some() { TRAILER_HAS_INDEX } else { 0 };
        let trailer = Trailer { flags, records: self.next.record, chain: self.chain.digest(), pages: self.pages };
        Ok((trailer, self.next.offset, index))
    }
}
