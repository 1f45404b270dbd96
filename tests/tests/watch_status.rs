//! The line that `ckpt watch` shows on a terminal, and only there.

use std::ffi::OsStr;
use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};

use ckpt_tests::job::Job;
use ckpt_tests::terminal::{Screen, Terminal};
use ckpt_tests::watched::{self, Watch};
use ckpt_tests::{ckpt, laps, python};
use ckpt_tests::{needs_root, program};
use nix::sys::signal::Signal;
use tempfile::tempdir;

#[test]
fn a_file_holds_nothing_of_it() {
    needs_root!();
    let folder = tempdir().unwrap();
    let job = laps::start(folder.path(), program!("lapper"), "512 store");
    let mut watch = Watch::start(&job, &folder.path().join("images"), "1100ms", &[]);
    watch.wait_for(3);
    watch.ckpt().signal(Signal::SIGTERM);
    let output = watch.ckpt().succeed();
    assert!(!output.contains("next checkpoint") && !output.contains("\x1b"), "{output}");
    assert!(watched::images(watch.dir()).len() >= 3);
    laps::finish(job);
}

/// Writes to 8 MiB for some four seconds, and says so line by line.
const SPEAKER: &str = "
memory = bytearray(8 << 20)
for line in range(40):
    for page in range(0, len(memory), 4096): memory[page] = line + 1
    print('line', line, 'of the job', flush=True)
    time.sleep(0.1)
";

/// `ckpt watch` of a command that runs [`SPEAKER`].
fn watch(folder: &Path) -> Command {
    let mut command = ckpt::command([OsStr::new("watch"), OsStr::new("--dir"), folder.join("images").as_os_str()]);
    let job = python::command(SPEAKER);
    command.args(["--interval", "1500ms", "--"]).arg(job.get_program()).args(job.get_args()).env("TERM", "xterm");
    command
}

fn spoken() -> Vec<String> {
    (0..40).map(|line| format!("line {line} of the job")).collect()
}

/// Does a text have these, in this order?
fn has(text: &str, words: &[&str]) -> bool {
    words.iter().try_fold(text, |rest, word| rest.split_once(word).map(|(_, rest)| rest)).is_some()
}

#[test]
fn a_terminal_shows_it_and_has_it_no_more_at_the_end() {
    needs_root!();
    let folder = tempdir().unwrap();
    let terminal = Terminal::open();
    let out = File::create(folder.path().join("out")).unwrap();
    let mut job = Job::spawn(folder.path(), watch(folder.path()).stdin(Stdio::null()).stdout(out).stderr(terminal.stdio()));
    assert_eq!(job.wait().code(), Some(0));
    let screen = Screen::after(&terminal.close());
    let shown = |words: &[&str]| screen.past.iter().any(|text| has(text, words));
    assert!(shown(&["checkpoint 1: pause ", "s, whole image of ", "iB", "; next checkpoint in 1 s"]), "{screen:#?}");
    for left in ["; next checkpoint in 2 s", "; next checkpoint in 1 s"] {
        assert!(shown(&["checkpoint 2: pause ", "iB/s written", "increment of ", "iB", left]), "{screen:#?}");
    }
    let left = screen.lines.join("\n");
    assert!(left.starts_with("ckpt: ") && has(&left, &[" checkpoints in ", "pauses: "]), "{screen:#?}");
    assert!(!left.contains("next checkpoint"), "{screen:#?}");
    assert_eq!(job.output().lines().collect::<Vec<_>>(), spoken());
}

/// What the job writes to the same terminal comes there as it was written, and all of it.
#[test]
fn what_the_job_writes_to_the_terminal_is_left_alone() {
    needs_root!();
    let folder = tempdir().unwrap();
    let terminal = Terminal::open();
    File::create(folder.path().join("out")).unwrap();
    let mut command = watch(folder.path());
    let mut job = Job::spawn(folder.path(), command.stdin(Stdio::null()).stdout(terminal.stdio()).stderr(terminal.stdio()));
    drop(command);
    assert_eq!(job.wait().code(), Some(0));
    let written = terminal.close();
    let lines: Vec<String> = spoken().iter().map(|line| format!("{line}\r\n")).collect();
    assert!(has(&written, &lines.iter().map(String::as_str).collect::<Vec<_>>()), "{written:?}");
    assert!(written.contains("next checkpoint in"), "{written:?}");
}
