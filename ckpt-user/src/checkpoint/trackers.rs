//! Trackers of the memories of a tree, by the process that each is seen through.

use std::collections::{BTreeMap, HashSet};

use super::mappings::Mapped;
use crate::error::{Error, Result};
use crate::ids::{PageRange, Pid};
use crate::page_set::PageSet;
use crate::sys::parallel;
use crate::tracee::maps::Mapping;
use crate::tracee::remote::RemoteTask;
use crate::track::ebpf::AddressSpace;
use crate::track::presence::Presence;
use crate::track::{DirtyTracker, Method, Touched};

/// See the module.
#[derive(Debug)]
pub(super) struct Trackers {
    method: Method,
    all: BTreeMap<Pid, Box<dyn DirtyTracker>>,
}

impl Trackers {
    /// None has begun.
    pub(super) fn none(method: Method) -> Trackers {
        Trackers { method, all: BTreeMap::new() }
    }

    /// How they work.
    pub(super) fn method(&self) -> Method {
        self.method
    }

    /// Is there one of the memory that is seen through `pid`?
    pub(super) fn has(&self, pid: Pid) -> bool {
        self.all.contains_key(&pid)
    }

    /// Their name in reports.
    pub(super) fn name(&self) -> Option<&'static str> {
        self.all.values().next().map(|tracker| tracker.name())
    }

    /// [`DirtyTracker::prepare`] for the memory of `task`. One that has lost sight of it (another program runs in it, say) makes place for a new one:
    /// why is returned.
    pub(super) fn prepare(&mut self, task: &mut RemoteTask<'_>, space: Option<AddressSpace>) -> Result<Option<Error>> {
        let pid = task.pid();
        let lost = self.all.get_mut(&pid).and_then(|tracker| tracker.prepare(task, space).err());
        if lost.is_some() {
            self.all.remove(&pid);
        }
        if !self.has(pid) {
            self.all.insert(pid, self.method.start(task)?);
        }
        Ok(lost)
    }

    /// [`DirtyTracker::cut`] of each of these memories, of several at once. `touched`: as in [`DirtyTracker::only_touched`], of those of which that is known.
    pub(super) fn cut<'t>(
        &mut self,
        mapped: &mut BTreeMap<Pid, Mapped>,
        touched: impl Fn(Pid) -> Option<&'t Touched>,
    ) -> Vec<(Pid, Result<PageSet>)> {
        /// So many are worth a thread: each takes at least a hundred microseconds.
        const LEAST: usize = 2;
        let mut trackers: BTreeMap<Pid, &mut Box<dyn DirtyTracker>> = self.all.iter_mut().map(|(pid, of)| (*pid, of)).collect();
        let mut all: Vec<_> =
            mapped.iter_mut().map(|(&pid, mapped)| (pid, trackers.remove(&pid), mapped, touched(pid))).collect();
        let size = all.len().div_ceil(parallel::parts(all.len() as u64, LEAST as u64)).max(1);
        let parts = parallel::each(all.chunks_mut(size), |some| {
            let cut = some.iter_mut().map(|(pid, tracker, mapped, touched)| {
                let tracker = tracker.as_mut().ok_or_else(|| unwatched(*pid));
                (*pid, tracker.and_then(|tracker| cut(tracker.as_mut(), mapped, *touched)))
            });
            cut.collect::<Vec<_>>()
        });
        parts.into_iter().flatten().collect()
    }

    /// [`DirtyTracker::prearm`].
    pub(super) fn prearm(&mut self, pid: Pid, mappings: &[Mapping], as_left: bool) -> Result<PageSet> {
        self.of(pid)?.prearm(mappings, as_left)
    }

    /// [`DirtyTracker::protected`].
    pub(super) fn protected(&self, pid: Pid) -> &[PageRange] {
        self.all.get(&pid).map_or(&[], |tracker| tracker.protected())
    }

    /// [`DirtyTracker::passed_over`].
    pub(super) fn passed_over(&self, pid: Pid) -> &[PageRange] {
        self.all.get(&pid).map_or(&[], |tracker| tracker.passed_over())
    }

    /// [`DirtyTracker::presence`].
    pub(super) fn presence(&self, pid: Pid) -> Option<&Presence> {
        self.all.get(&pid).and_then(|tracker| tracker.presence())
    }

    /// Ends the one of `pid`.
    pub(super) fn end(&mut self, pid: Pid) {
        self.all.remove(&pid);
    }

    /// Ends those of all others.
    pub(super) fn keep(&mut self, pids: &HashSet<Pid>) {
        self.all.retain(|pid, _| pids.contains(pid));
    }

    fn of(&mut self, pid: Pid) -> Result<&mut Box<dyn DirtyTracker>> {
        self.all.get_mut(&pid).ok_or_else(|| unwatched(pid))
    }
}

fn cut(tracker: &mut dyn DirtyTracker, mapped: &mut Mapped, touched: Option<&Touched>) -> Result<PageSet> {
    if let Some(touched) = touched {
        tracker.only_touched(touched);
    }
    tracker.cut(&mut mapped.mappings, mapped.as_left)
}

fn unwatched(pid: Pid) -> Error {
    Error::Unexpected(format!("nothing watches the memory of pid {pid}"))
}
