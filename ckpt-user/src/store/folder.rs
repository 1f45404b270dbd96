//! A folder of images, `NNNNNN.ckpt`: whole ones, and increments that name their parents.
//!
//! An image has no name before it is on disk, so what has a name was whole once; what has become of it since is found when it is read.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::Destination;
use crate::error::{Doing, Error, Result};
use crate::ids::ImageId;
use crate::image::model::Header;
use crate::image::{ImageError, ImageReader, Index, PageCounts, Payload};
use crate::sys::fcntl;

/// See the module.
#[derive(Clone, Debug)]
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
    /// Bytes of the file.
    pub bytes: u64,
    /// What its end says, if that can be found without reading all of it.
    pub ending: Option<Ending>,
}

/// The end of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ending {
    /// The checksum of the trailer.
    pub trailer_checksum: u64,
    /// Pages of which the image tells.
    pub pages: PageCounts,
}

/// By this it shows whether a file is still the one that was written, and as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileState {
    device: u64,
    inode: u64,
    bytes: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
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
        let number = self.numbers()?.last().map_or(Some(1), |last| last.checked_add(1));
        let number = number.ok_or_else(|| {
            Error::Unexpected(format!("the folder {} holds an image with the highest number that there is", self.path.display()))
        })?;
        Ok((number, Destination::file(&self.image(number))?))
    }

    /// What the image with this number says of itself, if it is there, from its beginning to its end, and is this one.
    pub fn whole_header(&self, number: u64, image_id: ImageId) -> Option<Header> {
        let file = File::open(self.image(number)).ok()?;
        let has_end = Index::find(&file).is_ok_and(|index| index.is_some());
        header(file).ok().filter(|header| has_end && header.image_id == Some(image_id))
    }

    /// The file of the image with this number, as far as it can be told without reading it. `None`: it is not there.
    pub fn state(&self, number: u64) -> Option<FileState> {
        let found = fs::metadata(self.image(number)).ok()?;
        Some(FileState {
            device: found.dev(),
            inode: found.ino(),
            bytes: found.len(),
            modified: (found.mtime(), found.mtime_nsec()),
        })
    }

    /// Where an image goes that takes the place of the one with this number.
    pub fn replace(&self, _: &Lock, number: u64) -> Result<Destination> {
        Destination::file(&self.image(number))
    }

    /// Removes an image.
    pub fn remove(&self, _: &Lock, number: u64) -> Result<()> {
        let path = self.image(number);
        fs::remove_file(&path).doing(|| format!("cannot remove {}", path.display()))
    }

    /// All images, the oldest first.
    pub fn scan(&self) -> Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for number in self.numbers()? {
            let path = self.image(number);
            let file = match File::open(&path) {
                // Merged away since the folder was listed.
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                other => other.doing(|| format!("cannot open {}", path.display()))?,
            };
            let bytes = file.metadata().doing(|| format!("cannot read {}", path.display()))?.len();
            // An index that is damaged is found by whoever reads the whole image.
            let ending = Index::find(&file)
                .ok()
                .flatten()
                .map(|(index, trailer)| Ending { trailer_checksum: index.trailer_checksum, pages: trailer.pages });
            entries.push(Entry { number, header: header(file), path, bytes, ending });
        }
        Ok(entries)
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

fn header(file: File) -> Result<Header, ImageError> {
    let mut reader = ImageReader::new(file)?;
    let mut payload = Payload::default();
    match reader.next_checked(&mut payload)? {
        Some(record) => payload.decode(record.record_type),
        None => Ok(Header::default()),
    }
}

/// What the image at `path` says of itself, or why that cannot be read.
pub fn header_of(path: &Path) -> Result<Result<Header, ImageError>> {
    Ok(header(File::open(path).doing(|| format!("cannot open {}", path.display()))?))
}

#[cfg(test)]
mod tests {
    use super::*;

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
