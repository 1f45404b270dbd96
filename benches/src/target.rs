//! A process of a given size, before, between and after checkpoints.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use ckpt_tests::job::{Job, adopt_orphans};

use crate::programs::Programs;

/// A running `sized`. It is killed when this is dropped.
#[derive(Debug)]
pub struct Target {
    job: Job,
    /// Where its pages begin.
    pub address: usize,
    /// How many bytes they are.
    pub bytes: usize,
}

impl Target {
    /// Starts it, and waits until its memory is as it shall be: filled, or only reserved. Its output goes to `folder`.
    pub fn start(programs: &Programs, folder: &Path, mebibytes: u64, fill: bool) -> Result<Target> {
        // Restarted processes become ours, too, so that it is known when they are gone.
        adopt_orphans();
        let mut command = Command::new(programs.sized());
        command.arg(mebibytes.to_string()).args((!fill).then_some("untouched"));
        let job = Job::start(folder, &mut command);
        let line = job.wait_for_line("ready ");
        let parse = || {
            let mut words = line.split(' ').skip(1);
            let address = usize::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok()?;
            Some((address, words.next()?.parse().ok()?))
        };
        let (address, bytes) = parse().with_context(|| format!("`sized` said '{line}'"))?;
        Ok(Target { job, address, bytes })
    }

    /// Its pid.
    pub fn pid(&self) -> i32 {
        self.job.pid()
    }

    /// Kills it and waits until it is gone: its pid is free then.
    pub fn kill(mut self) -> Gone {
        self.job.kill();
        Gone { pid: self.job.pid(), folder: self.job.folder().to_owned(), address: self.address, bytes: self.bytes }
    }

    /// Has it look at its memory, and fails unless that is as it was.
    pub fn check(&self) -> Result<()> {
        let report = self.job.report();
        ensure!(report == ["intact"], "after its restart pid {} says that its memory is {report:?}", self.pid());
        Ok(())
    }
}

/// A target that was killed and may come back.
#[derive(Debug)]
pub struct Gone {
    pid: i32,
    folder: std::path::PathBuf,
    address: usize,
    bytes: usize,
}

impl Gone {
    /// Takes care of the process that a restart has made of it.
    pub fn is_back(&self) -> Target {
        Target { job: Job::adopt(self.pid, &self.folder), address: self.address, bytes: self.bytes }
    }
}
