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

    /// The next one is due after `left`.
    pub fn count_down(&self, left: Duration) {
        let last = self.last.as_ref().map_or("no checkpoint yet", |(text, _)| text);
        // Rounded up: in 0 s it is there.
        self.bar.set_message(format!("{last}; next checkpoint in {} s", left.as_millis().div_ceil(1000)));
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
    let written = report.pages_written * PAGE_SIZE;
    let (kind, rate) = match (report.parent_id, since) {
        (Some(_), Some(since)) => {
            let per_second = written as f64 / since.as_secs_f64().max(1e-6);
            ("increment", format!("{}/s written, ", output::bytes(per_second as u64)))
        }
        (Some(_), None) => ("increment", String::new()),
        (None, _) => ("whole image", String::new()),
    };
    format!("checkpoint {number}: pause {}, {rate}{kind} of {}", output::micros(report.pause_us), output::bytes(report.bytes))
}
