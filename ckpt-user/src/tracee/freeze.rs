//! Stopping every thread of a process, and letting them go again whatever happens.

use std::fs;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::thread::{StoppedThread, gone_or};
use crate::error::{Doing, Error, Result};
use crate::ids::{Pid, Tid};
use crate::sys::procfs;
use crate::sys::ptrace::{self, Stop};

/// A process whose threads are all stopped. Dropping it lets them go.
#[derive(Debug)]
pub struct FrozenProcess {
    /// The process.
    pub pid: Pid,
    /// Its threads, the leader first.
    pub threads: Vec<StoppedThread>,
    stragglers: Stragglers,
}

impl FrozenProcess {
    /// Of `pid`, no thread is known to stand still yet.
    pub(super) fn empty(pid: Pid, stragglers: &Stragglers) -> FrozenProcess {
        FrozenProcess { pid, threads: Vec::new(), stragglers: stragglers.clone() }
    }

    /// With all its threads: brings them into order.
    pub(super) fn settle(&mut self) -> Result<()> {
        let pid = self.pid;
        self.threads.sort_by_key(|t| (t.tid != pid.leader(), t.tid));
        if self.threads.first().is_none_or(|t| t.tid != pid.leader()) {
            return Err(main_thread_has_ended(pid));
        }
        Ok(())
    }

    /// The leader.
    pub fn leader(&mut self) -> &mut StoppedThread {
        &mut self.threads[0]
    }

    /// Lets every thread run on.
    pub fn thaw(mut self) -> Result<()> {
        self.release()
    }

    pub(super) fn send_kill(&self) -> Result<()> {
        crate::sys::signal::kill(self.pid, libc::SIGKILL).doing(|| format!("cannot kill pid {}", self.pid))
    }

    /// Once it was killed: returns when it is dead.
    pub(super) fn wait_for_end(mut self) -> Result<()> {
        // The leader last: it is dead only when the others are.
        for thread in self.threads.drain(..).rev() {
            ptrace::wait_for_end(thread.tid).doing(|| format!("cannot wait for the end of thread {}", thread.tid))?;
        }
        Ok(())
    }

    fn release(&mut self) -> Result<()> {
        let mut first = Ok(());
        let mut dead = Vec::new();
        for thread in self.threads.drain(..) {
            let tid = thread.tid;
            match thread.detach() {
                Ok(()) => {}
                Err(Error::Gone(_)) => dead.push(tid),
                Err(error) => first = first.and(Err(error)),
            }
        }
        self.stragglers.add(self.pid, dead);
        first
    }
}

impl Drop for FrozenProcess {
    fn drop(&mut self) {
        if let Err(error) = self.release() {
            tracing::warn!("cannot let go of pid {}: {error}", self.pid);
        }
    }
}

fn let_go(pid: Pid, tid: Tid, stop: Stop) {
    let signal = if let Stop::Signal(signal) = stop { signal } else { 0 };
    match ptrace::detach(tid, signal) {
        // It has been killed since.
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
        Err(error) => tracing::warn!("cannot let go of thread {tid} of pid {pid}: {error}"),
        Ok(()) => {}
    }
}

/// Threads that are attached still: they were told to stop and would not in time, in an uninterruptible wait, say, and ptrace lets nobody go that runs; or
/// they are about to end, and as long as their tracer has not seen that, nobody else does, neither the parent nor who waits on a pidfd. To be used by the
/// thread that traces.
#[derive(Clone, Debug, Default)]
pub struct Stragglers(Arc<Mutex<Vec<(Pid, Tid)>>>);

impl Stragglers {
    /// Lets those go that have stopped or ended meanwhile. Whenever another has, there is a SIGCHLD. Were there any?
    pub fn let_go(&self) -> bool {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = all.len();
        // The end of a main thread is told only when those of the others were seen.
        all.retain(|&(pid, tid)| tid == pid.leader() || !is_done(pid, tid));
        all.retain(|&(pid, tid)| tid != pid.leader() || !is_done(pid, tid));
        all.len() < before
    }

    fn add(&self, pid: Pid, tids: impl IntoIterator<Item = Tid>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend(tids.into_iter().map(|tid| (pid, tid)));
        self.let_go();
    }
}

/// Lets a thread go if it has stopped. `false`: it has not.
fn is_done(pid: Pid, tid: Tid) -> bool {
    match ptrace::wait(tid, false) {
        Ok(None) => false,
        Ok(Some(Stop::Ended(_))) => true,
        Ok(Some(stop)) => {
            let_go(pid, tid, stop);
            true
        }
        // It has ended and is nobody's any more.
        Err(error) if error.raw_os_error() == Some(libc::ECHILD) => true,
        Err(error) => {
            tracing::warn!("cannot wait for thread {tid} of pid {pid}: {error}");
            true
        }
    }
}

/// Threads that were told to stop and have not yet: on the way out those that have are let go.
#[derive(Debug)]
pub(super) struct Seized<'a> {
    running: Vec<(Pid, Tid)>,
    stragglers: &'a Stragglers,
}

