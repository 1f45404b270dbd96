//! The mappings of a target, with their flags. Only smaps tells the flags, and has the kernel look at every page of a process for it; so it is read
//! before the freeze, or was at the last one, and what the kernel counts tells whether that still holds.

use crate::error::Result;
use crate::ids::Pid;
use crate::tracee::maps::{self, Mapping};
use crate::track::ebpf::{MemoryState, TaskInspector};

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Mappings {
    /// With the state in which they were read, if the kernel tells.
    known: Option<(Option<MemoryState>, Vec<Mapping>)>,
    /// They are as the last cut has left them.
    as_left: bool,
}

impl Mappings {
    /// Before a freeze: has it read what is not known. Where the kernel does not tell whether that still holds in the freeze, only if it is `needed` before.
    pub(super) fn look(&mut self, pid: Pid, inspector: Option<&TaskInspector>, needed: bool) -> Result<()> {
        let before = state(pid, inspector);
        if (before.is_some() || needed) && !before.is_some_and(|before| self.holds(&before)) {
            self.known = Some((before, maps::read_with_flags(pid)?));
            self.as_left = false;
        }
        Ok(())
    }

    /// With the target stopped: all mappings.
    pub(super) fn read(&self, pid: Pid, inspector: Option<&TaskInspector>) -> Result<Vec<Mapping>> {
        let now = state(pid, inspector);
        let Some((_, known)) = self.known.as_ref().filter(|_| now.is_some_and(|now| self.holds(&now))) else {
            return maps::read_with_flags(pid);
        };
        // The files behind them may have been renamed or deleted since.
        let mut mappings = maps::read(pid)?;
        let same = mappings.len() == known.len() && mappings.iter().zip(known).all(|(mapping, known)| mapping.is_place_of(known));
        if !same {
            return maps::read_with_flags(pid);
        }
        for (mapping, known) in mappings.iter_mut().zip(known) {
            (mapping.flags, mapping.page_size) = (known.flags, known.page_size);
        }
        Ok(mappings)
    }

    /// With the target still stopped, and nobody having changed its mappings since they were read but ckpt itself, which has put them back.
    pub(super) fn remember(&mut self, pid: Pid, inspector: Option<&TaskInspector>, mappings: Vec<Mapping>) {
        self.known = state(pid, inspector).map(|state| (Some(state), mappings));
        self.as_left = true;
    }

    /// The mappings as they were when they were last read; and whether they are as the last cut has left them.
    pub(super) fn last(&self) -> (&[Mapping], bool) {
        (self.known.as_ref().map_or(&[], |(_, mappings)| mappings), self.as_left)
    }

    fn holds(&self, now: &MemoryState) -> bool {
        self.known.as_ref().is_some_and(|(state, _)| state.is_some_and(|state| state.still_holds(now)))
    }
}

fn state(pid: Pid, inspector: Option<&TaskInspector>) -> Option<MemoryState> {
    let state = inspector?.memory_of(pid);
    state.inspect_err(|error| tracing::debug!("mappings are read anew: {error}")).ok()
}
