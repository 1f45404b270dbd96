//! Programs under test: started in a session of their own, watched without polling, and killed at the end of the test.

use std::fs::{self, File};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::prctl::set_child_subreaper;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::process;
use crate::sys::{pidfd, session};

/// How long any single thing may take before the test fails.
pub const DEADLINE: Duration = Duration::from_secs(120);

/// A program that runs. It is killed when this is dropped.
#[derive(Debug)]
pub struct Job {
    pid: i32,
    handle: OwnedFd,
    folder: PathBuf,
    ended: bool,
}

impl Job {
    /// Starts a program that reads nothing, and writes its output to the files `out` and `err` in `folder`.
    pub fn start(folder: &Path, command: &mut Command) -> Job {
        let file = |name: &str| File::create(folder.join(name)).expect("cannot make a file for the output");
        Job::spawn(folder, command.stdin(Stdio::null()).stdout(file("out")).stderr(file("err")))
    }

    /// Starts a program with the standard input, output and error that `command` says.
    pub fn spawn(folder: &Path, command: &mut Command) -> Job {
        // Its descendants are ours to wait for once it has ended.
        adopt_orphans();
        // Waited for by its pid, like a job that a restart has made.
        let pid = session::own_session(command).spawn().map(|child| child.id());
        let pid = pid.unwrap_or_else(|error| panic!("cannot start {command:?}: {error}"));
        Job::adopt(pid as i32, folder)
    }

    /// Takes care of a process that exists: one that `ckpt restart --detach` has made.
    pub fn adopt(pid: i32, folder: &Path) -> Job {
        let handle = pidfd::open(pid).unwrap_or_else(|error| panic!("cannot open pid {pid}: {error}"));
        Job { pid, handle, folder: folder.to_owned(), ended: false }
    }

    /// Its pid.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Where its files are.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What it has written to its standard output so far.
    pub fn output(&self) -> String {
        read(&self.folder.join("out"))
    }

    /// What it has written to its standard error so far.
    pub fn errors(&self) -> String {
        read(&self.folder.join("err"))
    }

    /// Does it run?
    pub fn is_alive(&self) -> bool {
        !self.ended && process::is_alive(self.pid)
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        let sent = pidfd::send_signal(self.handle.as_fd(), signal as i32);
        sent.unwrap_or_else(|error| panic!("cannot send {signal} to pid {}: {error}", self.pid));
    }

