//! The parallel page streams between a target's memory and an image.
//!
//! [`dump`]: plan → read → find zero pages → compress → checksum → write. [`load`]: read → verify → decompress → give to the sink. Each
//! worker takes a piece (at most a mebibyte of pages) through all its steps while it is in the cache; bounded channels of pooled buffers
//! couple them to the one thread that a stream needs. So memory is bounded whatever the size of the target ([`MAX_WORKERS`] workers
//! hold less than 48 MiB), and a slow end slows the other instead of filling memory.
//!
//! Where pages come from and go to is behind two traits. Nothing here knows of processes; nothing here starts a thread that outlives
//! the call.

mod background;
mod dump;
mod increment;
mod load;
mod plan;
mod repack;
mod stop;
mod zero;

#[cfg(test)]
mod live_tests;
#[cfg(test)]
mod tests;

pub use background::{Background, Resting};
pub use dump::{DumpOptions, DumpStats, dump, end_owners};
pub use increment::{Changes, increment, pages_by_owner};
pub use load::{LoadOptions, LoadStats, load};
pub use plan::{Extent, ExtentKind, pages_to_read};
pub use repack::Repack;

use crate::error::Result;
use crate::ids::{ObjRef, PageRange};

/// The most workers of one stream: what bounds its memory.
pub const MAX_WORKERS: usize = 12;

/// As many workers as there are processors for us, within [`MAX_WORKERS`].
pub fn default_workers() -> usize {
    crate::sys::sched::parallelism().min(MAX_WORKERS)
}

/// Gives pages: the memory of a task, the contents of a file.
pub trait PageSource: Sync {
    /// Reads pages of `owner`, range after range, into `buf`, which is exactly as long as they are. At most 256 pages in at most 256
    /// ranges are asked for at once. Several threads call it at the same time.
    fn read(&self, owner: ObjRef, ranges: &[PageRange], buf: &mut [u8]) -> Result<()>;
}

/// Knows pages that need not be saved, because a parent image holds the very same. Several threads call it at the same time.
pub trait KnownPages: Sync {
    /// Is this what the page of `owner` holds in the parent?
    fn is_known(&self, owner: ObjRef, page: u64, bytes: &[u8]) -> bool;
}

/// Pages that change while they are saved: somebody else saves what is about to change before it does. Several threads call it at the same time.
pub trait LivePages: Sync {
    /// Are the pages of this owner among them?
    fn has(&self, owner: ObjRef) -> bool;

    /// Those of `ranges`, in order, that nobody has saved so far, and that are worth reading.
    fn left(&self, owner: ObjRef, ranges: &[PageRange]) -> Vec<PageRange>;

    /// The pages of `ranges` were just read, and what was read is to be the contents that are saved, unless somebody was faster: those pages are
    /// returned, in order, and what was read of them is worth nothing.
    ///
    /// Errors: [`crate::Error::Void`], a page has changed in a way that nobody could follow.
    fn settle(&self, owner: ObjRef, ranges: &[PageRange]) -> Result<Vec<u64>>;

    /// How many pages that were saved elsewhere wait to be taken.
    fn waiting(&self) -> u64;

    /// Takes pages that were saved elsewhere, as many as fit: their contents come into `buf`, one after another, and their owners and numbers are
    /// returned.
    fn take(&self, buf: &mut [u8]) -> Result<Vec<(ObjRef, u64)>>;

    /// With nothing left to read: was every page settled or taken? Until then some are still on their way.
    ///
    /// Errors: [`crate::Error::Void`], some will never come.
    fn is_complete(&self) -> Result<bool>;
}

/// Takes pages: the memory of a new task, a new file. Several threads call it at the same time; no page of an owner comes twice.
pub trait PageSink: Sync {
    /// The contents of pages of `owner`, range after range: at most 256 pages in at most 256 ranges.
    fn data(&self, owner: ObjRef, ranges: &[PageRange], bytes: &[u8]) -> Result<()>;

    /// Pages of `owner` that are all zeros.
    fn zero(&self, owner: ObjRef, pages: PageRange) -> Result<()>;

    /// Pages of `owner` that are not there: never touched, or, in an increment, no longer there.
    fn hole(&self, owner: ObjRef, pages: PageRange) -> Result<()>;
}
