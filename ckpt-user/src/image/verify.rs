//! Checking a whole image without restoring it: every checksum, every rule of the format, every compressed block.

use std::collections::{BTreeMap, HashSet};
use std::io::Read;

use super::chunk::{Chunk, MAX_DATA};
use super::error::{ImageError, Place};
use super::index::{self, ChunkEntry};
use super::metadata::{Metadata, Stored, read_stored};
use super::owners::Owners;
use super::reader::{Ending, ImageReader, Payload};
use super::wire::{PageCounts, RecordType};
use crate::ids::{ObjRef, PAGE_SIZE};

/// What was found in an image that is whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// How many records of each type, trailer and index included.
    pub records: BTreeMap<RecordType, u64>,
    /// Records of types that this revision does not know.
    pub unknown_records: u64,
    /// Pages in the chunks.
    pub pages: PageCounts,
    /// Bytes of the data pages.
    pub bytes_raw: u64,
    /// Bytes that they take up in the image.
    pub bytes_stored: u64,
    /// Whose pages there are.
    pub owners: Vec<ObjRef>,
    /// Bytes of the image before its trailer.
    pub bytes_before_trailer: u64,
    /// By which an increment names this image as its parent.
    pub trailer_checksum: u64,
}

/// Reads the image, which is no increment, to its end, and to that of the input, and checks all of it. `reader` must be new.
///
/// # Errors
/// The first thing that is wrong.
pub fn verify<R: Read>(reader: &mut ImageReader<R>) -> Result<(Metadata, Summary), ImageError> {
    let (stored, summary) = verify_stored(reader)?;
    Ok((stored.decode(None)?, summary))
}

/// The same of any image. Of an increment, what can be known only with its parent is left to [`Stored::resolve`].
///
/// # Errors
/// The first thing that is wrong.
pub fn verify_stored<R: Read>(reader: &mut ImageReader<R>) -> Result<(Stored, Summary), ImageError> {
    reader.note_places();
    let stored = read_stored(reader)?;
    let objects = if stored.needs_parent() { None } else { Some(objects_of(&stored)?) };
    let mut summary = Summary::default();
    let mut owners = Owners::new();
    let mut chunks = Vec::new();
    let mut payload = Payload::default();
    let mut scratch = vec![0; MAX_DATA];
    while let Some(record) = reader.next_checked(&mut payload)? {
        let at = record.at;
        let chunk = Chunk::parse(payload.bytes(), at)?;
        if objects.as_ref().is_some_and(|objects| !objects.contains(&chunk.owner)) {
            return Err(ImageError::malformed(at, format!("its owner, object {}, is not in the image", chunk.owner)));
        }
        owners.admit(chunk.owner, &chunk.runs, at)?;
        chunk.data(&mut scratch, at)?;
        summary.pages += chunk.counts();
        summary.bytes_stored += chunk.stored_len();
        if chunks.len() < index::CHUNKS_MAX {
            chunks.push(ChunkEntry { offset: at.offset, owner: chunk.owner, span: chunk.span() });
        }
    }
    let Some(&Ending { trailer, checksum, at }) = reader.ending() else {
        return Err(ImageError::Truncated(Place::default()));
    };
    summary.owners = owners.finish(at)?;
    check_pages(trailer.pages, summary.pages, at)?;
    summary.bytes_raw = summary.pages.data * PAGE_SIZE;
    summary.bytes_before_trailer = at.offset;
    summary.trailer_checksum = checksum;
    summary.unknown_records = reader.skipped();
    summary.records = reader.counts().clone();
    if let Some(index) = reader.read_index()? {
        if index.records != reader.places() || index.chunks != chunks {
            return Err(ImageError::Chain { at, what: "its index names other records" });
        }
        summary.records.insert(RecordType::Index, 1);
    }
    reader.expect_end_of_input()?;
    Ok((stored, summary))
}

fn objects_of(stored: &Stored) -> Result<HashSet<ObjRef>, ImageError> {
    let metadata = stored.clone().decode(None)?;
    Ok(metadata.objects.iter().map(|object| object.objref).collect())
}

/// Does the trailer count the pages that came?
pub fn check_pages(claimed: PageCounts, found: PageCounts, at: Place) -> Result<(), ImageError> {
    if claimed == found { Ok(()) } else { Err(ImageError::Chain { at, what: "it counts other pages" }) }
}
