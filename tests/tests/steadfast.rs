//! A program that keeps registers, thread-local variables, timers, handlers, pending signals, kernel objects, memory and mutexes busy in
//! several threads, and checks itself: resources of SEED.md "threads", "robust lists", "signals", "interval timers", and rseq.

use std::path::Path;
use std::process::Command;

use ckpt_tests::ckpt;
use ckpt_tests::job::Job;
use ckpt_tests::moments::Moments;
use ckpt_tests::{chain, needs_root, program, static_program, story};
use nix::sys::signal::Signal;
use tempfile::tempdir;

const THREADS: u64 = 4;

fn start(folder: &Path, steps: u64) -> Job {
    let mut command = Command::new(program!("steadfast"));
    Job::start(folder, command.args([THREADS.to_string(), steps.to_string()]).current_dir(folder))
}

/// Ends a program that runs until it is told to, and compares its result.
fn finish(mut job: Job) {
    job.signal(Signal::SIGTERM);
    let output = job.succeed();
    assert_eq!(digest(&output), expected(&output));
}

fn digest(output: &str) -> String {
    output.lines().last().unwrap_or_default().to_owned()
}

/// The result for as many steps as it has made.
fn expected(output: &str) -> String {
    let last = digest(output);
    let steps: u64 = last.split(' ').nth(1).and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("no result: {output}"));
    assert!(steps > 0, "it has done nothing");
    format!("steps {steps} digest {:016x}", chain::digest(THREADS, steps))
}

#[test]
fn s21_goes_on_where_it_was() {
    needs_root!();
    story::survives(|folder| start(folder, 8192), |job| digest(&job.output()));
}

#[test]
fn undisturbed_by_repeated_checkpoints() {
    needs_root!();
    let (moments, folder) = (Moments::new(), tempdir().unwrap());
    let job = start(folder.path(), 0);
    job.wait_for_line("ready");
    for n in 0..20 {
        moments.let_pass(std::time::Duration::from_millis(50), 0.0, 1.0);
        ckpt::checkpoint(job.pid(), &folder.path().join(format!("image-{n}")), &[]);
        assert!(job.is_alive(), "it has ended: {}", job.output());
    }
    finish(job);
}

/// An image of a program that was itself brought back is as good as any.
#[test]
fn a_chain_of_restarts() {
    needs_root!();
    let (moments, folder) = (Moments::new(), tempdir().unwrap());
    let image = folder.path().join("image");
    let mut job = start(folder.path(), 0);
    job.wait_for_line("ready");
    for _ in 0..3 {
        moments.let_pass(std::time::Duration::from_millis(200), 0.0, 1.0);
        ckpt::checkpoint_and_kill(&mut job, &image, &[]);
        job = ckpt::restart(&job, &image, &[]);
    }
    moments.let_pass(std::time::Duration::from_millis(200), 0.5, 1.0);
    finish(job);
}

#[test]
fn without_compression() {
    needs_root!();
    let (moments, folder) = (Moments::new(), tempdir().unwrap());
    let image = folder.path().join("image");
    let mut job = start(folder.path(), 0);
    job.wait_for_line("ready");
    moments.let_pass(std::time::Duration::from_millis(100), 0.0, 1.0);
    ckpt::checkpoint_and_kill(&mut job, &image, &["--codec", "raw"]);
    finish(ckpt::restart(&job, &image, &[]));
}

/// The image passes through a pipe, in which nothing can seek.
#[test]
fn s13_through_a_pipe() {
    needs_root!();
    let (moments, folder) = (Moments::new(), tempdir().unwrap());
    let mut job = start(folder.path(), 0);
    job.wait_for_line("ready");
    moments.let_pass(std::time::Duration::from_millis(100), 0.0, 1.0);
    finish(ckpt::stream(&mut job, &[]));
}

#[test]
fn a_static_program() {
    needs_root!();
    let folder = tempdir().unwrap();
    let binary = match static_program::build(folder.path(), "static_hash") {
        Ok(binary) => binary,
        Err(why) => ckpt_tests::skip!("{why}"),
    };
    let start = |folder: &Path| Job::start(folder, Command::new(&binary).arg("500000000"));
    story::survives(start, Job::output);
}
