//! How far the pages are, on a terminal; nothing in a pipe.

use std::sync::Once;
use std::time::{Duration, Instant};

use ckpt::ids::PAGE_SIZE;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// What is done sooner needs no bar.
const PATIENCE: Duration = Duration::from_millis(300);

/// A bar on standard error that goes away when it is dropped.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
    began: Instant,
    shown: Once,
}

impl Progress {
    /// Invisible unless standard error is a terminal, and while there has been nothing to wait for.
    pub fn new(doing: &'static str) -> Progress {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
        if let Ok(style) = ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes} {binary_bytes_per_sec}") {
            bar.set_style(style);
        }
        bar.set_message(doing);
        Progress { bar, began: Instant::now(), shown: Once::new() }
    }

    /// Pages done, of pages to do.
    pub fn show(&self, done: u64, all: u64) {
        if self.began.elapsed() < PATIENCE {
            return;
        }
        self.shown.call_once(|| {
            self.bar.set_length(all.saturating_mul(PAGE_SIZE));
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        });
        self.bar.set_position(done.saturating_mul(PAGE_SIZE));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
