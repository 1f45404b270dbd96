//! The fixed bytes of the format (docs/format.md): preamble, frames, trailer, limits. Only numbers and their places; no reading or
//! writing.

use std::fmt;

use xxhash_rust::xxh3::xxh3_64;

use super::error::{ImageError, Place};

/// The first eight bytes of every image.
pub const MAGIC: [u8; 8] = *b"CKPTIMG\n";
/// The revision of the format that this code writes and reads.
pub const REVISION: u32 = 1;
/// EM_X86_64 of elf.h.
pub const ARCHITECTURE: u32 = 62;
/// Bytes of the preamble: magic, revision, architecture.
pub const PREAMBLE_LEN: usize = 16;
/// Bytes of a frame: type, flags, length, checksum.
pub const FRAME_LEN: usize = 24;
/// Set in `flags`: a reader that does not know the type must not pass over the record.
pub const FLAG_CRITICAL: u32 = 1;

/// The first eight bytes of a trailer's payload.
pub const TRAILER_MAGIC: [u8; 8] = *b"CKPTEND\n";
/// Bytes of a trailer's payload.
pub const TRAILER_LEN: usize = 56;
/// Set in a trailer's flags: an index record follows.
pub const TRAILER_HAS_INDEX: u64 = 1;

/// Bytes of the longest index: enough for 2 TiB of saved pages.
pub(super) const INDEX_MAX: usize = 64 << 20;

/// What a record holds. The numbers are the format's, and never change their meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u32)]
pub enum RecordType {
    /// [`super::model::Header`].
    Header = 1,
    /// [`super::model::Container`].
    Container = 2,
    /// [`super::model::TaskTable`].
    Tasks = 3,
    /// [`super::model::Object`].
    Object = 4,
    /// [`super::model::TaskState`].
    TaskState = 5,
    /// A mapping of an address space; its record belongs to the code that restores memory.
    Vma = 6,
    /// Pages: [`super::chunk`].
    Chunk = 7,
    /// Why the checkpoint failed: a NUL, then a sentence (SEED S9).
    Error = 8,
    /// The end: [`Trailer`].
    Trailer = 9,
    /// Where everything is: [`super::index`].
    Index = 10,
    /// In an increment, in place of the types 2 to 6: how they differ from the parent's ([`super::delta`]).
    Delta = 11,
}

impl RecordType {
    /// Every type of this revision.
    pub const ALL: [RecordType; 11] = [
        RecordType::Header,
        RecordType::Container,
        RecordType::Tasks,
        RecordType::Object,
        RecordType::TaskState,
        RecordType::Vma,
        RecordType::Chunk,
        RecordType::Error,
        RecordType::Trailer,
        RecordType::Index,
        RecordType::Delta,
    ];

    /// The type with this number, if this revision has one.
    pub fn from_number(number: u32) -> Option<RecordType> {
        RecordType::ALL.into_iter().find(|t| *t as u32 == number)
    }

    /// The longest payload that a record of this type may have, in bytes.
    pub fn limit(self) -> u64 {
        const MIB: u64 = 1 << 20;
        match self {
            RecordType::Header | RecordType::Error => 64 << 10,
            RecordType::Container | RecordType::Vma => MIB,
            RecordType::Tasks => 16 * MIB,
            RecordType::Object | RecordType::TaskState | RecordType::Delta => 64 * MIB,
            RecordType::Index => INDEX_MAX as u64,
            RecordType::Chunk => super::chunk::MAX_PAYLOAD as u64,
            RecordType::Trailer => 4 << 10,
        }
    }

    /// The flags of every record of this type. What revision 1 did not have from its first day is critical if it cannot be done without.
    pub fn flags(self) -> u32 {
        if self == RecordType::Delta { FLAG_CRITICAL } else { 0 }
    }

    /// Is it a record between the header and the pages that an increment may have in common with its parent?
    pub fn is_metadata(self) -> bool {
        use RecordType::{Container, Object, TaskState, Tasks, Vma};
        matches!(self, Container | Tasks | Object | TaskState | Vma)
    }
}

impl fmt::Display for RecordType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RecordType::Header => "header",
            RecordType::Container => "container",
            RecordType::Tasks => "tasks",
            RecordType::Object => "object",
            RecordType::TaskState => "task state",
            RecordType::Vma => "vma",
            RecordType::Chunk => "chunk",
            RecordType::Error => "error",
            RecordType::Trailer => "trailer",
            RecordType::Index => "index",
            RecordType::Delta => "delta",
        })
    }
}

/// The preamble of every image of this revision.
pub fn preamble() -> [u8; PREAMBLE_LEN] {
    let mut bytes = [0; PREAMBLE_LEN];
    bytes[..8].copy_from_slice(&MAGIC);
    bytes[8..12].copy_from_slice(&REVISION.to_le_bytes());
    bytes[12..].copy_from_slice(&ARCHITECTURE.to_le_bytes());
    bytes
}

/// What stands before every payload. The numbers are as they were read: none of them is to be believed yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame {
    /// The number of a [`RecordType`], perhaps one of a later version.
    pub record_type: u32,
    /// [`FLAG_CRITICAL`].
    pub flags: u32,
    /// Bytes of the payload.
    pub len: u64,
    /// XXH3 (64 bits, seed 0) of the payload.
    pub checksum: u64,
}

