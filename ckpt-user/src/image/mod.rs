//! The image: one stream of records (docs/format.md), written and read without a seek. Knows nothing of ptrace.
//!
//! [`ImageWriter`] writes metadata records from one thread and chunks of pages from many; [`ImageReader`] hands records out in order,
//! [`read_stored`] everything before the pages. The page streams themselves are `pipeline`'s.
//!
//! An image is hostile input: nothing here panics on any bytes, and memory is taken for what is there, not for what is claimed.

pub mod chunk;
pub mod codec;
mod delta;
mod diff;
pub mod error;
pub mod index;
mod ledger;
pub mod metadata;
pub mod model;
pub mod number;
mod order;
mod output;
pub mod owners;
pub mod reader;
pub mod records;
pub mod verify;
pub mod wire;
pub mod writer;

#[cfg(test)]
mod golden;
#[cfg(test)]
mod increment_tests;
#[cfg(test)]
mod tests;

pub use codec::Codec;
pub use error::{ImageError, Place};
pub use index::Index;
pub use metadata::{EncodedVma, Metadata, Stored, read_metadata, read_stored};
pub use reader::{ImageReader, Payload};
pub use records::Records;
pub use verify::{Summary, verify, verify_stored};
pub use wire::{PageCounts, RecordType};
pub use writer::{ImageWriter, TrailerInfo};
