//! `ckpt watch --restart-on-failure`: what a signal kills is brought back and watched on; what ends by itself, or as the user has asked, is not.

use std::fs::{self, OpenOptions};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::time::Duration;

use ckpt_tests::job::Job;
use ckpt_tests::laps;
use ckpt_tests::moments::Moments;
use ckpt_tests::stood_in::{self, is_brought_back, job_of, restart_points, wait_for_images};
use ckpt_tests::watched;
use ckpt_tests::{needs_root, program, python};
use nix::sys::signal::Signal;
use tempfile::tempdir;

/// Programs in Rust handle SIGSEGV and SIGBUS, and go on if these were only sent.
const DEADLY: [Signal; 3] = [Signal::SIGKILL, Signal::SIGABRT, Signal::SIGFPE];

/// A shell that does nothing.
const IDLE: [&str; 3] = ["sh", "-c", "echo ready; while :; do :; done"];

fn watch(folder: &Path, interval: &str, job: &[&str]) -> Job {
    let options = ["--interval", interval, "--restart-on-failure", "--max-restarts", "100"];
    stood_in::start(folder, &options, job)
}

/// Several times, at any moment, by one signal after the other.
fn is_killed(watch: &Job, by: &[Signal], times: usize, moments: &Moments, verify: impl Fn()) {
    for n in 0..times {
        let job = job_of(watch);
        moments.let_pass(Duration::from_millis(200), 0.0, 1.0);
        is_brought_back(watch, || job.signal(by[n % by.len()]));
        verify();
    }
}

fn lapper(words: &str) {
    needs_root!();
    let (moments, folder) = (Moments::new(), tempdir().unwrap());
    let words: Vec<&str> = [program!("lapper")].into_iter().chain(words.split(' ')).collect();
    let watch = watch(folder.path(), "40ms", &words);
    watch.wait_for_line("ready");
    wait_for_images(&watch, 2);
    is_killed(&watch, &DEADLY, 6, &moments, || laps::verify(&watch));
    laps::finish(watch);
}

#[test]
fn memory_goes_on() {
    lapper("512 dontneed mremap");
}

#[test]
fn memory_of_threads_goes_on() {
    lapper("512 threads 3 slow store read");
}

/// The log of a job has every line once, however often it was killed.
#[test]
fn a_log_goes_on() {
    needs_root!();
    let (moments, folder) = (Moments::new(), tempdir().unwrap());
    let script = "
import itertools, time
log = open('log', 'a')
for n in itertools.count():
    log.write(f'{n}\\n')
    log.flush()
    if n % 10 == 0: print('step', n, flush=True)
    time.sleep(0.001)
";
    let mut watch = watch(folder.path(), "50ms", &[python::PYTHON, "-c", script]);
    watch.wait_for_line("step");
    wait_for_images(&watch, 1);
    let log = || fs::read_to_string(folder.path().join("log")).unwrap();
    is_killed(&watch, &[Signal::SIGKILL, Signal::SIGSEGV, Signal::SIGBUS], 6, &moments, || {
        let lines = log().lines().count();
        watch.wait_for("more lines", |_| log().lines().count() > lines + 20);
    });
    watch.signal(Signal::SIGTERM);
    assert_eq!(watch.wait().signal(), Some(Signal::SIGTERM as i32), "{}", watch.errors());
    let expected: String = (0..log().lines().count()).map(|n| format!("{n}\n")).collect();
    assert_eq!(log(), expected);
}

/// SIGTERM through ckpt is the user's wish. The same from somebody else is not.
#[test]
fn what_the_user_sends_is_the_end() {
    needs_root!();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGUSR2] {
        let folder = tempdir().unwrap();
        let mut watch = watch(folder.path(), "20ms", &IDLE);
        watch.wait_for_line("ready");
        wait_for_images(&watch, 1);
        let job = job_of(&watch);
        is_brought_back(&watch, || job.signal(signal));
        // An image that was made as the signal came has it, too, and what is brought back from that dies once more.
        wait_for_images(&watch, watched::images(&watch.folder().join("images")).len() + 2);
        let before = restart_points(&watch);
        watch.signal(signal);
        assert_eq!(watch.wait().signal(), Some(signal as i32), "{}", watch.errors());
        assert_eq!(restart_points(&watch), before);
    }
}

#[test]
fn a_job_that_exits_is_not_brought_back() {
    needs_root!();
    for status in [0, 3, 137] {
        let folder = tempdir().unwrap();
        let mut watch = watch(folder.path(), "20ms", &["sh", "-c", &format!("sleep 0.3; exit {status}")]);
        assert_eq!(watch.wait().code(), Some(status), "{}", watch.errors());
        assert!(restart_points(&watch).is_empty(), "{}", watch.errors());
    }
}