    /// Waits until its output is as `wanted`, and returns it. Fails if it ends before.
    pub fn wait_for(&self, what: &str, wanted: impl Fn(&str) -> bool) -> String {
        let changes = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).expect("no inotify");
        changes.add_watch(&self.folder.join("out"), AddWatchFlags::IN_MODIFY).expect("cannot watch the output");
        let until = Instant::now() + DEADLINE;
        loop {
            let alive = self.is_alive();
            let output = self.output();
            if wanted(&output) {
                return output;
            }
            assert!(alive, "pid {} has ended before {what}\n{}", self.pid, self.told());
            assert!(
                Instant::now() < until,
                "pid {} does not come to {what} (threads {})\n{}",
                self.pid,
                process::states(self.pid),
                self.told()
            );
            let mut events =
                [PollFd::new(changes.as_fd(), PollFlags::POLLIN), PollFd::new(self.handle.as_fd(), PollFlags::POLLIN)];
            wait_for_event(&mut events, until);
            match changes.read_events() {
                Ok(_) | Err(Errno::EAGAIN) => {}
                Err(error) => panic!("cannot read from inotify: {error}"),
            }
        }
    }

    /// Waits until its output has a line that begins so, and returns the line.
    pub fn wait_for_line(&self, beginning: &str) -> String {
        let find = |output: &str| complete_lines(output).find(|line| line.starts_with(beginning)).map(str::to_owned);
        let output = self.wait_for(&format!("the line '{beginning}'"), |output| find(output).is_some());
        find(&output).unwrap_or_default()
    }

    /// Asks it (SIGUSR1) for a report, the lines up to "done", and waits for that.
    pub fn report(&self) -> Vec<String> {
        let old = complete_lines(&self.output()).count();
        self.signal(Signal::SIGUSR1);
        let is_done = |output: &str| complete_lines(output).skip(old).any(|line| line == "done");
        let output = self.wait_for("the end of its report", is_done);
        complete_lines(&output).skip(old).take_while(|line| *line != "done").map(str::to_owned).collect()
    }

    /// Waits until it is stopped as by SIGSTOP. It must be a child of this process.
    pub fn wait_until_stopped(&self) {
        let until = Instant::now() + DEADLINE;
        let flags = WaitPidFlag::WUNTRACED | WaitPidFlag::WNOHANG | WaitPidFlag::__WALL;
        while process::states(self.pid).contains(|state| state != 'T') {
            match waitpid(Pid::from_raw(self.pid), Some(flags)) {
                Ok(WaitStatus::StillAlive | WaitStatus::Stopped(..)) => {}
                other => panic!("pid {} was to stop: {other:?}", self.pid),
            }
            assert!(Instant::now() < until, "pid {} does not stop (threads {})", self.pid, process::states(self.pid));
            // No descriptor tells of it.
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits for its end.
    pub fn wait(&mut self) -> ExitStatus {
        self.wait_for_at_most(DEADLINE).unwrap_or_else(|why| panic!("{why}"))
    }

    /// Waits for its end. The error says in what state it was instead.
    pub fn wait_for_at_most(&mut self, time: Duration) -> Result<ExitStatus, String> {
        self.ends_within(time)?;
        self.ended = true;
        match waitpid(Pid::from_raw(self.pid), Some(WaitPidFlag::__WALL)) {
            Ok(WaitStatus::Exited(_, code)) => Ok(ExitStatus::from_raw(code << 8)),
            Ok(WaitStatus::Signaled(_, signal, _)) => Ok(ExitStatus::from_raw(signal as i32)),
            other => Err(format!("cannot wait for pid {}: {other:?}", self.pid)),
        }
    }

    /// Waits until it has ended; how, [`Job::wait`] tells afterwards.
    pub fn ends_within(&self, time: Duration) -> Result<(), String> {
        let until = Instant::now() + time;
        loop {
            let mut events = [PollFd::new(self.handle.as_fd(), PollFlags::POLLIN)];
            if wait_for_event(&mut events, until) {
                return Ok(());
            }
            if Instant::now() >= until {
                return Err(format!("pid {} does not end (threads {})\n{}", self.pid, process::states(self.pid), self.told()));
            }
        }
    }

    /// Waits for its end, which must be a good one.
    pub fn succeed(&mut self) -> String {
        let status = self.wait();
        assert!(status.success(), "pid {} ended badly: {status}\n{}", self.pid, self.told());
        self.output()
    }

    /// Waits for its end, which must be SIGKILL: what `--after kill` leaves.
    pub fn is_killed(&mut self) {
        let status = self.wait();
        assert_eq!(status.signal(), Some(libc::SIGKILL), "pid {} ended otherwise: {status}\n{}", self.pid, self.told());
    }

    /// Takes no care of it any more: it is not killed.
    pub fn leave(mut self) {
        self.ended = true;
    }

    /// Kills it and everything that descends from it.
    pub fn kill(&mut self) {
        let family = process::descendants(self.pid);
        self.signal(Signal::SIGKILL);
        self.is_killed();
        process::kill_all(&family);
    }

    fn told(&self) -> String {
        let tail =
            |text: String| text.lines().rev().take(20).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("\n");
        format!("output:\n{}\nerrors:\n{}", tail(self.output()), tail(self.errors()))
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        if !self.ended {
            // It may have ended, and another process may have its pid by now.
            let is_there = pidfd::send_signal(self.handle.as_fd(), 0).is_ok();
            let family = if is_there { process::descendants(self.pid) } else { Vec::new() };
            // It may have ended by itself, and may be another's child: then there is nothing to wait for.
            let _ = pidfd::send_signal(self.handle.as_fd(), libc::SIGKILL);
            let _ = waitpid(Pid::from_raw(self.pid), Some(WaitPidFlag::__WALL));
            process::kill_all(&family);
        }
    }
}

/// Has processes whose parent ends become children of this one, so that it can wait for them.
pub fn adopt_orphans() {
    set_child_subreaper(true).expect("cannot become a subreaper");
}

/// Waits until one of the events is there (true), a little, or until the deadline.
fn wait_for_event(events: &mut [PollFd<'_>], until: Instant) -> bool {
    let left = until.saturating_duration_since(Instant::now());
    match poll(events, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)) {
        Ok(ready) => ready > 0,
        Err(Errno::EINTR) => false,
        Err(error) => panic!("cannot poll: {error}"),
    }
}

/// The lines that are written to their end.
fn complete_lines(output: &str) -> impl Iterator<Item = &str> {
    output.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n'))
}

fn read(path: &Path) -> String {
    fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}
