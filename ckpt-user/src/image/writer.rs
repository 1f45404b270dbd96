//! Writing an image, record after record, in the order of the format.
//!
//! Metadata comes from one thread. Chunks may come from several ([`ImageWriter::chunk`] takes `&self`): a record's place in the order,
//! in the chain of checksums and in the file is settled in one short step under a lock; for a regular file the bytes are then written
//! outside of it. Knows nothing of where the pages come from, and does not sync: that is for whoever names the file.

use std::fs::File;
use std::io::{self, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use serde::Serialize;

use super::chunk::{ChunkBuffer, SealedChunk};
use super::codec::Codec;
use super::error::{ImageError, Place};
use super::ledger::Ledger;
use super::metadata::EncodedVma;
use super::model::{Container, Header, Object, TaskState, TaskTable};
use super::output::{FileOutput, Output, StreamOutput};
use super::wire::{FRAME_LEN, Frame, PageCounts, RecordType, preamble};
use crate::ids::ObjRef;

/// What is known of an image once it is whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrailerInfo {
    /// The checksum of the trailer record, by which an increment names its parent.
    pub trailer_checksum: u64,
    /// Bytes of the image, everything included.
    pub bytes: u64,
    /// Number of records before the trailer.
    pub records: u64,
    /// Pages in the chunks.
    pub pages: PageCounts,
}

/// An image being written. Until [`ImageWriter::finish`] it is no image, and a reader says that it is truncated.
#[derive(Debug)]
pub struct ImageWriter<'w> {
    out: Box<dyn Output + 'w>,
    ledger: Mutex<Ledger>,
}

