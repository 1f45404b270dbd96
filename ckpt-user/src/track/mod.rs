//! What changed in a process, and what its threads wait for, as the kernel sees it.

pub mod ebpf;
pub mod hash;
mod kind;
mod passed_over;
pub mod presence;
pub mod scan;
pub mod soft_dirty;

pub use kind::{Kind, Method, not_here};
pub use passed_over::Touched;
use passed_over::unproved;

use std::fmt::Debug;

use ebpf::AddressSpace;
use presence::Presence;

use crate::error::Result;
use crate::ids::PageRange;
use crate::page_set::PageSet;
use crate::tracee::maps::Mapping;
#[cfg(doc)]
use crate::tracee::maps::VmFlags;
use crate::tracee::remote::RemoteTask;

/// Finds out which pages of one address space were written.
pub trait DirtyTracker: Debug + Send {
    /// Its name in reports.
    fn name(&self) -> &'static str;

    /// Before each cut but the first, with every thread of the process stopped: makes sure that it still sees the memory of the process. `task` is
    /// one of the threads, `space` which memory the process has, if the kernel tells: while that is the same, it need not be tried.
    ///
    /// Errors: it has lost sight of it (another program was executed, say), and another tracker must begin.
    fn prepare(&mut self, task: &mut RemoteTask<'_>, space: Option<AddressSpace>) -> Result<()>;

    /// At a cut, with every thread of the process stopped: the numbers of the pages that were written since the last cut (at the first one, of
    /// every page that is there). From now on watches for the next cut. What it cannot watch counts as written, each time. `mappings` as
    /// [`crate::tracee::maps::read_with_flags`] gives them.
    ///
    /// [`VmFlags::WRITES_NOTED`] tells afterwards which mappings it has registered with a userfaultfd. `as_left`: nobody has changed the mappings since the
    /// last cut, which left them so.
    ///
    /// Errors: what was written is not known any more, and another tracker must begin.
    fn cut(&mut self, mappings: &mut [Mapping], as_left: bool) -> Result<PageSet>;

    /// While the process runs: begins with what the next cut has to do, and returns what was written since the last one until now, which that will not
    /// tell again. `mappings` as they were a moment ago; `as_left` as for [`DirtyTracker::cut`].
    ///
    /// Errors: as [`DirtyTracker::cut`].
    fn prearm(&mut self, mappings: &[Mapping], as_left: bool) -> Result<PageSet> {
        let _ = (mappings, as_left);
        Ok(PageSet::new())
    }

    /// Before a cut, with every thread stopped: since the last cut, or since [`DirtyTracker::prearm`] if that was later, only this was touched, as far as a
    /// log of write faults tells. The cut may pass over the rest.
    fn only_touched(&mut self, touched: &Touched) {
        let _ = touched;
    }

    /// What the last cut has passed over, in order: pages with contents, which it takes for unchanged since then. It must be proved that they were, or the cut be taken again. Nothing is lost: one of them that was written still is not protected.
    fn passed_over(&self) -> &[PageRange] {
        &[]
    }

    /// The stretches, in order, of which every page that is there is protected by userfaultfd since the last cut, or since [`DirtyTracker::prearm`] if
    /// that was later: one that nobody has written to still is. None, if the tracker does not work that way.
    fn protected(&self) -> &[PageRange] {
        &[]
    }

    /// What is there of the memory that it watches, as of the last cut, or of [`DirtyTracker::prearm`] if that was later. `None`, if it does not know.
    fn presence(&self) -> Option<&Presence> {
        None
    }
}
