//! The index at the end of a seekable image: where every record is, and which pages each chunk is about, so that a lazy restart and
//! `ckpt info` need not read everything.
//!
//! It is a help, never the truth: it names the trailer that it belongs to, every record found through it has a checksum of its own, and
//! whoever reads the stream from the front needs it not at all.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use super::error::{ImageError, Place};
use super::wire::{FRAME_LEN, Frame, INDEX_MAX, PREAMBLE_LEN, RecordType, Trailer, words32, words64};
use crate::ids::{ObjRef, PageRange};

/// The last eight bytes of an image with an index.
pub const INDEX_MAGIC: [u8; 8] = *b"CKPTIDX\n";
const HEAD_LEN: usize = 32;
const RECORD_LEN: usize = 16;
const CHUNK_LEN: usize = 32;
const FOOTER_LEN: usize = 16;
/// No index has more records than this, nor more chunks than [`CHUNKS_MAX`]: it would be too long.
pub(super) const RECORDS_MAX: usize = INDEX_MAX / RECORD_LEN;
/// See [`RECORDS_MAX`].
pub(super) const CHUNKS_MAX: usize = INDEX_MAX / CHUNK_LEN;

/// A record that is not a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordEntry {
    /// Bytes from the start of the image to its frame.
    pub offset: u64,
    /// The number of its type, perhaps one of a later version.
    pub record_type: u32,
}

/// A chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChunkEntry {
    /// Bytes from the start of the image to its frame.
    pub offset: u64,
    /// Whose pages.
    pub owner: ObjRef,
    /// From its first page to its last; pages in between may be in other chunks. Empty for the chunk that ends its owner.
    pub span: PageRange,
}

/// Where everything is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Index {
    /// Bytes from the start of the image to the trailer's frame.
    pub trailer_offset: u64,
    /// The checksum of the trailer record.
    pub trailer_checksum: u64,
    /// The records before the trailer that are not chunks, in the order of the stream.
    pub records: Vec<RecordEntry>,
    /// The chunks, in the order of the stream.
    pub chunks: Vec<ChunkEntry>,
}

impl Index {
    /// Bytes of its payload.
    pub(super) fn payload_len(&self) -> u64 {
        (HEAD_LEN + self.records.len() * RECORD_LEN + self.chunks.len() * CHUNK_LEN + FOOTER_LEN) as u64
    }