impl<'a> Seized<'a> {
    pub(super) fn none(stragglers: &'a Stragglers) -> Seized<'a> {
        Seized { running: Vec::new(), stragglers }
    }

    /// Attaches to a thread and tells it to stop, if it has not ended.
    pub(super) fn seize(&mut self, pid: Pid, tid: Tid) -> Result<()> {
        if seize(pid, tid)? {
            self.running.push((pid, tid));
            match gone_or(pid, ptrace::interrupt(tid), || format!("cannot interrupt thread {tid}")) {
                // Its end is seen when it is waited for.
                Err(Error::Gone(_)) => {}
                other => other?,
            }
        }
        Ok(())
    }

    /// Waits until all of them have stopped, and hands them over. A thread that ends meanwhile is none that must be saved, unless it was the process
    /// `root`.
    pub(super) fn wait(
        &mut self,
        root: Pid,
        timeout: Duration,
        until: Instant,
        mut each: impl FnMut(StoppedThread),
    ) -> Result<()> {
        while let Some(&(pid, tid)) = self.running.last() {
            match wait_for_stop(pid, tid, timeout, until).and_then(|stop| note(pid, tid, stop)) {
                Ok(Some(stopped)) => each(stopped),
                Ok(None) | Err(Error::Gone(_)) if tid == root.leader() => return Err(Error::Gone(root)),
                Ok(None) | Err(Error::Gone(_)) => {
                    // Nobody else learns of its end before its tracer has.
                    self.stragglers.add(pid, [tid]);
                }
                Err(other) => return Err(other),
            }
            self.running.pop();
        }
        Ok(())
    }
}

fn note(pid: Pid, tid: Tid, stop: Option<i32>) -> Result<Option<StoppedThread>> {
    stop.map(|event_signal| StoppedThread::note(pid, tid, event_signal)).transpose()
}

impl Drop for Seized<'_> {
    fn drop(&mut self) {
        for (pid, tid) in self.running.drain(..) {
            self.stragglers.add(pid, [tid]);
        }
    }
}

/// What cannot be saved for that reason.
pub fn main_thread_has_ended(pid: Pid) -> Error {
    Error::Refused(crate::Refusal {
        pid,
        object: "its main thread".to_owned(),
        reason: "has ended while other threads go on, so its state is gone".to_owned(),
        advice: "let the main thread wait for the others instead of ending".to_owned(),
        passing: false,
    })
}

/// The threads of a process, as /proc lists them now.
pub fn threads(pid: Pid) -> Result<Vec<Tid>> {
    let gone_or = |error| {
        if procfs::is_gone(&error) { Error::Gone(pid) } else { Error::os(format!("cannot list the threads of pid {pid}"), error) }
    };
    let mut tids = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/task")).map_err(gone_or)? {
        let entry = entry.map_err(gone_or)?;
        let number = entry.file_name().to_str().and_then(|s| s.parse().ok());
        tids.push(Tid(number.ok_or_else(|| Error::Unexpected(format!("/proc/{pid}/task holds {:?}", entry.file_name())))?));
    }
    Ok(tids)
}

/// Attaches to one thread. False: it has ended.
fn seize(pid: Pid, tid: Tid) -> Result<bool> {
    let error = match ptrace::seize(tid, libc::PTRACE_O_TRACESYSGOOD) {
        Ok(()) => return Ok(true),
        Err(error) => error,
    };
    let state = procfs::thread_state(pid, tid);
    match (error.raw_os_error(), state) {
        (Some(libc::ESRCH), _) => Ok(false),
        (_, state) if state.is_none_or(procfs::is_dead) => Ok(false),
        (Some(libc::EPERM), _) => {
            let tracer = procfs::status(pid, tid)?.tracerpid;
            if tracer != 0 {
                return Err(Error::Refused(crate::Refusal {
                    pid,
                    object: format!("thread {tid}"),
                    reason: format!("is being traced by pid {tracer} (a debugger, or another ckpt), and there can be only one"),
                    advice: "detach that first".to_owned(),
                    passing: false,
                }));
            }
            Err(Error::os(
                format!(
                    "cannot trace thread {tid} of pid {pid}: it belongs to another user, or /proc/sys/kernel/yama/ptrace_scope \
                     forbids it; run ckpt as root or with CAP_SYS_PTRACE"
                ),
                error,
            ))
        }
        _ => Err(Error::os(format!("cannot trace thread {tid} of pid {pid}"), error)),
    }
}

/// Waits until a thread that was interrupted has stopped, passing on the signals that come first. `None`: it has ended.
fn wait_for_stop(pid: Pid, tid: Tid, timeout: Duration, until: Instant) -> Result<Option<i32>> {
    loop {
        let stop = match ptrace::wait(tid, true) {
            Err(e) if e.raw_os_error() == Some(libc::ECHILD) => return Ok(None),
            other => other.doing(|| format!("cannot wait for thread {tid} of pid {pid}"))?,
        };
        match stop {
            Some(Stop::Event(signal)) => return Ok(Some(signal)),
            Some(Stop::Ended(_)) => return Ok(None),
            Some(Stop::Signal(signal)) => interrupt_and_resume(pid, tid, signal)?,
            Some(Stop::Syscall | Stop::Other(_)) => interrupt_and_resume(pid, tid, 0)?,
            None if procfs::has_died(pid, tid) => return Ok(None),
            None if Instant::now() >= until => {
                let state = procfs::thread_state(pid, tid).unwrap_or('?');
                return Err(Error::FreezeTimeout { pid, tid, state, seconds: timeout.as_secs_f64() });
            }
            None => {}
        }
    }
}

/// Lets a thread run on to the stop that we want. Any other stop may have taken our interrupt with it (the kernel forgets a pending one at every
/// stop), so it is asked for again.
fn interrupt_and_resume(pid: Pid, tid: Tid, signal: i32) -> Result<()> {
    gone_or(pid, ptrace::interrupt(tid), || format!("cannot interrupt thread {tid}"))?;
    gone_or(pid, ptrace::cont(tid, signal), || format!("cannot resume thread {tid}"))
}
