//! A job that writes to its memory when it is told to, and what `ckpt watch` tells of it.

use std::fs::File;
use std::io::{PipeWriter, Write, pipe};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ckpt_tests::job::{Job, adopt_orphans};

use crate::programs::Programs;

/// A running `writer` (`src/bin/writer.rs`). It is killed when this is dropped.
#[derive(Debug)]
pub struct Writer {
    job: Job,
    commands: PipeWriter,
    /// Answers so far.
    answers: usize,
}

/// What its memory is filled with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Contents {
    /// Random bits, which nothing compresses.
    Noise,
    /// Pages that differ, of which LZ4 leaves next to nothing: images of large processes take little room.
    Compressible,
}

/// What a `writer` did in a time.
#[derive(Clone, Copy, Debug)]
pub struct Worked {
    /// Pages written, one in each step.
    pub steps: u64,
    /// The longest time between two steps, microseconds.
    pub gap_us: u64,
}

impl Writer {
    /// Starts one, and waits until its memory is filled.
    pub fn start(programs: &Programs, folder: &Path, mebibytes: u64, contents: Contents) -> Result<Writer> {
        adopt_orphans();
        let (input, commands) = pipe().context("cannot make a pipe")?;
        let file = |name: &str| File::create(folder.join(name)).context("cannot make a file for the output");
        let mut command = Command::new(programs.writer());
        command.arg(mebibytes.to_string()).args((contents == Contents::Compressible).then_some("compressible"));
        command.stdin(input).stdout(file("out")?).stderr(file("err")?);
        let job = Job::spawn(folder, &mut command);
        job.wait_for_line("ready");
        Ok(Writer { job, commands, answers: 0 })
    }

    /// The process.
    pub fn job(&self) -> &Job {
        &self.job
    }

    /// Has it write to so many pages: how long one takes.
    pub fn touch(&mut self, pages: u64) -> Result<Duration> {
        self.time(&format!("touch {pages}"), "touched")
    }

    /// Has it write to so many new pages: how long one takes.
    pub fn fault(&mut self, pages: u64) -> Result<Duration> {
        self.time(&format!("fault {pages}"), "faulted")
    }

    fn time(&mut self, command: &str, answer: &str) -> Result<Duration> {
        let answer = self.tell(command, answer)?;
        let nanoseconds = answer.split(' ').nth(1).and_then(|word| word.parse().ok());
        Ok(Duration::from_nanos(nanoseconds.with_context(|| format!("`writer` said '{answer}'"))?))
    }

    /// Has it work.
    pub fn work(&mut self, seconds: u64, nanoseconds: u64) -> Result<Worked> {
        let answer = self.tell(&format!("work {seconds} {nanoseconds}"), "worked")?;
        let numbers: Vec<u64> = answer.split(' ').skip(1).filter_map(|word| word.parse().ok()).collect();
        let [steps, gap_us] = numbers[..] else { anyhow::bail!("`writer` said '{answer}'") };
        Ok(Worked { steps, gap_us })
    }

    fn tell(&mut self, command: &str, answer: &str) -> Result<String> {
        writeln!(self.commands, "{command}").context("cannot tell `writer` what to do")?;
        self.answers += 1;
        let count = self.answers;
        // "ready" comes before all answers.
        let output = self.job.wait_for("an answer", |output| output.lines().count() > count && output.ends_with('\n'));
        let line = output.lines().nth(count).unwrap_or_default().to_owned();
        ensure!(line.starts_with(answer), "`writer` said '{line}' to '{command}'");
        Ok(line)
    }
}
