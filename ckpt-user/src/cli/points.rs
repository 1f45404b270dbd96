//! The restart points of a folder, and going back to an earlier one when an image turns out to be damaged.

use std::collections::HashMap;
use std::fs::File;
use std::ops::RangeInclusive;
use std::path::Path;

use ckpt::Error;
use ckpt::image::{ImageError, ImageReader, verify_stored};
use ckpt::merge::Lazy;
use ckpt::resources::restorer::FilesPolicy;
use ckpt::restart::{self, Input, Options, Restarted};
use ckpt::store::{Chains, Entry, Folder};

use super::Failure;
use super::progress::Progress;

/// What is done about files by default: the job of a folder went on after its images were made, and its files with it.
pub const FILES: FilesPolicy = FilesPolicy::Rollback;

/// So often at most, images that were merged away meanwhile are looked for anew.
const TRIES: usize = 10;

/// Which point of a folder is to be restarted.
#[derive(Clone, Debug)]
pub enum Choice<'a> {
    /// The newest one with one of these numbers whose images are whole.
    Newest(RangeInclusive<u64>),
    /// The one with this number, or with an image id that begins so.
    At(&'a str),
}

impl<'a> Choice<'a> {
    /// What the user named, or the newest of all.
    pub fn of(at: Option<&'a str>) -> Choice<'a> {
        at.map_or(Choice::Newest(0..=u64::MAX), Choice::At)
    }
}

/// Restarts a point of the folder. Its number is told, too.
pub fn restart_point(folder: &Path, choice: &Choice<'_>, options: &Options) -> Result<(u64, Restarted), Failure> {
    let mut entries = Folder::open(folder).scan()?;
    for _ in 1..TRIES {
        match restart_one_of(folder, &entries, choice, options) {
            Err(failure @ (Failure::Usage(_) | Failure::Library(Error::Refused(_)))) => return Err(failure),
            Err(failure) => {
                // A watch that goes on may have merged what was listed.
                let now = Folder::open(folder).scan()?;
                if !has_changed(&entries, &now) {
                    return Err(failure);
                }
                tracing::info!("the folder has changed, so it is read again: {failure}");
                entries = now;
            }
            restarted => return restarted,
        }
    }
    restart_one_of(folder, &entries, choice, options)
}

/// Is something that was there gone, or something else now? New images are no change.
fn has_changed(before: &[Entry], now: &[Entry]) -> bool {
    let same =
        |a: &Entry, b: &Entry| a.number == b.number && a.bytes == b.bytes && a.header.as_ref().ok() == b.header.as_ref().ok();
    !before.iter().all(|old| now.iter().any(|new| same(old, new)))
}

fn restart_one_of(folder: &Path, entries: &[Entry], choice: &Choice<'_>, options: &Options) -> Result<(u64, Restarted), Failure> {
    let chosen = match choice {
        Choice::At(at) => vec![find(entries, at, folder)?],
        Choice::Newest(among) => (0..entries.len()).rev().filter(|&at| among.contains(&entries[at].number)).collect(),
    };
    let chains = Chains::of(entries);
    let mut verified = Verified::default();
    let mut damaged = None;
    for point in chosen {
        let chain = chains.chain(point).map_err(|why| Failure::Damaged(why.to_owned()));
        match chain.and_then(|images| restart_images(&images, &mut verified, options)) {
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
                return Ok((entries[point].number, restarted));
            }
            Err(other) => return Err(other),
        }
    }
    let none = match choice {
        Choice::Newest(among) if *among.end() < u64::MAX => "no more of the images that would do",
        _ => "no images",
    };
    Err(damaged.unwrap_or_else(|| Failure::Damaged(format!("the folder {} holds {none}", folder.display()))))
}

/// The shortest beginning of an id that is taken for one. A shorter word can only be a number: of a number that is not there (any more), the
/// digits must not be taken for the beginning of the id of whatever image has it.
const SHORTEST_ID: usize = 8;

fn find(entries: &[Entry], at: &str, folder: &Path) -> Result<usize, Failure> {
    if let Some(position) = entries.iter().position(|entry| at.parse() == Ok(entry.number)) {
        return Ok(position);
    }
    let has_id = |entry: &Entry| {
        let id = entry.header.as_ref().ok().and_then(|header| header.image_id);
        at.len() >= SHORTEST_ID && id.is_some_and(|id| id.to_string().starts_with(at))
    };
    let by_id: Vec<usize> = (0..entries.len()).filter(|&position| has_id(&entries[position])).collect();
    match by_id.as_slice() {
        [only] => Ok(*only),
        [] => Err(Failure::Usage(format!(
            "no image in {} has the number {at}, or an id that begins with {at} (of an id, at least {SHORTEST_ID} digits are wanted): there is {}; older points may have been merged away (`ckpt info {}` shows all)",
            folder.display(),
            numbers(entries),
            folder.display()
        ))),
        _ => Err(Failure::Usage(format!("more than one image in {} has an id that begins with {at}", folder.display()))),
    }
}

