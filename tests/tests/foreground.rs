//! `ckpt restart` in the foreground stands in for the job: its standard descriptors, its signals, its end.

use std::fs::File;
use std::io::{BufRead, BufReader, PipeReader, PipeWriter, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Command;

use ckpt_tests::ckpt::{self, Foreground};
use ckpt_tests::job::{Job, adopt_orphans};
use ckpt_tests::{needs_root, process, program};
use nix::sys::signal::Signal;
use tempfile::tempdir;

/// A shell script that waits for a signal.
fn shell(folder: &Path, script: &str) -> Job {
    let job = Job::start(folder, Command::new("sh").args(["-c", &format!("{script}; echo ready; while :; do :; done")]));
    job.wait_for_line("ready");
    job
}

#[test]
fn s2_its_exit_status_is_passed_on() {
    needs_root!();
    let folder = tempdir().unwrap();
    let image = folder.path().join("image");
    let mut job = shell(folder.path(), "trap 'echo caught; exit 7' TERM");
    ckpt::checkpoint_and_kill(&mut job, &image, &[]);
    let mut foreground = ckpt::restart_in_foreground(&job, &image, &[]);
    foreground.wait_until_running();
    foreground.ckpt().signal(Signal::SIGTERM);
    assert_eq!(foreground.end().code(), Some(7));
    assert!(job.output().ends_with("ready\ncaught\n"), "it did not get the signal: {}", job.output());
}

#[test]
fn signals_are_passed_on() {
    needs_root!();
    let folder = tempdir().unwrap();
    let image = folder.path().join("image");
    let script = "for s in HUP INT QUIT USR1 USR2; do trap \"echo $s\" $s; done; trap 'exit 0' TERM";
    let mut job = shell(folder.path(), script);
    ckpt::checkpoint_and_kill(&mut job, &image, &[]);
    let mut foreground = ckpt::restart_in_foreground(&job, &image, &[]);
    foreground.wait_until_running();
    let running = Job::adopt(job.pid(), job.folder());
    let signals = [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT, Signal::SIGUSR1, Signal::SIGUSR2];
    for signal in signals {
        foreground.ckpt().signal(signal);
        let name = signal.as_str().trim_start_matches("SIG");
        running.wait_for_line(name);
    }
    foreground.ckpt().signal(Signal::SIGTERM);
    assert_eq!(foreground.end().code(), Some(0));
    assert!(!running.is_alive());
}

#[test]
fn a_death_by_a_signal_is_passed_on() {
    needs_root!();
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let folder = tempdir().unwrap();
        let image = folder.path().join("image");
        let mut job = shell(folder.path(), ":");
        ckpt::checkpoint_and_kill(&mut job, &image, &[]);
        let mut foreground = ckpt::restart_in_foreground(&job, &image, &[]);
        foreground.wait_until_running();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(job.pid()), signal).unwrap();
        assert_eq!(foreground.end().signal(), Some(signal as i32));
    }
}

#[test]
fn a_job_that_ends_by_itself() {
    needs_root!();
    let folder = tempdir().unwrap();
    let image = folder.path().join("image");
    let mut command = Command::new(program!("steadfast"));
    let mut job = Job::start(folder.path(), command.args(["2", "8192"]).current_dir(folder.path()));
    job.wait_for_line("ready");
    ckpt::checkpoint_and_kill(&mut job, &image, &[]);
    let mut foreground = ckpt::restart_in_foreground(&job, &image, &[]);
    assert_eq!(foreground.end().code(), Some(0));
    assert!(job.output().contains("digest"), "it has not come to its end: {}", job.output());
}

/// The job's parent is the ckpt that stands in for it; a detached one has another.
#[test]
fn a_detached_job_is_nobodys_child() {
    needs_root!();
    adopt_orphans();
    let folder = tempdir().unwrap();
    let image = folder.path().join("image");
    let mut job = shell(folder.path(), "trap 'exit 3' TERM");
    ckpt::checkpoint_and_kill(&mut job, &image, &[]);
    let mut detached = ckpt::restart(&job, &image, &[]);
    // This test takes in orphans, as init does.
    assert_eq!(process::status(detached.pid(), "PPid"), Some(std::process::id().to_string()));
    detached.signal(Signal::SIGTERM);
    assert_eq!(detached.wait().code(), Some(3));
}

/// `cat` between two pipes, whose other ends are this test's.
fn cat(folder: &Path) -> (Job, PipeWriter, BufReader<PipeReader>) {
    let (input, to) = std::io::pipe().unwrap();
    let (from, output) = std::io::pipe().unwrap();
    let job =
        Job::spawn(folder, Command::new("cat").stdin(input).stdout(output).stderr(File::create(folder.join("err")).unwrap()));
    (job, to, BufReader::new(from))
}

