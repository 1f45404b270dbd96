//! What a checkpoint knows of the one before: which pages that holds, and which were written since.

use rangemap::RangeSet;

use crate::error::Result;
use crate::ids::ObjRef;
use crate::image::model::ParentRef;
use crate::pipeline::{self, Changes, Extent, KnownPages};
use crate::resources::vma::VmaRecord;
use crate::tracee::maps::Mapping;
use crate::tracee::remote::RemoteTask;
use crate::track::hash::PageHashes;
use crate::track::{self, DirtyTracker};

/// How it is known what has changed since another image.
#[derive(Debug)]
pub enum Since {
    /// It is not: every image is whole.
    Nothing,
    /// Watched from the first image on.
    Tracked(Tracking),
    /// By the hashes of that image's pages.
    Hashed(ParentRef, PageHashes),
}

impl Since {
    /// How changes are found, for reports.
    pub fn name(&self) -> &'static str {
        match self {
            Since::Nothing => "none",
            Since::Tracked(tracking) => tracking.tracker.as_ref().map_or("none", |tracker| tracker.name()),
            Since::Hashed(..) => "hash",
        }
    }

    /// At a cut, with every thread stopped: finds out what was written. `task` is one of the threads.
    pub fn cut(&mut self, task: &mut RemoteTask<'_>, mappings: &[Mapping]) -> Result<()> {
        if let Since::Tracked(tracking) = self { tracking.cut(task, mappings) } else { Ok(()) }
    }

    /// Takes out of the plan of a whole image what the last image holds of the memory `mm`. `None`: there is none.
    pub fn shrink(&mut self, mm: ObjRef, vmas: &[VmaRecord], plan: &mut Vec<Extent>) -> Option<ParentRef> {
        let (mapped, of_hashes): (RangeSet<u64>, RangeSet<u64>);
        let (parent, written, held) = match self {
            Since::Nothing => return None,
            Since::Tracked(tracking) => {
                let (parent, held) = tracking.parent.as_ref()?;
                (*parent, &tracking.written, held)
            }
            Since::Hashed(parent, hashes) => {
                hashes.rename(mm);
                mapped = vmas.iter().map(|vma| vma.pages().numbers()).collect();
                of_hashes = hashes.pages().collect();
                // Every page is read, and compared then.
                (*parent, &mapped, &of_hashes)
            }
        };
        *plan = pipeline::increment(plan, &Changes { owner: mm, written, held });
        Some(parent)
    }

    /// Pages that must not be written again, which is known only when they are read.
    pub fn known(&self) -> Option<&dyn KnownPages> {
        if let Since::Hashed(_, hashes) = self { Some(hashes) } else { None }
    }

    /// An image is on disk. `held`: the pages of the memory that it or its parents hold.
    pub fn commit(&mut self, image: ParentRef, held: RangeSet<u64>) {
        if let Since::Tracked(tracking) = self {
            tracking.parent = Some((image, held));
            tracking.written.clear();
        }
    }
}

/// What has become of the memory since the last image.
#[derive(Debug, Default)]
pub struct Tracking {
    tracker: Option<Box<dyn DirtyTracker>>,
    parent: Option<(ParentRef, RangeSet<u64>)>,
    /// Written since the parent was made. Finding out makes the kernel forget it, so it is kept until an image holds it.
    written: RangeSet<u64>,
}

impl Tracking {
    /// At a cut: what was written since the last one. A tracker that fails has lost sight of the memory (another program runs in it, say),
    /// so the image will be whole, and a new one begins.
    fn cut(&mut self, task: &mut RemoteTask<'_>, mappings: &[Mapping]) -> Result<()> {
        if let Some(tracker) = &mut self.tracker {
            match tracker.cut(mappings) {
                Ok(written) => {
                    self.written.extend(written);
                    return Ok(());
                }
                Err(error) => tracing::warn!("the next image is a whole one: {error}"),
            }
        }
        *self = Tracking::default();
        let mut tracker = track::start(task)?;
        tracker.cut(mappings)?;
        self.tracker = Some(tracker);
        Ok(())
    }
}