/// "1, 4 to 9".
fn numbers(entries: &[Entry]) -> String {
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for number in entries.iter().map(|entry| entry.number) {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => runs.push((number, number)),
        }
    }
    let tell = |&(first, last): &(u64, u64)| if first == last { first.to_string() } else { format!("{first} to {last}") };
    if runs.is_empty() { "none".to_owned() } else { runs.iter().map(tell).collect::<Vec<_>>().join(", ") }
}

/// The checksums of the trailers of images, or what is wrong with them, by their numbers: each is read once, however many points need it.
#[derive(Default)]
struct Verified(HashMap<u64, Result<u64, String>>);

impl Verified {
    fn check(&mut self, entry: &Entry) -> Result<u64, Failure> {
        let checked = self
            .0
            .entry(entry.number)
            .or_insert_with(|| verify_all(entry).map_err(|source| format!("{}: {source}", entry.path.display())));
        checked.clone().map_err(Failure::Damaged)
    }
}

fn verify_all(entry: &Entry) -> Result<u64, ImageError> {
    let file = File::open(&entry.path).map_err(|source| ImageError::Read { offset: 0, source })?;
    Ok(verify_stored(&mut ImageReader::new(file)?)?.1.trailer_checksum)
}

/// `images`: what the point needs, itself first.
fn restart_images(images: &[&Entry], verified: &mut Verified, options: &Options) -> Result<Restarted, Failure> {
    // All of them, before anything is done: going back to an older point must find the world as it was.
    let mut wanted = None;
    for image in images {
        let checksum = verified.check(image)?;
        let header = image.header.as_ref().ok();
        if wanted.is_some() && header.and_then(|header| header.as_parent(checksum)) != wanted {
            return Err(Failure::Damaged(format!("{} is another image than its increment names", image.path.display())));
        }
        wanted = header.and_then(|header| header.parent);
    }
    // Not opened yet: a chain may be longer than a process can have descriptors.
    let inputs = || {
        let mut inputs = images.iter().map(|entry| Box::new(Lazy::new(&entry.path)) as Input);
        Some((inputs.next()?, inputs.collect::<Vec<Input>>()))
    };
    let Some((newest, parents)) = inputs() else { return Err(Failure::Damaged("an empty chain".to_owned())) };
    tracing::info!("restart from {} and {} parents", images[0].path.display(), parents.len());
    let progress = Progress::new("filling pages");
    let result = restart::restart(newest, parents, inputs(), options, &|done, all| progress.show(done, all));
    drop(progress);
    result.map_err(|error| match error {
        Error::Parent { older, source } => Failure::about(&images[older].path, *source),
        other => Failure::about(&images[0].path, other),
    })
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use ckpt::ids::ImageId;
    use ckpt::image::model::Header;

    use super::*;

    fn entry(number: u64, bytes: u64) -> Entry {
        Entry { number, path: PathBuf::new(), header: Ok(Header::default()), bytes, ending: None }
    }

    #[test]
    fn numbers_are_told_in_runs() {
        assert_eq!(numbers(&[entry(1, 0), entry(4, 0), entry(5, 0), entry(6, 0), entry(9, 0)]), "1, 4 to 6, 9");
        assert_eq!(numbers(&[]), "none");
    }

    #[test]
    fn a_number_that_is_gone_is_not_the_beginning_of_an_id() {
        let with_id = |number, id: u128| Entry {
            header: Ok(Header { image_id: Some(ImageId(id)), ..Header::default() }),
            ..entry(number, 0)
        };
        let entries = [with_id(8, 0x1234_5678 << 96), with_id(9, 0x1234_5679 << 96)];
        let found = |at: &str| find(&entries, at, Path::new("")).ok();
        assert_eq!(found("9"), Some(1));
        assert_eq!(found("12345679"), Some(1));
        assert_eq!(found("1"), None);
        assert_eq!(found("1234567"), None);
    }

    #[test]
    fn a_new_image_is_no_change() {
        assert!(!has_changed(&[entry(1, 5)], &[entry(1, 5), entry(2, 5)]));
        assert!(has_changed(&[entry(1, 5)], &[entry(1, 6)]));
        assert!(has_changed(&[entry(1, 5), entry(2, 5)], &[entry(2, 5)]));
    }
}
