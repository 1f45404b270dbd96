//! The parents of an increment: their metadata, which may be told as changes from one to the next, and their pages.

use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};

use super::Input;
use crate::error::{Doing, Error, Result};
use crate::ids::ObjRef;
use crate::image::model::{Header, Object, ParentRef, Section, TaskState};
use crate::image::{ImageReader, RecordType, Records, read_stored};
use crate::pipeline::{self, LoadOptions};
use crate::resources::memory::{self, MemoryRecord};
use crate::store::{Overlay, Past};

/// A parent, read up to its pages.
pub(crate) struct ParentImage {
    reader: ImageReader<Input>,
    header: Header,
    mm: ObjRef,
    past: Past,
}

/// Reads everything but the pages of all parents, the oldest first, as each may tell only how it differs from the one before. Returns them in the
/// same order as they were given, and the metadata of the first.
pub(crate) fn read_parents(inputs: Vec<Input>) -> Result<(Vec<ParentImage>, Option<Records>)> {
    make_room(inputs.len())?;
    let mut parents = Vec::with_capacity(inputs.len());
    let mut resolved = None;
    for (n, input) in inputs.into_iter().enumerate().rev() {
        let (parent, records) =
            read_parent(input, resolved.as_ref()).map_err(|source| Error::Parent { older: n + 1, source: source.into() })?;
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

fn read_parent(input: Input, its_parent: Option<&Records>) -> Result<(ParentImage, Records)> {
    let mut reader = ImageReader::new(input)?;
    let stored = read_stored(&mut reader)?;
    let header = stored.header.clone();
    let records = stored.resolve(its_parent)?;
    let past = past_of(&records)?;
    Ok((ParentImage { reader, header, mm: memory_of(&records)?.mm, past }, records))
}

/// What an image says of the contents of files that go on from its parent.
pub(crate) fn past_of(records: &Records) -> Result<Past> {
    Ok(Past::of(&records.all::<Object>(RecordType::Object)?)?)
}

/// What the one process of an image holds as a whole.
pub(crate) fn memory_of(records: &Records) -> Result<MemoryRecord> {
    let Some(state) = records.first::<TaskState>(RecordType::TaskState)? else {
        return Err(Error::Restart("the image does not hold one process".to_owned()));
    };
    Ok(find(&state.sections, memory::KIND)?.decode()?)
}

/// The section of a kind.
pub(crate) fn find<'a>(sections: &'a [Section], kind: &str) -> Result<&'a Section> {
    sections.iter().find(|s| s.kind == kind).ok_or_else(|| Error::Restart(format!("the image lacks the section '{kind}'")))
}

/// Are parents given if, and only if, the image has one?
pub(crate) fn check_parent(parent: Option<ParentRef>, given: bool) -> Result<()> {
    match parent {
        Some(parent) if !given => {
            Err(Error::Restart(format!("the image is an increment of image {}, which must be given too", parent.image_id)))
        }
        None if given => Err(Error::Restart("the image is a whole one and has no parent".to_owned())),
        _ => Ok(()),
    }
}

/// Fills in the pages of which newer images say nothing. `wanted`: the parent that the newest one names; `past`: what it says of contents of files.
pub(crate) fn load_parents(
    mut wanted: Option<ParentRef>,
    mut past: Past,
    parents: Vec<ParentImage>,
    overlay: &mut Overlay<'_>,
) -> Result<()> {
    for (n, mut parent) in parents.into_iter().enumerate() {
        check_parent(wanted, true)?;
        overlay.next_image(parent.mm, &past);
        let loaded = pipeline::load(&mut parent.reader, overlay, &LoadOptions::default(), &|_| {});
        let stats = loaded.map_err(|source| Error::Parent { older: n + 1, source: source.into() })?;
        let found = parent.header.as_parent(stats.trailer_checksum);
        if found != wanted {
            return Err(Error::Restart(format!("the images do not belong together: {wanted:?} is wanted, {found:?} was given")));
        }
        (wanted, past) = (parent.header.parent, parent.past);
    }
    check_parent(wanted, false)
}
