//! Real programs under `ckpt watch`, whose machine fails now and then: what they compute, and what they have written to files, is what an
//! uninterrupted run would have made.

use std::fs;
use std::path::Path;
use std::process::Command;

use ckpt_tests::job::Job;
use ckpt_tests::moments::Moments;
use ckpt_tests::{needs_root, python, skip, watched};
use tempfile::tempdir;

/// Lines that are compared.
const LINES: usize = 400;

/// A log that is written line by line, as a batch job does; what it says follows from everything before. Two threads, so that a lock and
/// the interpreter's own state matter.
const HASHES: &str = "
import hashlib, sys, threading
log, lock, state = open('log', 'a', buffering=1), threading.Lock(), [0, b'']
def work():
    while True:
        with lock:
            state[1] = hashlib.sha256(state[1] + b'%d' % state[0]).digest()
            for _ in range(200): state[1] = hashlib.sha256(state[1]).digest()
            state[0] += 1
            log.write('%d %s\\n' % (state[0], state[1].hex()))
            if state[0] % 50 == 0: print('step', state[0], flush=True)
threading.Thread(target=work).start()
work()
";

/// A computation whose state is large and changes slowly.
const NUMPY: &str = "
import numpy
rng = numpy.random.default_rng(11)
a = rng.random((1500, 1500))
log, sums = open('log', 'a'), []
n = 0
while True:
    row = n * 7 % 1500
    a[row] = a[(row * 31 + n) % 1500][::-1] * 0.5 + a[row] * 0.5 + rng.random(1500) * 1e-3
    if n % 20 == 0: sums.append(float(a.sum()))
    n += 1
    log.write('%d %r %r\\n' % (n, float(a[row].sum()), sums[-1]))
    log.flush()
    if n % 50 == 0: print('step', n, flush=True)
";

fn start(folder: &Path, script: &str) -> Job {
    let mut command = Command::new(python::PYTHON);
    command.env("OPENBLAS_NUM_THREADS", "1").args(["-c", script]).current_dir(folder);
    Job::start(folder, &mut command)
}

/// What it has written so far to its log, as whole lines.
fn log(job: &Job) -> Vec<String> {
    let text = fs::read_to_string(job.folder().join("log")).unwrap();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().map(str::to_owned).collect()
}

/// Waits until its log has at least so many lines.
fn wait_for_lines(job: &Job, count: usize) {
    job.wait_for("so many lines", |_| log(job).len() >= count);
}

/// No line twice, and none missing.
fn is_gapless(lines: &[String]) {
    for (n, line) in lines.iter().enumerate() {
        assert!(line.starts_with(&format!("{} ", n + 1)), "line {} of the log is '{line}'", n + 1);
    }
}

fn writes_the_same(script: &str) {
    needs_root!();
    let moments = Moments::new();
    let undisturbed = tempdir().unwrap();
    let mut job = start(undisturbed.path(), script);
    job.wait_for_line("step");
    wait_for_lines(&job, LINES);
    job.kill();
    let expected = log(&job);
    let folder = tempdir().unwrap();
    let job = start(folder.path(), script);
    job.wait_for_line("step");
    let goes_on = |job: &Job| {
        let count = log(job).len();
        wait_for_lines(job, count + 60);
        is_gapless(&log(job));
    };
    let job = watched::survives_crashes(job, "50ms", 2, &moments, goes_on);
    let mut job = watched::survives_crashes(job, "200ms", 2, &moments, goes_on);
    wait_for_lines(&job, LINES);
    job.kill();
    let found = log(&job);
    is_gapless(&found);
    assert_eq!(found[..LINES], expected[..LINES]);
}

#[test]
fn a_log_of_hashes() {
    writes_the_same(HASHES);
}

#[test]
fn a_log_of_a_numpy_computation() {
    let numpy = Command::new(python::PYTHON).args(["-c", "import numpy"]).output();
    if !numpy.is_ok_and(|output| output.status.success()) {
        skip!("python3-numpy is not there");
    }
    writes_the_same(NUMPY);
}
