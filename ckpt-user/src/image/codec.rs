//! How the pages of a chunk are stored: as they are, or as one LZ4 block.
//!
//! There is no probing for incompressible pages: LZ4 takes longer and longer steps while it finds nothing, and goes over a megabyte of
//! noise at more than ten times the speed at which that was read.

use lz4_flex::block::{compress_into, decompress_into, get_maximum_output_size};

/// The stored form of a chunk's pages. The numbers are the format's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Codec {
    /// As they are.
    Raw = 0,
    /// One LZ4 block (no LZ4 frame, no length before it).
    #[default]
    Lz4 = 1,
}

/// A block must be smaller than its pages by one part in so many, or the pages are stored as they are: decompressing costs more than
/// the bytes that so little would save.
const WORTHWHILE: usize = 16;

impl Codec {
    /// The codec with this number, if this revision has one.
    pub fn from_number(number: u32) -> Option<Codec> {
        [Codec::Raw, Codec::Lz4].into_iter().find(|codec| *codec as u32 == number)
    }

    /// The codec of this name, if this revision has one.
    pub fn from_name(name: &str) -> Option<Codec> {
        [Codec::Raw, Codec::Lz4].into_iter().find(|codec| codec.name() == name)
    }

    /// The name in the image's header and in reports.
    pub fn name(self) -> &'static str {
        match self {
            Codec::Raw => "raw",
            Codec::Lz4 => "lz4",
        }
    }
}

/// Bytes that [`pack`] needs for its result, for `len` bytes of pages.
pub fn packed_max(len: usize) -> usize {
    get_maximum_output_size(len)
}

/// Compresses `pages` into `out`. Returns the length of the block, or `None` if the pages had better be stored as they are.
pub fn pack(pages: &[u8], out: &mut [u8]) -> Option<usize> {
    let len = compress_into(pages, out).ok()?;
    (len + pages.len() / WORTHWHILE <= pages.len()).then_some(len)
}

/// Decompresses `block`, which must yield exactly `pages.len()` bytes. The block may be hostile.
pub fn unpack(block: &[u8], pages: &mut [u8]) -> Result<(), String> {
    match decompress_into(block, pages) {
        Ok(len) if len == pages.len() => Ok(()),
        Ok(len) => Err(format!("its LZ4 block yields {len} bytes and should yield {}", pages.len())),
        Err(e) => Err(format!("its LZ4 block cannot be decompressed: {e}")),
    }
}
