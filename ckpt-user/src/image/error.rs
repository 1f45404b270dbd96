//! What can be wrong with an image, said so that a person can find the place and knows what to do.

use std::fmt;
use std::io;

use super::wire::RecordType;
use crate::ids::ImageId;

/// Where in the stream: which record, and the offset of its frame from the preamble's first byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The number of the record, the first being 0.
    pub record: u64,
    /// Bytes from the start of the image to the record's frame.
    pub offset: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "record {} (at byte {})", self.record, self.offset)
    }
}

/// Why an image cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// A record of ours has no encoding: an error in ckpt.
    #[error("cannot encode the record '{kind}': {source}")]
    Encode {
        /// The kind of record.
        kind: String,
        /// What the encoder says.
        source: rmp_serde::encode::Error,
    },

    /// The bytes are as they were written, but are not what this version expects there.
    #[error("cannot read the record '{kind}' of the image: {source}; it was made by another version of ckpt")]
    Decode {
        /// The kind of record.
        kind: String,
        /// What the decoder says.
        source: rmp_serde::decode::Error,
    },

    /// The file or pipe that the image goes to refused it.
    #[error("cannot write the image (at byte {offset}): {source}")]
    Write {
        /// Bytes from the start of the image.
        offset: u64,
        /// The kernel's answer.
        source: io::Error,
    },

    /// The file or pipe that the image comes from failed.
    #[error("cannot read the image (at byte {offset}): {source}")]
    Read {
        /// Bytes from the start of the image.
        offset: u64,
        /// The kernel's answer.
        source: io::Error,
    },

    /// An earlier write failed, so nothing more can follow it.
    #[error("the image was given up after an earlier error, so nothing can be added to it")]
    GivenUp,

    /// It does not begin as an image does.
    #[error("this is not an image of ckpt: it does not begin with the magic \"CKPTIMG\\n\"")]
    NotAnImage,

    /// Written by a ckpt that is newer than this one.
    #[error("the image has format revision {0}, and this ckpt reads revision {known}; use the ckpt that wrote it, or a newer one", known = super::wire::REVISION)]
    Revision(u32),

    /// Made on another kind of processor.
    #[error("the image was made on another kind of processor (ELF machine {0}; this is x86-64, {known}); restart it on such a machine", known = super::wire::ARCHITECTURE)]
    Architecture(u32),

    /// Made with pages of another size.
    #[error("the image has pages of {0} bytes, and this machine has pages of {known} bytes", known = crate::ids::PAGE_SIZE)]
    PageSize(u32),

    /// It ends before its trailer (or in the middle of its index).
    #[error(
        "the image is truncated: it ends in {0}, before its trailer; the checkpoint was interrupted or the copy is not whole"
    )]
    Truncated(Place),

    /// The payload is not what was written.
    #[error("the image is damaged: the checksum of {0} does not match; use another copy or an earlier checkpoint")]
    Checksum(Place),

    /// Every record is whole, but they are not the records that were written, or not in that order.
    #[error(
        "the image is damaged: the trailer, {at}, does not belong to the records before it ({what}); use another copy or an earlier checkpoint"
    )]
    Chain {
        /// The trailer.
        at: Place,
        /// What differs.
        what: &'static str,
    },

    /// A length that no ckpt writes.
    #[error("the image is damaged: {at} claims to be {len} bytes long, and such a record has at most {limit}")]
    TooLong {
        /// Which record.
        at: Place,
        /// What its frame says.
        len: u64,
        /// The longest allowed.
        limit: u64,
    },

    /// A record that may not stand where it does.
    #[error("the records of the image are out of order: {at} is of type {found}, where {expected} must stand")]
    OutOfOrder {
        /// Which record.
        at: Place,
        /// Its type.
        found: RecordType,
        /// What may stand there.
        expected: &'static str,
    },

    /// A record that this version does not know and must not pass over.
    #[error(
        "{at} of the image is of type {record_type}, which this ckpt does not know and cannot restart without; use the ckpt that wrote it, or a newer one"
    )]
    UnknownCritical {
        /// Which record.
        at: Place,
        /// The number of its type.
        record_type: u32,
    },

    /// A record with flags that this version does not know.
    #[error("{at} of the image has flags ({flags:#x}) that this ckpt does not know: it is damaged, or was made by a newer ckpt")]
    UnknownFlags {
        /// Which record.
        at: Place,
        /// Its flags.
        flags: u32,
    },

    /// The checksum is right, but the contents break a rule of the format.
    #[error("the image breaks the format: {at}: {what}")]
    Malformed {
        /// Which record.
        at: Place,
        /// Which rule.
        what: String,
    },

    /// An increment whose metadata is that of its parent, but for some changes.
    #[error("the image is an increment and cannot be understood without its parent, image {}", .0.map_or_else(|| "unknown".to_owned(), |id| id.to_string()))]
    NeedsParent(Option<ImageId>),

    /// The checkpoint failed, and its reason stands in the image (SEED S9).
    #[error("the image holds no checkpoint, but the reason why it failed: {0}")]
    RecordedFailure(String),
}

impl ImageError {
    /// The record `kind` could not be encoded.
    pub fn encode(kind: &str, source: rmp_serde::encode::Error) -> ImageError {
        ImageError::Encode { kind: kind.to_owned(), source }
    }

    /// The record `kind` could not be decoded.
    pub fn decode(kind: &str, source: rmp_serde::decode::Error) -> ImageError {
        ImageError::Decode { kind: kind.to_owned(), source }
    }

    /// The record at `at` breaks the rule that `what` names.
    pub fn malformed(at: Place, what: impl Into<String>) -> ImageError {
        ImageError::Malformed { at, what: what.into() }
    }
}
