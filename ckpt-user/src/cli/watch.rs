//! `ckpt watch`.

use std::ffi::OsString;
use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use ckpt::checkpoint::{After, Report};
use ckpt::ids::Pid;
use ckpt::stand_in::{Ended, Signals, StandIn};
use ckpt::sys::child;
use ckpt::watch::{self, End, Event, Interval, Job, Stranger, Summary, Watch};
use serde::Serialize;

use super::saving::Saving;
use super::status::Status;
use super::{Failure, output, parse_pid};

/// Checkpoint a running process, or a command, again and again.
///
/// The images go to a folder, from which `ckpt restart DIR` brings the job back. The first image is a whole one, the others hold what has
/// changed. A process that is given by its pid runs on when ckpt is told to end (SIGINT, SIGTERM, SIGHUP). For a command, ckpt stands in: it
/// passes signals on, and ends as the command does.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("job").required(true))]
pub struct Args {
    /// The process
    #[arg(value_name = "PID", value_parser = parse_pid, group = "job")]
    pid: Option<Pid>,
    /// The folder of the images, which is made if it is not there
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// From the beginning of one checkpoint to that of the next; `auto` follows what they cost
    #[arg(long, value_parser = parse_interval, default_value = "30s", value_name = "DURATION|auto")]
    interval: IntervalArg,
    /// For `--interval auto`: how long it takes on average until the job or its machine fails
    #[arg(long, value_parser = humantime::parse_duration, default_value = "1day", value_name = "DURATION")]
    mtbf: Duration,
    /// Keep so many restart points: older images are merged into the oldest of them (default: all are kept)
    #[arg(long, value_name = "N")]
    keep: Option<NonZeroUsize>,
    #[command(flatten)]
    saving: Saving,
    /// Append everything that is done to this file
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,
    /// Print one JSON object on a line for each checkpoint
    #[arg(long)]
    json: bool,
    /// The command, after `--`
    #[arg(last = true, value_name = "COMMAND", group = "job")]
    command: Vec<OsString>,
}

#[derive(Clone, Copy, Debug)]
enum IntervalArg {
    Fixed(Duration),
    Auto,
}

fn parse_interval(text: &str) -> Result<IntervalArg, String> {
    if text == "auto" {
        return Ok(IntervalArg::Auto);
    }
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Err("an interval cannot be zero".to_owned()),
        Ok(interval) => Ok(IntervalArg::Fixed(interval)),
        Err(error) => Err(error.to_string()),
    }
}

/// A line of `--json`.
#[derive(Serialize)]
struct Line<'a> {
    number: u64,
    #[serde(flatten)]
    report: &'a Report,
}

impl Args {
    /// Does it.
    pub fn run(self) -> Result<ExitCode, Failure> {
        // First, so that no command is started in vain.
        let tracker = self.saving.tracker()?;
        let (pid, mut job) = self.job()?;
        tracing::info!("watch of pid {pid}: {self:?}");
        let options =
            watch::Options { checkpoint: self.saving.options(After::Continue), interval: self.interval(), keep: self.keep };
        let status = Status::new(!self.json);
        let mut watch = Watch::new(pid, &self.dir, tracker, options)?;
        let mut printed = Ok(());
        let mut tell = |event: Event<'_>| {
            let told = self.tell(&status, &event);
            printed = std::mem::replace(&mut printed, Ok(())).and(told);
        };
        let end = watch.run(&mut job, &mut tell)?;
        watch.settle(&mut job, &mut tell)?;
        status.clear();
        printed?;
        self.summarize(pid, end, &watch.summary());
        match end {
            End::Job(Ended::Exited(code)) => Ok(ExitCode::from(code as u8)),
            End::Job(Ended::Killed(signal)) => child::die_by(signal),
            End::Gone | End::Asked => Ok(ExitCode::SUCCESS),
        }
    }

    fn job(&self) -> Result<(Pid, Job), Failure> {
        if let Some(pid) = self.pid {
            return Ok((pid, Job::Theirs(Stranger::find(pid)?)));
        }
        let [program, arguments @ ..] = self.command.as_slice() else {
            return Err(Failure::Usage("neither a process nor a command is given".to_owned()));
        };
        // Signals that come from now on are the job's.
        let signals = Signals::hold()?;
        let started = child::spawn_with_mask(Command::new(program).args(arguments), signals.before());
        let pid = started.map_err(|error| Failure::file(format!("cannot start {}", program.to_string_lossy()), error))?;
        Ok((pid, Job::Ours(StandIn::prepare(pid, signals, false)?)))
    }

    fn interval(&self) -> Interval {
        match self.interval {
            IntervalArg::Fixed(interval) => Interval::Fixed(interval),
            IntervalArg::Auto => Interval::Auto { mtbf: self.mtbf },
        }
    }

    fn tell(&self, status: &Status, event: &Event<'_>) -> Result<(), Failure> {
        match event {
            Event::Checkpoint(number, report) => {
                tracing::info!("checkpoint {number}: {report:?}");
                status.show(*number, report);
                if self.json {
                    output::print_json(&Line { number: *number, report })?;
                }
            }
            Event::Failed(error) => {
                complain(status, &format!("the checkpoint into {} has failed, and the job runs on: {error}", self.dir.display()));
            }
            Event::NotMerged(error) => {
                let all = "everything that was there still is";
                complain(status, &format!("older points in {} cannot be merged; {all}: {error}", self.dir.display()));
            }
        }
        Ok(())
    }

    fn summarize(&self, pid: Pid, end: End, summary: &Summary) {
        let fate = match end {
            End::Asked => "runs on",
            End::Gone | End::Job(_) => "has ended",
        };
        let failed = if summary.failed > 0 { format!(", {} failed", summary.failed) } else { String::new() };
        let text = format!(
            "{} in {}{failed}, {} in all; pauses: half up to {}, 99 of 100 up to {}, the longest {}; pid {pid} {fate}",
            output::count(summary.checkpoints, "checkpoint"),
            self.dir.display(),
            output::bytes(summary.bytes),
            output::micros(summary.pause_p50_us),
            output::micros(summary.pause_p99_us),
            output::micros(summary.pause_max_us),
        );
        eprintln!("ckpt: {text}");
        tracing::info!("{text}");
    }
}

fn complain(status: &Status, text: &str) {
    tracing::error!(target: super::log::REPORTED, "{text}");
    status.above(|| {
        // Standard error may be a file on the very disk that is full. The watch goes on.
        if let Err(error) = writeln!(io::stderr(), "ckpt: {text}") {
            tracing::error!("cannot write to standard error: {error}");
        }
    });
}