impl Frame {
    /// The frame of `payload`.
    pub fn of(record_type: RecordType, payload: &[u8]) -> Frame {
        Frame {
            record_type: record_type as u32,
            flags: record_type.flags(),
            len: payload.len() as u64,
            checksum: xxh3_64(payload),
        }
    }

    /// Is `payload` what was written? To be asked before anything in it is decoded.
    pub fn check(&self, payload: &[u8], at: Place) -> Result<(), ImageError> {
        let same = payload.len() as u64 == self.len && xxh3_64(payload) == self.checksum;
        if same { Ok(()) } else { Err(ImageError::Checksum(at)) }
    }

    /// As it stands in the image.
    pub fn to_bytes(self) -> [u8; FRAME_LEN] {
        let mut bytes = [0; FRAME_LEN];
        bytes[..4].copy_from_slice(&self.record_type.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.flags.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.len.to_le_bytes());
        bytes[16..].copy_from_slice(&self.checksum.to_le_bytes());
        bytes
    }

    /// The reverse.
    pub fn from_bytes(bytes: &[u8; FRAME_LEN]) -> Frame {
        let [record_type, flags] = words32(bytes);
        let [_, len, checksum] = words64(bytes);
        Frame { record_type, flags, len, checksum }
    }
}

/// Pages by what the image says of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageCounts {
    /// Pages whose contents are in the image.
    pub data: u64,
    /// Pages that are all zeros.
    pub zero: u64,
    /// Pages that are not there.
    pub hole: u64,
}

impl std::ops::AddAssign for PageCounts {
    /// Saturates: the numbers of a hostile image may be anything.
    fn add_assign(&mut self, other: PageCounts) {
        self.data = self.data.saturating_add(other.data);
        self.zero = self.zero.saturating_add(other.zero);
        self.hole = self.hole.saturating_add(other.hole);
    }
}

/// What the trailer says of all the records before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trailer {
    /// [`TRAILER_HAS_INDEX`].
    pub flags: u64,
    /// Number of records before the trailer.
    pub records: u64,
    /// XXH3 of the preamble and of the frames of all those records, in order: none can be changed, swapped, dropped or repeated.
    pub chain: u64,
    /// What the chunks hold.
    pub pages: PageCounts,
}

impl Trailer {
    /// As it stands in the image.
    pub fn to_bytes(self) -> [u8; TRAILER_LEN] {
        let numbers = [self.flags, self.records, self.chain, self.pages.data, self.pages.zero, self.pages.hole];
        let mut bytes = [0; TRAILER_LEN];
        bytes[..8].copy_from_slice(&TRAILER_MAGIC);
        for (at, number) in bytes[8..].chunks_exact_mut(8).zip(numbers) {
            at.copy_from_slice(&number.to_le_bytes());
        }
        bytes
    }

    /// The reverse; `None` if the payload is not a trailer's. What a later version may have added at its end is passed over.
    pub fn from_bytes(payload: &[u8]) -> Option<Trailer> {
        let bytes: &[u8; TRAILER_LEN] = payload.first_chunk()?;
        let [_, flags, records, chain, data, zero, hole] = words64(bytes);
        bytes.starts_with(&TRAILER_MAGIC).then_some(Trailer { flags, records, chain, pages: PageCounts { data, zero, hole } })
    }
}

/// The first `N` numbers of 32 bits in `bytes`; zeros for what is not there.
pub(super) fn words32<const N: usize>(bytes: &[u8]) -> [u32; N] {
    let mut words = [0; N];
    for (word, &chunk) in words.iter_mut().zip(bytes.as_chunks().0) {
        *word = u32::from_le_bytes(chunk);
    }
    words
}

/// The first `N` numbers of 64 bits in `bytes`; zeros for what is not there.
pub(super) fn words64<const N: usize>(bytes: &[u8]) -> [u64; N] {
    let mut words = [0; N];
    for (word, &chunk) in words.iter_mut().zip(bytes.as_chunks().0) {
        *word = u64::from_le_bytes(chunk);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_and_trailers_come_back_as_they_were() {
        let frame = Frame { record_type: 7, flags: 1, len: 0x0102_0304_0506_0708, checksum: u64::MAX - 1 };
        assert_eq!(Frame::from_bytes(&frame.to_bytes()), frame);
        let trailer = Trailer { flags: 1, records: 2, chain: 3, pages: PageCounts { data: 4, zero: 5, hole: 6 } };
        assert_eq!(Trailer::from_bytes(&trailer.to_bytes()), Some(trailer));
        assert_eq!(Trailer::from_bytes(&[0; TRAILER_LEN]), None);
        assert_eq!(Trailer::from_bytes(&TRAILER_MAGIC), None);
    }

    #[test]
    fn numbers_of_types_are_those_of_the_format() {
        for (record_type, number) in RecordType::ALL.into_iter().zip(1..) {
            assert_eq!(record_type as u32, number);
            assert_eq!(RecordType::from_number(number), Some(record_type));
        }
        assert_eq!(RecordType::from_number(0), None);
        assert_eq!(RecordType::from_number(12), None);
    }
}
