//! Running the `ckpt` under test, as a user does.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{Read, Seek};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::Value;

use crate::job::{DEADLINE, Job, adopt_orphans};
use crate::process;
use crate::sys::pidfd;
use crate::sys::usage::{self, Ended};

/// The program: the one that CKPT_BIN names, else the one that was built together with this test, else one that is built now.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| match std::env::var_os("CKPT_BIN") {
        Some(path) => PathBuf::from(path),
        None => beside_this_test(),
    })
}

fn beside_this_test() -> PathBuf {
    // target/PROFILE/deps/TEST
    let test = std::env::current_exe().expect("this test has no path");
    let profile = test.parent().and_then(Path::parent).expect("this test is not in a folder of cargo's");
    let path = profile.join("ckpt");
    if !path.exists() {
        build(profile);
    }
    assert!(path.exists(), "{} is not there; build it (cargo build --workspace), or set CKPT_BIN", path.display());
    path
}

/// `cargo test --package ckpt-tests` builds no programs of other packages.
fn build(profile: &Path) {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--quiet", "--package", "ckpt", "--bin", "ckpt"]).current_dir(env!("CARGO_MANIFEST_DIR"));
    cargo.arg("--target-dir").arg(profile.parent().expect("a profile's folder has a parent"));
    if profile.file_name() == Some(OsStr::new("release")) {
        cargo.arg("--release");
    }
    let status = cargo.status().unwrap_or_else(|error| panic!("cannot run {cargo:?}: {error}"));
    assert!(status.success(), "cannot build the program under test: {cargo:?} ended with {status}");
}

/// `ckpt` with these arguments.
pub fn command<A: AsRef<OsStr>>(arguments: impl IntoIterator<Item = A>) -> Command {
    let mut command = Command::new(binary());
    command.args(arguments).stdin(Stdio::null());
    command
}

/// What a run of ckpt has left.
#[derive(Debug)]
pub struct Outcome {
    /// How it ended.
    pub status: ExitStatus,
    /// Standard output (nothing if the command says where it goes).
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// The most memory that it had resident.
    pub peak_bytes: u64,
    /// The time that processors spent on it.
    pub cpu: Duration,
}

impl Outcome {
    /// It must have succeeded.
    pub fn success(self) -> Outcome {
        assert!(self.status.success(), "ckpt failed ({}): {}", self.status, self.stderr);
        self
    }

    /// It must have failed, with exit code 1 and a reason on standard error, which is returned.
    pub fn failure(self) -> String {
        assert_eq!(self.status.code(), Some(1), "ckpt did not fail: {}\n{}\n{}", self.status, self.stdout, self.stderr);
        assert!(!self.stderr.trim().is_empty(), "ckpt failed without saying why");
        self.stderr
    }

    /// Did ckpt fail because `job` had ended, or was ending (which lasts, as memory and files are given back)? Then it has ended when
    /// this returns, by itself.
    pub fn came_too_late(&self, job: &Job) -> bool {
        if self.status.success() {
            return false;
        }
        if self.stderr.contains(&format!("pid {} ended while ckpt worked on it", job.pid())) {
            job.ends_within(DEADLINE).unwrap_or_else(|why| panic!("{why}"));
        }
        !job.is_alive()
    }

    /// The object of `--json`.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("no JSON ({error}): {}", self.stdout))
    }
}

/// Runs ckpt to its end. `stdout` of the command is replaced by a file.
pub fn run(command: &mut Command) -> Outcome {
    let mut stdout = tempfile::tempfile().expect("no temporary file");
    command.stdout(stdout.try_clone().expect("cannot duplicate a descriptor"));
    let mut outcome = run_with_output(command);
    outcome.stdout = text_of(&mut stdout);
    outcome
}

/// Runs ckpt to its end, with the standard output that the command has.
pub fn run_with_output(command: &mut Command) -> Outcome {
    adopt_orphans();
    let mut stderr = tempfile::tempfile().expect("no temporary file");
    let errors = stderr.try_clone().expect("cannot duplicate a descriptor");
    let child = command.stderr(errors).spawn().unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
    let Ended { status, peak_bytes, cpu } = wait(child, command);
    let stderr = text_of(&mut stderr);
    assert!(!stderr.contains("panicked at"), "ckpt panicked: {stderr}");
    Outcome { status, stdout: String::new(), stderr, peak_bytes, cpu }
}

fn wait(mut child: Child, command: &Command) -> Ended {
    let handle = pidfd::open(child.id() as i32).expect("no handle of ckpt");
    let mut event = [PollFd::new(handle.as_fd(), PollFlags::POLLIN)];
    let ready = poll(&mut event, PollTimeout::try_from(DEADLINE).unwrap_or(PollTimeout::MAX)).expect("cannot poll");
    if ready == 0 {
        // Only to end the test: the failure is told below.
        let _ = child.kill();
    }
    let result = usage::wait4(child.id() as i32).expect("cannot wait for ckpt");
    assert!(ready > 0, "{command:?} does not end");
    result
}

