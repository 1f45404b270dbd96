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
/// Between the starts of two waits.
const STAGGER: Duration = Duration::from_millis(150);
/// How long the process does not exist.
const GAP: Duration = Duration::from_millis(1000);

struct Waiting {
    wait: &'static Wait,
    folder: TempDir,
    job: Job,
    began: Instant,
    /// At least and at most how long it did not exist.
    gap: (Duration, Duration),
    /// Why it could not be saved or brought back.
    failure: Option<String>,
}

impl Waiting {
    fn image(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The number of the system call that it is in.
    fn call(&self) -> Option<i64> {
        let text = std::fs::read_to_string(format!("/proc/{}/syscall", self.job.pid())).ok()?;
        text.split(' ').next()?.parse().ok()
    }

    fn save(&mut self) {
        if !self.job.is_alive() {
            // Its time was up before it was this one's turn.
            return;
        }
        let outcome = ckpt::try_checkpoint(self.job.pid(), &self.image("image"), &[]);
        if outcome.came_too_late(&self.job) {
            // Or while it was: what it has returned is judged all the same.
            return;
        }
        self.note(outcome);
    }

    /// Since when it does not exist: at least, and at most.
    fn save_and_kill(&mut self, image: &Path) -> (Instant, Instant) {
        let before = Instant::now();
        if self.failure.is_none() {
            let outcome = ckpt::try_checkpoint(self.job.pid(), image, &["--after", "kill"]);
            if self.note(outcome) {
                self.job.is_killed();
            }
        }
        (Instant::now(), before)
    }

    fn bring_back(&mut self, image: &Path, more: &[&str], away: (Instant, Instant)) {
        let least = away.0.elapsed();
        if self.failure.is_none() {
            let outcome = ckpt::try_restart(image, &[&["--detach"], more].concat());
            if self.note(outcome) {
                self.job = Job::adopt(self.job.pid(), self.folder.path());
            }
        }
        self.gap = (self.gap.0 + least, self.gap.1 + away.1.elapsed());
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
    Waiting { wait, folder, job, began: Instant::now(), gap: Default::default(), failure: None }
}

/// Starts each of these waits, lets `story` happen to it while it is in its call, and tells what is wrong with any of them.
fn each(waits: &'static [Wait], story: impl Fn(&mut Waiting) + Sync) {
    let tell = |(n, wait): (usize, &'static Wait)| {
        // One after the other: what happens to one shall not take away the processors from all others.
        thread::sleep(STAGGER * n as u32);
        let mut waiting = start(wait);
        // Sleeping is what is under test, so here it is slept, too.
        thread::sleep(BEFORE.saturating_sub(waiting.began.elapsed()));
        assert_eq!(waiting.call(), Some(wait.number), "{} is in another call", wait.name);
        story(&mut waiting);
        finish(waiting).err().map(|why| format!("{}: {why}", wait.name))
    };
    let wrong: Vec<String> = thread::scope(|scope| {
        let running: Vec<_> = waits.iter().enumerate().map(|numbered| scope.spawn(move || tell(numbered))).collect();
        running.into_iter().filter_map(|thread| thread.join().unwrap()).collect()
    });
    assert!(wrong.is_empty(), "{} calls:\n{}", wrong.len(), wrong.join("\n"));
}

/// Wakes it if it waits for that, and says what is wrong.
fn finish(mut waiting: Waiting) -> Result<(), String> {
    if let Some(failure) = waiting.failure {
        return Err(failure);
    }
    if waiting.wait.until == Until::Woken {
        if waiting.job.output().contains("returned") {
            return Err("returned before it was woken".to_owned());
        }
        // It may not have gone on yet. Woken outside of its call, it might not wait at all.
        let until = Instant::now() + TIME;
        while ![Some(waiting.wait.number), Some(libc::SYS_restart_syscall)].contains(&waiting.call()) {
            if Instant::now() > until {
                return Err(format!("is in the call {:?}", waiting.call()));
            }
            thread::yield_now();
        }
        waiting.job.signal(Signal::SIGUSR1);
    }
    let ended = waiting.job.wait_for_at_most(TIME * 5);
    if !ended.as_ref().is_ok_and(|status| status.success()) {
        return Err(format!("ended {ended:?}"));
    }
    let output = waiting.job.output();
    let last = output.lines().last().unwrap_or_default();
    let verdict = parse(&output).ok_or(format!("says '{last}'")).and_then(|(result, ran)| judge(&waiting, result, ran));
    println!("{:26} {last}: {verdict:?}", waiting.wait.name);
    verdict
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
    if ran < least - EARLY || ran > most + LATE {
        return Err(format!("took {ran:?} instead of {least:?} to {most:?}"));
    }
    Ok(())
}

#[test]
fn s28_a_checkpoint_is_not_noticed() {
    needs_root!();
    each(WAITS, Waiting::save);
}

#[test]
fn s28_a_call_that_a_stop_ends_is_at_most_interrupted() {
    needs_root!();
    each(ENDED_BY_A_STOP, Waiting::save);
}

#[test]
fn s28_several_checkpoints_are_not_noticed() {
    needs_root!();
    each(WAITS, |waiting| (0..3).for_each(|_| waiting.save()));
}

#[test]
fn s28_a_restart_goes_on_with_what_was_left() {
    needs_root!();
    each(WAITS, |waiting| {
        let image = waiting.image("image");
        let away = waiting.save_and_kill(&image);
        thread::sleep(GAP);
        waiting.bring_back(&image, &[], away);
    });
}

/// Saved again before it has run on, a call still knows what was left.
#[test]
fn s28_a_second_checkpoint_right_after_the_restart() {
    needs_root!();
    each(WAITS, |waiting| {
        let (first, second) = (waiting.image("first"), waiting.image("second"));
        let away = waiting.save_and_kill(&first);
        thread::sleep(GAP);
        waiting.bring_back(&first, &["--frozen"], away);
        if waiting.failure.is_none() {
            waiting.job.wait_until_stopped();
        }
        let away = waiting.save_and_kill(&second);
        // It was stopped when it was saved the second time.
        waiting.bring_back(&second, &[], away);
        if waiting.failure.is_none() {
            waiting.job.wait_until_stopped();
            waiting.job.signal(Signal::SIGCONT);
        }
    });
}
