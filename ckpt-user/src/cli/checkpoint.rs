//! `ckpt checkpoint`.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use ckpt::checkpoint::{After, Report, Target};
use ckpt::ids::{PAGE_SIZE, Pid};
use ckpt::store::{self, Destination};

use super::parents::Parents;
use super::progress::Progress;
use super::saving::Saving;
use super::{Failure, output, parse_pid};

/// Save a running process, and everything that descends from it, to an image.
///
/// The processes are stopped while their state is read, and run on afterwards unless --after says otherwise. Whatever cannot be saved is
/// refused by name before they are changed. The image appears under its name only once it is whole and on disk.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The process
    #[arg(value_name = "PID", value_parser = parse_pid)]
    pid: Pid,
    /// Where the image goes; `-` is standard output
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
    /// An image of the same process, of which this one is to be an increment; then the parent of that, and so on, but those beside it are found
    /// by themselves
    #[arg(long, value_name = "FILE")]
    parent: Vec<PathBuf>,
    /// What happens to the process once the image is on disk
    #[arg(long, value_enum, default_value = "continue", value_name = "WHAT")]
    after: After,
    /// The process and everything that descends from it, which is the default
    #[arg(long)]
    subtree: bool,
    #[command(flatten)]
    saving: Saving,
    /// Append everything that is done to this file
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,
    /// Print one JSON object with what was done and how long it took
    #[arg(long)]
    json: bool,
}

impl Args {
    /// Does it.
    pub fn run(self) -> Result<ExitCode, Failure> {
        let to_stdout = self.output == Path::new("-");
        let mut target = self.target()?;
        let destination = if to_stdout { self.stdout()? } else { Destination::file(&self.output)? };
        let progress = Progress::new("reading pages");
        let result = target.checkpoint(destination, &|done, all| progress.show(done, all));
        drop(progress);
        let report = result.map_err(|error| Failure::about(&self.output, error))?;
        let summary = self.summary(&report);
        tracing::info!("{summary}");
        if self.json {
            output::print_json(&report)?;
        } else if to_stdout {
            eprintln!("{summary}");
        } else {
            output::print(&(summary + "\n"))?;
        }
        Ok(ExitCode::SUCCESS)
    }

    fn target(&self) -> Result<Target, Failure> {
        let options = self.saving.options(self.after);
        tracing::info!("checkpoint of pid {}: {options:?}", self.pid);
        if self.parent.is_empty() {
            return Ok(Target::new(self.pid, self.saving.tracker()?, options));
        }
        let parents = Parents::of_stream(&self.parent)?;
        if parents.contain(&self.output) {
            let name = self.output.display();
            return Err(Failure::Usage(format!("the image would take the place of its own parent {name}: give it another name")));
        }
        let tracker = self.saving.tracker()?;
        let read = store::parents::hashes(parents.open()?);
        let (parent, hashes) = read.map_err(|error| parents.explain(error))?;
        Ok(Target::since(parent, hashes, self.pid, tracker, options))
    }

    fn stdout(&self) -> Result<Destination, Failure> {
        if self.json {
            return Err(Failure::Usage("--json needs standard output, which is taken by the image (-o -)".to_owned()));
        }
        if std::io::stdout().is_terminal() {
            let message = "an image is not for a terminal: send standard output to a file or a pipe";
            return Err(Failure::Usage(message.to_owned()));
        }
        Ok(Destination::stdout()?)
    }

    fn summary(&self, report: &Report) -> String {
        let place = if self.output == Path::new("-") { "standard output".to_owned() } else { self.output.display().to_string() };
        let fate = match self.after {
            After::Continue => "runs on",
            After::Stop => "is stopped",
            After::Kill => "was killed",
        };
        format!(
            "checkpointed pid {} ({}) to {place}: {} of memory in {}; it paused for {}, in all {}; it {fate}",
            report.pid,
            output::size_of_tree(report.processes, report.threads),
            output::bytes(report.pages_written * PAGE_SIZE),
            output::bytes(report.bytes),
            output::micros(report.pause_us),
            output::micros(report.total_us),
        )
    }
}
