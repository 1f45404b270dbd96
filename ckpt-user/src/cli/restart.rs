//! `ckpt restart`.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::str::FromStr;

use ckpt::resources::restorer::{FilesPolicy, RestoreOptions};
use ckpt::restart::{self, Input, Options, Restarted};
use ckpt::stand_in::{Ended, Signals, StandIn};
use ckpt::sys::child;

use super::parents::Parents;
use super::points::{self, Choice};
use super::progress::Progress;
use super::{Failure, descriptors, input, output, spool};

/// Bring a process back from its image, where it was, with its process id.
///
/// Without --detach ckpt stands in for the job: it passes signals on to it, and ends as the job does. The job's terminal, pipes and
/// sockets to others are not in the image: it gets the standard input, output and error of ckpt, and others by --inherit-fd.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The image, or a folder of images, of which the newest whole one is taken; `-` is standard input
    #[arg(value_name = "FILE|DIR")]
    image: PathBuf,
    /// The parent of an increment, the parent of that, and so on; those beside the image are found by themselves. With `-`, the first is
    /// the parent of the image
    #[arg(long, value_name = "FILE")]
    parent: Vec<PathBuf>,
    /// Of a folder: take this image, by its number or the first digits of its id (8 or more)
    #[arg(long, value_name = "ID")]
    at: Option<String>,
    /// Let the job go on by itself, as a child of init
    #[arg(long)]
    detach: bool,
    /// Write the job's process id to this file
    #[arg(long, value_name = "FILE", requires = "detach")]
    pidfile: Option<PathBuf>,
    /// Leave the job stopped; `ckpt thaw PID` (or SIGCONT) lets it run
    #[arg(long)]
    frozen: bool,
    /// What to do about files that are not as they were (default: `fail`, and `rollback` for a folder)
    #[arg(long, value_enum, value_name = "POLICY")]
    files: Option<FilesPolicy>,
    /// Do not keep beside a file what is taken from it when it is changed back
    #[arg(long)]
    discard_changes: bool,
    /// Use descriptor M of ckpt (N, if not given) as descriptor N of the job, if that led outside
    #[arg(long, value_name = "N[=M]")]
    inherit_fd: Vec<Inherit>,
    /// Append everything that is done to this file
    #[arg(long, value_name = "FILE")]
    pub log: Option<PathBuf>,
    /// Print one JSON object with what was done and how long it took, when the job begins to run
    #[arg(long)]
    json: bool,
}

/// Which descriptor of ours becomes which of the job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Inherit {
    of_job: RawFd,
    ours: RawFd,
}

impl FromStr for Inherit {
    type Err = String;

    fn from_str(text: &str) -> Result<Inherit, String> {
        let number = |text: &str| match text.parse() {
            Ok(fd) if fd >= 0 => Ok(fd),
            _ => Err(format!("'{text}' is not the number of a descriptor")),
        };
        let (of_job, ours) = text.split_once('=').unwrap_or((text, text));
        Ok(Inherit { of_job: number(of_job)?, ours: number(ours)? })
    }
}

impl Args {
    /// Does it.
    pub fn run(self) -> Result<ExitCode, Failure> {
        let is_folder = self.image.is_dir();
        if self.at.is_some() && !is_folder {
            return Err(Failure::Usage("--at chooses an image of a folder".to_owned()));
        }
        if !self.parent.is_empty() && is_folder {
            return Err(Failure::Usage(
                "--parent belongs to one image, and the images of a folder find their parents there".to_owned(),
            ));
        }
        let default = if is_folder { points::FILES } else { FilesPolicy::Fail };
        let restore = RestoreOptions {
            files: self.files.unwrap_or(default),
            discard_changes: self.discard_changes,
            inherit: self.inherited()?,
            ambient: descriptors::ambient()?,
        };
        let options = Options { detach: self.detach, frozen: self.frozen, restore };
        tracing::info!("restart from {}: {options:?}", self.image.display());
        let restarted = if is_folder {
            points::restart_point(&self.image, &Choice::of(self.at.as_deref()), &options)?.1
        } else {
            self.restart_image(&options)?
        };
        if self.detach { self.let_go(restarted) } else { self.stand_in(restarted) }
    }

    fn restart_image(&self, options: &Options) -> Result<Restarted, Failure> {
        let is_stream = input::is_stdin(&self.image);
        let parents = if is_stream { Parents::of_stream(&self.parent) } else { Parents::of(&self.image, &self.parent) }?;
        let images = parents.open()?;
        let again = match self.image.is_file() {
            true => Some((Box::new(input::open(&self.image)?) as Input, parents.open()?)),
            false => None,
        };
        let image = spool::until_pid_is_free(input::open(&self.image)?, &self.image.display().to_string())?;
        let progress = Progress::new("filling pages");
        let result = restart::restart(image, images, again, options, &|done, all| progress.show(done, all));
        drop(progress);
        result.map_err(|error| parents.explain(error))
    }

    fn let_go(&self, restarted: Restarted) -> Result<ExitCode, Failure> {
        let pid = restarted.pid();
        if let Some(path) = &self.pidfile {
            // Before it runs: if this fails, nothing was restarted.
            let written = std::fs::write(path, format!("{pid}\n"));
            written.map_err(|error| Failure::file(format!("cannot write the pid to {}", path.display()), error))?;
        }
        let report = restarted.release()?;
        tracing::info!("{report:?}");
        if self.json {
            output::print_json(&report)?;
        } else {
            let threads = output::size_of_tree(report.processes, report.threads);
            let state = if self.frozen { format!("; it is frozen, and `ckpt thaw {pid}` lets it run") } else { String::new() };
            output::print(&format!("restarted pid {pid} ({threads}) in {}{state}\n", output::micros(report.total_us)))?;
        }
        Ok(ExitCode::SUCCESS)
    }

    fn stand_in(&self, restarted: Restarted) -> Result<ExitCode, Failure> {
        let job = StandIn::prepare(restarted.pid(), Signals::hold()?, self.frozen)?;
        let report = restarted.release()?;
        tracing::info!("{report:?}");
        if self.json {
            output::print_json(&report)?;
        }
        match job.run()? {
            Ended::Exited(status) => Ok(ExitCode::from(status as u8)),
            Ended::Killed(signal) => child::die_by(signal),
        }
    }

    /// Our standard descriptors, and what the user chose.
    fn inherited(&self) -> Result<HashMap<RawFd, OwnedFd>, Failure> {
        let mut inherited = descriptors::standard()?;
        if input::is_stdin(&self.image) {
            // What is left of that stream is nothing.
            let null = File::open(Path::new("/dev/null")).map_err(|error| Failure::file("cannot open /dev/null", error))?;
            inherited.insert(0, null.into());
        }
        for &Inherit { of_job, ours } in &self.inherit_fd {
            let copy = descriptors::duplicate(ours);
            let copy = copy.map_err(|error| Failure::file(format!("--inherit-fd {of_job}={ours}: descriptor {ours}"), error))?;
            inherited.insert(of_job, copy);
        }
        Ok(inherited)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_given_by_number() {
        assert_eq!("5".parse(), Ok(Inherit { of_job: 5, ours: 5 }));
        assert_eq!("5=7".parse(), Ok(Inherit { of_job: 5, ours: 7 }));
        for wrong in ["", "x", "5=", "=5", "-1", "5=6=7"] {
            assert!(wrong.parse::<Inherit>().is_err(), "{wrong}");
        }
    }
}
