//! `ckpt watch`.

use std::ffi::OsString;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use ckpt::checkpoint::After;
use ckpt::ids::Pid;
use ckpt::stand_in::{Ended, Signals, StandIn};
use ckpt::sys::child;
use ckpt::watch::{self, End, Interval, Job, Stranger, Watch};

use super::narrator::Narrator;
use super::rescue::Rescue;
use super::saving::Saving;
use super::{Failure, parse_pid};

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
    /// Bring the command back from its newest whole image when a signal kills it that was not sent through ckpt, and go on
    #[arg(long, conflicts_with = "pid")]
    restart_on_failure: bool,
    /// Bring it back so many times within an hour at most
    #[arg(long, value_name = "N", default_value = "5", requires = "restart_on_failure")]
    max_restarts: NonZeroUsize,
    #[command(flatten)]
    saving: Saving,
    /// Append everything that is done to this file
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,
    /// Print one JSON object on a line for each checkpoint, and for each restart
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

impl Args {
    /// Does it.
    pub fn run(self) -> Result<ExitCode, Failure> {
        // One checkpoint needs as much as the one before.
        ckpt::sys::heap::keep_what_is_freed();
        // First, so that no command is started in vain.
        let tracker = self.saving.tracker()?;
        let (pid, mut job) = self.job()?;
        tracing::info!("watch of pid {pid}: {self:?}");
        let mut narrator = Narrator::new(&self.dir, self.json);
        let options = watch::Options {
            checkpoint: self.saving.options(After::Continue),
            interval: self.interval(),
            keep: self.keep,
            tell_every: narrator.has_terminal().then_some(Duration::from_secs(1)),
        };
        let mut watch = Watch::new(pid, &self.dir, tracker, options)?;
        let mut rescue = self.restart_on_failure.then(|| Rescue::new(&self.dir, self.max_restarts)).transpose()?;
        if let (Some(_), Job::Ours(stand_in)) = (&rescue, &mut job) {
            stand_in.adopt_orphans()?;
        }
        let end = loop {
            let end = watch.run(&mut job, &mut |event| narrator.tell(&event))?;
            let (Some(rescue), End::Job(Ended::Killed(signal)), Job::Ours(stand_in)) = (&mut rescue, end, &mut job) else {
                break end;
            };
            if stand_in.has_sent(signal) || !rescue.bring_back(pid, signal, stand_in, &mut watch, &mut narrator)? {
                break end;
            }
        };
        watch.settle(&mut job, &mut |event| narrator.tell(&event))?;
        narrator.end(pid, end, &watch.summary())?;
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
}
