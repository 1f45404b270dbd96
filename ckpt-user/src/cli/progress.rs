//! How far the pages are, on a terminal; nothing in a pipe.

use indicatif::{ProgressBar, ProgressStyle};

use ckpt::ids::PAGE_SIZE;

/// A bar on standard error that goes away when it is dropped.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// Invisible unless standard error is a terminal, and until something is done.
    pub fn new(doing: &'static str) -> Progress {
        let bar = ProgressBar::new(0);
        if let Ok(style) = ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes} {binary_bytes_per_sec}") {
            bar.set_style(style);
        }
        bar.set_message(doing);
        Progress { bar }
    }

    /// Pages done, of pages to do.
    pub fn show(&self, done: u64, all: u64) {
        self.bar.set_length(all.saturating_mul(PAGE_SIZE));
        self.bar.set_position(done.saturating_mul(PAGE_SIZE));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
