//! A folder of images, `NNNNNN.ckpt`: whole ones, and increments that name their parents.
//!
//! An image has no name before it is on disk, so what has a name was whole once; what has become of it since is found when it is read.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::Destination;
use crate::error::{Doing, Error, Result};
use crate::image::model::Header;
use crate::image::{ImageError, ImageReader, Payload};
use crate::sys::fcntl;

/// See the module.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
}

/// Keeps other ckpts from writing into a folder while it lives.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

/// An image in a folder.
#[derive(Debug)]
pub struct Entry {
    /// Its number.
    pub number: u64,
    /// Where it is.
    pub path: PathBuf,
    /// What it says of itself, or why that cannot be read.
    pub header: Result<Header, ImageError>,
}

const SUFFIX: &str = ".ckpt";

impl Folder {
    /// Makes the folder, for its owner only, if it is not there.
    pub fn create(path: &Path) -> Result<Folder> {
        match fs::DirBuilder::new().mode(0o700).create(path) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            other => other.doing(|| format!("cannot make the folder {}", path.display()))?,
        }
        Ok(Folder { path: path.to_owned() })
    }

    /// A folder that is there.
    pub fn open(path: &Path) -> Folder {
        Folder { path: path.to_owned() }
    }

    /// Takes the folder for this ckpt alone. Reading needs no lock.
    pub fn lock(&self) -> Result<Lock> {
        let path = self.path.join("lock");
        let doing = || format!("cannot lock the folder {}", self.path.display());
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let mut file = options.open(&path).doing(doing)?;
        match fcntl::flock(file.as_fd(), true) {
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                let mut holder = String::new();
                file.read_to_string(&mut holder).doing(doing)?;
                return Err(Error::Unexpected(format!(
                    "another ckpt (pid {}) works with the folder {}: end it first, or take another folder",
                    holder.trim(),
                    self.path.display()
                )));
            }
            other => other.doing(doing)?,
        }
        file.set_len(0).doing(doing)?;
        file.write_all(format!("{}\n", std::process::id()).as_bytes()).doing(doing)?;
        Ok(Lock { _file: file })
    }

    /// Removes what a ckpt that was killed has left unfinished.
    pub fn clean(&self, _: &Lock) -> Result<()> {
        let doing = || format!("cannot clean the folder {}", self.path.display());
        for entry in fs::read_dir(&self.path).doing(doing)? {
            let name = entry.doing(doing)?.file_name();
            let Some(name) = name.to_str() else { continue };
            if name.starts_with('.') && name.contains(".ckpt.partial-") {
                fs::remove_file(self.path.join(name)).doing(doing)?;
            }
        }
        Ok(())
    }

    /// Where the next image goes, and its number.
    pub fn next(&self, _: &Lock) -> Result<(u64, Destination)> {
        let number = self.numbers()?.last().map_or(1, |last| last + 1);
        Ok((number, Destination::file(&self.image(number))?))
    }

    /// All images, the oldest first.
    pub fn scan(&self) -> Result<Vec<Entry>> {
        let numbers = self.numbers()?.into_iter();
        let entries = numbers.map(|number| {
            let path = self.image(number);
            Ok(Entry { number, header: header_of(&path)?, path })
        });
        entries.collect()
    }

    fn image(&self, number: u64) -> PathBuf {
        self.path.join(format!("{number:06}{SUFFIX}"))
    }

    fn numbers(&self) -> Result<Vec<u64>> {
        let doing = || format!("cannot read the folder {}", self.path.display());
        let mut numbers = Vec::new();
        for entry in fs::read_dir(&self.path).doing(doing)? {
            let name = entry.doing(doing)?.file_name();
            let digits = name.to_str().and_then(|name| name.strip_suffix(SUFFIX));
            numbers.extend(
                digits.filter(|d| d.len() >= 6 && d.bytes().all(|b| b.is_ascii_digit())).and_then(|d| d.parse::<u64>().ok()),
            );
        }
        numbers.sort_unstable();
        Ok(numbers)
    }
}

/// The images that `entries[at]` needs, itself first and a whole one last. The error says what is missing or damaged.
pub fn chain(entries: &[Entry], at: usize) -> Result<Vec<&Entry>, String> {
    let mut chain: Vec<&Entry> = Vec::new();
    let mut entry = &entries[at];
    loop {
        let header = entry.header.as_ref().map_err(|error| format!("{}: {error}", entry.path.display()))?;
        chain.push(entry);
        let Some(parent) = header.parent else { return Ok(chain) };
        // Parents are older, so this comes to an end.
        let is_parent =
            |e: &&Entry| e.number < entry.number && e.header.as_ref().is_ok_and(|h| h.image_id == Some(parent.image_id));
        entry = entries.iter().find(is_parent).ok_or_else(|| {
            format!("{} is an increment of image {}, which is not there or damaged", entry.path.display(), parent.image_id)
        })?;
    }
}

/// What the image at `path` says of itself, or why that cannot be read.
pub fn header_of(path: &Path) -> Result<Result<Header, ImageError>> {
    let file = File::open(path).doing(|| format!("cannot open {}", path.display()))?;
    Ok(ImageReader::new(file).and_then(|mut reader| {
        let mut payload = Payload::default();
        match reader.next_checked(&mut payload)? {
            Some(record) => payload.decode(record.record_type),
            None => Ok(Header::default()),
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::ImageId;
    use crate::image::model::ParentRef;

    fn entry(number: u64, id: u128, parent: Option<u128>) -> Entry {
        let parent = parent.map(|id| ParentRef { image_id: ImageId(id), trailer_checksum: 0 });
        let header = Header { image_id: Some(ImageId(id)), parent, ..Header::default() };
        Entry { number, path: PathBuf::from(format!("{number:06}.ckpt")), header: Ok(header) }
    }

    #[test]
    fn a_chain_ends_with_a_whole_image() {
        let entries =
            [entry(1, 10, None), entry(2, 20, Some(10)), entry(3, 30, None), entry(4, 40, Some(20)), entry(5, 50, Some(99))];
        let numbers = |at| chain(&entries, at).map(|chain| chain.iter().map(|e| e.number).collect::<Vec<_>>());
        assert_eq!(numbers(3), Ok(vec![4, 2, 1]));
        assert_eq!(numbers(2), Ok(vec![3]));
        assert!(numbers(4).unwrap_err().contains("000005.ckpt"));
    }

    #[test]
    fn two_cannot_have_the_lock() {
        let place = tempfile::tempdir().unwrap();
        let folder = Folder::create(&place.path().join("images")).unwrap();
        let lock = folder.lock().unwrap();
        let refused = folder.lock().unwrap_err().to_string();
        assert!(refused.contains(&format!("(pid {})", std::process::id())), "{refused}");
        drop(lock);
        folder.lock().unwrap();
    }

    #[test]
    fn numbers_go_on_and_others_files_are_left_alone() {
        let place = tempfile::tempdir().unwrap();
        let folder = Folder::create(place.path()).unwrap();
        let lock = folder.lock().unwrap();
        for name in ["000007.ckpt", "12.ckpt", "notes", ".000008.ckpt.partial-77", "1000000.ckpt"] {
            fs::write(place.path().join(name), "").unwrap();
        }
        folder.clean(&lock).unwrap();
        assert!(!place.path().join(".000008.ckpt.partial-77").exists() && place.path().join("notes").exists());
        assert_eq!(folder.numbers().unwrap(), [7, 1_000_000]);
        assert_eq!(folder.next(&lock).unwrap().0, 1_000_001);
        assert!(folder.scan().unwrap().iter().all(|entry| entry.header.is_err()), "they are empty");
    }
}
