//! Reading an image from front to end, without a seek: a pipe does as well as a file.
//!
//! Nothing is believed before it was checked: a length before memory is taken for it, a checksum before anything is decoded, the place
//! of a record before it is handed out. Never reads a byte beyond the record asked for, so that whatever follows the image in a
//! pipe is still there.

use std::collections::BTreeMap;
use std::io::{self, Read};

use serde::de::DeserializeOwned;
use xxhash_rust::xxh3::Xxh3Default;

use super::chunk::MAX_PAYLOAD;
use super::error::{ImageError, Place};
use super::index::{self, Index, RecordEntry};
use super::order::Order;
use super::wire::{
    ARCHITECTURE, FLAG_CRITICAL, FRAME_LEN, Frame, MAGIC, PREAMBLE_LEN, REVISION, RecordType, TRAILER_HAS_INDEX, Trailer, words32,
};

/// Memory is taken for a payload in steps that begin with this many bytes and double: a length that lies costs at most twice
/// what was really there.
const FIRST_STEP: usize = MAX_PAYLOAD;

/// Room for one payload, to be used again and again.
#[derive(Debug, Default)]
pub struct Payload {
    bytes: Vec<u8>,
    len: usize,
}

impl Payload {
    /// The bytes. Not checked yet, unless whoever filled it says so: see [`RawRecord::check`].
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// Bytes of memory that it holds on to.
    pub fn capacity(&self) -> usize {
        self.bytes.capacity()
    }

    /// The record in it: a MessagePack value.
    pub fn decode<T: DeserializeOwned>(&self, record_type: RecordType) -> Result<T, ImageError> {
        rmp_serde::from_slice(self.bytes()).map_err(|e| ImageError::decode(&record_type.to_string(), e))
    }

    /// Fills it with `len` bytes of `input`, which the caller found to be within the limits.
    fn read(&mut self, input: &mut impl Read, len: usize) -> io::Result<()> {
        self.len = 0;
        while self.len < len {
            let end = len.min(self.bytes.len().max(FIRST_STEP).max(2 * self.len));
            if self.bytes.len() < end {
                self.bytes.resize(end, 0);
            }
            input.read_exact(&mut self.bytes[self.len..end])?;
            self.len = end;
        }
        Ok(())
    }
}

/// A record whose payload was read but not looked at.
#[derive(Clone, Copy, Debug)]
pub struct RawRecord {
    /// Its type: one that this revision knows, and neither error nor trailer nor index.
    pub record_type: RecordType,
    /// Where it stands.
    pub at: Place,
    frame: Frame,
}

impl RawRecord {
    /// Checks the payload: to be done before anything in it is decoded, on any thread.
    pub fn check(&self, payload: &Payload) -> Result<(), ImageError> {
        self.frame.check(payload.bytes(), self.at)
    }
}

/// The trailer of an image that was read to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ending {
    /// What it says.
    pub trailer: Trailer,
    /// The checksum of the trailer record, by which an increment names its parent.
    pub checksum: u64,
    /// Where it stands.
    pub at: Place,
}

/// See the module.
pub struct ImageReader<R> {
    input: R,
    next: Place,
    chain: Xxh3Default,
    order: Order,
    /// The next record, if its frame was read already.
    pending: Option<RawRecord>,
    counts: BTreeMap<RecordType, u64>,
    skipped: u64,
    /// Where the records that are not chunks are, for whoever checks the index.
    places: Option<Vec<RecordEntry>>,
    ending: Option<Ending>,
}

impl<R> std::fmt::Debug for ImageReader<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ImageReader").field("next", &self.next).field("ending", &self.ending).finish_non_exhaustive()
    }
}

impl<R: Read> ImageReader<R> {
    /// Reads and checks the preamble.
    ///
    /// # Errors
    /// [`ImageError::NotAnImage`], [`ImageError::Revision`], [`ImageError::Architecture`], [`ImageError::Truncated`].
    pub fn new(mut input: R) -> Result<ImageReader<R>, ImageError> {
        let mut preamble = Vec::with_capacity(PREAMBLE_LEN);
        let read = input.by_ref().take(PREAMBLE_LEN as u64).read_to_end(&mut preamble);
        read.map_err(|source| ImageError::Read { offset: 0, source })?;
        if preamble.is_empty() || !MAGIC.starts_with(&preamble[..preamble.len().min(MAGIC.len())]) {
            return Err(ImageError::NotAnImage);
        }
        if preamble.len() < PREAMBLE_LEN {
            return Err(ImageError::Truncated(Place::default()));
        }
        let [_, _, revision, architecture] = words32(&preamble);
        if revision != REVISION {
            return Err(ImageError::Revision(revision));
        }
        if architecture != ARCHITECTURE {
            return Err(ImageError::Architecture(architecture));
        }
        let mut chain = Xxh3Default::new();
        chain.update(&preamble);
        let next = Place { record: 0, offset: PREAMBLE_LEN as u64 };
        Ok(ImageReader {
            input,
            next,
            chain,
            order: Order::default(),
            pending: None,
            counts: BTreeMap::new(),
            skipped: 0,
            places: None,
            ending: None,
        })
    }

