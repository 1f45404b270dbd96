//! The parents of an increment: those that the user names, and those that lie beside it.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use ckpt::Error;
use ckpt::ids::ImageId;
use ckpt::image::ImageError;
use ckpt::image::model::Header;
use ckpt::restart::Input;
use ckpt::store::header_of;

use super::Failure;

/// Images in the order in which they are needed: each the parent of the one before.
#[derive(Debug, Default)]
pub struct Parents(Vec<PathBuf>);

impl Parents {
    /// Of an image that is read from a stream, or is still to be made: its parent is the first of those given.
    pub fn of_stream(given: &[PathBuf]) -> Result<Parents, Failure> {
        let Some((first, others)) = given.split_first() else { return Ok(Parents::default()) };
        let mut parents = Parents::of(first, others)?;
        parents.0.insert(0, first.clone());
        Ok(parents)
    }

    /// Of the image `image`: those that are not given are looked for in its folder.
    pub fn of(image: &Path, given: &[PathBuf]) -> Result<Parents, Failure> {
        let given = given.iter().map(|path| Ok((path.clone(), read_header(path)?))).collect::<Result<Vec<_>, Failure>>()?;
        Parents::from(image, read_header(image)?, given, "; name it with --parent")
    }

    /// Of the image `image`, which says `header` of itself: all are looked for in its folder.
    pub fn beside(image: &Path, header: Header) -> Result<Parents, Failure> {
        Parents::from(image, header, Vec::new(), "")
    }

    fn from(image: &Path, mut header: Header, mut left: Vec<(PathBuf, Header)>, advice: &str) -> Result<Parents, Failure> {
        let mut found: Vec<PathBuf> = Vec::new();
        let mut beside = Beside::default();
        let mut newest = image.to_owned();
        while let Some(parent) = header.parent {
            let is_it = |header: &Header| header.image_id == Some(parent.image_id);
            let next = match left.iter().position(|(_, header)| is_it(header)) {
                Some(at) => left.swap_remove(at),
                None => beside.find(&newest, parent.image_id, advice)?,
            };
            if found.contains(&next.0) || next.0 == image {
                return Err(Failure::Damaged(format!("{} is an increment of itself", next.0.display())));
            }
            found.push(next.0.clone());
            (newest, header) = next;
        }
        match left.first() {
            Some((path, header)) => Err(Failure::Damaged(format!(
                "{} (image {}) is no parent of {}",
                path.display(),
                header.image_id.map_or_else(|| "without an id".to_owned(), |id| id.to_string()),
                image.display()
            ))),
            None => Ok(Parents(found)),
        }
    }

    /// Where they are.
    pub fn paths(&self) -> &[PathBuf] {
        &self.0
    }

    /// Opens all of them.
    pub fn open(&self) -> Result<Vec<Input>, Failure> {
        let open = |path: &PathBuf| {
            let file = File::open(path);
            file.map(|file| Box::new(file) as Input)
                .map_err(|error| Failure::file(format!("cannot open {}", path.display()), error))
        };
        self.0.iter().map(open).collect()
    }

    /// A failure that is about one of them is told by its name.
    pub fn explain(&self, error: Error) -> Failure {
        match error {
            Error::Parent { older, source } => match older.checked_sub(1).and_then(|n| self.0.get(n)) {
                Some(path) => Failure::Damaged(format!("{}: {source}", path.display())),
                None => Failure::Library(Error::Parent { older, source }),
            },
            other => Failure::Library(other),
        }
    }

    /// Is the file at `path` one of them?
    pub fn contain(&self, path: &Path) -> bool {
        let same = |one: &PathBuf| fs::canonicalize(one).is_ok_and(|one| fs::canonicalize(path).is_ok_and(|other| one == other));
        self.0.iter().any(same)
    }
}

fn read_header(path: &Path) -> Result<Header, Failure> {
    header_of(path)?.map_err(|source: ImageError| Failure::Image { path: path.display().to_string(), source })
}

/// The images of the folder that was looked into last.
#[derive(Debug, Default)]
struct Beside {
    folder: PathBuf,
    images: HashMap<ImageId, (PathBuf, Header)>,
}

impl Beside {
    /// The image `id` in the folder of `image`, of which it is the parent.
    fn find(&mut self, image: &Path, id: ImageId, advice: &str) -> Result<(PathBuf, Header), Failure> {
        let folder = image.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        if self.folder != folder {
            self.read(folder).map_err(|error| Failure::file(format!("cannot read the folder {}", folder.display()), error))?;
        }
        self.images.get(&id).cloned().ok_or_else(|| {
            Failure::Damaged(format!(
                "{} is an increment of image {id}, which is not in the folder {}{advice}",
                image.display(),
                folder.display()
            ))
        })
    }

    /// What is no image there is none of ours.
    fn read(&mut self, folder: &Path) -> io::Result<()> {
        self.images.clear();
        self.folder = folder.to_owned();
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            if !entry.file_type()?.is_file() {
                continue;
            }
            // It may be gone, or for others alone.
            if let Ok(Ok(header)) = header_of(&entry.path())
                && let Some(id) = header.image_id
            {
                self.images.entry(id).or_insert((entry.path(), header));
            }
        }
        Ok(())
    }
}
