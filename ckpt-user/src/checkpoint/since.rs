//! What a checkpoint knows of the one before: which pages that holds, and which were written since.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::collect::{CutMemory, content_extents};
use super::history::History;
use super::live::Split;
use super::mappings::Mapped;
use super::trackers::Trackers;
use super::twins::Shared;
use crate::error::{Error, Result};
use crate::ids::{ObjRef, PageRange, Pid};
use crate::image::Records;
use crate::image::model::ParentRef;
use crate::page_set::PageSet;
use crate::pipeline::{self, Changes, Extent, KnownPages};
use crate::resources::collector::Content;
use crate::store::Past;
use crate::store::same::Same;
use crate::tracee::maps::Mapping;
use crate::tracee::remote::RemoteTask;
use crate::track::ebpf::AddressSpace;
use crate::track::hash::PageHashes;
use crate::track::presence::Presence;
use crate::track::{Method, Touched};

/// How it is known what has changed since another image.
#[derive(Debug)]
pub(super) enum Since {
    /// It is not: every image is whole.
    Nothing,
    /// Watched from the first image on.
    Tracked(Box<Tracking>),
    /// By the hashes of that image's pages.
    Hashed(ParentRef, PageHashes),
}

/// The pages that an image or its parents hold of a memory.
#[derive(Debug)]
pub(super) struct Held {
    /// The process that the memory was seen through.
    pub(super) pid: Pid,
    /// As the image calls it.
    pub(super) mm: ObjRef,
    pub(super) pages: PageSet,
}

