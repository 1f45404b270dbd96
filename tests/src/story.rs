//! The story that every real program goes through: run it undisturbed, then checkpoint it at a random moment, kill it, restart it, and
//! compare the results.

use std::fmt::Debug;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::ckpt;
use crate::job::Job;
use crate::moments::Moments;
use crate::process;
use crate::watched;

/// How often each program is interrupted.
pub const TIMES: u32 = 3;

/// Fails if the result of an interrupted run differs. The program may have any number of processes. `start` starts the program in an empty folder; `result` is asked once it has
/// ended well.
pub fn survives<R: PartialEq + Debug>(start: impl Fn(&Path) -> Job, result: impl Fn(&Job) -> R) {
    let moments = Moments::new();
    let folder = tempfile::tempdir().expect("no temporary folder");
    let began = Instant::now();
    let mut job = start(folder.path());
    job.succeed();
    let mut whole = began.elapsed();
    let expected = result(&job);
    for n in 0..TIMES {
        // The moments are spread over the run.
        let (low, high) = (f64::from(n) / f64::from(TIMES), f64::from(n + 1) / f64::from(TIMES));
        let found = loop {
            let folder = tempfile::tempdir().expect("no temporary folder");
            let job = start(folder.path());
            if let Some(mut restarted) = interrupt(job, &moments, whole, (low * 0.9, high * 0.9)) {
                restarted.succeed();
                break result(&restarted);
            }
            // It was faster this time.
            whole = whole.mul_f64(0.8);
        };
        assert!(found == expected, "the result differs: {found:?} instead of {expected:?}");
    }
}

/// The same under a watch, by live cuts and increments, and with `times` crashes at any moment. The program says "step 0" when it has begun, and everything it
/// finds out, and complains of nothing.
pub fn survives_crashes(start: impl Fn(&Path) -> Job, interval: &str, times: u32) {
    let moments = Moments::new();
    let undisturbed = tempfile::tempdir().expect("no temporary folder");
    let expected = start(undisturbed.path()).succeed();
    let folder = tempfile::tempdir().expect("no temporary folder");
    let job = start(folder.path());
    job.wait_for_line("step 0");
    let mut job = watched::survives_crashes(job, interval, times, &moments, |_| {});
    assert_eq!(job.succeed(), expected);
    assert_eq!(job.errors(), "");
}

/// A job goes on after a checkpoint as it was; and so it is after another one, by which it is killed, and a restart, `verify` says.
pub fn stays_as_it_was(mut job: Job, image: &Path, verify: impl Fn(&Job)) -> Job {
    let before = process::look(job.pid());
    ckpt::checkpoint(job.pid(), image, &[]);
    process::assert_same(&before, &process::look(job.pid()));
    verify(&job);
    std::fs::remove_file(image).expect("cannot remove the image");
    ckpt::checkpoint_and_kill(&mut job, image, &[]);
    let job = ckpt::restart(&job, image, &[]);
    process::assert_same(&before, &process::look(job.pid()));
    verify(&job);
    job
}

/// Checkpoints and kills a job after a random part of `whole`, and restarts it. None if it has ended before.
fn interrupt(mut job: Job, moments: &Moments, whole: Duration, (low, high): (f64, f64)) -> Option<Job> {
    let image = job.folder().join("image");
    moments.let_pass(whole, low, high);
    let outcome = ckpt::try_checkpoint(job.pid(), &image, &["--after", "kill"]);
    if outcome.came_too_late(&job) {
        println!("it had ended by then");
        job.succeed();
        return None;
    }
    let report = outcome.success().json();
    println!("checkpoint: {report}");
    job.is_killed();
    ckpt::bury_family(job.pid(), &image);
    Some(ckpt::restart(&job, &image, &[]))
}
