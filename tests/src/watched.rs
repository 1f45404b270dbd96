//! Jobs under `ckpt watch`: starting the watch, reading its lines, and ending both as a crash of the machine would.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::ckpt;
use crate::job::{Job, adopt_orphans};
use crate::moments::Moments;
use crate::process;

/// A `ckpt watch` that runs. It is killed when this is dropped.
#[derive(Debug)]
pub struct Watch {
    ckpt: Job,
    dir: PathBuf,
}

impl Watch {
    /// `ckpt watch PID --dir DIR --interval INTERVAL --json` with more arguments. Output and errors both go to the file `out` of a folder
    /// beside `dir`.
    pub fn start(job: &Job, dir: &Path, interval: &str, more: &[&str]) -> Watch {
        adopt_orphans();
        let folder = dir.with_extension("watch");
        fs::create_dir_all(&folder).expect("cannot make a folder");
        let out = File::create(folder.join("out")).expect("cannot make a file for the output");
        let mut command = command(job, dir, interval, more);
        let both = out.try_clone().expect("cannot duplicate a descriptor");
        let ckpt = Job::spawn(&folder, command.stdin(Stdio::null()).stdout(both).stderr(out));
        Watch { ckpt, dir: dir.to_owned() }
    }

    /// The process.
    pub fn ckpt(&mut self) -> &mut Job {
        &mut self.ckpt
    }

    /// The objects that it has printed, one for each checkpoint, in order.
    pub fn checkpoints(&self) -> Vec<Value> {
        objects(&self.ckpt.output())
    }

    /// Waits until it has made so many.
    pub fn wait_for(&self, count: usize) -> Vec<Value> {
        let output = self.ckpt.wait_for(&format!("{count} checkpoints"), |output| objects(output).len() >= count);
        objects(&output)
    }

    /// Waits until it says something, which is no object, with all of `words`, and returns the line.
    pub fn wait_until_it_says(&self, words: &[&str]) -> String {
        let find = |output: &str| {
            let mut said = output.lines().filter(|line| !line.starts_with('{'));
            said.find(|line| words.iter().all(|word| line.contains(word))).map(str::to_owned)
        };
        let output = self.ckpt.wait_for(&format!("the words {words:?}"), |output| find(output).is_some());
        find(&output).unwrap_or_default()
    }

    /// Ends it as the user does. The job must not notice.
    pub fn end(mut self) -> Vec<Value> {
        self.ckpt.signal(Signal::SIGTERM);
        self.ckpt.succeed();
        self.no_panic().checkpoints()
    }

    /// Waits until it ends by itself.
    pub fn wait(&mut self) -> ExitStatus {
        let status = self.ckpt.wait();
        self.no_panic();
        status
    }

    /// Kills it alone.
    pub fn kill(mut self) -> Vec<Value> {
        self.ckpt.kill();
        self.no_panic().checkpoints()
    }

    /// Kills both, in either order, and what descends from the job. What it had said is returned.
    pub fn crash(mut self, job: &mut Job, moments: &Moments) -> Vec<Value> {
        let mut family = process::descendants(job.pid());
        if moments.below(2) == 0 {
            self.ckpt.signal(Signal::SIGKILL);
            job.signal(Signal::SIGKILL);
        } else {
            job.signal(Signal::SIGKILL);
            self.ckpt.signal(Signal::SIGKILL);
        }
        // It may have seen the end of the job before its own.
        self.ckpt.wait();
        job.is_killed();
        // Some may have been made meanwhile.
        let later: Vec<i32> = family.iter().flat_map(|pid| process::descendants(*pid)).collect();
        family.extend(later);
        process::kill_all(&family);
        self.no_panic().checkpoints()
    }

    fn no_panic(&self) -> &Watch {
        let output = self.ckpt.output();
        assert!(!output.contains("panicked at"), "ckpt panicked: {output}");
        self
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

/// The command line of [`Watch::start`].
pub fn command(job: &Job, dir: &Path, interval: &str, more: &[&str]) -> Command {
    let pid = job.pid().to_string();
    let mut command = ckpt::command([OsStr::new("watch"), OsStr::new(&pid), OsStr::new("--dir"), dir.as_os_str()]);
    command.args(["--interval", interval, "--json"]).args(more);
    command
}

/// Lines that are objects, and whole.
fn objects(output: &str) -> Vec<Value> {
    let whole = output.rfind('\n').map_or("", |end| &output[..end]);
    let lines = whole.lines().filter(|line| line.starts_with('{'));
    lines.map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("no JSON ({error}): {line}"))).collect()
}

/// Is it an increment?
pub fn is_increment(checkpoint: &Value) -> bool {
    checkpoint["parent_id"].is_string()
}

/// A number in the object of a checkpoint.
pub fn number(checkpoint: &Value, key: &str) -> u64 {
    checkpoint[key].as_u64().unwrap_or_else(|| panic!("no number '{key}': {checkpoint}"))
}

/// The images in a folder, in the order of their names.
pub fn images(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap_or_else(|error| panic!("cannot list {}: {error}", dir.display()));
    let is_image = |path: &PathBuf| {
        let stem = path.file_stem().and_then(OsStr::to_str).unwrap_or_default();
        path.extension() == Some(OsStr::new("ckpt")) && stem.len() == 6 && stem.bytes().all(|byte| byte.is_ascii_digit())
    };
    let mut images: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).filter(is_image).collect();
    images.sort();
    images
}

/// The images of a folder must be whole: the newest ones, as there may be many.
pub fn verify_images(dir: &Path) {
    for image in images(dir).iter().rev().take(24) {
        ckpt::run(ckpt::command(["info", "--verify"]).arg(image)).success();
    }
}

/// Goes through the life of a job whose machine fails `times` times: watched, killed together with ckpt at any moment, brought back from the
/// folder, and watched anew. `verify` says whether it goes on as it should. There must be increments.
pub fn survives_crashes(job: Job, interval: &str, times: u32, moments: &Moments, verify: impl Fn(&Job)) -> Job {
    survives_crashes_with(job, interval, times, moments, &[], verify)
}

/// The same for a watch with more arguments.
pub fn survives_crashes_with(
    mut job: Job,
    interval: &str,
    times: u32,
    moments: &Moments,
    more: &[&str],
    verify: impl Fn(&Job),
) -> Job {
    let dir = job.folder().join("images");
    let mut increments = 0;
    for _ in 0..times {
        let watch = Watch::start(&job, &dir, interval, more);
        watch.wait_for(2);
        moments.let_pass(Duration::from_millis(250), 0.0, 1.0);
        let checkpoints = watch.crash(&mut job, moments);
        increments += checkpoints.iter().filter(|checkpoint| is_increment(checkpoint)).count();
        job = ckpt::restart(&job, &dir, &[]);
        verify(&job);
    }
    assert!(increments > 0, "there were only full images");
    job
}
