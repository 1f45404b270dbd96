//! `ckpt checkpoint --after continue|stop|kill`, and `ckpt thaw`.

use std::process::Command;

use ckpt_tests::ckpt;
use ckpt_tests::job::{Job, adopt_orphans};
use ckpt_tests::{needs_root, process, program, python};
use nix::sys::signal::Signal;
use tempfile::{TempDir, tempdir};

fn start(folder: &TempDir) -> Job {
    let job =
        Job::start(folder.path(), Command::new(program!("steadfast")).args(["3", "0", "fileless"]).current_dir(folder.path()));
    job.wait_for_line("ready");
    job
}

fn end(mut job: Job) {
    job.signal(Signal::SIGTERM);
    job.succeed();
}

#[test]
fn continue_is_what_happens_unless_told_otherwise() {
    needs_root!();
    let folder = tempdir().unwrap();
    let job = start(&folder);
    let image = folder.path().join("image");
    for more in [&[][..], &["--after", "continue"]] {
        ckpt::checkpoint(job.pid(), &image, more);
        let states = process::states(job.pid());
        assert!(!states.contains(['t', 'T', 'Z']), "it does not run: {states}");
        assert_eq!(process::status(job.pid(), "TracerPid").as_deref(), Some("0"));
    }
    end(job);
}

#[test]
fn stop_leaves_it_stopped() {
    needs_root!();
    adopt_orphans();
    let folder = tempdir().unwrap();
    let mut job = start(&folder);
    let image = folder.path().join("image");
    ckpt::checkpoint(job.pid(), &image, &["--after", "stop"]);
    job.wait_until_stopped();
    let output = job.output();
    ckpt::run(&mut ckpt::command(["thaw", &job.pid().to_string()])).success();
    // It goes on.
    job.wait_for("more output", |now| now.len() > output.len());
    // And its image is that of a running process.
    job.kill();
    end(ckpt::restart(&job, &image, &["--files", "keep"]));
}

#[test]
fn thaw_of_what_is_not_stopped_is_an_error() {
    needs_root!();
    let folder = tempdir().unwrap();
    let job = start(&folder);
    ckpt::run(&mut ckpt::command(["thaw", &job.pid().to_string()])).failure();
    end(job);
}

#[test]
fn kill_comes_after_the_image_is_whole() {
    needs_root!();
    let folder = tempdir().unwrap();
    let mut job = start(&folder);
    let image = folder.path().join("image");
    ckpt::checkpoint_and_kill(&mut job, &image, &[]);
    ckpt::run(ckpt::command(["info", "--verify"]).arg(&image)).success();
    assert!(!std::path::Path::new(&format!("/proc/{}", job.pid())).exists(), "its pid is not free");
    end(ckpt::restart(&job, &image, &[]));
}

/// What was stopped before is stopped afterwards, and in the image.
#[test]
fn a_stopped_process_stays_stopped() {
    needs_root!();
    let folder = tempdir().unwrap();
    let mut job = start(&folder);
    job.signal(Signal::SIGSTOP);
    job.wait_until_stopped();
    let image = folder.path().join("image");
    ckpt::checkpoint(job.pid(), &image, &[]);
    job.wait_until_stopped();
    ckpt::checkpoint_and_kill(&mut job, &image, &[]);
    let job = ckpt::restart(&job, &image, &[]);
    job.wait_until_stopped();
    job.signal(Signal::SIGCONT);
    end(job);
}

#[test]
fn s5_frozen_until_thawed() {
    needs_root!();
    let folder = tempdir().unwrap();
    let mut job = start(&folder);
    let image = folder.path().join("image");
    ckpt::checkpoint_and_kill(&mut job, &image, &[]);
    let job = ckpt::restart(&job, &image, &["--frozen"]);
    job.wait_until_stopped();
    ckpt::run(&mut ckpt::command(["thaw", &job.pid().to_string()])).success();
    end(job);
}

/// A process whose child was suspended by its terminal, so to speak; asked for a report, it tells the child's state.
const SUSPENDED: &str = "
child = os.fork()
if child == 0:
    os.setpgid(0, 0)
    os.kill(os.getpid(), signal.SIGTSTP)
    time.sleep(1000)
os.waitpid(child, os.WUNTRACED)
def state(): return open(f'/proc/{child}/stat').read().rsplit(') ', 1)[1][0]
def report():
    # Let go by its tracer, it wakes up to stop again by itself, and may have to wait for a processor. One that runs on soon sleeps.
    while state() == 'R': time.sleep(0.001)
    print('report', state(), flush=True)
    print('done', flush=True)
";

/// Nobody has asked about the child's stop.
const STOPPED_UNTOLD: &str = "
child = os.fork()
if child == 0:
    while True: signal.pause()
os.kill(child, signal.SIGSTOP)
os.waitid(os.P_PID, child, os.WSTOPPED | os.WNOWAIT)
def report():
    state = open(f'/proc/{child}/stat').read().rsplit(')')[1].split()[0]
    told = os.waitid(os.P_PID, child, os.WSTOPPED | os.WNOWAIT | os.WNOHANG)
    print('report', state, told and told.si_status, flush=True)
    print('done', flush=True)
";

/// A parent that has not heard of its child's stop hears of it afterwards, and `ckpt thaw` leaves the child stopped.
#[test]
fn a_stop_that_nobody_was_told_of() {
    needs_root!();
    adopt_orphans();
    let folder = tempdir().unwrap();
    let mut job = python::rest_after(folder.path(), STOPPED_UNTOLD).unwrap();
    let image = folder.path().join("image");
    let thaw = |job: &Job| ckpt::run(&mut ckpt::command(["thaw", &job.pid().to_string()])).success();
    assert_eq!(job.report(), ["report T 19"]);
    for after in ["continue", "stop"] {
        ckpt::checkpoint(job.pid(), &image, &["--after", after]);
        if after == "stop" {
            job.wait_until_stopped();
            thaw(&job);
        }
        assert_eq!(job.report(), ["report T 19"], "{after}");
    }
    for more in [&[][..], &["--frozen"]] {
        ckpt::checkpoint_and_kill(&mut job, &image, &[]);
        ckpt::bury_family(job.pid(), &image);
        job = ckpt::restart(&job, &image, more);
        if more.contains(&"--frozen") {
            job.wait_until_stopped();
            thaw(&job);
        }
        assert_eq!(job.report(), ["report T 19"], "{more:?}");
    }
}

/// Only what ckpt has stopped is thawed.
#[test]
fn what_job_control_has_stopped_is_not_thawed() {
    needs_root!();
    adopt_orphans();
    let folder = tempdir().unwrap();
    let mut job = python::rest_after(folder.path(), SUSPENDED).unwrap();
    let image = folder.path().join("image");
    ckpt::checkpoint(job.pid(), &image, &["--after", "stop"]);
    job.wait_until_stopped();
    let thaw = |job: &Job| ckpt::run(&mut ckpt::command(["thaw", &job.pid().to_string()])).success();
    thaw(&job);
    assert_eq!(job.report(), ["report T"]);
    ckpt::checkpoint_and_kill(&mut job, &image, &[]);
    ckpt::bury_family(job.pid(), &image);
    let job = ckpt::restart(&job, &image, &["--frozen"]);
    job.wait_until_stopped();
    thaw(&job);
    assert_eq!(job.report(), ["report T"]);
}