fn text_of(file: &mut File) -> String {
    let mut bytes = Vec::new();
    file.rewind().and_then(|()| file.read_to_end(&mut bytes)).expect("cannot read what ckpt wrote");
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Keys that the object of `ckpt checkpoint --json` has at least (the contract in docs/design.md).
const REPORT: &[&str] = &["pause_us", "total_us", "pages_total", "pages_written", "bytes", "tracker", "image_id", "parent_id"];

/// `ckpt checkpoint PID -o IMAGE --json` with more arguments, to its end.
pub fn try_checkpoint(pid: i32, image: &Path, more: &[&str]) -> Outcome {
    run(command(["checkpoint", &pid.to_string(), "--json", "-o"]).arg(image).args(more))
}

/// The same, which must succeed.
pub fn checkpoint(pid: i32, image: &Path, more: &[&str]) -> Value {
    let report = try_checkpoint(pid, image, more).success().json();
    let missing: Vec<_> = REPORT.iter().filter(|key| report.get(key).is_none()).collect();
    assert!(missing.is_empty(), "the report of a checkpoint lacks {missing:?}: {report}");
    let size = image.metadata().expect("there is no image").len();
    assert_eq!(report["bytes"].as_u64(), Some(size), "the image has another size than the report says");
    report
}

/// Checkpoints a job with `--after kill`, and sees to it that its pid is free.
pub fn checkpoint_and_kill(job: &mut Job, image: &Path, more: &[&str]) -> Value {
    let more: Vec<&str> = ["--after", "kill"].iter().chain(more).copied().collect();
    let report = checkpoint(job.pid(), image, &more);
    job.is_killed();
    bury_family(job.pid(), image);
    report
}

/// The descendants of a job that was killed with it: their pids are to be free.
pub fn bury_family(root: i32, image: &Path) {
    let info = run(command(["info", "--json"]).arg(image)).success().json();
    let tasks = info["tasks"].as_array().expect("no tasks in the image");
    let pids = tasks.iter().filter_map(|task| task["pid"].as_i64()).map(|pid| pid as i32);
    process::bury(&pids.filter(|pid| *pid != root).collect::<Vec<_>>());
}

/// `ckpt restart IMAGE` with more arguments, to its end: for restarts that fail, or detach.
pub fn try_restart(image: &Path, more: &[&str]) -> Outcome {
    run(command(["restart"]).arg(image).args(more))
}

/// `ckpt restart --detach`, which must succeed. `job` is what it was before.
pub fn restart(job: &Job, image: &Path, more: &[&str]) -> Job {
    let pidfile = job.folder().join("pidfile");
    let outcome = run(command(["restart", "--detach", "--pidfile"]).arg(&pidfile).arg(image).args(more)).success();
    let pid = std::fs::read_to_string(&pidfile).expect("there is no pid file");
    assert_eq!(pid.trim(), job.pid().to_string(), "the pid file names another process\n{}{}", outcome.stdout, outcome.stderr);
    Job::adopt(job.pid(), job.folder())
}

/// `ckpt restart --json` in the foreground, of what `job` was.
pub fn restart_in_foreground(job: &Job, image: &Path, more: &[&str]) -> Foreground {
    Foreground::start(job, command(["restart", "--json"]).arg(image).args(more))
}

/// A `ckpt restart` that stands in for its job. Both are killed when it is dropped.
#[derive(Debug)]
pub struct Foreground {
    ckpt: Job,
    pid: i32,
}

impl Foreground {
    /// Starts `command`, which must be a restart of what `job` was, with `--json` and in the foreground. What ckpt says goes to files in
    /// a folder of its own.
    pub fn start(job: &Job, command: &mut Command) -> Foreground {
        Foreground::start_with(job, |ckpt| Job::start(ckpt, command))
    }

    /// The same for a restart whose standard input, output and error are the job's: `start` says what they are.
    pub fn start_with(job: &Job, start: impl FnOnce(&Path) -> Job) -> Foreground {
        adopt_orphans();
        let folder = job.folder().join("ckpt");
        std::fs::create_dir_all(&folder).expect("cannot make a folder");
        Foreground { ckpt: start(&folder), pid: job.pid() }
    }

    /// Waits until the job runs: that is when the JSON is printed.
    pub fn wait_until_running(&self) {
        self.ckpt.wait_for_line("{");
    }

    /// The process that stands in.
    pub fn ckpt(&mut self) -> &mut Job {
        &mut self.ckpt
    }

    /// Waits for the end.
    pub fn end(&mut self) -> ExitStatus {
        let status = self.ckpt.wait();
        let errors = self.ckpt.errors();
        assert!(!errors.contains("panicked at"), "ckpt panicked: {errors}");
        print!("{errors}");
        status
    }
}

impl Drop for Foreground {
    fn drop(&mut self) {
        // Only a process that is ckpt's own child is the job.
        let parent = process::status(self.pid, "PPid");
        if self.ckpt.is_alive()
            && parent == Some(self.ckpt.pid().to_string())
            && let Ok(job) = pidfd::open(self.pid)
        {
            // The test has its verdict already.
            let _ = pidfd::send_signal(job.as_fd(), libc::SIGKILL);
        }
    }
}

/// `ckpt checkpoint PID -o - --after kill | ckpt restart --detach -`, which must succeed.
pub fn stream(job: &mut Job, more: &[&str]) -> Job {
    let (reader, writer) = std::io::pipe().expect("no pipe");
    let mut checkpoint = command(["checkpoint", &job.pid().to_string(), "-o", "-", "--after", "kill"]);
    checkpoint.args(more).stdout(writer);
    let mut restart = command(["restart", "--detach", "-"]);
    restart.stdin(reader);
    thread::scope(|scope| {
        let restarting = scope.spawn(move || run(&mut restart).success());
        let saved = run_with_output(&mut checkpoint);
        // The pipe ends when nobody holds its writing end.
        drop(checkpoint);
        saved.success();
        job.is_killed();
        restarting.join().expect("the restart failed");
    });
    Job::adopt(job.pid(), job.folder())
}
