//! Small Python programs that get hold of something, say so, and wait: for what a test needs once.

use std::path::Path;
use std::process::Command;

use crate::job::Job;

/// Debian's, which the tests require.
pub const PYTHON: &str = "/usr/bin/python3";

/// `call(NAME, NUMBER, ...)` makes a system call and returns its result; what is impossible is said as "absent WHY", and the program ends.
/// `outside(WORK)` has it done by a process that does not descend from this one, and ends with the test.
/// `at_nine(FD)` moves a descriptor to number 9; `at_nine_of_the_dead(NAME)` opens such a file in /proc of a child there, which then ends, and returns its number.
const PRELUDE: &str = "
import ctypes, os, signal, struct, sys, threading, time
c = ctypes.CDLL(None, use_errno=True)
def absent(why):
    print('absent', why, flush=True)
    os._exit(0)
def call(what, *arguments):
    result = c.syscall(*arguments)
    if result < 0: absent(what + ': ' + os.strerror(ctypes.get_errno()))
    return result
def at_nine(fd):
    os.dup2(fd, 9)
    os.close(fd)
def at_nine_of_the_dead(name, flags=os.O_RDONLY):
    child = os.fork()
    if child == 0: signal.pause()
    at_nine(os.open(f'/proc/{child}/{name}', flags))
    os.kill(child, 9)
    os.waitpid(child, 0)
    return child
def prctl(*arguments):
    call('prctl', 157, *arguments)
def outside(work):
    middle = os.fork()
    if middle == 0:
        before = os.getpid()
        if os.fork() == 0:
            while os.getppid() == before: time.sleep(0.001)
            prctl(1, 9, 0, 0, 0)  # PR_SET_PDEATHSIG
            os.setsid()
            work()
        os._exit(0)
    os.waitpid(middle, 0)
def report(): pass
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1, signal.SIGUSR2])
";

/// With this at its end the program says "ready" and waits, and calls `report` for every SIGUSR1 or SIGUSR2. (A handler and pause(2) would now
/// and then sleep through a signal that comes between the two.)
pub const REST: &str = "
print('ready', flush=True)
while True:
    signal.sigwait([signal.SIGUSR1, signal.SIGUSR2])
    report()
";

/// Python with this script after the prelude.
pub fn command(script: &str) -> Command {
    let mut command = Command::new(PYTHON);
    command.args(["-c", &format!("{PRELUDE}{script}")]);
    command
}

/// Starts a program that has done what `script` says, and now rests. The error says why this machine cannot do it.
pub fn rest_after(folder: &Path, script: &str) -> Result<Job, String> {
    start(folder, &mut command(&format!("{script}{REST}")))
}

/// The same with a command that runs such a program in the end.
pub fn start(folder: &Path, command: &mut Command) -> Result<Job, String> {
    let job = Job::start(folder, command.current_dir(folder));
    // A line is there once it has ended.
    let first = |output: &str| {
        let mut lines = output.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'));
        lines.find(|line| *line == "ready" || line.starts_with("absent ")).map(str::to_owned)
    };
    let output = job.wait_for("what it needs", |output| first(output).is_some());
    match first(&output).as_deref().and_then(|line| line.strip_prefix("absent ")) {
        None => Ok(job),
        Some(why) => Err(why.to_owned()),
    }
}

/// Has it report that often: each time it says "report N" alone, where a line more tells what is wrong.
pub fn reports(job: &Job, times: u32) {
    for _ in 0..times {
        let report = job.report();
        assert!(report.len() == 1 && report[0].starts_with("report "), "{report:?}");
    }
}

/// The same script for a command line that is not made here: prelude, script, and rest.
pub fn resting(script: &str) -> String {
    format!("{PRELUDE}{script}{REST}")
}
