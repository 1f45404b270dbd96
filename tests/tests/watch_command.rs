//! `ckpt watch -- COMMAND`: it starts the job, stands in for it, and what was saved brings it back.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;

use ckpt_tests::ckpt;
use ckpt_tests::job::Job;
use ckpt_tests::laps;
use ckpt_tests::moments::Moments;
use ckpt_tests::stood_in::{self, job_of, wait_for_images};
use ckpt_tests::watched::{self, Watch};
use ckpt_tests::{needs_root, process, program, python};
use nix::sys::signal::Signal;
use tempfile::tempdir;

/// Starts it in `folder`, where output and errors of both go to files, and images to the folder `images`.
fn watch(folder: &Path, interval: &str, job: &[&str]) -> Job {
    stood_in::start(folder, &["--interval", interval], job)
}

#[test]
fn the_exit_status_is_passed_on() {
    needs_root!();
    for status in [0, 7] {
        let folder = tempdir().unwrap();
        let mut watch = watch(folder.path(), "20ms", &["sh", "-c", &format!("echo begun; sleep 0.2; exit {status}")]);
        assert_eq!(watch.wait().code(), Some(status), "{}", watch.errors());
        assert_eq!(watch.output(), "begun\n");
    }
}

#[test]
fn a_death_by_a_signal_is_passed_on() {
    needs_root!();
    for signal in [Signal::SIGTERM, Signal::SIGKILL, Signal::SIGSEGV] {
        let folder = tempdir().unwrap();
        let mut watch = watch(folder.path(), "20ms", &["sh", "-c", "echo ready; while :; do :; done"]);
        watch.wait_for_line("ready");
        wait_for_images(&watch, 1);
        // It is killed when it is dropped.
        let job = job_of(&watch);
        job.signal(signal);
        assert_eq!(watch.wait().signal(), Some(signal as i32), "{}", watch.errors());
    }
}

/// Whatever ckpt does at that moment: a checkpoint begins every few milliseconds, so that most of these end in the middle of one.
#[test]
fn the_end_is_passed_on_whenever_it_comes() {
    needs_root!();
    let moments = Moments::new();
    for n in 0..60 {
        let folder = tempdir().unwrap();
        let delay = moments.below(60);
        let end = if n % 2 == 0 { format!("sys.exit({})", n % 100) } else { "os.kill(os.getpid(), 11)".to_owned() };
        let script = format!("import os, sys, time; time.sleep(0.{delay:03}); {end}");
        let mut watch = watch(folder.path(), "1ms", &[python::PYTHON, "-c", &script]);
        let status = watch.wait();
        let expected = if n % 2 == 0 { (Some(n % 100), None) } else { (None, Some(Signal::SIGSEGV as i32)) };
        assert_eq!((status.code(), status.signal()), expected, "{script}: {}", watch.errors());
    }
}

/// A signal that comes before ckpt stands in for the job waits for it.
#[test]
fn a_signal_in_the_first_instant_is_the_jobs() {
    needs_root!();
    let moments = Moments::new();
    for _ in 0..30 {
        let folder = tempdir().unwrap();
        let mut watch = watch(folder.path(), "20ms", &["sh", "-c", "trap 'exit 7' USR1; while :; do :; done"]);
        // The job exists as soon as it is a child; it may not have set its trap yet, and then dies of the signal.
        let children = format!("/proc/{0}/task/{0}/children", watch.pid());
        while std::fs::read_to_string(&children).is_ok_and(|list| list.is_empty()) {
            std::hint::spin_loop();
        }
        std::thread::sleep(std::time::Duration::from_micros(moments.below(3000)));
        watch.signal(Signal::SIGUSR1);
        let status = watch.wait();
        let as_the_job = status.code() == Some(7) || status.signal() == Some(Signal::SIGUSR1 as i32);
        assert!(as_the_job, "{status:?}: {}", watch.errors());
        assert!(watch.errors().contains("has ended"), "ckpt itself was ended: {}", watch.errors());
    }
}

