//! The image: one stream of records (docs/format.md), written and read without a seek. Knows nothing of ptrace.
//!
//! [`ImageWriter`] writes metadata records from one thread and chunks of pages from many; [`ImageReader`] hands records out in order,
//! [`read_metadata`] everything before the pages. The page streams themselves are `pipeline`'s.
//!
//! An image is hostile input: nothing here panics on any bytes, and memory is taken for what is there, not for what is claimed.

pub mod chunk;
pub mod codec;
pub mod error;
pub mod index;
mod ledger;
pub mod metadata;
pub mod model;
mod order;
mod output;
pub mod owners;
pub mod reader;
pub mod verify;
pub mod wire;
pub mod writer;

#[cfg(test)]
mod golden;
#[cfg(test)]
mod tests;

pub use codec::Codec;
pub use error::{ImageError, Place};
pub use index::Index;
pub use metadata::{EncodedVma, Metadata, read_metadata};
pub use reader::{ImageReader, Payload};
pub use verify::{Summary, verify};
pub use wire::{PageCounts, RecordType};
pub use writer::{ImageWriter, TrailerInfo};
