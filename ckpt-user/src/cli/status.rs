//! The status line of a watch, on a terminal; nothing in a pipe.

use std::time::{Duration, Instant};

use ckpt::checkpoint::Report;
use ckpt::ids::PAGE_SIZE;
use indicatif::{ProgressBar, ProgressDrawTarget};

use super::output;

/// One line on standard error, which goes away when it is cleared.
#[derive(Debug)]
pub struct Status {
    bar: ProgressBar,
    /// What the last checkpoint was, and when.
    last: Option<(String, Instant)>,
}

impl Status {
    /// Invisible unless standard error is a terminal and it is wanted.
    pub fn new(wanted: bool) -> Status {
        let target = if wanted { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(None, target);
        if let Ok(style) = indicatif::ProgressStyle::with_template("{msg}") {
            bar.set_style(style);
        }
        Status { bar, last: None }
    }

    /// Is there a terminal?
    pub fn is_visible(&self) -> bool {
        !self.bar.is_hidden()
    }

    /// What the last checkpoint was.
    pub fn show(&mut self, number: u64, report: &Report) {
        let now = Instant::now();
        let since = self.last.as_ref().map(|(_, then)| now - *then);
        let text = describe(number, report, since);
        self.bar.set_message(text.clone());
        self.bar.tick();
        self.last = Some((text, now));
    }

    /// The next one is due after `left`. `rate`: bytes that are being written in a second, if that is known.
    pub fn count_down(&self, left: Duration, rate: Option<u64>) {
        let last = self.last.as_ref().map_or("no checkpoint yet", |(text, _)| text);
        let now = rate.map_or_else(String::new, |rate| format!("; {}/s since", output::bytes(rate)));
        // Rounded up: in 0 s it is there.
        self.bar.set_message(format!("{last}{now}; next checkpoint in {} s", left.as_millis().div_ceil(1000)));
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

/// `since`: from the one before.
fn describe(number: u64, report: &Report, since: Option<Duration>) -> String {
    let kind = if report.parent_id.is_some() { "increment" } else { "whole image" };
    let written = match (&report.writes, since.filter(|_| report.parent_id.is_some())) {
        (Some(writes), _) => {
            let rate = output::bytes(writes.bytes_per_second());
            let (faults, hot) = (output::count(writes.faults, "write fault"), output::count(writes.hot_regions, "region"));
            format!("{rate}/s written ({faults}, half of them in {hot}), ")
        }
        (None, Some(since)) => {
            let per_second = (report.pages_written * PAGE_SIZE) as f64 / since.as_secs_f64().max(1e-6);
            format!("{}/s written, ", output::bytes(per_second as u64))
        }
        (None, None) => String::new(),
    };
    format!("checkpoint {number}: pause {}, {written}{kind} of {}", output::micros(report.pause_us), output::bytes(report.bytes))
}