/// A job that is stopped at any moment is stopped, and goes on with the signal that ckpt passes on.
#[test]
fn a_stopped_job_goes_on() {
    needs_root!();
    let folder = tempdir().unwrap();
    let mut watch = watch(folder.path(), "2ms", &["sh", "-c", "trap 'echo on' CONT; echo ready; while :; do :; done"]);
    watch.wait_for_line("ready");
    let job = job_of(&watch);
    for n in 1..20 {
        job.signal(Signal::SIGSTOP);
        watch.signal(Signal::SIGCONT);
        job.signal(Signal::SIGCONT);
        watch.wait_for("a line", |output| output.matches("on\n").count() >= n);
    }
    job.signal(Signal::SIGKILL);
    assert_eq!(watch.wait().signal(), Some(Signal::SIGKILL as i32));
}

#[test]
fn signals_are_passed_on() {
    needs_root!();
    let folder = tempdir().unwrap();
    let signals = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2];
    let script =
        "for s in HUP INT QUIT USR1 USR2; do trap \"echo $s\" $s; done; trap 'exit 9' TERM; echo ready; while :; do :; done";
    let mut watch = watch(folder.path(), "20ms", &["sh", "-c", script]);
    watch.wait_for_line("ready");
    for signal in signals {
        watch.signal(signal);
        watch.wait_for_line(signal.as_str().trim_start_matches("SIG"));
    }
    watch.signal(Signal::SIGTERM);
    assert_eq!(watch.wait().code(), Some(9), "{}", watch.errors());
}

#[test]
fn a_command_that_cannot_be_started() {
    needs_root!();
    let folder = tempdir().unwrap();
    let mut watch = watch(folder.path(), "20ms", &["/nonexistent/program"]);
    assert_eq!(watch.wait().code(), Some(1));
    assert!(watch.errors().contains("/nonexistent/program"), "{}", watch.errors());
}

/// A job that ckpt has started is as good under it as one that it was shown.
#[test]
fn a_job_of_a_watch_survives_crashes() {
    needs_root!();
    let (moments, folder) = (Moments::new(), tempdir().unwrap());
    let mut watch = watch(folder.path(), "50ms", &[program!("lapper"), "512", "slow", "dontneed"]);
    watch.wait_for_line("ready");
    // Signals go through ckpt.
    laps::verify(&watch);
    wait_for_images(&watch, 3);
    let mut job = job_of(&watch);
    watch.signal(Signal::SIGKILL);
    job.signal(Signal::SIGKILL);
    watch.wait();
    job.wait();
    let job = ckpt::restart(&job, &folder.path().join("images"), &[]);
    laps::verify(&job);
    laps::finish(watched::survives_crashes(job, "50ms", 2, &moments, laps::verify));
}

/// Without its watch it goes on, and another one takes over.
#[test]
fn a_job_outlives_its_watch() {
    needs_root!();
    let folder = tempdir().unwrap();
    let mut first = watch(folder.path(), "20ms", &[program!("lapper"), "512", "threads", "2"]);
    first.wait_for_line("ready");
    wait_for_images(&first, 2);
    let mut job = job_of(&first);
    // It alone.
    first.signal(Signal::SIGKILL);
    first.is_killed();
    laps::verify(&job);
    let second = Watch::start(&job, &folder.path().join("images"), "20ms", &[]);
    second.wait_for(2);
    second.end();
    job.kill();
    assert!(!process::is_alive(job.pid()));
    laps::finish(ckpt::restart(&job, &folder.path().join("images"), &[]));
}

/// One that is restarted in the foreground, in place of its watch, ends as it does.
#[test]
fn a_folder_is_restarted_in_the_foreground() {
    needs_root!();
    let folder = tempdir().unwrap();
    let mut watch = watch(folder.path(), "20ms", &[program!("lapper"), "256"]);
    watch.wait_for_line("ready");
    wait_for_images(&watch, 2);
    let mut job = job_of(&watch);
    watch.signal(Signal::SIGKILL);
    job.signal(Signal::SIGKILL);
    watch.wait();
    job.wait();
    let mut foreground = ckpt::restart_in_foreground(&job, &folder.path().join("images"), &[]);
    foreground.wait_until_running();
    let running = Job::adopt(job.pid(), job.folder());
    laps::verify(&running);
    foreground.ckpt().signal(Signal::SIGTERM);
    assert_eq!(foreground.end().code(), Some(0));
    assert_eq!(job.output().lines().last(), Some("good"));
}
