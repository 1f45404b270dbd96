//! The restart points of a folder, and going back to an earlier one when an image turns out to be damaged.

use std::collections::HashMap;
use std::fs::File;
use std::io::Seek;
use std::path::Path;

use ckpt::Error;
use ckpt::image::{ImageError, ImageReader, verify_stored};
use ckpt::restart::{self, Input, Options, Restarted};
use ckpt::store::{Entry, Folder, chain};

use super::Failure;
use super::progress::Progress;

/// Restarts the newest point of the folder whose images are whole, or the one that `at` names: a number, or the beginning of an image id.
pub fn restart_newest(folder: &Path, at: Option<&str>, options: &Options) -> Result<Restarted, Failure> {
    let entries = Folder::open(folder).scan()?;
    let chosen = match at {
        Some(at) => vec![find(&entries, at, folder)?],
        None => (0..entries.len()).rev().collect(),
    };
    let mut verified = Verified::default();
    let mut damaged = None;
    for point in chosen {
        match restart_point(&entries, point, &mut verified, options) {
            Err(failure @ (Failure::Image { .. } | Failure::Damaged(_))) => {
                // An older point may be whole.
                if let Some(earlier) = damaged.replace(failure) {
                    tracing::warn!("{earlier}");
                }
            }
            Ok(restarted) => {
                if let Some(failure) = &damaged {
                    tracing::warn!("{failure}; restarted from the older {}", entries[point].path.display());
                }
                return Ok(restarted);
            }
            Err(other) => return Err(other),
        }
    }
    Err(damaged.unwrap_or_else(|| Failure::Damaged(format!("the folder {} holds no images", folder.display()))))
}

fn find(entries: &[Entry], at: &str, folder: &Path) -> Result<usize, Failure> {
    if let Some(position) = entries.iter().position(|entry| at.parse() == Ok(entry.number)) {
        return Ok(position);
    }
    let has_id = |entry: &Entry| {
        let id = entry.header.as_ref().ok().and_then(|header| header.image_id);
        id.is_some_and(|id| id.to_string().starts_with(at))
    };
    let by_id: Vec<usize> = (0..entries.len()).filter(|&position| has_id(&entries[position])).collect();
    match by_id.as_slice() {
        [only] => Ok(*only),
        [] => Err(Failure::Usage(format!("no image in {} has the number or id {at}", folder.display()))),
        _ => Err(Failure::Usage(format!("more than one image in {} has an id that begins with {at}", folder.display()))),
    }
}

/// What is wrong with images, by their numbers: each is read once, however many points need it.
#[derive(Default)]
struct Verified(HashMap<u64, Option<String>>);

impl Verified {
    /// Opens an image that is whole.
    fn open(&mut self, entry: &Entry) -> Result<File, Failure> {
        let opened = File::open(&entry.path);
        let mut file = opened.map_err(|error| Failure::file(format!("cannot open {}", entry.path.display()), error))?;
        let damage = self.0.entry(entry.number).or_insert_with(|| {
            let checked = verify_all(&mut file);
            checked.err().map(|source| format!("{}: {source}", entry.path.display()))
        });
        damage.clone().map_or(Ok(file), |damage| Err(Failure::Damaged(damage)))
    }
}

fn verify_all(file: &mut File) -> Result<(), ImageError> {
    verify_stored(&mut ImageReader::new(&mut *file)?)?;
    file.rewind().map_err(|source| ImageError::Read { offset: 0, source })
}

fn restart_point(entries: &[Entry], point: usize, verified: &mut Verified, options: &Options) -> Result<Restarted, Failure> {
    let images = chain(entries, point).map_err(Failure::Damaged)?;
    // All of them, before anything is done: going back to an older point must find the world as it was.
    let opened: Vec<File> = images.iter().map(|entry| verified.open(entry)).collect::<Result<_, _>>()?;
    let mut inputs = opened.into_iter().map(|file| Box::new(file) as Input);
    let Some(newest) = inputs.next() else { return Err(Failure::Damaged("an empty chain".to_owned())) };
    let parents: Vec<Input> = inputs.collect();
    tracing::info!("restart from {} and {} parents", images[0].path.display(), parents.len());
    let progress = Progress::new("filling pages");
    let result = restart::restart(newest, parents, options, &|done, all| progress.show(done, all));
    drop(progress);
    result.map_err(|error| match error {
        Error::Parent { older, source } => Failure::about(&images[older].path, *source),
        other => Failure::about(&images[0].path, other),
    })
}
