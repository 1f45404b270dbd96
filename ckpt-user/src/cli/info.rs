//! `ckpt info`.

use std::path::PathBuf;
use std::process::ExitCode;

use ckpt::image::{
    ImageError, ImageReader, Index, Metadata, PageCounts, Payload, Records, Stored, Summary, read_stored, verify_stored,
};
use ckpt::resources::vma::VmaRecord;
use ckpt::store::{self, SamePages};

use super::parents::Parents;
use super::{Failure, input, output};

mod folder;
mod json;
mod text;

/// Show what is in an image, or the restart points of a folder.
///
/// An image of a checkpoint that failed holds the reason, which is shown.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The image, or a folder of images; `-` is standard input
    #[arg(value_name = "FILE|DIR")]
    image: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Read all of it, and check every checksum
    #[arg(long)]
    verify: bool,
    /// Show every record too: objects, threads, mappings
    #[arg(short, long)]
    verbose: bool,
}

/// What there is to show.
struct Contents {
    /// The image, as the user named it.
    name: String,
    metadata: Metadata,
    /// If it holds only how its metadata differs from the parent's: bytes of that.
    changes: Option<u64>,
    /// Why only the header is known.
    unresolved: Option<String>,
    vmas: Vec<VmaRecord>,
    pages: PageCounts,
    /// Pages that memories have from others, of which the image holds them.
    pages_shared: u64,
    /// Bytes of the file. `None`: it is no file.
    bytes: Option<u64>,
    /// What a verification found.
    summary: Option<Summary>,
}

impl Args {
    /// Does it.
    pub fn run(self) -> Result<ExitCode, Failure> {
        if self.image.is_dir() {
            return self.folder();
        }
        let name = self.image.display().to_string();
        let contents = match self.read() {
            Err(Failure::Image { source: ImageError::RecordedFailure(reason), path }) => {
                if self.json {
                    output::print_json(&serde_json::json!({ "file": name, "failure": reason }))?;
                }
                return Err(Failure::Image { path, source: ImageError::RecordedFailure(reason) });
            }
            other => other?,
        };
        if self.json {
            output::print_json(&json::describe(&contents, self.verbose))?;
        } else {
            output::print(&text::describe(&contents, self.verbose))?;
        }
        Ok(ExitCode::SUCCESS)
    }

    fn folder(&self) -> Result<ExitCode, Failure> {
        if self.verbose {
            return Err(Failure::Usage("--verbose shows the records of one image, and this is a folder".to_owned()));
        }
        let points = folder::Points::read(&self.image, self.verify)?;
        if self.json {
            output::print_json(&points.json())?;
        } else {
            output::print(&points.text())?;
        }
        if points.newest().is_none() {
            return Err(Failure::Damaged(format!("the folder {} holds nothing that can be restarted", self.image.display())));
        }
        Ok(ExitCode::SUCCESS)
    }

    fn read(&self) -> Result<Contents, Failure> {
        let file = input::open(&self.image)?;
        let name = self.image.display().to_string();
        let failed = |source| Failure::Image { path: name.clone(), source };
        let stat = file.metadata().map_err(|error| Failure::file(format!("cannot read {name}"), error))?;
        // Only what can be sought in has an end to look at first.
        let index = if stat.is_file() && !self.verify { Index::find(&file).map_err(failed)? } else { None };
        let mut reader = ImageReader::new(file).map_err(failed)?;
        let (stored, pages, summary) = if self.verify {
            let (stored, summary) = verify_stored(&mut reader).map_err(failed)?;
            (stored, summary.pages, Some(summary))
        } else {
            let stored = read_stored(&mut reader).map_err(failed)?;
            let pages = match index {
                Some((_, trailer)) => trailer.pages,
                None => read_on(&mut reader).map_err(failed)?,
            };
            (stored, pages, None)
        };
        let changes = stored.changes_bytes();
        let (metadata, unresolved) = match self.parents_of(&stored) {
            Ok(parent) => (stored.decode(parent.as_ref()).map_err(failed)?, None),
            Err(why) => (Metadata { header: stored.header, ..Metadata::default() }, Some(why)),
        };
        let vmas: Result<Vec<VmaRecord>, ImageError> = metadata.vmas.iter().map(|vma| vma.decode()).collect();
        let vmas = vmas.map_err(failed)?;
        let same = SamePages::of(&metadata.objects).map_err(failed)?.all();
        let same = same.map_err(|why| Failure::Damaged(format!("{name}: {why}")))?;
        let pages_shared = same.iter().map(|same| same.pages.count).sum();
        let bytes = stat.is_file().then_some(stat.len());
        Ok(Contents { name, metadata, changes, unresolved, vmas, pages, pages_shared, bytes, summary })
    }

    /// The metadata of the parent, if the image cannot be understood without it, or why that cannot be known.
    fn parents_of(&self, stored: &Stored) -> Result<Option<Records>, String> {
        if !stored.needs_parent() {
            return Ok(None);
        }
        let parents = Parents::beside(&self.image, stored.header.clone()).map_err(|failure| failure.to_string())?;
        match store::resolve(parents.paths()) {
            Ok(records) => Ok(Some(records)),
            Err(ckpt::Error::Parent { older, source }) => Err(format!("{}: {source}", parents.paths()[older].display())),
            Err(other) => Err(other.to_string()),
        }
    }
}

/// Reads on to the trailer, which counts the pages.
fn read_on(reader: &mut ImageReader<std::fs::File>) -> Result<PageCounts, ImageError> {
    let mut payload = Payload::default();
    while reader.next_raw(&mut payload)?.is_some() {}
    Ok(reader.ending().map(|ending| ending.trailer.pages).unwrap_or_default())
}
