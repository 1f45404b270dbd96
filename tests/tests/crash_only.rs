//! ckpt may be killed at any instant: the program that it works on goes on unharmed, and an image exists whole or not at all. The
//! other way round, a program that is killed while ckpt works on it is an error like any other.

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use ckpt_tests::ckpt;
use ckpt_tests::job::{Job, adopt_orphans};
use ckpt_tests::moments::{Moments, Span};
use ckpt_tests::{chain, needs_root, process, program};
use nix::sys::signal::Signal;
use tempfile::tempdir;

const THREADS: u64 = 4;
/// How often ckpt is killed.
const KILLS: u32 = 300;

fn start(folder: &Path) -> Job {
    let mut command = Command::new(program!("steadfast"));
    let job = Job::start(folder, command.args([&THREADS.to_string(), "0", "interruptible", "fileless"]).current_dir(folder));
    job.wait_for_line("ready");
    job
}

fn finish(mut job: Job) {
    job.signal(Signal::SIGTERM);
    let output = job.succeed();
    let last = output.lines().last().unwrap_or_default();
    let steps: u64 = last.split(' ').nth(1).and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("no result: {output}"));
    assert_eq!(last, format!("steps {steps} digest {:016x}", chain::digest(THREADS, steps)));
}

fn silent(mut command: Command) -> Child {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// If the image has its name, it is whole.
fn check_image(image: &Path) {
    if image.exists() {
        ckpt::run(ckpt::command(["info", "--verify"]).arg(image)).success();
        std::fs::remove_file(image).unwrap();
    }
}

#[test]
fn the_target_survives_the_death_of_ckpt() {
    needs_root!();
    let (moments, folder) = (Moments::new(), tempdir().unwrap());
    let image = folder.path().join("image");
    let job = start(folder.path());
    let mut span = Span::of(|| drop(ckpt::checkpoint(job.pid(), &image, &[])));
    std::fs::remove_file(&image).unwrap();
    let mut killed = 0;
    for n in 0..KILLS {
        let mut command = ckpt::command(["checkpoint", &job.pid().to_string(), "-o"]);
        command.arg(&image);
        let mut ckpt = silent(command);
        span.let_pass(&moments);
        ckpt.kill().unwrap();
        let in_time = !ckpt.wait().unwrap().success();
        span.struck(in_time);
        killed += u32::from(in_time);
        assert!(job.is_alive(), "after {n} times it has ended: {}\n{}", job.output(), job.errors());
        check_image(&image);
    }
    println!("{killed} of {KILLS} were killed in time, within {span:?}");
    assert!(killed > KILLS / 4, "most had ended before they were killed");
    let states = process::states(job.pid());
    assert!(!states.contains(['t', 'T']), "some threads are still stopped: {states}");
    // A checkpoint still works, and so does what it makes.
    let mut job = job;
    ckpt::checkpoint_and_kill(&mut job, &image, &[]);
    finish(ckpt::restart(&job, &image, &[]));
}

#[test]
fn nothing_is_left_in_the_target() {
    needs_root!();
    let (moments, folder) = (Moments::new(), tempdir().unwrap());
    let image = folder.path().join("image");
    // One that rests, so that its mappings are its own.
    let job = Job::start(folder.path(), Command::new("sleep").arg("1000"));
    ckpt::checkpoint(job.pid(), &image, &[]);
    let before = process::look(job.pid());
    let mappings = || std::fs::read_to_string(format!("/proc/{}/maps", job.pid())).unwrap().lines().count();
    let count = mappings();
    let mut span = Span::of(|| drop(ckpt::checkpoint(job.pid(), &image, &[])));
    for _ in 0..100 {
        let mut command = ckpt::command(["checkpoint", &job.pid().to_string(), "-o"]);
        command.arg(&image);
        let mut ckpt = silent(command);
        span.let_pass(&moments);
        ckpt.kill().unwrap();
        span.struck(!ckpt.wait().unwrap().success());
    }
    // What a killed ckpt may have left is taken away by the next one that comes to its end.
    ckpt::checkpoint(job.pid(), &image, &[]);
    process::assert_same(&before, &process::look(job.pid()));
    assert_eq!(mappings(), count, "mappings are left over");
}

#[test]
fn the_death_of_the_target_is_a_clean_error() {
    needs_root!();
    let (moments, folder) = (Moments::new(), tempdir().unwrap());
    let image = folder.path().join("image");
    let job = start(folder.path());
    let mut span = Span::of(|| drop(ckpt::checkpoint(job.pid(), &image, &[])));
    drop(job);
    std::fs::remove_file(&image).unwrap();
    let mut failures = 0;
    for _ in 0..60 {
        let mut job = start(folder.path());
        let pid = job.pid();
        let outcome = thread::scope(|scope| {
            let checkpoint = scope.spawn(|| ckpt::try_checkpoint(pid, &image, &[]));
            span.let_pass(&moments);
            job.kill();
            checkpoint.join().unwrap()
        });
        span.struck(!outcome.status.success());
        if outcome.status.success() {
            check_image(&image);
        } else {
            assert!(!image.exists(), "a failed checkpoint has left an image");
            let why = outcome.failure();
            assert!(why.contains(&pid.to_string()), "the message does not tell which process: {why}");
            failures += 1;
        }
    }
    println!("{failures} of 60 failed");
    assert!(failures > 0, "it was never in time");
}

/// A restart that is killed leaves the whole process, running, or none.
#[test]
fn a_killed_restart_leaves_no_half_process() {
    needs_root!();
    adopt_orphans();
    let (moments, folder) = (Moments::new(), tempdir().unwrap());
    let image = folder.path().join("image");
    let mut job = start(folder.path());
    ckpt::checkpoint_and_kill(&mut job, &image, &[]);
    let mut span = Span::of(|| ckpt::restart(&job, &image, &["--files", "keep"]).kill());
    let mut whole_ones = 0;
    for _ in 0..100 {
        let mut command = ckpt::command(["restart", "--detach", "--files", "keep"]);
        command.arg(&image);
        let mut ckpt = silent(command);
        span.let_pass(&moments);
        ckpt.kill().unwrap();
        span.struck(!ckpt.wait().unwrap().success());
        if let Some(mut restarted) = settle(&job) {
            restarted.signal(Signal::SIGTERM);
            // It checks itself until its end. One that ckpt had not let go yet may only now be about to die with it.
            let status = restarted.wait();
            let let_go = status.signal() != Some(libc::SIGKILL);
            assert!(status.success() || !let_go, "{status}: {}", restarted.output());
            whole_ones += u32::from(let_go);
        }
    }
    println!("{whole_ones} of 100 were restarted before ckpt was killed");
}

/// The process, if it was brought back. One that is being killed is waited for.
fn settle(job: &Job) -> Option<Job> {
    let until = Instant::now() + Duration::from_secs(20);
    let exists = || Path::new(&format!("/proc/{}", job.pid())).exists();
    while exists() {
        if process::states(job.pid()).len() == THREADS as usize + 2 && !process::states(job.pid()).contains(['t', 'T', 'Z', 'X'])
        {
            return Some(Job::adopt(job.pid(), job.folder()));
        }
        // Its end is only seen by its parent; which that is depends on when ckpt died.
        let gone = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(job.pid()), Some(nix::sys::wait::WaitPidFlag::WNOHANG));
        assert!(Instant::now() < until, "half a process is left, in the states {} ({gone:?})", process::states(job.pid()));
        thread::sleep(Duration::from_millis(1));
    }
    None
}