impl Since {
    /// How changes were found, for reports. `live`: the last pages were copied while the target ran.
    pub(super) fn name(&self, live: bool) -> &'static str {
        match self {
            Since::Hashed(..) => "hash",
            _ if live => "live",
            Since::Nothing => "none",
            Since::Tracked(tracking) => tracking.trackers.name().unwrap_or("none"),
        }
    }

    /// Before a cut, with every thread stopped: does whatever needs a thread of the target, `task`.
    pub(super) fn prepare(&mut self, task: &mut RemoteTask<'_>, space: Option<AddressSpace>) -> Result<()> {
        if let Since::Tracked(tracking) = self { tracking.prepare(task, space) } else { Ok(()) }
    }

    /// At a cut, with every thread stopped: finds out what was written in these memories, by the process that each is seen through. Nothing is to run in the
    /// target between this and the end of the freeze: whatever it wrote would count as written after the cut.
    ///
    /// `late`: [`Since::written_since_prearm`] will be asked for. `touched`: as in [`crate::track::DirtyTracker::only_touched`], if that is known. How many pages
    /// were found is returned.
    pub(super) fn cut(&mut self, mapped: &mut BTreeMap<Pid, Mapped>, late: bool, touched: Option<&Touched>) -> Result<u64> {
        if let Since::Tracked(tracking) = self { tracking.cut(mapped, late, touched) } else { Ok(0) }
    }

    /// After a cut, and before any page is copied for it: somebody from outside is within the memory that is seen through `pid`, has pages pinned, maybe, and
    /// may write to them later. The page tables will not tell, so all of it counts as written at the next cut.
    pub(super) fn suspect(&mut self, pid: Pid) {
        tracing::info!("the next image compares all of the memory of pid {pid}: another process is within it");
        if let Since::Tracked(tracking) = self {
            tracking.of(pid).entered = true;
        }
    }

    /// Before a freeze, while the target runs: does what can be done already of the next cut, which then has less to do. `mappings` as they were a
    /// moment ago; `as_left` as in [`crate::track::DirtyTracker::prearm`]. How many pages it has found that were written is returned.
    pub(super) fn prearm(&mut self, pid: Pid, mappings: &[Mapping], as_left: bool) -> u64 {
        let Since::Tracked(tracking) = self else { return 0 };
        if !tracking.trackers.has(pid) {
            return 0;
        }
        match tracking.trackers.prearm(pid, mappings, as_left) {
            Ok(written) => {
                let count = written.count();
                let known = tracking.of(pid);
                known.fresh.extend(written.iter().cloned());
                known.written.extend(written);
                known.prearmed = true;
                count
            }
            Err(error) => {
                tracking.lose_sight(pid, &error);
                0
            }
        }
    }

    /// After that, and before the freeze: those pages of a plan of the memory that is seen through `pid`, called `owner`, that the image would hold, and
    /// that were protected.
    pub(super) fn to_copy_early(&self, pid: Pid, owner: ObjRef, mut plan: Vec<Extent>) -> Vec<PageRange> {
        let Since::Tracked(tracking) = self else { return Vec::new() };
        if let Some(Known { written, held: Some((_, held)), .. }) = tracking.memories.get(&pid) {
            plan = pipeline::increment(&plan, &[Changes { owner, written, held }]);
        }
        let protected = [(owner, self.protected(pid))].into();
        Split::of(&plan, &protected).moving.iter().map(|extent| extent.pages).collect()
    }

    /// After a cut: what was written between [`Since::prearm`] and that. `None`: it is not known, or nobody has wanted to know.
    pub(super) fn written_since_prearm(&self, pid: Pid) -> Option<&PageSet> {
        if let Since::Tracked(tracking) = self { tracking.memories.get(&pid)?.late.as_ref() } else { None }
    }

    /// Does it find changes in the page tables, so that it is worth it to copy pages before the freeze?
    pub(super) fn sees(&self) -> bool {
        matches!(self, Since::Tracked(tracking) if tracking.trackers.method() == Method::Scan)
    }

    /// Must a tracker of the memory that is seen through `pid` begin?
    pub(super) fn begins(&self, pid: Pid) -> bool {
        matches!(self, Since::Tracked(tracking) if !tracking.trackers.has(pid))
    }

    /// What is known of the memory so far is of no use any more: the next image is a whole one.
    pub(super) fn forget(&mut self) {
        match self {
            Since::Nothing => {}
            Since::Tracked(tracking) => **tracking = Tracking::new(tracking.trackers.method()),
            Since::Hashed(..) => *self = Since::Nothing,
        }
    }

    /// Does it watch the memory, so that all of it is protected by now?
    pub(super) fn tracks(&self) -> bool {
        matches!(self, Since::Tracked(_))
    }

    /// After a cut: [`crate::track::DirtyTracker::protected`].
    pub(super) fn protected(&self, pid: Pid) -> &[PageRange] {
        if let Since::Tracked(tracking) = self { tracking.trackers.protected(pid) } else { &[] }
    }

    /// After a cut: [`crate::track::DirtyTracker::passed_over`].
    pub(super) fn passed_over(&self, pid: Pid) -> &[PageRange] {
        if let Since::Tracked(tracking) = self { tracking.trackers.passed_over(pid) } else { &[] }
    }

    /// After that: [`crate::track::DirtyTracker::presence`].
    pub(super) fn presence(&self, pid: Pid) -> Option<&Presence> {
        if let Since::Tracked(tracking) = self { tracking.trackers.presence(pid) } else { None }
    }

    /// After a cut of these memories: what they share, which `plan` loses for all but the owners. `None`: it is not known, and must be found out.
    pub(super) fn still_shared(&self, memories: &[CutMemory], plan: &mut Vec<Extent>) -> Option<Vec<Same>> {
        let Since::Tracked(tracking) = self else { return None };
        let fresh = |pid| tracking.memories.get(&pid).map(|known| &known.fresh);
        tracking.shared.as_ref()?.left(memories, fresh, plan)
    }

    /// After that: they share this now.
    pub(super) fn remember_shared(&mut self, memories: &[CutMemory], same: &[Same]) {
        let Since::Tracked(tracking) = self else { return };
        // Only where a tracker tells what is written from now on.
        let watched = memories.iter().all(|memory| tracking.trackers.presence(memory.pid).is_some());
        tracking.shared = watched.then(|| Shared::of(memories, same));
        memories.iter().for_each(|memory| tracking.of(memory.pid).fresh.clear());
    }

    /// After a cut of these memories: those that go on from the last image, as this one and as that one calls them. If none does, nothing else goes on,
    /// either.
    pub(super) fn past_of(&mut self, memories: &[CutMemory]) -> Vec<(ObjRef, ObjRef)> {
        let pairs: Vec<_> = memories.iter().filter_map(|memory| Some((memory.mm, self.last_name(memory.pid)?))).collect();
        match self {
            Since::Nothing => {}
            Since::Tracked(tracking) => {
                tracking.keep(&memories.iter().map(|memory| memory.pid).collect());
                if pairs.is_empty() {
                    tracking.begin_anew();
                }
            }
            Since::Hashed(_, hashes) => hashes.rename(pairs.iter().copied()),
        }
        pairs
    }

    /// As the last image calls the memory that is seen through `pid`.
    fn last_name(&self, pid: Pid) -> Option<ObjRef> {
        match self {
            Since::Nothing => None,
            Since::Tracked(tracking) => Some(tracking.memories.get(&pid)?.held.as_ref()?.0),
            Since::Hashed(_, hashes) => hashes.memory_of(pid),
        }
    }

    /// Takes out of the plan of a whole image what the last image holds of these memories. `None`: there is none.
    pub(super) fn shrink(&mut self, memories: &[CutMemory], plan: &mut Vec<Extent>) -> Option<ParentRef> {
        match self {
            Since::Nothing => None,
            Since::Tracked(tracking) => tracking.shrink(memories, plan),
            Since::Hashed(parent, hashes) => {
                let mut compared: Vec<(ObjRef, PageSet, PageSet)> = Vec::new();
                for memory in memories {
                    let Some(then) = hashes.memory_of(memory.pid) else { continue };
                    // Every page is read, and compared then.
                    let mapped = memory.vmas.iter().map(|vma| vma.pages().numbers()).collect();
                    compared.push((memory.mm, mapped, hashes.pages(then).collect()));
                }
                let changes: Vec<Changes<'_>> =
                    compared.iter().map(|(owner, written, held)| Changes { owner: *owner, written, held }).collect();
                *plan = pipeline::increment(plan, &changes);
                Some(*parent)
            }
        }
    }

    /// Pages that must not be written again, which is known only when they are read.
    pub(super) fn known(&self) -> Option<&dyn KnownPages> {
        match self {
            Since::Nothing => None,
            Since::Tracked(tracking) => Some(&tracking.contents),
            Since::Hashed(_, hashes) => Some(hashes),
        }
    }

    /// At a cut: which pages of the contents of files are to be saved, and which contents go on from the last image.
    pub(super) fn contents(&mut self, contents: &[Content]) -> (Vec<Extent>, Past) {
        match self {
            Since::Tracked(tracking) => tracking.contents.plan(contents),
            Since::Nothing | Since::Hashed(..) => (contents.iter().flat_map(content_extents).collect(), Past::default()),
        }
    }

    /// The metadata of the parent that [`Since::shrink`] names, if it is at hand.
    pub(super) fn metadata(&self) -> Option<&Records> {
        match self {
            Since::Tracked(tracking) => tracking.parent.as_ref().map(|(_, metadata)| metadata),
            Since::Nothing | Since::Hashed(..) => None,
        }
    }

    /// An image is on disk. `held`: the pages of each memory that it or its parents hold.
    pub(super) fn commit(&mut self, image: ParentRef, held: Vec<Held>, metadata: Records) {
        if let Since::Tracked(tracking) = self {
            tracking.parent = Some((image, metadata));
            for Held { pid, mm, pages } in held {
                let entered = tracking.memories.get(&pid).is_some_and(|known| known.entered);
                tracking.memories.insert(pid, Known { held: Some((mm, pages)), entered, ..Known::default() });
            }
            tracking.contents.commit();
        }
    }
}