fn echo(to: &mut impl Write, from: &mut impl BufRead, words: &str) {
    writeln!(to, "{words}").unwrap();
    let mut line = String::new();
    from.read_line(&mut line).unwrap();
    assert_eq!(line.trim_end(), words);
}

#[test]
fn pipes_to_others_become_those_of_the_restart() {
    needs_root!();
    let folder = tempdir().unwrap();
    let image = folder.path().join("image");
    let (mut job, mut to, mut from) = cat(folder.path());
    echo(&mut to, &mut from, "before");
    ckpt::checkpoint(job.pid(), &image, &[]);
    echo(&mut to, &mut from, "in between");
    ckpt::checkpoint_and_kill(&mut job, &image, &[]);
    let mut rest = String::new();
    assert_eq!(from.read_to_string(&mut rest).unwrap(), 0, "the pipe was left open, or something written to it: {rest}");

    let (input, mut to) = std::io::pipe().unwrap();
    let (from, output) = std::io::pipe().unwrap();
    let mut from = BufReader::new(from);
    let mut foreground = Foreground::start_with(&job, |folder| {
        let errors = File::create(folder.join("err")).unwrap();
        Job::spawn(folder, ckpt::command(["restart"]).arg(&image).stdin(input).stdout(output).stderr(errors))
    });
    echo(&mut to, &mut from, "after");
    // The end of its input is the end of it: nobody else holds the writing end.
    drop(to);
    assert_eq!(foreground.end().code(), Some(0));
    assert_eq!(from.read_to_string(&mut rest).unwrap(), 0);
}

#[test]
fn a_terminal_becomes_that_of_the_restart() {
    needs_root!();
    let folder = tempdir().unwrap();
    let image = folder.path().join("image");
    let on_terminal = |folder: &Path, command: &mut Command| {
        let pty = nix::pty::openpty(None, None).unwrap();
        let end = || OwnedFd::try_clone(&pty.slave).unwrap();
        let job = Job::spawn(folder, command.stdin(end()).stdout(end()).stderr(end()));
        (job, File::from(pty.master))
    };
    // The terminal echoes what is typed, and cat writes it once more.
    let talk = |mut master: &File, words: &str| {
        writeln!(master, "{words}").unwrap();
        let mut found = String::new();
        let mut reader = BufReader::new(master);
        for _ in 0..2 {
            reader.read_line(&mut found).unwrap();
        }
        assert_eq!(found, format!("{words}\r\n{words}\r\n"));
    };
    let (mut job, master) = on_terminal(folder.path(), &mut Command::new("cat"));
    talk(&master, "before");
    ckpt::checkpoint_and_kill(&mut job, &image, &[]);
    let mut second = None;
    let mut foreground = Foreground::start_with(&job, |folder| {
        let (job, master) = on_terminal(folder, ckpt::command(["restart"]).arg(&image));
        second = Some(master);
        job
    });
    let master = second.unwrap();
    talk(&master, "after");
    // End of file, as typed.
    (&master).write_all(b"\x04").unwrap();
    assert_eq!(foreground.end().code(), Some(0));
}

/// S23: a preset descriptor at restart. Without it, the job is not restarted, and the message names what is missing.
#[test]
fn s23_other_descriptors_are_given_by_number() {
    needs_root!();
    let folder = tempdir().unwrap();
    let image = folder.path().join("image");
    let (input, mut to) = std::io::pipe().unwrap();
    // It must not be standard input too, or it would be given with that.
    let script = "exec 5<&0 0</dev/null; echo ready; while read -r -u 5 line; do echo got $line; done; echo end";
    let mut command = Command::new("bash");
    command.args(["-c", script]).stdin(input);
    command.stdout(File::create(folder.path().join("out")).unwrap()).stderr(File::create(folder.path().join("err")).unwrap());
    let mut job = Job::spawn(folder.path(), &mut command);
    drop(command);
    writeln!(to, "first").unwrap();
    job.wait_for_line("got first");
    ckpt::checkpoint_and_kill(&mut job, &image, &[]);
    drop(to);

    // Whatever this test was started with under that number.
    let mut without = Command::new("sh");
    without.args(["-c", "exec \"$@\" 5<&-", "sh"]).arg(ckpt::binary()).args(["restart", "--detach"]).arg(&image);
    let why = ckpt::run(&mut without).failure();
    assert!(why.contains("descriptor 5") && why.contains("--inherit-fd"), "the message does not say what to do: {why}");
    assert!(!Path::new(&format!("/proc/{}", job.pid())).exists(), "a failed restart has left a process");

    let (input, mut to) = std::io::pipe().unwrap();
    let mut restart = ckpt::command(["restart", "--detach", "--inherit-fd", "5=0"]);
    ckpt::run(restart.arg(&image).stdin(input)).success();
    drop(restart);
    let mut job = Job::adopt(job.pid(), folder.path());
    writeln!(to, "second").unwrap();
    job.wait_for_line("got second");
    drop(to);
    assert!(job.succeed().ends_with("end\n"));
}
