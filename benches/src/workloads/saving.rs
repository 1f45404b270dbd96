//! One process saved and brought back, once with each codec: what the workloads of single processes are made of.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ckpt_tests::ckpt::{self, Outcome};
use ckpt_tests::job::Job;
use ckpt_tests::process;
use serde_json::Value;

use super::Bench;
use crate::figure::Figures;
use crate::machine;
use crate::scratch::Scratch;
use crate::target::{Gone, Target};

/// What the figures of one codec are called.
#[derive(Debug)]
pub struct Names {
    codec: &'static str,
    /// `ckpt checkpoint`, from its start to its end.
    pub checkpoint: &'static str,
    /// Processor time of that.
    pub checkpoint_cpu: &'static str,
    /// Freeze to thaw.
    pub pause: &'static str,
    /// Size of the image.
    pub image: &'static str,
    /// Peak memory of `ckpt checkpoint`.
    pub checkpoint_peak: &'static str,
    /// `ckpt restart --detach`, from its start to its end.
    pub restart: &'static str,
    /// Processor time of that.
    pub restart_cpu: &'static str,
    /// Peak memory of `ckpt restart`.
    pub restart_peak: &'static str,
}

/// Without compression.
pub const RAW: Names = Names {
    codec: "raw",
    checkpoint: "checkpoint, raw",
    checkpoint_cpu: "processor time of checkpoint, raw",
    pause: "freeze time, raw",
    image: "image, raw",
    checkpoint_peak: "peak memory of ckpt checkpoint, raw",
    restart: "restart, raw",
    restart_cpu: "processor time of restart, raw",
    restart_peak: "peak memory of ckpt restart, raw",
};

/// With LZ4.
pub const LZ4: Names = Names {
    codec: "lz4",
    checkpoint: "checkpoint, lz4",
    checkpoint_cpu: "processor time of checkpoint, lz4",
    pause: "freeze time, lz4",
    image: "image, lz4",
    checkpoint_peak: "peak memory of ckpt checkpoint, lz4",
    restart: "restart, lz4",
    restart_cpu: "processor time of restart, lz4",
    restart_peak: "peak memory of ckpt restart, lz4",
};

/// Runs `ckpt` to its end. Returns how long that took, from before its start.
fn run(bench: &Bench, arguments: &mut dyn FnMut(&mut Command)) -> Result<(Duration, Outcome)> {
    let mut command = Command::new(bench.programs.ckpt());
    arguments(command.stdin(std::process::Stdio::null()));
    let began = Instant::now();
    let outcome = ckpt::run(&mut command);
    let time = began.elapsed();
    ensure!(outcome.status.success(), "{command:?} failed: {}", outcome.stderr.trim());
    Ok((time, outcome))
}

/// Checkpoints the target, which runs on. Returns the image, in `folder`.
pub fn checkpoint(bench: &Bench, target: &Target, names: &Names, folder: &Path, figures: &mut Figures) -> Result<PathBuf> {
    let image = folder.join(format!("image-{}", names.codec));
    let (time, outcome) = run(bench, &mut |command| {
        command.args(["checkpoint", &target.pid().to_string(), "--after", "continue", "--codec", names.codec, "--json", "-o"]);
        command.arg(&image);
    })?;
    let report = outcome.json();
    figures.time(names.checkpoint, time);
    figures.time(names.checkpoint_cpu, outcome.cpu);
    figures.time(names.pause, self::time(&report, "pause_us")?);
    figures.bytes(names.image, image.metadata().context("there is no image")?.len());
    figures.bytes(names.checkpoint_peak, outcome.peak_bytes);
    Ok(image)
}