/// What has become of the memories of a tree since the last image.
#[derive(Debug)]
pub(super) struct Tracking {
    trackers: Trackers,
    /// The last image, and its metadata.
    parent: Option<(ParentRef, Records)>,
    /// By the process that each memory is seen through.
    memories: HashMap<Pid, Known>,
    /// What the parent holds of the contents of files, and of the memories.
    contents: History,
    /// What the memories shared at the last cut.
    shared: Option<Shared>,
}

/// What is known of one memory.
#[derive(Debug, Default)]
struct Known {
    /// Written since the parent was made. Finding out makes the kernel forget it, so it is kept until an image holds it.
    written: PageSet,
    /// Written since it was last found out what is shared.
    fresh: PageSet,
    /// As the parent calls it, and the pages that it or its own parents hold. `None`: it holds none.
    held: Option<(ObjRef, PageSet)>,
    /// All of it was protected since the last cut, by the tracker that is there.
    prearmed: bool,
    /// Written between that and the last cut.
    late: Option<PageSet>,
    /// Somebody from outside was within it at the last cut.
    entered: bool,
}

impl Tracking {
    /// From the first image on.
    pub(super) fn new(method: Method) -> Tracking {
        Tracking {
            trackers: Trackers::none(method),
            parent: None,
            memories: HashMap::new(),
            contents: History::default(),
            shared: None,
        }
    }

