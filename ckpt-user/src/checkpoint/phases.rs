//! What a pause is made of.

use std::time::Instant;

use serde::Serialize;

/// The parts of a pause, in the order in which they come, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Phases {
    /// Stopping the threads, and mending the system calls that this has interrupted.
    pub freeze_us: u64,
    /// Reading the mappings, and looking at the files behind them.
    pub mappings_us: u64,
    /// The descriptors, and the open files behind them.
    pub descriptors_us: u64,
    /// The state of the process and of its threads, by calls made in them.
    pub state_us: u64,
    /// Reading the extended registers of the threads; the general ones are read as each stops.
    pub registers_us: u64,
    /// Finding out which pages were written, and protecting all of them again.
    pub scan_us: u64,
    /// Finding out which pages are there, where the scan has not told.
    pub pages_us: u64,
    /// Finding out which pages several processes share since a fork.
    pub shared_us: u64,
    /// Planning what the image holds, and having it saved before it changes.
    pub plan_us: u64,
    /// Copying pages; those that are copied while the process runs take none of it.
    pub copy_us: u64,
    /// Letting the threads go.
    pub thaw_us: u64,
}

/// Measures the parts.
#[derive(Debug)]
pub(super) struct Stopwatch {
    last: Instant,
    pub(super) phases: Phases,
}

impl Stopwatch {
    /// Started at that instant.
    pub(super) fn from(start: Instant) -> Stopwatch {
        Stopwatch { last: start, phases: Phases::default() }
    }

    /// A part has ended, and the next begins. Says when.
    pub(super) fn end_of(&mut self, part: impl FnOnce(&mut Phases) -> &mut u64) -> Instant {
        let now = Instant::now();
        *part(&mut self.phases) += (now - self.last).as_micros() as u64;
        self.last = now;
        now
    }
}
