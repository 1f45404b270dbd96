//! What a watch tells: checkpoints and restarts on standard output with `--json`, what goes wrong on standard error, its state on a terminal, and
//! everything in the log.

use std::io::{self, Write};
use std::path::Path;

use ckpt::checkpoint;
use ckpt::ids::Pid;
use ckpt::restart;
use ckpt::watch::{End, Event, Summary};
use serde::Serialize;

use super::status::Status;
use super::{Failure, output};

/// See the module.
#[derive(Debug)]
pub struct Narrator<'a> {
    dir: &'a Path,
    json: bool,
    status: Status,
    /// The first failure to write to standard output, which does not end the watch.
    printed: Result<(), Failure>,
}

/// A line of `--json` for a checkpoint.
#[derive(Serialize)]
struct Checkpoint<'a> {
    number: u64,
    #[serde(flatten)]
    report: &'a checkpoint::Report,
}

/// A line of `--json` for a restart.
#[derive(Debug, Serialize)]
pub struct Restart {
    /// "restart".
    pub event: &'static str,
    /// That of the image.
    pub number: u64,
    /// The signal that had killed the job.
    pub killed_by: i32,
    /// How it was brought back.
    #[serde(flatten)]
    pub report: restart::Report,
}

impl<'a> Narrator<'a> {
    /// Of a watch into the folder `dir`.
    pub fn new(dir: &'a Path, json: bool) -> Narrator<'a> {
        Narrator { dir, json, status: Status::new(!json), printed: Ok(()) }
    }

    /// Does anybody see how long it is until the next checkpoint?
    pub fn has_terminal(&self) -> bool {
        self.status.is_visible()
    }

    /// What the library tells.
    pub fn tell(&mut self, event: &Event<'_>) {
        match event {
            Event::Checkpoint(number, report) => {
                tracing::info!("checkpoint {number}: {report:?}");
                self.status.show(*number, report);
                self.print(&Checkpoint { number: *number, report });
            }
            Event::Waiting(left, rate) => self.status.count_down(*left, *rate),
            Event::Failed(error) => {
                self.complain(&format!("the checkpoint into {} has failed, and the job runs on: {error}", self.dir.display()));
            }
            Event::NotMerged(error) => {
                let all = "everything that was there still is";
                self.complain(&format!("older points in {} cannot be merged; {all}: {error}", self.dir.display()));
            }
        }
    }

    /// The job was killed and brought back, as `text` says.
    pub fn restarted(&mut self, restart: &Restart, text: &str) {
        tracing::info!("{restart:?}");
        self.complain(text);
        self.print(restart);
    }

    /// Something goes wrong, and the watch goes on.
    pub fn complain(&self, text: &str) {
        tracing::error!(target: super::log::REPORTED, "{text}");
        self.aside(|| {
            // Standard error may be a file on the very disk that is full. The watch goes on.
            if let Err(error) = writeln!(io::stderr(), "ckpt: {text}") {
                tracing::error!("cannot write to standard error: {error}");
            }
        });
    }

    /// Does something that may write to the terminal.
    pub fn aside<T>(&self, act: impl FnOnce() -> T) -> T {
        self.status.aside(act)
    }

    fn print(&mut self, line: &impl Serialize) {
        if self.json
            && self.printed.is_ok()
            && let Err(error) = output::print_json(line)
        {
            self.printed = Err(error.into());
        }
    }

    /// The last of it.
    pub fn end(self, pid: Pid, end: End, summary: &Summary) -> Result<(), Failure> {
        self.status.clear();
        self.printed?;
        summarize(self.dir, pid, end, summary);
        Ok(())
    }
}

fn summarize(dir: &Path, pid: Pid, end: End, summary: &Summary) {
    let fate = match end {
        End::Asked => "runs on",
        End::Gone | End::Job(_) => "has ended",
    };
    let failed = if summary.failed > 0 { format!(", {} failed", summary.failed) } else { String::new() };
    let writes = summary.writes.map_or_else(String::new, |writes| {
        let (rate, regions) = (output::bytes(writes.bytes_per_second()), output::count(writes.regions_max, "region"));
        format!("; written in between: {rate}/s ({}), in up to {regions} of 2 MiB", output::count(writes.faults, "write fault"))
    });
    let text = format!(
        "{} in {}{failed}, {} in all; pauses: half up to {}, 99 of 100 up to {}, the longest {}{writes}; pid {pid} {fate}",
        output::count(summary.checkpoints, "checkpoint"),
        dir.display(),
        output::bytes(summary.bytes),
        output::micros(summary.pause_p50_us),
        output::micros(summary.pause_p99_us),
        output::micros(summary.pause_max_us),
    );
    eprintln!("ckpt: {text}");
    tracing::info!("{text}");
}