    fn of(&mut self, pid: Pid) -> &mut Known {
        self.memories.entry(pid).or_default()
    }

    fn prepare(&mut self, task: &mut RemoteTask<'_>, space: Option<AddressSpace>) -> Result<()> {
        let pid = task.pid();
        if !self.trackers.has(pid) {
            self.forget(pid);
        }
        if let Some(error) = self.trackers.prepare(task, space)? {
            tracing::warn!("the next image holds all of the memory of pid {pid}: {error}");
            self.forget(pid);
        }
        Ok(())
    }

    /// What was written since the last cut. After a failure nothing is known of that memory any more, and the next image holds all of it.
    fn cut(&mut self, mapped: &mut BTreeMap<Pid, Mapped>, late: bool, touched: Option<&Touched>) -> Result<u64> {
        let entered: HashSet<Pid> = mapped.keys().copied().filter(|&pid| std::mem::take(&mut self.of(pid).entered)).collect();
        let (mut found, mut failed) = (0, Ok(()));
        for (pid, cut) in self.trackers.cut(mapped, |pid| touched.filter(|_| !entered.contains(&pid))) {
            match cut {
                Ok(mut written) => {
                    found += written.count();
                    if let Some(Mapped { mappings, .. }) = mapped.get(&pid).filter(|_| entered.contains(&pid)) {
                        written.extend(mappings.iter().map(|mapping| mapping.pages().numbers()));
                    }
                    let known = self.of(pid);
                    let prearmed = std::mem::take(&mut known.prearmed);
                    known.late = (late && prearmed).then(|| written.clone());
                    known.fresh.extend(written.iter().cloned());
                    known.written.extend(written);
                }
                Err(error) => {
                    self.lose_sight(pid, &error);
                    failed = failed.and(Err(error));
                }
            }
        }
        failed.map(|()| found)
    }

    fn lose_sight(&mut self, pid: Pid, why: &Error) {
        tracing::warn!("the next image holds all of the memory of pid {pid}: {why}");
        self.trackers.end(pid);
        self.forget(pid);
    }

    fn forget(&mut self, pid: Pid) {
        self.shared = None;
        self.memories.remove(&pid);
        self.contents.forget(Some(pid));
    }

    /// Forgets the memories of all processes but these.
    fn keep(&mut self, pids: &HashSet<Pid>) {
        self.trackers.keep(pids);
        self.memories.retain(|pid, _| pids.contains(pid));
    }

    /// The next image is a whole one. What was written counts no more; the trackers go on.
    fn begin_anew(&mut self) {
        self.parent = None;
        self.contents.forget(None);
    }

    fn shrink(&mut self, memories: &[CutMemory], plan: &mut Vec<Extent>) -> Option<ParentRef> {
        let parent = self.parent.as_ref().map(|(parent, _)| *parent);
        if parent.is_some() {
            let mut changes = Vec::new();
            for memory in memories {
                let Some(Known { written, held: Some((_, held)), .. }) = self.memories.get(&memory.pid) else { continue };
                changes.push(Changes { owner: memory.mm, written, held });
            }
            *plan = pipeline::increment(plan, &changes);
        }
        for memory in memories {
            self.contents.compare_memory(memory.pid, memory.mm, plan);
        }
        parent
    }
}
