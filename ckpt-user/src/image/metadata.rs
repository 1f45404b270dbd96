//! Everything in an image but the pages: as it stands there, resolved, and decoded.

use std::io::Read;

use serde::de::DeserializeOwned;

use super::delta;
use super::error::{ImageError, Place};
use super::model::{Container, Header, Object, TaskState, TaskTable};
use super::reader::{ImageReader, Payload};
use super::records::Records;
use super::wire::RecordType;
use crate::ids::PAGE_SIZE;

/// A vma record, whose contents belong to the code that restores memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EncodedVma(pub(super) Vec<u8>);

impl EncodedVma {
    /// Decodes it.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, ImageError> {
        rmp_serde::from_slice(&self.0).map_err(|e| ImageError::decode("vma", e))
    }
}

/// What stands before the first chunk.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metadata {
    /// What this image is.
    pub header: Header,
    /// What surrounds the tasks.
    pub container: Container,
    /// Who is there.
    pub tasks: TaskTable,
    /// The object table, in the order of the stream.
    pub objects: Vec<Object>,
    /// The state of every process.
    pub task_states: Vec<TaskState>,
    /// The mappings of all address spaces, in the order of the stream.
    pub vmas: Vec<EncodedVma>,
}

/// The metadata of an image as it stands there: that of an increment may be known only together with its parent's.
#[derive(Clone, Debug)]
pub struct Stored {
    /// What this image is.
    pub header: Header,
    body: Body,
    at: Place,
}

#[derive(Clone, Debug)]
enum Body {
    Whole(Records),
    Delta(Vec<u8>),
}

impl Stored {
    /// Can it be known only together with the parent's?
    pub fn needs_parent(&self) -> bool {
        matches!(self.body, Body::Delta(_))
    }

    /// If it can: bytes of the changes.
    pub fn changes_bytes(&self) -> Option<u64> {
        match &self.body {
            Body::Whole(_) => None,
            Body::Delta(payload) => Some(payload.len() as u64),
        }
    }

    /// The records. `parent`: the resolved ones of the parent, if there is one.
    ///
    /// # Errors
    /// [`ImageError::NeedsParent`]; [`ImageError::Malformed`] and others if what it makes of the parent's is no metadata.
    pub fn resolve(self, parent: Option<&Records>) -> Result<Records, ImageError> {
        match (self.body, parent) {
            (Body::Whole(records), _) => Ok(records),
            (Body::Delta(payload), Some(parent)) => delta::apply(&payload, parent, self.at),
            (Body::Delta(_), None) => Err(ImageError::NeedsParent(self.header.parent.map(|parent| parent.image_id))),
        }
    }

    /// The records, decoded.
    pub fn decode(self, parent: Option<&Records>) -> Result<Metadata, ImageError> {
        let (header, at) = (self.header.clone(), self.at);
        self.resolve(parent)?.decode(header, at)
    }
}

/// Reads everything before the first chunk, and leaves the reader there: the chunks are for `pipeline::load`.
///
/// # Errors
/// Those of [`ImageReader::next_raw`]; [`ImageError::PageSize`]; [`ImageError::Malformed`] for changes without a parent.
pub fn read_stored<R: Read>(reader: &mut ImageReader<R>) -> Result<Stored, ImageError> {
    let mut stored = Stored { header: Header::default(), body: Body::Whole(Records::default()), at: Place::default() };
    let mut payload = Payload::default();
    while !matches!(reader.peek()?, None | Some(RecordType::Chunk | RecordType::Trailer)) {
        let Some(record) = reader.next_checked(&mut payload)? else { break };
        match (record.record_type, &mut stored.body) {
            (RecordType::Header, _) => {
                stored.header = payload.decode(record.record_type)?;
                if u64::from(stored.header.page_size) != PAGE_SIZE {
                    return Err(ImageError::PageSize(stored.header.page_size));
                }
            }
            (RecordType::Delta, _) => {
                if stored.header.parent.is_none() {
                    return Err(ImageError::malformed(record.at, "it changes the metadata of a parent, and there is none"));
                }
                stored.body = Body::Delta(payload.bytes().to_vec());
                stored.at = record.at;
            }
            (record_type, Body::Whole(records)) => {
                records.push_payload(record_type, payload.bytes());
                stored.at = record.at;
            }
            // The reader keeps the order: nothing stands between the changes and the first chunk.
            (_, Body::Delta(_)) => break,
        }
    }
    Ok(stored)
}

/// The same, decoded, of an image that is no increment.
///
/// # Errors
/// Those of [`read_stored`] and [`Stored::decode`].
pub fn read_metadata<R: Read>(reader: &mut ImageReader<R>) -> Result<Metadata, ImageError> {
    read_stored(reader)?.decode(None)
}