    /// Has the places of all records but chunks noted from here on: [`ImageReader::places`].
    pub(super) fn note_places(&mut self) {
        self.places = Some(Vec::new());
    }

    /// The records before the trailer that are not chunks, if they were to be noted; no more of them than an index can hold.
    pub(super) fn places(&self) -> &[RecordEntry] {
        self.places.as_deref().unwrap_or_default()
    }

    /// Reads on to the next record, its payload into `payload`, unchecked. `None` after the trailer, which was then checked against
    /// everything before it. Records of types that this revision does not know are checked and passed over.
    ///
    /// # Errors
    /// Everything that can be wrong with an image. [`ImageError::RecordedFailure`] if it ends in the reason why there is none. After
    /// an error the reader is of no more use.
    pub fn next_raw(&mut self, payload: &mut Payload) -> Result<Option<RawRecord>, ImageError> {
        if self.ending.is_some() {
            return Ok(None);
        }
        let record = match self.pending.take() {
            Some(record) => record,
            None => self.next_frame()?,
        };
        self.read_payload(record, payload)?;
        match record.record_type {
            RecordType::Error => {
                record.check(payload)?;
                Err(recorded_failure(payload.bytes(), record.at))
            }
            RecordType::Trailer => {
                record.check(payload)?;
                self.ending = Some(self.end(record, payload.bytes())?);
                Ok(None)
            }
            _ => Ok(Some(record)),
        }
    }

    /// The same, with the payload checked.
    pub fn next_checked(&mut self, payload: &mut Payload) -> Result<Option<RawRecord>, ImageError> {
        let record = self.next_raw(payload)?;
        if let Some(record) = record {
            record.check(payload)?;
        }
        Ok(record)
    }

    /// The type of the next record, of which only the frame is read. `None` after the trailer.
    pub fn peek(&mut self) -> Result<Option<RecordType>, ImageError> {
        if self.ending.is_some() {
            return Ok(None);
        }
        let record = match self.pending {
            Some(record) => record,
            None => self.next_frame()?,
        };
        self.pending = Some(record);
        Ok(Some(record.record_type))
    }

    /// The trailer, once it was read.
    pub fn ending(&self) -> Option<&Ending> {
        self.ending.as_ref()
    }

    /// How many records of each type came so far.
    pub fn counts(&self) -> &BTreeMap<RecordType, u64> {
        &self.counts
    }

    /// Records passed over because this revision does not know their types.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// After the trailer: reads the index, if the trailer says that there is one. Without this it is left in the input.
    pub fn read_index(&mut self) -> Result<Option<Index>, ImageError> {
        let Some(Ending { trailer, checksum, at: trailer_at }) = self.ending else {
            return Err(ImageError::malformed(self.next, "the index was asked for before the trailer"));
        };
        if trailer.flags & TRAILER_HAS_INDEX == 0 {
            return Ok(None);
        }
        let (at, frame) = self.read_frame()?;
        if frame.record_type != RecordType::Index as u32 {
            return Err(ImageError::malformed(at, "no index stands where the trailer says"));
        }
        let record = admit_known(RecordType::Index, frame, at)?;
        let mut payload = Payload::default();
        self.read_payload(record, &mut payload)?;
        record.check(&payload)?;
        let index = Index::parse(payload.bytes(), at)?;
        if (index.trailer_offset, index.trailer_checksum) != (trailer_at.offset, checksum) {
            return Err(ImageError::Chain { at: trailer_at, what: "its index names another one" });
        }
        Ok(Some(index))
    }

    /// Checks that nothing follows in the input.
    pub fn expect_end_of_input(&mut self) -> Result<(), ImageError> {
        let mut byte = [0];
        loop {
            match self.input.read(&mut byte) {
                Ok(0) => return Ok(()),
                Ok(_) => return Err(ImageError::malformed(self.next, "something follows the end of the image")),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(ImageError::Read { offset: self.next.offset, source }),
            }
        }
    }

