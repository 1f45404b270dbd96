//! The parents of an image: an increment, its parent, the parent of that, and so on up to a whole image; read one after the other.

use std::collections::HashMap;
use std::io::Read;

use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};

use super::{Overlay, Past};
use crate::error::{Doing, Error, Result};
use crate::ids::{ObjRef, Pid};
use crate::image::model::{Header, Object, ParentRef, TaskState};
use crate::image::{ImageReader, RecordType, Records, read_stored};
use crate::pipeline::{self, LoadOptions};
use crate::resources::memory::{self, MemoryRecord};
use crate::track::hash::{Hashing, PageHashes};

/// Something to read an image from.
pub type Input = Box<dyn Read + Send>;

/// An image that is read up to its pages.
#[derive(Debug)]
pub struct ParentImage {
    reader: ImageReader<Input>,
    header: Header,
    past: Past,
}

/// Reads everything but the pages of images of which each is the parent of the one before: the oldest first, as each may tell only how it differs
/// from its own. Returns them in the same order as they were given, and the metadata of the first.
///
/// Errors: [`Error::Parent`], which counts them from 1.
pub fn read(images: Vec<Input>) -> Result<(Vec<ParentImage>, Option<Records>)> {
    make_room(images.len())?;
    let mut parents = Vec::with_capacity(images.len());
    let mut resolved = None;
    for (n, image) in images.into_iter().enumerate().rev() {
        let (parent, records) = read_one(image, resolved.as_ref()).map_err(|source| about(n, source))?;
        parents.push(parent);
        resolved = Some(records);
    }
    parents.reverse();
    Ok((parents, resolved))
}

/// All of them stay open until their pages are read, and a chain may be longer than the usual limit.
fn make_room(files: usize) -> Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).doing(|| "cannot read the limit on open files")?;
    // Some for everything else.
    if files as rlim_t + 256 > soft && soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).doing(|| "cannot raise the limit on open files")?;
    }
    Ok(())
}

fn about(n: usize, source: Error) -> Error {
    Error::Parent { older: n + 1, source: Box::new(source) }
}

fn read_one(image: Input, its_parent: Option<&Records>) -> Result<(ParentImage, Records)> {
    let mut reader = ImageReader::new(image)?;
    let stored = read_stored(&mut reader)?;
    let header = stored.header.clone();
    let records = stored.resolve(its_parent)?;
    let past = past_of(&records)?;
    Ok((ParentImage { reader, header, past }, records))
}

/// The processes that an image holds, and the memory of each.
pub fn memories_of(records: &Records) -> Result<HashMap<Pid, ObjRef>> {
    let states: Vec<TaskState> = records.all(RecordType::TaskState)?;
    let memory_of = |state: &TaskState| {
        let section = state.sections.iter().find(|section| section.kind == memory::KIND);
        let section =
            section.ok_or_else(|| Error::Unexpected(format!("the image tells nothing of the memory of pid {}", state.pid)));
        Ok((state.pid, section?.decode::<MemoryRecord>()?.mm))
    };
    states.iter().map(memory_of).collect()
}

/// What an image says of what goes on from its parent.
pub fn past_of(records: &Records) -> Result<Past> {
    Ok(Past::of(&records.all::<Object>(RecordType::Object)?)?)
}

/// Gives a sink the pages of which newer images say nothing. `wanted`: the parent that the newest image names, with its own parents in `images`;
/// `past`: what the newest says of it.
///
/// Errors: as [`read`]; [`Error::Restart`] if images are missing, or there are too many.
pub fn load(mut wanted: Option<ParentRef>, mut past: Past, images: Vec<ParentImage>, overlay: &mut Overlay<'_>) -> Result<()> {
    for (n, image) in images.into_iter().enumerate() {
        check_parent(wanted, true)?;
        let (its_parent, its_past) = (image.header.parent, image.past.clone());
        let found = load_one(image, &past, overlay).map_err(|source| about(n, source))?;
        if let Some(why) = wanted.and_then(|wanted| mismatch(found, wanted)) {
            return Err(about(n, Error::Unexpected(why)));
        }
        (wanted, past) = (its_parent, its_past);
    }
    check_parent(wanted, false)
}

/// The hashes of all pages that an image and its parents hold of the memories of their processes: `images` is the image itself, then its parents.
///
/// Errors: as [`load`].
pub fn hashes(images: Vec<Input>) -> Result<(ParentRef, PageHashes)> {
    let (mut images, records) = read(images)?;
    let Some(records) = records.filter(|_| !images.is_empty()) else {
        return Err(Error::Unexpected("no image is given whose pages could be compared".to_owned()));
    };
    let memories = memories_of(&records)?;
    let everywhere = |memory: &ObjRef| (*memory, std::iter::once(0..u64::MAX).collect());
    let mapped = memories.values().map(everywhere).collect();
    let hashing = Hashing::of(memories);
    let mut overlay = Overlay::new(&hashing, mapped);
    let first = images.remove(0);
    let (its_parent, its_past) = (first.header.parent, first.past.clone());
    let itself = load_first(first, &overlay).map_err(|source| about(0, source))?;
    let loaded = load(its_parent, its_past, images, &mut overlay);
    loaded.map_err(|error| match error {
        Error::Parent { older, source } => Error::Parent { older: older + 1, source },
        other => other,
    })?;
    Ok((itself, hashing.finish()))
}

/// Has an image the parents that it needs?
pub fn check_parent(parent: Option<ParentRef>, given: bool) -> Result<()> {
    match parent {
        Some(parent) if !given => {
            Err(Error::Restart(format!("the image is an increment of image {}, which must be given too", parent.image_id)))
        }
        None if given => Err(Error::Restart("the image is a whole one and has no parent".to_owned())),
        _ => Ok(()),
    }
}

fn mismatch(found: ParentRef, wanted: ParentRef) -> Option<String> {
    if found == wanted {
        None
    } else if found.image_id == wanted.image_id {
        Some(format!("it is not what image {} was when its increment was made", wanted.image_id))
    } else {
        Some(format!("it is image {}, and image {} is needed", found.image_id, wanted.image_id))
    }
}

/// Who it is.
fn load_one(image: ParentImage, past: &Past, overlay: &mut Overlay<'_>) -> Result<ParentRef> {
    overlay.next_image(past);
    load_first(image, overlay)
}

fn load_first(mut image: ParentImage, overlay: &Overlay<'_>) -> Result<ParentRef> {
    let stats = pipeline::load(&mut image.reader, overlay, &LoadOptions::default(), &|_| {})?;
    let itself = image.header.as_parent(stats.trailer_checksum);
    itself.ok_or_else(|| Error::Unexpected("the image has no id".to_owned()))
}