impl<'w> ImageWriter<'w> {
    /// An image that goes to a stream: a pipe, a socket, memory.
    pub fn new(out: impl Write + Send + 'w) -> Result<ImageWriter<'w>, ImageError> {
        ImageWriter::to_output(Box::new(StreamOutput::new(out)))
    }

    /// An image that goes to `file` from its present offset on: the quick way of a regular file if it is one, else that of a stream.
    /// The caller has truncated it, and syncs it afterwards.
    pub fn to_file(file: &'w File) -> Result<ImageWriter<'w>, ImageError> {
        let fail = |source: io::Error| ImageError::Write { offset: 0, source };
        let flags = fcntl(file, FcntlArg::F_GETFL).map_err(|e| fail(e.into()))?;
        // The kernel appends whatever is written to an O_APPEND file, with pwrite too (pwrite(2), "BUGS").
        let appends = OFlag::from_bits_truncate(flags).contains(OFlag::O_APPEND);
        if file.metadata().map_err(fail)?.is_file() && !appends {
            ImageWriter::to_output(Box::new(FileOutput::new(file).map_err(fail)?))
        } else {
            ImageWriter::new(file)
        }
    }

    pub(super) fn to_output(out: Box<dyn Output + 'w>) -> Result<ImageWriter<'w>, ImageError> {
        out.write_at(&preamble(), 0).map_err(|source| ImageError::Write { offset: 0, source })?;
        let ledger = Ledger::new(out.seekable());
        Ok(ImageWriter { out, ledger: Mutex::new(ledger) })
    }

    /// Writes the first record. Its page size must be set: readers refuse another than theirs.
    pub fn header(&mut self, header: &Header) -> Result<(), ImageError> {
        self.record(RecordType::Header, header)
    }

    /// Writes the second record.
    pub fn container(&mut self, container: &Container) -> Result<(), ImageError> {
        self.record(RecordType::Container, container)
    }

    /// Writes the third record.
    pub fn tasks(&mut self, tasks: &TaskTable) -> Result<(), ImageError> {
        self.record(RecordType::Tasks, tasks)
    }

    /// Writes an object, which must stand before whatever refers to it (SEED S15).
    pub fn object(&mut self, object: &Object) -> Result<(), ImageError> {
        self.record(RecordType::Object, object)
    }

    /// Writes the state of a process.
    pub fn task_state(&mut self, state: &TaskState) -> Result<(), ImageError> {
        self.record(RecordType::TaskState, state)
    }

    /// Writes a mapping of an address space. All of them, of every address space, stand before the first chunk.
    pub fn vma<T: Serialize>(&mut self, record: &T) -> Result<(), ImageError> {
        self.record(RecordType::Vma, record)
    }

    /// Writes a mapping as another image has it, with whatever fields this version does not know.
    pub fn encoded_vma(&mut self, vma: &EncodedVma) -> Result<(), ImageError> {
        self.framed(RecordType::Vma, [&[0; FRAME_LEN], vma.0.as_slice()].concat())
    }

    /// Writes a metadata record: a MessagePack map with field names.
    pub fn record<T: Serialize>(&mut self, record_type: RecordType, record: &T) -> Result<(), ImageError> {
        let mut bytes = vec![0; FRAME_LEN];
        rmp_serde::encode::write_named(&mut bytes, record).map_err(|e| ImageError::encode(&record_type.to_string(), e))?;
        self.framed(record_type, bytes)
    }

    /// Writes a record of which `bytes` holds the payload, after room for the frame.
    fn framed(&mut self, record_type: RecordType, mut bytes: Vec<u8>) -> Result<(), ImageError> {
        let frame = Frame::of(record_type, &bytes[FRAME_LEN..]);
        bytes[..FRAME_LEN].copy_from_slice(&frame.to_bytes());
        self.append(&bytes, |ledger| ledger.enter_metadata(record_type, frame))
    }

    /// May chunks be written by several threads at once? If not, they are still taken, one after another.
    pub fn takes_parallel_chunks(&self) -> bool {
        self.out.seekable()
    }

    /// Writes a chunk.
    pub fn chunk(&self, chunk: &SealedChunk) -> Result<(), ImageError> {
        self.append(chunk.record(), |ledger| ledger.enter_chunk(chunk))
    }

    /// Ends the pages of an owner, with a chunk of no pages (SEED S16).
    pub fn end_owner(&self, owner: ObjRef) -> Result<(), ImageError> {
        self.chunk(&ChunkBuffer::for_no_data().seal(owner, Codec::Raw, &[], 0))
    }

    /// Bytes written so far.
    pub fn bytes(&self) -> u64 {
        self.ledger().offset()
    }

    /// Ends the image with the reason why it is none (SEED S9), so that it can be found from the image's end. After a failed write
    /// this works only in a regular file, where what was not written whole is cut off.
    pub fn fail(self, message: &str) -> Result<(), ImageError> {
        let ledger = self.ledger.into_inner().unwrap_or_else(PoisonError::into_inner);
        let offset = ledger.whole_until();
        let write_error = |source| ImageError::Write { offset, source };
        if ledger.is_broken() && !self.out.cut_back(offset).map_err(write_error)? {
            return Err(ImageError::GivenUp);
        }
        let room = RecordType::Error.limit() as usize - 1;
        let text = &message[..message.floor_char_boundary(room)];
        let payload = [b"\0", text.as_bytes()].concat();
        let record = [&Frame::of(RecordType::Error, &payload).to_bytes(), payload.as_slice()].concat();
        self.out.write_at(&record, offset).and_then(|()| self.out.finish(offset + record.len() as u64)).map_err(write_error)
    }

    /// Writes the trailer, and the index if the output is a regular file. Only now is it an image.
    pub fn finish(self) -> Result<TrailerInfo, ImageError> {
        let ledger = self.ledger.into_inner().unwrap_or_else(PoisonError::into_inner);
        let (trailer, trailer_offset, mut index) = ledger.close()?;
        let payload = trailer.to_bytes();
        let frame = Frame::of(RecordType::Trailer, &payload);
        let mut tail = [&frame.to_bytes(), payload.as_slice()].concat();
        if let Some(index) = &mut index {
            index.trailer_offset = trailer_offset;
            index.trailer_checksum = frame.checksum;
            let payload = index.to_payload(trailer_offset + tail.len() as u64);
            tail.extend_from_slice(&Frame::of(RecordType::Index, &payload).to_bytes());
            tail.extend_from_slice(&payload);
        }
        let bytes = trailer_offset + tail.len() as u64;
        let written = self.out.write_at(&tail, trailer_offset).and_then(|()| self.out.finish(bytes));
        written.map_err(|source| ImageError::Write { offset: trailer_offset, source })?;
        Ok(TrailerInfo { trailer_checksum: frame.checksum, bytes, records: trailer.records, pages: trailer.pages })
    }

    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        // A panic elsewhere cannot leave the ledger half changed: nothing that is done under its lock panics.
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes a record, which `enter` enters into the ledger.
    fn append(&self, record: &[u8], enter: impl FnOnce(&mut Ledger) -> Result<Place, ImageError>) -> Result<(), ImageError> {
        let mut ledger = self.ledger();
        let at = enter(&mut ledger)?;
        // In a stream the order of the ledger is the order of the writes, so the ledger stays locked; a file has a place for each.
        let held = if self.out.seekable() {
            drop(ledger);
            None
        } else {
            Some(ledger)
        };
        let written = self.out.write_at(record, at.offset);
        let mut ledger = held.unwrap_or_else(|| self.ledger());
        written.map_err(|source| {
            ledger.give_up(at);
            ImageError::Write { offset: at.offset, source }
        })
    }
}