    /// Reads frames up to that of a record of a known type that may stand there.
    fn next_frame(&mut self) -> Result<RawRecord, ImageError> {
        loop {
            let (at, frame) = self.read_frame()?;
            if frame.record_type != RecordType::Trailer as u32 {
                self.chain.update(&frame.to_bytes());
                self.note_place(frame.record_type, at.offset);
            }
            let Some(found) = RecordType::from_number(frame.record_type) else {
                self.skip(frame, at)?;
                continue;
            };
            let record = admit_known(found, frame, at)?;
            self.order.admit(found).map_err(|expected| ImageError::OutOfOrder { at, found, expected })?;
            *self.counts.entry(found).or_default() += 1;
            return Ok(record);
        }
    }

    fn note_place(&mut self, record_type: u32, offset: u64) {
        let Some(places) = &mut self.places else { return };
        if record_type != RecordType::Chunk as u32 && places.len() < index::RECORDS_MAX {
            places.push(RecordEntry { offset, record_type });
        }
    }

    fn read_frame(&mut self) -> Result<(Place, Frame), ImageError> {
        let at = self.next;
        let mut bytes = [0; FRAME_LEN];
        self.input.read_exact(&mut bytes).map_err(|e| read_error(e, at))?;
        let frame = Frame::from_bytes(&bytes);
        // A length that lies may be anything; reading that much fails long before the sum matters.
        let offset = at.offset.saturating_add(FRAME_LEN as u64).saturating_add(frame.len);
        self.next = Place { record: at.record + 1, offset };
        Ok((at, frame))
    }

    fn read_payload(&mut self, record: RawRecord, payload: &mut Payload) -> Result<(), ImageError> {
        // Cannot be cut short: the length is within the limit of its type.
        payload.read(&mut self.input, record.frame.len as usize).map_err(|e| read_error(e, record.at))
    }

    /// Passes over a record of an unknown type, of any length, in bounded memory.
    fn skip(&mut self, frame: Frame, at: Place) -> Result<(), ImageError> {
        let Frame { record_type, flags, len, checksum } = frame;
        if record_type == 0 {
            return Err(ImageError::malformed(at, "there is no record of type 0: this part of the file was never written"));
        }
        if flags & !FLAG_CRITICAL != 0 {
            return Err(ImageError::UnknownFlags { at, flags });
        }
        if flags & FLAG_CRITICAL != 0 {
            return Err(ImageError::UnknownCritical { at, record_type });
        }
        let mut hash = Xxh3Default::new();
        let mut buffer = [0; 8192];
        let mut left = len;
        while left > 0 {
            let step = &mut buffer[..left.min(8192) as usize];
            self.input.read_exact(step).map_err(|e| read_error(e, at))?;
            hash.update(step);
            left -= step.len() as u64;
        }
        self.skipped += 1;
        if hash.digest() == checksum { Ok(()) } else { Err(ImageError::Checksum(at)) }
    }

    fn end(&self, record: RawRecord, payload: &[u8]) -> Result<Ending, ImageError> {
        let at = record.at;
        let trailer =
            Trailer::from_bytes(payload).ok_or_else(|| ImageError::malformed(at, "the trailer has no magic of its own"))?;
        if trailer.flags & !TRAILER_HAS_INDEX != 0 {
            return Err(ImageError::UnknownFlags { at, flags: trailer.flags as u32 });
        }
        if trailer.records != at.record {
            return Err(ImageError::Chain { at, what: "it counts another number of records" });
        }
        if trailer.chain != self.chain.digest() {
            return Err(ImageError::Chain { at, what: "the chain of their checksums differs" });
        }
        Ok(Ending { trailer, checksum: record.frame.checksum, at })
    }
}

/// Checks the flags and the length of a record of a known type.
fn admit_known(record_type: RecordType, frame: Frame, at: Place) -> Result<RawRecord, ImageError> {
    if frame.flags != record_type.flags() {
        return Err(ImageError::UnknownFlags { at, flags: frame.flags });
    }
    if frame.len > record_type.limit() {
        return Err(ImageError::TooLong { at, len: frame.len, limit: record_type.limit() });
    }
    Ok(RawRecord { record_type, at, frame })
}

fn read_error(source: io::Error, at: Place) -> ImageError {
    match source.kind() {
        io::ErrorKind::UnexpectedEof => ImageError::Truncated(at),
        _ => ImageError::Read { offset: at.offset, source },
    }
}

/// The sentence of an error record, fit to be shown: whoever made the image may have put terminal controls into it.
fn recorded_failure(payload: &[u8], at: Place) -> ImageError {
    match payload.strip_prefix(b"\0").map(std::str::from_utf8) {
        Some(Ok(text)) => {
            let shown = text.chars().map(|c| if c.is_control() && c != '\n' { char::REPLACEMENT_CHARACTER } else { c });
            ImageError::RecordedFailure(shown.collect())
        }
        _ => ImageError::malformed(at, "an error record is not a NUL and a sentence in UTF-8"),
    }
}
