//! Before the freeze, while the target runs: protects its memory, so that less is left to be done at the cut.

use std::time::{Duration, Instant};

use super::Options;
use super::freezer::Freezer;
use super::mappings::Mappings;
use super::since::Since;
use super::trackers::Trackers;
use crate::error::{Error, Result};
use crate::ids::{ObjRef, Pid};
use crate::resources::{Collector, vma};
use crate::tracee::maps::Mapping;
use crate::track::Method;

/// Whether it is worth it. As long as the target runs, each page that is protected costs it and ckpt an interrupt of another processor, ten times what the
/// same takes while it stands still: much, if it is done many times in a second, and little, if seldom.
#[derive(Debug)]
pub(super) struct Pace {
    /// What it took the last time.
    per_page: Duration,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace { per_page: Duration::from_micros(10) }
    }
}

impl Pace {
    /// So few are protected in the pause in any case, and so many never.
    const FEW: usize = 128;
    const MANY: usize = 4096;
    /// It may take one part in so many of the time between two cuts.
    const PART: u32 = 20;
    /// A shorter measurement says little.
    const MEASURABLE: u64 = 64;

    /// `touched`: pages that were written, or given up, since the last cut, which was at `since`.
    pub(super) fn is_worth_it(&self, touched: usize, since: Instant) -> bool {
        let cost = self.per_page * touched.min(Pace::MANY) as u32;
        touched > Pace::FEW && (touched > Pace::MANY || cost <= since.elapsed() / Pace::PART)
    }

    /// Was much more written than that, past the page fault, so that it would have been worth it?
    pub(super) fn is_deceived(touched: usize, found: u64) -> bool {
        found > 2 * touched as u64 + Pace::MANY as u64
    }

    fn learn(&mut self, pages: u64, took: Duration) {
        if pages >= Pace::MEASURABLE {
            self.per_page = took / u32::try_from(pages).unwrap_or(u32::MAX);
        }
    }
}

/// See the module. A memory that no tracker watches yet needs the target to stop for a moment: how long is returned, and trackers that are there for this
/// cut alone, where no others are.
pub(super) fn prearm(
    freezer: &Freezer<'_>,
    target: &Options,
    since: &mut Since,
    mappings: &Mappings,
    pace: &mut Pace,
) -> Result<(Option<Trackers>, Duration)> {
    let mut armed = None;
    let mut pause = Duration::ZERO;
    if !since.tracks() || mappings.last().any(|(pid, ..)| since.begins(pid)) {
        // What cannot be saved is refused before anything is done to the target.
        for (pid, mappings, _) in mappings.last() {
            refuse_memory(pid, target, mappings)?;
        }
        (armed, pause) = begin(freezer, since)?;
    }
    let (began, mut pages) = (Instant::now(), 0);
    for (pid, mappings, as_left) in mappings.last() {
        match &mut armed {
            Some(trackers) if trackers.has(pid) => drop(trackers.prearm(pid, mappings, as_left)?),
            Some(_) => {}
            None => pages += since.prearm(pid, mappings, as_left),
        }
    }
    pace.learn(pages, began.elapsed());
    Ok((armed, pause))
}

/// Has every memory watched.
fn begin(freezer: &Freezer<'_>, since: &mut Since) -> Result<(Option<Trackers>, Duration)> {
    let (mut frozen, mut injectors) = freezer.freeze()?;
    let begun = frozen.since;
    let mut armed = (!since.tracks()).then(|| Trackers::none(Method::Scan));
    let seen_through = frozen.memories();
    for process in frozen.tree.processes.iter_mut().filter(|process| seen_through.contains(&process.pid)) {
        let space = frozen.states.space(process.pid);
        let mut leader = injectors.leader(process)?;
        match &mut armed {
            None if since.tracks() => since.prepare(&mut leader, space)?,
            None => {}
            Some(trackers) => {
                if let Err(error) = trackers.prepare(&mut leader, space) {
                    tracing::info!("pages are copied while the process is stopped: {error}");
                    armed = None;
                }
            }
        }
    }
    injectors.remove(&mut frozen.tree)?;
    let (_, thawed) = frozen.thaw()?;
    Ok((armed, thawed - begun))
}

/// Refuses what can be seen of the memory of a process that runs. What is only a sign of its running is left to the freeze.
fn refuse_memory(pid: Pid, options: &Options, mappings: &[Mapping]) -> Result<()> {
    let mut cx = Collector::new(&options.collect, vec![pid]);
    // Any number will do, as nothing comes of it.
    if let Err(error) = vma::collect(&mut cx, pid, ObjRef(1), mappings, false) {
        tracing::debug!("the memory of pid {pid} is looked at again once it is stopped: {error}");
    }
    if cx.refusals().is_empty() { Ok(()) } else { Err(Error::RefusedAll(cx.refusals().to_vec())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_done_often_must_be_cheap() {
        let mut pace = Pace::default();
        let ago = |ms| Instant::now() - Duration::from_millis(ms);
        assert!(!pace.is_worth_it(Pace::FEW, ago(10_000)));
        assert!(pace.is_worth_it(1000, ago(1000)), "10 ms in a second");
        assert!(!pace.is_worth_it(1000, ago(100)));
        assert!(pace.is_worth_it(100_000, ago(10)));
        pace.learn(1000, Duration::from_millis(1));
        assert!(pace.is_worth_it(1000, ago(100)));
        assert!(!Pace::is_deceived(3000, 8000) && Pace::is_deceived(10, 8000));
        pace.learn(Pace::MEASURABLE - 1, Duration::from_secs(1));
        assert!(pace.is_worth_it(1000, ago(100)));
    }
}
