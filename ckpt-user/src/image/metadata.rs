//! Everything in an image but the pages, decoded.

use std::collections::HashSet;
use std::io::Read;

use serde::de::DeserializeOwned;

use super::error::{ImageError, Place};
use super::model::{Container, Header, Object, TaskState, TaskTable};
use super::reader::{ImageReader, Payload};
use super::wire::RecordType;
use crate::ids::{ObjRef, PAGE_SIZE};

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

/// Reads everything before the first chunk, and leaves the reader there: the chunks are for `pipeline::load`.
///
/// # Errors
/// Those of [`ImageReader::next_raw`]; [`ImageError::PageSize`]; [`ImageError::Malformed`] for an object that stands twice.
pub fn read_metadata<R: Read>(reader: &mut ImageReader<R>) -> Result<Metadata, ImageError> {
    let mut metadata = Metadata::default();
    let mut numbers = HashSet::new();
    let mut payload = Payload::default();
    while !matches!(reader.peek()?, None | Some(RecordType::Chunk | RecordType::Trailer)) {
        let Some(record) = reader.next_checked(&mut payload)? else { break };
        let record_type = record.record_type;
        match record_type {
            RecordType::Header => {
                metadata.header = payload.decode(record_type)?;
                if u64::from(metadata.header.page_size) != PAGE_SIZE {
                    return Err(ImageError::PageSize(metadata.header.page_size));
                }
            }
            RecordType::Container => metadata.container = payload.decode(record_type)?,
            RecordType::Tasks => metadata.tasks = payload.decode(record_type)?,
            RecordType::Object => {
                let object: Object = payload.decode(record_type)?;
                enter(&mut numbers, object.objref, record.at)?;
                metadata.objects.push(object);
            }
            RecordType::TaskState => metadata.task_states.push(payload.decode(record_type)?),
            RecordType::Vma => metadata.vmas.push(EncodedVma(payload.bytes().to_vec())),
            // The reader hands out none of these here: chunk and trailer end the loop, the others are errors to it.
            RecordType::Chunk | RecordType::Error | RecordType::Trailer | RecordType::Index => break,
        }
    }
    Ok(metadata)
}

fn enter(numbers: &mut HashSet<ObjRef>, objref: ObjRef, at: Place) -> Result<(), ImageError> {
    if objref == ObjRef(0) || !numbers.insert(objref) {
        return Err(ImageError::malformed(at, format!("the object number {objref} is 0 or was given before")));
    }
    Ok(())
}
