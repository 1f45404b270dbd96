//! Before the freeze, while the target runs: protects its memory, so that less is left to be done at the cut.

use std::time::Duration;

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

/// See the module. A memory that no tracker watches yet needs the target to stop for a moment: how long is returned, and trackers that are there for this
/// cut alone, where no others are.
pub(super) fn prearm(
    freezer: &Freezer<'_>,
    target: &Options,
    since: &mut Since,
    mappings: &Mappings,
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
    for (pid, mappings, as_left) in mappings.last() {
        match &mut armed {
            Some(trackers) if trackers.has(pid) => drop(trackers.prearm(pid, mappings, as_left)?),
            Some(_) => {}
            None => since.prearm(pid, mappings, as_left),
        }
    }
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
