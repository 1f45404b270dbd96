//! A tmux server with a shell and an editor in it: pseudoterminals, their sessions and foreground groups. The screen is the same after a restart, and
//! typing goes on.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use ckpt_tests::job::{DEADLINE, Job};
use ckpt_tests::moments::Moments;
use ckpt_tests::{ckpt, needs_root, skip, watched};
use tempfile::tempdir;

/// tmux with a socket in `folder`. `how`: -D is a server, -N a client that starts none by itself.
fn tmux(folder: &Path, how: &str, words: &[&str]) -> Command {
    let mut command = Command::new("tmux");
    command.args(["-L", "test", "-f", "/dev/null", how]).args(words).current_dir(folder);
    command.env("TMUX_TMPDIR", folder).env("LC_ALL", "C.UTF-8").env("TERM", "xterm").env("SHELL", "/bin/sh").env("PS1", "> ");
    command
}

fn ask(folder: &Path, words: &[&str]) -> String {
    let output = tmux(folder, "-N", words).output().unwrap();
    assert!(output.status.success(), "tmux {words:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// What is on a screen, and where its cursor is.
fn screen(folder: &Path, window: &str) -> String {
    let cursor = "#{cursor_x},#{cursor_y} #{pane_current_command} #{alternate_on}";
    ask(folder, &["capture-pane", "-p", "-e", "-t", window]) + &ask(folder, &["display-message", "-p", "-t", window, cursor])
}

fn wait_for(folder: &Path, window: &str, what: &str) {
    let is_there = || screen(folder, window).contains(what);
    wait_until(is_there, what);
}

/// There is no event for it.
fn wait_until(is_so: impl Fn() -> bool, what: &str) {
    let until = Instant::now() + DEADLINE;
    while !is_so() {
        assert!(Instant::now() < until, "it does not come to '{what}'");
        std::thread::yield_now();
    }
}

fn types(folder: &Path, window: &str, keys: &[&str]) {
    ask(folder, &[&["send-keys", "-t", window], keys].concat());
}

/// At the end of [`screen`]: who is in the foreground.
const CAT: &str = " cat 0\n";
const BASH: &str = " bash 0\n";

/// With two windows: in one is an editor, in the other a shell with a job that is stopped and one in the background.
fn start(folder: &Path) -> Job {
    let job = Job::start(folder, &mut tmux(folder, "-D", &[]));
    let begins = || {
        tmux(folder, "-N", &["new-session", "-d", "-x", "80", "-y", "24", "-s", "editor", "bash --norc"])
            .output()
            .unwrap()
            .status
            .success()
    };
    wait_until(begins, "a session");
    ask(folder, &["new-session", "-d", "-x", "100", "-y", "30", "-s", "shell", "bash --norc"]);
    wait_for(folder, "editor", ">");
    types(folder, "editor", &["vim.tiny -u NONE notes", "Enter"]);
    wait_for(folder, "editor", "~");
    types(folder, "editor", &["ihello", "Enter", "world"]);
    wait_for(folder, "editor", "world");
    // What is typed before a shell asks is lost.
    wait_for(folder, "shell", ">");
    types(folder, "shell", &["sleep 1000 &", "Enter"]);
    types(folder, "shell", &["cat > typed", "Enter"]);
    wait_for(folder, "shell", CAT);
    types(folder, "shell", &["first", "Enter"]);
    // A terminal forgets what nobody has read when a job is stopped.
    wait_until(|| std::fs::read_to_string(folder.join("typed")).is_ok_and(|typed| typed == "first\n"), "cat writes");
    types(folder, "shell", &["C-z"]);
    wait_for(folder, "shell", "Stopped");
    types(folder, "shell", &["jobs", "Enter"]);
    wait_for(folder, "shell", "Running");
    types(folder, "shell", &["cat", "Enter"]);
    wait_for(folder, "shell", CAT);
    types(folder, "shell", &["echoed", "Enter"]);
    wait_for(folder, "shell", "echoed\nechoed");
    job
}

macro_rules! needs {
    ($($name:literal)*) => {
        $(if Command::new($name).arg("-h").output().is_err() {
            skip!("{} is not there", $name);
        })*
    };
}

/// It goes on, both in the editor and in the shell.
fn goes_on(job: &mut Job) {
    let folder = job.folder().to_owned();
    types(&folder, "editor", &[" again", "Escape", ":wq", "Enter"]);
    wait_for(&folder, "editor", BASH);
    assert_eq!(std::fs::read_to_string(folder.join("notes")).unwrap(), "hello\nworld again\n");
    types(&folder, "shell", &["more", "Enter"]);
    wait_for(&folder, "shell", "more\nmore");
    types(&folder, "shell", &["C-c"]);
    wait_for(&folder, "shell", BASH);
    types(&folder, "shell", &["fg %2", "Enter"]);
    wait_for(&folder, "shell", CAT);
    types(&folder, "shell", &["second", "Enter", "C-d"]);
    wait_for(&folder, "shell", BASH);
    types(&folder, "shell", &["jobs; kill %1; wait; echo over $?", "Enter"]);
    wait_for(&folder, "shell", "\nover 0");
    assert!(screen(&folder, "shell").contains("[1]+  Running"), "{}", screen(&folder, "shell"));
    assert_eq!(std::fs::read_to_string(folder.join("typed")).unwrap(), "first\nsecond\n");
    ask(&folder, &["kill-server"]);
    job.wait();
}

#[test]
fn the_screen_is_the_same() {
    needs_root!();
    needs!("tmux" "vim.tiny" "bash");
    let folder = tempdir().unwrap();
    let mut job = start(folder.path());
    let image = folder.path().join("image");
    let before = ["editor", "shell"].map(|window| screen(folder.path(), window));
    for _ in 0..3 {
        ckpt::checkpoint_and_kill(&mut job, &image, &[]);
        job = ckpt::restart(&job, &image, &[]);
        assert_eq!(["editor", "shell"].map(|window| screen(folder.path(), window)), before);
    }
    goes_on(&mut job);
}

#[test]
fn the_screen_is_the_same_under_watch() {
    needs_root!();
    needs!("tmux" "vim.tiny" "bash");
    let folder = tempdir().unwrap();
    let job = start(folder.path());
    let before = ["editor", "shell"].map(|window| screen(folder.path(), window));
    let same = |job: &Job| assert_eq!(["editor", "shell"].map(|window| screen(job.folder(), window)), before);
    let mut job = watched::survives_crashes(job, "50ms", 3, &Moments::new(), same);
    goes_on(&mut job);
}
