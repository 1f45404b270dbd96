//! S28: system calls that a checkpoint or a restart interrupts go on as if nothing had been.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use ckpt_tests::ckpt::{self, Outcome};
use ckpt_tests::job::Job;
use ckpt_tests::waits::{ENDED_BY_A_STOP, INTERRUPTED, TIME, Until, WAITS, Wait};
use ckpt_tests::{needs_root, program};
use nix::sys::signal::Signal;
use tempfile::{TempDir, tempdir};

/// How late a call may return on a busy machine. Less than what had passed of its time before the checkpoint, so that a call that begins
/// anew is noticed.
const LATE: Duration = Duration::from_millis(1000);
/// How early: clocks are read at different moments.
const EARLY: Duration = Duration::from_millis(30);
/// What has passed of the time when the checkpoint is made.
const BEFORE: Duration = Duration::from_millis(1500);
/// How long the process does not exist.
const GAP: Duration = Duration::from_millis(1000);

struct Waiting {
    wait: &'static Wait,
    folder: TempDir,
    job: Job,
    began: Instant,
    /// At least and at most how long it did not exist.
    gap: (Duration, Duration),
    /// How much longer than that it may wait.
    more: Duration,
    /// Why it could not be saved or brought back.
    failure: Option<String>,
}

impl Waiting {
    fn image(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn save(&mut self) {
        if !self.job.is_alive() {
            // Its time was up before it was this one's turn.
            return;
        }
        let outcome = ckpt::try_checkpoint(self.job.pid(), &self.image("image"), &[]);
        if !outcome.status.success() && !self.job.is_alive() {
            // Or while it was: what it has returned is judged all the same.
            return;
        }
        self.note(outcome);
    }

    fn save_and_kill(&mut self, image: &Path) {
        let outcome = ckpt::try_checkpoint(self.job.pid(), image, &["--after", "kill"]);
        if self.note(outcome) {
            self.job.is_killed();
        }
    }

    fn bring_back(&mut self, image: &Path, more: &[&str]) {
        if self.failure.is_none() {
            let outcome = ckpt::try_restart(image, &[&["--detach"], more].concat());
            if self.note(outcome) {
                self.job = Job::adopt(self.job.pid(), self.folder.path());
            }
        }
    }

    /// Did it succeed?
    fn note(&mut self, outcome: Outcome) -> bool {
        if !outcome.status.success() {
            self.failure = Some(outcome.stderr);
        }
        self.failure.is_none()
    }
}

fn start(wait: &'static Wait) -> Waiting {
    let folder = tempdir().unwrap();
    let mut command = Command::new(program!("waiter"));
    let job = Job::start(folder.path(), command.arg(wait.name).current_dir(folder.path()));
    job.wait_for_line("waiting");
    Waiting { wait, folder, job, began: Instant::now(), gap: Default::default(), more: Duration::ZERO, failure: None }
}

/// Starts these waits. Each has been in its call for as long as `BEFORE` then.
fn start_all(waits: &'static [Wait]) -> Vec<Waiting> {
    let all: Vec<Waiting> = waits.iter().map(start).collect();
    for waiting in &all {
        // Sleeping is what is under test, so here it is slept, too.
        thread::sleep(BEFORE.saturating_sub(waiting.began.elapsed()));
        let text = std::fs::read_to_string(format!("/proc/{}/syscall", waiting.job.pid())).unwrap();
        let number = text.split(' ').next().unwrap_or_default();
        assert_eq!(number, waiting.wait.number.to_string(), "{} is in another call: {text}", waiting.wait.name);
    }
    all
}

/// Wakes those that wait for it, and collects what is wrong with each.
fn finish(all: Vec<Waiting>) {
    let mut wrong = Vec::new();
    for mut waiting in all {
        if let Some(failure) = waiting.failure {
            wrong.push(format!("{}: {failure}", waiting.wait.name));
            continue;
        }
        if waiting.wait.until == Until::Woken {
            if waiting.job.output().contains("returned") {
                wrong.push(format!("{}: returned before it was woken", waiting.wait.name));
            } else {
                waiting.job.signal(Signal::SIGUSR1);
            }
        }
        let ended = waiting.job.wait_for_at_most(TIME * 5);
        if !ended.as_ref().is_ok_and(|status| status.success()) {
            wrong.push(format!("{}: ended {ended:?}", waiting.wait.name));
            continue;
        }
        let output = waiting.job.output();
        let last = output.lines().last().unwrap_or_default();
        let verdict = parse(&output).ok_or(format!("says '{last}'")).and_then(|(result, ran)| judge(&waiting, result, ran));
        println!("{:26} {last}: {verdict:?}", waiting.wait.name);
        wrong.extend(verdict.err().map(|why| format!("{}: {why}", waiting.wait.name)));
    }
    assert!(wrong.is_empty(), "{} calls:\n{}", wrong.len(), wrong.join("\n"));
}

/// "waiting\nreturned R after N ns\n"
fn parse(output: &str) -> Option<(i64, Duration)> {
    let (result, ns) = output.strip_prefix("waiting\nreturned ")?.strip_suffix(" ns\n")?.split_once(" after ")?;
    Some((result.parse().ok()?, Duration::from_nanos(ns.parse().ok()?)))
}

fn judge(waiting: &Waiting, result: i64, ran: Duration) -> Result<(), String> {
    if result == INTERRUPTED && ENDED_BY_A_STOP.iter().any(|wait| wait.name == waiting.wait.name) {
        return Ok(());
    }
    if result != waiting.wait.result {
        return Err(format!("returned {result} instead of {}", waiting.wait.result));
    }
    let (least, most) = match waiting.wait.until {
        Until::TimeSpent => (TIME + waiting.gap.0, TIME + waiting.gap.1),
        Until::Moment => (TIME, TIME + waiting.gap.1),
        Until::Woken => return Ok(()),
    };
    if ran < least - EARLY || ran > most + waiting.more + LATE {
        return Err(format!("took {ran:?} instead of {least:?} to {most:?}"));
    }
    Ok(())
}

#[test]
fn s28_a_checkpoint_is_not_noticed() {
    needs_root!();
    let mut all = start_all(WAITS);
    all.iter_mut().for_each(Waiting::save);
    finish(all);
}

#[test]
fn s28_a_call_that_a_stop_ends_is_at_most_interrupted() {
    needs_root!();
    let mut all = start_all(ENDED_BY_A_STOP);
    all.iter_mut().for_each(Waiting::save);
    finish(all);
}

#[test]
fn s28_several_checkpoints_are_not_noticed() {
    needs_root!();
    let mut all = start_all(WAITS);
    for _ in 0..3 {
        all.iter_mut().for_each(Waiting::save);
    }
    finish(all);
}

#[test]
fn s28_a_restart_goes_on_with_what_was_left() {
    needs_root!();
    let mut all = start_all(WAITS);
    let mut killed = Vec::new();
    for waiting in &mut all {
        let before = Instant::now();
        waiting.save_and_kill(&waiting.image("image"));
        killed.push((before, Instant::now()));
    }
    for (waiting, (before, after)) in all.iter_mut().zip(killed) {
        thread::sleep(GAP.saturating_sub(after.elapsed()));
        let least = after.elapsed();
        waiting.bring_back(&waiting.image("image"), &[]);
        waiting.gap = (least, before.elapsed());
    }
    finish(all);
}
