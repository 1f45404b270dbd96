//! One thread under our ptrace: stopped, and what it was when it stopped.

use std::io;
use std::time::Duration;

use super::quiet::Quiet;
use crate::error::{Doing, Error, Result};
use crate::ids::{Pid, Tid};
use crate::sys::deadline::Deadline;
use crate::sys::procfs;
use crate::sys::ptrace::{self, KernelSigset, Regs, Stop};
use crate::sys::status::Status;

/// A thread in a ptrace stop at which nothing of it is half done.
#[derive(Debug)]
pub struct StoppedThread {
    /// Its process.
    pub pid: Pid,
    /// The thread.
    pub tid: Tid,
    /// Its registers when it stopped. `orig_rax` tells the system call that was interrupted, if any (-1: none).
    pub regs: Regs,
    /// Its blocked signals when it stopped.
    pub sigmask: KernelSigset,
    /// It is stopped by job control, by this signal.
    pub group_stop: Option<i32>,
    /// Is it inside the stub of [`super::remote`]?
    pub(super) in_stub: bool,
    /// Is it at a stop after which the kernel does what it does for interrupted system calls, so that any registers can be set? There, a thread is asked
    /// for signals.
    pub(super) at_signals: bool,
    /// A signal that the program does not notice, once that was looked for: `Some(None)` if there is none.
    pub(super) quiet: Option<Option<Quiet>>,
    /// Stop signals that came while it was in the stub, to be sent again when it is let go.
    pub(super) held_back: Vec<i32>,
    /// Threads that it made while it was in the stub, each in its first stop.
    pub(super) born: Vec<Tid>,
}

/// After this time of waiting for a thread it is looked at whether it is still alive: the kernel reports the end of the main thread only
/// when all others were waited for, which are dead, too, if the process was killed.
pub(super) const LOOK_AFTER: Duration = Duration::from_millis(50);

/// The caller's word for an error of ptrace: a thread that is gone is a normal answer, not a riddle.
pub(super) fn gone_or<T>(pid: Pid, result: io::Result<T>, doing: impl FnOnce() -> String) -> Result<T> {
    match result {
        Err(e) if matches!(e.raw_os_error(), Some(libc::ESRCH | libc::ECHILD)) => Err(Error::Gone(pid)),
        other => other.doing(doing),
    }
}

impl StoppedThread {
    /// Takes note of a thread that was just seen in a stop of kind [`Stop::Event`].
    pub fn note(pid: Pid, tid: Tid, event_signal: i32) -> Result<StoppedThread> {
        let regs = gone_or(pid, ptrace::get_regs(tid), || format!("cannot read the registers of thread {tid}"))?;
        let sigmask = gone_or(pid, ptrace::get_sigmask(tid), || format!("cannot read the signal mask of thread {tid}"))?;
        let group_stop = (event_signal != libc::SIGTRAP).then_some(event_signal);
        Ok(StoppedThread {
            pid,
            tid,
            regs,
            sigmask,
            group_stop,
            in_stub: false,
            at_signals: true,
            quiet: None,
            held_back: Vec::new(),
            born: Vec::new(),
        })
    }

    /// Takes note of what is known of it now, before any call is made in it.
    pub fn knows(&mut self, status: &Status) {
        self.quiet = Some(Quiet::of(status));
    }

    /// A signal that it can stop itself with. `None`: the program would notice all of them; or the thread is stopped by job control, which a signal might
    /// end.
    pub(super) fn quiet(&mut self) -> Result<Option<Quiet>> {
        let quiet = match self.quiet {
            Some(known) => known,
            None => Quiet::of(&procfs::status(self.pid, self.tid)?),
        };
        self.quiet = Some(quiet);
        Ok(quiet.filter(|_| self.group_stop.is_none()))
    }

    /// For the waits to come: they look now and then whether the thread is still alive.
    pub(super) fn look_after(&self) -> Result<Deadline> {
        Deadline::arm(LOOK_AFTER).doing(|| "cannot set a timer")
    }

    /// Waits for the next report; its end is [`Error::Gone`]. The deadline must be one of [`StoppedThread::look_after`].
    pub(super) fn wait(&self, _deadline: &Deadline) -> Result<Stop> {
        let doing = || format!("cannot wait for thread {}", self.tid);
        loop {
            match gone_or(self.pid, ptrace::wait(self.tid, true), doing)? {
                Some(Stop::Ended(_)) => return Err(Error::Gone(self.pid)),
                Some(stop) => return Ok(stop),
                None if procfs::has_died(self.pid, self.tid) => return Err(Error::Gone(self.pid)),
                None => {}
            }
        }
    }

    /// From a stop inside the kernel's way out of a system call to one at which any registers can be set, without a user instruction between.
    pub(super) fn reach_signals(&mut self) -> Result<()> {
        if self.at_signals {
            return Ok(());
        }
        let doing = || "cannot stop a thread again".to_owned();
        let deadline = self.look_after()?;
        loop {
            // Each time: any other stop takes a pending interrupt with it.
            gone_or(self.pid, ptrace::interrupt(self.tid), doing)?;
            gone_or(self.pid, ptrace::cont(self.tid, 0), doing)?;
            match self.wait(&deadline)? {
                Stop::Event(_) => {
                    self.at_signals = true;
                    return Ok(());
                }
                Stop::Signal(signal) => self.hold_back(signal)?,
                _ => {}
            }
        }
    }

    /// A signal that no mask holds back came while the thread worked for us.
    pub(super) fn hold_back(&mut self, signal: i32) -> Result<()> {
        match signal {
            libc::SIGSTOP => self.held_back.push(signal),
            // A trap of a debugger's interrupt that raced with ours: nothing of the program's.
            libc::SIGTRAP => {}
            fatal => {
                return Err(Error::Unexpected(format!(
                    "thread {} of pid {} got signal {fatal} inside a remote system call, although all signals were blocked",
                    self.tid, self.pid
                )));
            }
        }
        Ok(())
    }

    /// Lets the thread run on from where it was stopped.
    pub fn detach(self) -> Result<()> {
        debug_assert!(!self.in_stub, "a thread must leave the stub before it is let go");
        gone_or(self.pid, ptrace::detach(self.tid, 0), || format!("cannot let go of thread {}", self.tid))?;
        for signal in self.held_back {
            crate::sys::signal::tgkill(self.pid, self.tid, signal)
                .doing(|| format!("cannot send signal {signal} on to thread {}", self.tid))?;
        }
        Ok(())
    }
}
