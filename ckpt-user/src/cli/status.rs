//! The status line of a watch, on a terminal; nothing in a pipe.

use ckpt::checkpoint::Report;
use ckpt::ids::PAGE_SIZE;
use indicatif::{ProgressBar, ProgressDrawTarget};

use super::output;

/// One line on standard error, which goes away when it is cleared.
#[derive(Debug)]
pub struct Status {
    bar: ProgressBar,
}

impl Status {
    /// Invisible unless standard error is a terminal and it is wanted.
    pub fn new(wanted: bool) -> Status {
        let target = if wanted { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(None, target);
        if let Ok(style) = indicatif::ProgressStyle::with_template("{msg}") {
            bar.set_style(style);
        }
        Status { bar }
    }

    /// What the last checkpoint was.
    pub fn show(&self, number: u64, report: &Report) {
        let kind = if report.parent_id.is_some() { "increment" } else { "whole image" };
        self.bar.set_message(format!(
            "checkpoint {number}: pause {}, {} written, {kind} of {}",
            output::micros(report.pause_us),
            output::bytes(report.pages_written * PAGE_SIZE),
            output::bytes(report.bytes),
        ));
        self.bar.tick();
    }

    /// Does something that may write to the terminal, with the line out of the way.
    pub fn aside<T>(&self, act: impl FnOnce() -> T) -> T {
        self.bar.suspend(act)
    }

    /// Takes the line away.
    pub fn clear(&self) {
        self.bar.finish_and_clear();
    }
}
