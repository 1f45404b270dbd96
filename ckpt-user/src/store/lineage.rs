//! The metadata of an increment, found out with that of its parents.

use std::fs::File;
use std::path::PathBuf;

use crate::error::{Doing, Result};
use crate::image::{ImageReader, Records, read_stored};

/// The metadata of the first of these images, of which each is an increment of the next, up to one that is whole. The records can be written
/// into a whole image as they are. The headers are not among them.
///
/// Errors: a file that cannot be read, and [`crate::Error::Parent`] for an image that is damaged or does not fit to the one before, the first itself
/// being number 0.
pub fn resolve(images: &[PathBuf]) -> Result<Records> {
    let mut resolved: Option<Records> = None;
    for (older, path) in images.iter().enumerate().rev() {
        let file = File::open(path).doing(|| format!("cannot open {}", path.display()))?;
        let read = ImageReader::new(file).and_then(|mut reader| read_stored(&mut reader)?.resolve(resolved.as_ref()));
        resolved = Some(read.map_err(|source| crate::Error::Parent { older, source: Box::new(source.into()) })?);
    }
    Ok(resolved.unwrap_or_default())
}
