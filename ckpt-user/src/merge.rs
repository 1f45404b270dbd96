//! The story of a merge: an increment and its parents become one whole image, which takes the increment's place.
//!
//! Children name their parent by its id and by the checksum of its trailer. The merged image keeps the id, and says in its header which
//! checksum it stands for. Its metadata are those of the increment. Memory and contents of files are
//! read from the newest image to the oldest, as a restart does, and each page goes into the merged image once.
//!
//! Memory is bounded as that of a restart is: by the threads, and by what must be known of scattered pages.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::path::{Path, PathBuf};

use crate::error::{Doing, Error, Result};
use crate::ids::ObjRef;
use crate::image::model::Header;
use crate::image::{Codec, ImageError, ImageReader, ImageWriter, Index, Payload, RecordType, read_stored};
use crate::pipeline::{self, Background, LoadOptions, Repack};
use crate::resources::mm;
use crate::resources::vma::VmaRecord;
use crate::restart::Input;
use crate::store::{Destination, Overlay, parents};

/// Most records are small, and there are thousands of them.
const BUFFER: usize = 64 << 10;

/// An image that is opened when it is read first, so that a long chain does not take as many descriptors.
#[derive(Debug)]
pub struct Lazy {
    path: PathBuf,
    file: Option<BufReader<File>>,
}

impl Lazy {
    /// Opens nothing yet.
    pub fn new(path: &Path) -> Lazy {
        Lazy { path: path.to_owned(), file: None }
    }
}

impl Read for Lazy {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let file = match self.file.take() {
            Some(file) => file,
            None => BufReader::with_capacity(BUFFER, File::open(&self.path)?),
        };
        self.file.insert(file).read(buf)
    }
}

/// What came of a merge.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Merged {
    /// How many images it took.
    pub images: usize,
    /// Bytes of the whole image.
    pub bytes: u64,
}

/// Merges a chain of images, the newest first and a whole one last, and commits the result to `destination`. It is in the `background`: once
/// that is stopped, it fails.
///
/// Errors: an image that is damaged or does not belong to the others, a full disk. Nothing has changed then.
pub fn merge(chain: &[&Path], destination: Destination, background: &Background) -> Result<Merged> {
    let Some((newest, parents)) = chain.split_first() else {
        return Err(Error::Unexpected("there are no images to merge".to_owned()));
    };
    let about = |error: Error| match error {
        Error::Parent { older, source } => Error::InFile { path: chain[older.min(parents.len())].to_owned(), source },
        Error::Image(ImageError::Write { .. } | ImageError::GivenUp) | Error::Os { .. } => error,
        other => Error::InFile { path: newest.to_path_buf(), source: other.into() },
    };
    let mut writer = ImageWriter::to_file(destination.writer())?;
    let images = parents.iter().map(|path| Box::new(Lazy::new(path)) as Input).collect();
    write(newest, images, &mut writer, background).map_err(about)?;
    let trailer = writer.finish()?;
    destination.commit()?;
    Ok(Merged { images: chain.len(), bytes: trailer.bytes })
}

fn write(newest: &Path, images: Vec<Input>, writer: &mut ImageWriter<'_>, background: &Background) -> Result<()> {
    let mut file = File::open(newest).doing(|| format!("cannot open {}", newest.display()))?;
    let trailer_checksum = trailer_checksum(&mut file)?;
    let mut reader = ImageReader::new(BufReader::with_capacity(BUFFER, &file))?;
    let stored = read_stored(&mut reader)?;
    let header = stored.header.clone();
    let (images, theirs) = parents::read(images)?;
    let records = stored.resolve(theirs.as_ref())?;
    // Children tell how their metadata differ from these, so they must stay as they are.
    let stands_for = header.stands_for.or(Some(trailer_checksum));
    writer.metadata(&Header { parent: None, stands_for, ..header.clone() }, &records, None)?;

    let memories: HashSet<ObjRef> = parents::memories_of(&records)?.into_values().collect();
    let vmas: Vec<VmaRecord> = records.all(RecordType::Vma)?;
    let mapped = mm::mapped(&vmas, memories.iter().copied())?;
    let codec = Codec::from_name(&header.codec).unwrap_or_default();
    let repack = Repack::new(writer, &memories, codec, background);
    let mut overlay = Overlay::new(&repack, mapped);
    let stats = pipeline::load(&mut reader, &overlay, &LoadOptions::default(), &|_| {})?;
    if stats.trailer_checksum != trailer_checksum || !memories.iter().all(|memory| stats.owners.contains(memory)) {
        return Err(Error::Restart("the image has changed, or holds no pages of a process".to_owned()));
    }
    let past = parents::past_of(&records)?;
    // What did not change since the parent have no pages in the image itself.
    let mut owners = stats.owners;
    owners.extend(past.owners.iter().map(|(owner, _)| *owner));
    owners.sort_unstable();
    owners.dedup();
    parents::load(header.parent, past, images, &mut overlay)?;
    drop(overlay);
    repack.finish(&owners)
}

/// The checksum of an image's trailer. The header of the merged image, which comes first, holds it.
fn trailer_checksum(file: &mut File) -> Result<u64> {
    if let Some((index, _)) = Index::find(file)? {
        return Ok(index.trailer_checksum);
    }
    let mut reader = ImageReader::new(&mut *file)?;
    let mut payload = Payload::default();
    while reader.next_raw(&mut payload)?.is_some() {}
    let checksum = reader.ending().map(|ending| ending.checksum);
    file.rewind().doing(|| "cannot go back to the beginning of an image")?;
    Ok(checksum.unwrap_or_default())
}

#[cfg(test)]
mod tests;
