//! The mappings of a target, with their flags. Only smaps tells the flags, and has the kernel look at every page of a process for it; so it is read
//! before the freeze, or was at the last one, and what the kernel counts tells whether that still holds.

use std::collections::HashMap;

use crate::error::{Error, Result};
use crate::ids::Pid;
use crate::resources::mapped_file::LookedAt;
use crate::tracee::maps::{self, Mapping};
use crate::track::ebpf::{MemoryState, TaskInspector};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Mappings {
    known: HashMap<Pid, Known>,
}

/// The mappings of a process that stands still.
#[derive(Debug)]
pub(super) struct Mapped {
    pub(super) mappings: Vec<Mapping>,
    /// They are as the last cut has left them.
    pub(super) as_left: bool,
}

/// What was read of one process.
#[derive(Debug)]
struct Known {
    /// That in which they were read, if the kernel tells.
    state: Option<MemoryState>,
    mappings: Vec<Mapping>,
    /// They are as the last cut has left them.
    as_left: bool,
}

impl Mappings {
    /// Before a freeze: has it read what is not known, and forgets all other processes. Where the kernel does not tell whether that still holds in the
    /// freeze, only if it is `needed` before.
    pub(super) fn look(&mut self, pids: &[Pid], inspector: Option<&TaskInspector>, needed: bool) -> Result<()> {
        self.known.retain(|pid, _| pids.contains(pid));
        for &pid in pids {
            let before = state(pid, inspector);
            if (before.is_some() || needed) && !before.is_some_and(|before| self.holds(pid, &before)) {
                match maps::read_with_flags(pid) {
                    Ok(mappings) => drop(self.known.insert(pid, Known { state: before, mappings, as_left: false })),
                    // It has ended meanwhile; whether that matters is for the freeze to say.
                    Err(Error::Gone(_)) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// With the process stopped, in the state `now`: its mappings, if they and the names of the files behind them surely are what they were.
    pub(super) fn unchanged(&self, pid: Pid, now: &MemoryState, looked_at: &LookedAt) -> Option<Mapped> {
        let Known { mappings, as_left, .. } = self.known.get(&pid).filter(|_| self.holds(pid, now))?;
        let same = mappings.iter().all(|mapping| mapping.inode == 0 || looked_at.is_as_it_was(mapping));
        same.then(|| Mapped { mappings: mappings.clone(), as_left: *as_left })
    }

    /// With the process stopped: its mappings, which are `mappings`, with what only smaps tells.
    pub(super) fn complete(&self, pid: Pid, mut mappings: Vec<Mapping>, inspector: Option<&TaskInspector>) -> Result<Mapped> {
        let anew = || Ok(Mapped { mappings: maps::read_with_flags(pid)?, as_left: false });
        let now = state(pid, inspector);
        let Some(Known { mappings: known, as_left, .. }) =
            self.known.get(&pid).filter(|_| now.is_some_and(|now| self.holds(pid, &now)))
        else {
            return anew();
        };
        // The files behind them may have been renamed or deleted since.
        let same = mappings.len() == known.len() && mappings.iter().zip(known).all(|(mapping, known)| mapping.is_place_of(known));
        if !same {
            return anew();
        }
        for (mapping, known) in mappings.iter_mut().zip(known) {
            (mapping.flags, mapping.page_size) = (known.flags, known.page_size);
        }
        Ok(Mapped { mappings, as_left: *as_left })
    }

    /// With the process still stopped, and nobody having changed its mappings since they were read but ckpt itself, which has put them back.
    pub(super) fn remember(&mut self, pid: Pid, inspector: Option<&TaskInspector>, mappings: Vec<Mapping>) {
        match state(pid, inspector) {
            Some(state) => drop(self.known.insert(pid, Known { state: Some(state), mappings, as_left: true })),
            None => drop(self.known.remove(&pid)),
        }
    }

    /// The mappings of each process as they were when they were last read; and whether they are as the last cut has left them.
    pub(super) fn last(&self) -> impl Iterator<Item = (Pid, &[Mapping], bool)> {
        self.known.iter().map(|(&pid, known)| (pid, known.mappings.as_slice(), known.as_left))
    }

    /// After [`Mappings::remember`]: the memory of the process, if the kernel tells.
    pub(super) fn memory_of(&self, pid: Pid) -> Option<MemoryState> {
        self.known.get(&pid)?.state
    }

    fn holds(&self, pid: Pid, now: &MemoryState) -> bool {
        self.known.get(&pid).is_some_and(|known| known.state.is_some_and(|state| state.still_holds(now)))
    }
}

fn state(pid: Pid, inspector: Option<&TaskInspector>) -> Option<MemoryState> {
    let state = inspector?.memory_of(pid);
    state.inspect_err(|error| tracing::debug!("mappings are read anew: {error}")).ok()
}
