//! What a checkpoint knows of the one before: which pages that holds, and which were written since.

use rangemap::RangeSet;

use super::content_extents;
use super::history::History;
use super::live::Split;
use crate::error::{Error, Result};
use crate::ids::{ObjRef, PageRange};
use crate::image::Records;
use crate::image::model::ParentRef;
use crate::pipeline::{self, Changes, Extent, KnownPages};
use crate::resources::collector::Content;
use crate::resources::vma::VmaRecord;
use crate::store::Past;
use crate::tracee::maps::Mapping;
use crate::tracee::remote::RemoteTask;
use crate::track::hash::PageHashes;
use crate::track::{DirtyTracker, Method};

/// How it is known what has changed since another image.
#[derive(Debug)]
pub enum Since {
    /// It is not: every image is whole.
    Nothing,
    /// Watched from the first image on.
    Tracked(Box<Tracking>),
    /// By the hashes of that image's pages.
    Hashed(ParentRef, PageHashes),
}

impl Since {
    /// How changes were found, for reports. `live`: the last pages were copied while the target ran.
    pub fn name(&self, live: bool) -> &'static str {
        match self {
            Since::Hashed(..) => "hash",
            _ if live => "live",
            Since::Nothing => "none",
            Since::Tracked(tracking) => tracking.tracker.as_ref().map_or("none", |tracker| tracker.name()),
        }
    }

    /// Before a cut, with every thread stopped: does whatever needs a thread of the target, `task`.
    pub fn prepare(&mut self, task: &mut RemoteTask<'_>) -> Result<()> {
        if let Since::Tracked(tracking) = self { tracking.prepare(task) } else { Ok(()) }
    }

    /// At a cut, with every thread stopped: finds out what was written. Nothing is to run in the target between this and the end of the freeze:
    /// whatever it wrote would count as written after the cut.
    ///
    /// `late`: [`Since::written_since_prearm`] will be asked for.
    pub fn cut(&mut self, mappings: &mut [Mapping], late: bool) -> Result<()> {
        if let Since::Tracked(tracking) = self { tracking.cut(mappings, late) } else { Ok(()) }
    }

    /// Before a freeze, while the target runs: does what can be done already of the next cut, which then has less to do. `mappings` as they were a
    /// moment ago; `as_left` as in [`DirtyTracker::prearm`].
    pub fn prearm(&mut self, mappings: &[Mapping], as_left: bool) {
        let Since::Tracked(tracking) = self else { return };
        match tracking.tracker.as_mut().map(|tracker| tracker.prearm(mappings, as_left)) {
            Some(Ok(written)) => {
                tracking.written.extend(written);
                tracking.prearmed = true;
            }
            Some(Err(error)) => tracking.lose_sight(&error),
            None => {}
        }
    }

    /// After that, and before the freeze: those pages of a plan of the memory `owner` that the image would hold, and that were protected.
    pub fn to_copy_early(&self, owner: ObjRef, mut plan: Vec<Extent>) -> Vec<PageRange> {
        let Since::Tracked(tracking) = self else { return Vec::new() };
        if let Some((_, held)) = &tracking.parent {
            plan = pipeline::increment(&plan, &Changes { owner, written: &tracking.written, held });
        }
        Split::of(&plan, owner, self.protected()).moving.iter().map(|extent| extent.pages).collect()
    }

    /// After a cut: what was written between [`Since::prearm`] and that. `None`: it is not known, or nobody has wanted to know.
    pub fn written_since_prearm(&self) -> Option<&RangeSet<u64>> {
        if let Since::Tracked(tracking) = self { tracking.late.as_ref() } else { None }
    }

    /// Does it find changes in the page tables, so that it is worth it to copy pages before the freeze?
    pub fn sees(&self) -> bool {
        matches!(self, Since::Tracked(tracking) if tracking.method == Method::Scan)
    }

    /// Must a tracker begin?
    pub fn begins(&self) -> bool {
        matches!(self, Since::Tracked(tracking) if tracking.tracker.is_none())
    }

    /// What is known of the memory so far is of no use any more: the next image is a whole one.
    pub fn forget(&mut self) {
        match self {
            Since::Nothing => {}
            Since::Tracked(tracking) => **tracking = Tracking::new(tracking.method),
            Since::Hashed(..) => *self = Since::Nothing,
        }
    }

    /// Does it watch the memory, so that all of it is protected by now?
    pub fn tracks(&self) -> bool {
        matches!(self, Since::Tracked(_))
    }

    /// After a cut: [`DirtyTracker::protected`].
    pub fn protected(&self) -> &[PageRange] {
        match self {
            Since::Tracked(tracking) => tracking.tracker.as_ref().map_or(&[], |tracker| tracker.protected()),
            Since::Nothing | Since::Hashed(..) => &[],
        }
    }

    /// Takes out of the plan of a whole image what the last image holds of the memory `mm`. `None`: there is none.
    pub fn shrink(&mut self, mm: ObjRef, vmas: &[VmaRecord], plan: &mut Vec<Extent>) -> Option<ParentRef> {
        let (mapped, of_hashes): (RangeSet<u64>, RangeSet<u64>);
        let (parent, written, held) = match self {
            Since::Nothing => return None,
            Since::Tracked(tracking) => {
                let parent = tracking.parent.as_ref().map(|(parent, held)| {
                    *plan = pipeline::increment(plan, &Changes { owner: mm, written: &tracking.written, held });
                    *parent
                });
                tracking.contents.compare_memory(mm, plan);
                return parent;
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
        match self {
            Since::Nothing => None,
            Since::Tracked(tracking) => Some(&tracking.contents),
            Since::Hashed(_, hashes) => Some(hashes),
        }
    }

    /// At a cut: which pages of the contents of files are to be saved, and which contents go on from the last image.
    pub fn contents(&mut self, contents: &[Content]) -> (Vec<Extent>, Past) {
        match self {
            Since::Tracked(tracking) => tracking.contents.plan(contents),
            Since::Nothing | Since::Hashed(..) => (contents.iter().flat_map(content_extents).collect(), Past::default()),
        }
    }

    /// The metadata of the parent that [`Since::shrink`] names, if it is at hand.
    pub fn metadata(&self) -> Option<&Records> {
        match self {
            Since::Tracked(tracking) => tracking.metadata.as_ref(),
            Since::Nothing | Since::Hashed(..) => None,
        }
    }

    /// An image is on disk. `held`: the pages of the memory that it or its parents hold.
    pub fn commit(&mut self, image: ParentRef, held: RangeSet<u64>, metadata: Records) {
        if let Since::Tracked(tracking) = self {
            tracking.parent = Some((image, held));
            tracking.metadata = Some(metadata);
            tracking.written.clear();
            tracking.contents.commit();
        }
    }
}

/// What has become of the memory since the last image.
#[derive(Debug)]
pub struct Tracking {
    method: Method,
    tracker: Option<Box<dyn DirtyTracker>>,
    parent: Option<(ParentRef, RangeSet<u64>)>,
    /// That of the parent.
    metadata: Option<Records>,
    /// Written since the parent was made. Finding out makes the kernel forget it, so it is kept until an image holds it.
    written: RangeSet<u64>,
    /// What the parent holds of the contents of files, and of the memory.
    contents: History,
    /// All memory was protected since the last cut, by the tracker that is there.
    prearmed: bool,
    /// Written between that and the last cut.
    late: Option<RangeSet<u64>>,
}

impl Tracking {
    /// From the first image on.
    pub fn new(method: Method) -> Tracking {
        let (written, contents) = (RangeSet::new(), History::default());
        Tracking { method, tracker: None, parent: None, metadata: None, written, contents, prearmed: false, late: None }
    }

    /// A tracker that has lost sight of the memory (another program runs in it, say) makes place for a new one, and the image will be whole.
    fn prepare(&mut self, task: &mut RemoteTask<'_>) -> Result<()> {
        if let Some(Err(error)) = self.tracker.as_mut().map(|tracker| tracker.prepare(task)) {
            self.lose_sight(&error);
        }
        if self.tracker.is_none() {
            self.tracker = Some(self.method.start(task)?);
        }
        Ok(())
    }

    /// What was written since the last cut. After a failure nothing is known any more, and the next image is a whole one.
    fn cut(&mut self, mappings: &mut [Mapping], late: bool) -> Result<()> {
        let Some(tracker) = &mut self.tracker else { return Ok(()) };
        let prearmed = std::mem::take(&mut self.prearmed);
        match tracker.cut(mappings) {
            Ok(written) => {
                self.late = (late && prearmed).then(|| written.clone());
                self.written.extend(written);
            }
            Err(error) => {
                self.lose_sight(&error);
                return Err(error);
            }
        }
        Ok(())
    }

    /// Nothing is known any more: the next image is a whole one.
    fn lose_sight(&mut self, why: &Error) {
        tracing::warn!("the next image is a whole one: {why}");
        *self = Tracking::new(self.method);
    }
}
