//! What the log of write faults has of a short time: the pages that those who are watched may have written to, or given up, since it began.
//!
//! It is a hint. What it lacks, the page tables must tell.

use std::ops::Range;

use super::Result;
use super::fault_log::{FaultLog, Happening};
use crate::track::Touched;

/// A fault is in the log before it is handled. So of what was in it already, this many count as well, the last ones: they may be handled only now.
const BEFORE: usize = 32;

/// With so much in it, a hint is no use.
const MOST: usize = 1 << 16;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Noting {
    written: Vec<u64>,
    removed: Vec<Range<u64>>,
    /// There was more than that.
    full: bool,
    /// What the log had lost when it began.
    lost: u64,
}

impl Noting {
    /// From now on. It has what was taken out of the log just now.
    pub(super) fn begin(mut self, log: &FaultLog) -> Result<Noting> {
        self.written.drain(..self.written.len().saturating_sub(BEFORE));
        self.removed.drain(..self.removed.len().saturating_sub(BEFORE));
        Ok(Noting { lost: log.counters()?.lost, full: false, ..self })
    }

    /// How many writes and removals there were so far. `None`: that is not known, or too many.
    pub(super) fn count(&self, log: &FaultLog) -> Result<Option<usize>> {
        Ok((!self.full && log.counters()?.lost == self.lost).then(|| self.written.len() + self.removed.len()))
    }

    /// Something that the log told.
    pub(super) fn add(&mut self, happening: &Happening) {
        if self.full || self.written.len() + self.removed.len() >= MOST {
            (self.written, self.removed, self.full) = (Vec::new(), Vec::new(), true);
            return;
        }
        match *happening {
            Happening::Write { page, .. } => self.written.push(page),
            Happening::Removal { page, count } => self.removed.push(page..page.saturating_add(count)),
            Happening::Fork(_) | Happening::Exec | Happening::Exit => {}
        }
    }

    /// All of it, once the log is empty. `None`: that had no room for something.
    pub(super) fn end(self, log: &FaultLog) -> Result<Option<Touched>> {
        let complete = self.count(log)?.is_some();
        let written = self.written.into_iter().map(|page| page..page + 1).collect();
        Ok(complete.then(|| Touched { written, removed: self.removed.into_iter().collect() }))
    }
}