    /// Its payload, for a record whose frame stands at `offset`.
    pub(super) fn to_payload(&self, offset: u64) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.payload_len() as usize);
        let mut put = |numbers: &[u64]| numbers.iter().for_each(|n| bytes.extend_from_slice(&n.to_le_bytes()));
        put(&[self.trailer_offset, self.trailer_checksum, self.records.len() as u64, self.chunks.len() as u64]);
        for record in &self.records {
            put(&[record.offset, record.record_type.into()]);
        }
        for chunk in &self.chunks {
            put(&[chunk.offset, chunk.owner.0.into(), chunk.span.start, chunk.span.end()]);
        }
        put(&[offset]);
        bytes.extend_from_slice(&INDEX_MAGIC);
        bytes
    }

    /// Reads the payload of the index record at `at`.
    pub(super) fn parse(payload: &[u8], at: Place) -> Result<Index, ImageError> {
        Index::parse_payload(payload, at.offset).map_err(|what| ImageError::malformed(at, what))
    }

    fn parse_payload(payload: &[u8], offset: u64) -> Result<Index, &'static str> {
        const LENGTHS: &str = "the lengths in the index do not fit";
        let body = payload.strip_suffix(&INDEX_MAGIC).ok_or("the index does not end in its magic")?;
        let (body, own_offset) = body.split_last_chunk::<8>().ok_or(LENGTHS)?;
        let (head, tables) = body.split_first_chunk::<HEAD_LEN>().ok_or(LENGTHS)?;
        let [trailer_offset, trailer_checksum, records, chunks] = words64(head);
        if u64::from_le_bytes(*own_offset) != offset {
            return Err("the index says that it stands elsewhere");
        }
        let bytes_of = |count: u64, each: usize| count.checked_mul(each as u64).ok_or(LENGTHS);
        let records_len = bytes_of(records, RECORD_LEN)?;
        let total = bytes_of(chunks, CHUNK_LEN)?.checked_add(records_len).ok_or(LENGTHS)?;
        if total != tables.len() as u64 {
            return Err(LENGTHS);
        }
        let (records, chunks) = tables.split_at(records_len as usize);
        let records: Vec<RecordEntry> = records.as_chunks::<RECORD_LEN>().0.iter().map(parse_record).collect();
        let chunks: Option<Vec<ChunkEntry>> = chunks.as_chunks::<CHUNK_LEN>().0.iter().map(parse_chunk).collect();
        let index =
            Index { trailer_offset, trailer_checksum, records, chunks: chunks.ok_or("a chunk's pages end before they begin")? };
        let ascending =
            index.records.is_sorted_by(|a, b| a.offset < b.offset) && index.chunks.is_sorted_by(|a, b| a.offset < b.offset);
        let mut offsets = index.records.iter().map(|r| r.offset).chain(index.chunks.iter().map(|c| c.offset));
        if !ascending || !offsets.all(|o| (PREAMBLE_LEN as u64..trailer_offset).contains(&o)) || trailer_offset >= offset {
            return Err("the offsets in the index are not those of records before it");
        }
        Ok(index)
    }

    /// Reads the index of the image in `file` from the file's end. `None` if the image has none, as one that went through a pipe.
    /// The trailer is read and checked too: the index belongs to it. The file's offset stays as it is.
    ///
    /// # Errors
    /// [`ImageError::Read`]; [`ImageError::Checksum`] and others if index or trailer are damaged.
    pub fn find(file: &File) -> Result<Option<(Index, Trailer)>, ImageError> {
        let len = file.metadata().map_err(|source| ImageError::Read { offset: 0, source })?.len();
        let Some(footer_at) = len.checked_sub(FOOTER_LEN as u64) else { return Ok(None) };
        let mut footer = [0; FOOTER_LEN];
        read_at(file, &mut footer, footer_at)?;
        let [offset] = words64(&footer);
        if footer[8..] != INDEX_MAGIC {
            return Ok(None);
        }
        // Which record it is cannot be known from the end: the records are counted from the front.
        let at = Place { record: 0, offset };
        let payload_len = len.checked_sub(offset).and_then(|rest| rest.checked_sub(FRAME_LEN as u64));
        let payload_len = payload_len.ok_or_else(|| ImageError::malformed(at, "the index begins after its end"))?;
        let index = Index::parse(&record_at(file, at, RecordType::Index, payload_len)?.1, at)?;
        let at = Place { record: (index.records.len() + index.chunks.len()) as u64, offset: index.trailer_offset };
        let trailer_len = (offset - index.trailer_offset).checked_sub(FRAME_LEN as u64);
        let trailer_len = trailer_len.ok_or_else(|| ImageError::malformed(at, "the trailer and the index overlap"))?;
        let (frame, payload) = record_at(file, at, RecordType::Trailer, trailer_len)?;
        let trailer = Trailer::from_bytes(&payload).filter(|_| frame.checksum == index.trailer_checksum);
        let trailer = trailer.ok_or(ImageError::Chain { at, what: "its index names another one" })?;
        Ok(Some((index, trailer)))
    }
}

fn parse_record(bytes: &[u8; RECORD_LEN]) -> RecordEntry {
    let [offset] = words64(bytes);
    let [_, _, record_type] = words32(bytes);
    RecordEntry { offset, record_type }
}

fn parse_chunk(bytes: &[u8; CHUNK_LEN]) -> Option<ChunkEntry> {
    let [offset, _, start, end] = words64(bytes);
    let [_, _, owner] = words32(bytes);
    let span = PageRange { start, count: end.checked_sub(start)? };
    Some(ChunkEntry { offset, owner: ObjRef(owner), span })
}

fn read_at(file: &File, buf: &mut [u8], offset: u64) -> Result<(), ImageError> {
    file.read_exact_at(buf, offset).map_err(|source| match source.kind() {
        io::ErrorKind::UnexpectedEof => ImageError::Truncated(Place { record: 0, offset }),
        _ => ImageError::Read { offset, source },
    })
}

/// Reads the record of a known type and length at `at`, and checks its checksum.
fn record_at(file: &File, at: Place, record_type: RecordType, len: u64) -> Result<(Frame, Vec<u8>), ImageError> {
    let mut frame = [0; FRAME_LEN];
    read_at(file, &mut frame, at.offset)?;
    let frame = Frame::from_bytes(&frame);
    if frame != (Frame { record_type: record_type as u32, flags: 0, len, checksum: frame.checksum }) {
        return Err(ImageError::malformed(at, format!("no {record_type} of {len} bytes begins where the index says")));
    }
    if len > record_type.limit() {
        return Err(ImageError::TooLong { at, len, limit: record_type.limit() });
    }
    let mut payload = vec![0; len as usize];
    read_at(file, &mut payload, at.offset + FRAME_LEN as u64)?;
    frame.check(&payload, at)?;
    Ok((frame, payload))
}