/// Restarts what is gone, with its pid, from an image that is removed then.
pub fn restart(bench: &Bench, gone: &Gone, names: &Names, image: &Path, figures: &mut Figures) -> Result<Target> {
    let (time, outcome) = run(bench, &mut |command| {
        command.args(["restart", "--detach", "--json"]).arg(image);
    })?;
    figures.time(names.restart, time);
    figures.time(names.restart_cpu, outcome.cpu);
    figures.bytes(names.restart_peak, outcome.peak_bytes);
    std::fs::remove_file(image).context("cannot remove an image")?;
    Ok(gone.is_back())
}

/// `ckpt checkpoint --json` of a job and all that descends from it, Returns its report.
pub fn checkpoint_tree(bench: &Bench, job: &Job, image: &Path, after: &str) -> Result<Value> {
    let (_, outcome) = run(bench, &mut |command| {
        command.args(["checkpoint", &job.pid().to_string(), "--after", after, "--json", "-o"]).arg(image);
    })?;
    Ok(outcome.json())
}

/// A job and all that descends from it, checkpointed, killed, and brought back. Returns the report of the checkpoint and how long the restart took.
pub fn kill_and_restart(bench: &Bench, mut job: Job, image: &Path) -> Result<(Value, Duration, Job)> {
    let family = process::descendants(job.pid());
    let report = checkpoint_tree(bench, &job, image, "kill")?;
    job.is_killed();
    process::bury(&family);
    let (time, _) = run(bench, &mut |command| {
        command.args(["restart", "--detach"]).arg(image);
    })?;
    Ok((report, time, Job::adopt(job.pid(), job.folder())))
}

/// A time in the report of a checkpoint, or of its phases.
pub fn time(report: &Value, key: &str) -> Result<Duration> {
    report[key].as_u64().map(Duration::from_micros).with_context(|| format!("the report of a checkpoint has no {key}"))
}

/// So many rounds, each with a process of that size of its own.
pub fn rounds(bench: &Bench, mebibytes: u64, runs: u32) -> Result<super::Outcome> {
    let scratch = match scratch(mebibytes)? {
        Ok(scratch) => scratch,
        Err(reason) => return Ok(super::Outcome::Skipped(reason)),
    };
    let mut figures = Figures::default();
    for round in 1..=runs {
        eprintln!("  round {round} of {runs}");
        let target = Target::start(&bench.programs, scratch.jobs(), mebibytes, true)?;
        self::round(bench, target, scratch.path(), &mut figures)?;
    }
    Ok(super::Outcome::Measured { notes: vec![scratch.describe()], figures: figures.into_vec(), ratios: Vec::new() })
}

/// A process checkpointed and restarted with each codec, and looked at afterwards.
pub fn round(bench: &Bench, target: Target, folder: &Path, figures: &mut Figures) -> Result<()> {
    let raw = checkpoint(bench, &target, &RAW, folder, figures)?;
    let lz4 = checkpoint(bench, &target, &LZ4, folder, figures)?;
    let back = restart(bench, &target.kill(), &RAW, &raw, figures)?;
    let back = restart(bench, &back.kill(), &LZ4, &lz4, figures)?;
    back.check()?;
    back.kill();
    Ok(())
}

/// A place for the images of [`round`], or why there is none.
pub fn scratch(mebibytes: u64) -> Result<std::result::Result<Scratch, String>> {
    // The process, its image, and its image with half of it compressed are there at once.
    scratch_for(mebibytes, mebibytes * 7 / 4)
}

/// A place for so many MiB of images of processes of so many MiB, or why there is none.
pub fn scratch_for(mebibytes: u64, images: u64) -> Result<std::result::Result<Scratch, String>> {
    const GIB: f64 = (1u64 << 30) as f64;
    // Something is left for others.
    let (needed, available) = ((mebibytes + images + 512) << 20, machine::available_bytes()?);
    if available < needed {
        let (needed, available) = (needed as f64 / GIB, available as f64 / GIB);
        return Ok(Err(format!("it needs {needed:.1} GiB of memory, and {available:.1} GiB are available")));
    }
    Scratch::with_room_for(images << 20).map(Ok)
}