#[test]
fn the_limit_is_kept() {
    needs_root!();
    let folder = tempdir().unwrap();
    let mut watch = stood_in::start(folder.path(), &["--interval", "1h", "--restart-on-failure", "--max-restarts", "2"], &IDLE);
    watch.wait_for_line("ready");
    wait_for_images(&watch, 1);
    for _ in 0..2 {
        let job = job_of(&watch);
        is_brought_back(&watch, || job.signal(Signal::SIGKILL));
    }
    job_of(&watch).signal(Signal::SIGKILL);
    assert_eq!(watch.wait().signal(), Some(Signal::SIGKILL as i32), "{}", watch.errors());
    assert_eq!(restart_points(&watch), [1, 2]);
    let said = watch.errors();
    assert!(said.contains("not brought back") && said.contains("2 times") && said.contains("--max-restarts"), "{said}");
}

/// It dies sooner than any checkpoint is made. Images of another job in the same folder are none of it.
#[test]
fn a_job_without_a_checkpoint_is_not_brought_back() {
    needs_root!();
    let folder = tempdir().unwrap();
    let mut first = watch(folder.path(), "1h", &IDLE);
    first.wait_for_line("ready");
    wait_for_images(&first, 1);
    first.signal(Signal::SIGTERM);
    first.wait();
    let mut second = watch(folder.path(), "1h", &["sh", "-c", "kill -KILL $$"]);
    assert_eq!(second.wait().signal(), Some(Signal::SIGKILL as i32), "{}", second.errors());
    assert!(!restart_points(&second).contains(&1), "it became the other job: {}", second.errors());
    let said = second.errors();
    // Should a checkpoint have been quick enough, it died of that again and again.
    let reason = if watched::images(&folder.path().join("images")).len() == 1 { "no checkpoint" } else { "" };
    assert!(said.contains("not brought back") && said.contains(reason), "{said}");
}

#[test]
fn an_older_point_is_taken_if_the_newest_is_damaged() {
    needs_root!();
    let folder = tempdir().unwrap();
    let dir = folder.path().join("images");
    let watch = watch(folder.path(), "20ms", &[program!("lapper"), "512"]);
    watch.wait_for_line("ready");
    wait_for_images(&watch, 4);
    let job = job_of(&watch);
    let mut damaged = 0;
    is_brought_back(&watch, || {
        // No further image meanwhile.
        watch.signal(Signal::SIGSTOP);
        watch.wait_until_stopped();
        let images = watched::images(&dir);
        damaged = images.len() as u64;
        let newest = OpenOptions::new().write(true).open(&images[images.len() - 1]).unwrap();
        newest.set_len(newest.metadata().unwrap().len() / 2).unwrap();
        job.signal(Signal::SIGKILL);
        watch.signal(Signal::SIGCONT);
    });
    assert_eq!(restart_points(&watch), [damaged - 1]);
    laps::finish(watch);
}

/// A tree: what descends from the job is ended when the job dies, and comes back with it.
#[test]
fn a_tree_goes_on_as_a_whole() {
    needs_root!();
    let (moments, folder) = (Moments::new(), tempdir().unwrap());
    let script = "
import os, signal, time
r, w = os.pipe()
answer, answered = os.pipe()
def worker():
    while True: os.write(answered, (int(os.read(r, 20)) + 1).to_bytes(8, 'little'))
workers = []
for n in range(3):
    pid = os.fork()
    if pid == 0: worker()
    workers.append(pid)
n = 0
while True:
    os.write(w, b'%020d' % n)
    n = int.from_bytes(os.read(answer, 8), 'little')
    for pid in workers: assert os.waitpid(pid, os.WNOHANG) == (0, 0)
    if n % 500 == 0: print('step', n, flush=True)
";
    let mut watch = watch(folder.path(), "40ms", &[python::PYTHON, "-c", script]);
    watch.wait_for_line("step");
    wait_for_images(&watch, 1);
    is_killed(&watch, &[Signal::SIGKILL], 4, &moments, || {
        let before = watch.output().lines().count();
        watch.wait_for("further steps", |output| output.lines().count() > before + 2);
    });
    watch.signal(Signal::SIGTERM);
    watch.wait();
    let steps: Vec<u64> = watch.output().lines().filter_map(|line| line.strip_prefix("step ")?.parse().ok()).collect();
    assert!(steps.windows(2).all(|two| two[0] + 500 == two[1]), "{steps:?}");
}
