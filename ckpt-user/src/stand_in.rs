//! Standing in for a job, so that whoever started ckpt deals with it as with the job itself: signals are passed on, the
//! terminal belongs to the job while ckpt has it, stops and continuations are followed, and the job's end is told.
//!
//! One descriptor is waited on: a signalfd, which also tells who sent each signal. That matters, because the kernel sends the signals
//! of a terminal to a whole process group, and a job in ckpt's own group has had them already. The job is a child of ckpt, so its own
//! changes come as a signal too.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd, siginfo};
use nix::unistd::{self, getpgrp, tcgetpgrp, tcsetpgrp};

use crate::error::{Doing, Result};
use crate::ids::Pid;
use crate::orphans;
use crate::sys::child::{self, Change};
use crate::sys::signal;

/// How a job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// By itself, with this status.
    Exited(i32),
    /// By this signal.
    Killed(i32),
}

/// Signals that are passed on to the job.
const FORWARDED: &[Signal] = &[
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGQUIT,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGWINCH,
    Signal::SIGCONT,
    Signal::SIGTSTP,
];

/// See the module.
#[derive(Debug)]
pub struct StandIn {
    job: Pid,
    signals: SignalFd,
    terminal: Option<Terminal>,
    stopped: bool,
    /// What the user has sent to the job: through us, or to both at once by the terminal.
    sent: SigSet,
    /// What came too late for the job.
    late: Vec<i32>,
    /// What the job leaves when it ends is ours.
    adopts: bool,
}

/// The signals that are passed on to a job: from now on they do nothing to this process itself, and wait until there is a job.
#[derive(Debug)]
pub struct Signals {
    signals: SignalFd,
    before: SigSet,
}

impl Signals {
    /// To be called before there is a job, so that no signal is lost.
    pub fn hold() -> Result<Signals> {
        let before = SigSet::thread_get_mask().doing(|| "cannot tell which signals are blocked")?;
        let mut set: SigSet = FORWARDED.iter().copied().collect();
        set.add(Signal::SIGCHLD);
        set.thread_block().doing(|| "cannot block signals")?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        let signals = SignalFd::with_flags(&set, flags).doing(|| "cannot make a descriptor for signals")?;
        Ok(Signals { signals, before })
    }

    /// The signals that were blocked before, as they are to be in a new job.
    pub fn before(&self) -> SigSet {
        self.before
    }
}

impl StandIn {
    /// Gets ready: to be called while the job is still held, or has just been started, so that it finds its terminal ready.
    ///
    /// `stopped`: the job will be left stopped, so that its first stop is no news.
    pub fn prepare(job: Pid, Signals { signals, .. }: Signals, stopped: bool) -> Result<StandIn> {
        let mut terminal = Terminal::own();
        if let Some(terminal) = &mut terminal {
            // Taking the terminal back from the background would stop us otherwise.
            SigSet::from(Signal::SIGTTOU).thread_block().doing(|| "cannot block SIGTTOU")?;
            terminal.hand_over(job)?;
        }
        Ok(StandIn { job, signals, terminal, stopped, sent: SigSet::empty(), late: Vec::new(), adopts: false })
    }

    /// Stands in for another process from now on: for the job, which has ended and was brought back, and is still held. It gets the signals that
    /// have come meanwhile.
    pub fn follow(&mut self, job: Pid) -> Result<()> {
        (self.job, self.stopped, self.sent) = (job, false, SigSet::empty());
        if let Some(terminal) = &mut self.terminal {
            terminal.take_back()?;
            terminal.hand_over(job)?;
        }
        std::mem::take(&mut self.late).into_iter().try_for_each(|signal| self.send(signal))
    }

    /// From now on what descends from the job is not left to run on without it ([`StandIn::end_what_is_left`]).
    pub fn adopt_orphans(&mut self) -> Result<()> {
        self.adopts = true;
        orphans::adopt()
    }

    /// Once the job has ended: ends everything that descended from it, so that it can be brought back as a whole.
    pub fn end_what_is_left(&mut self) -> Result<()> {
        if self.adopts { orphans::end() } else { Ok(()) }
    }

    /// After this process has traced the job: a stop of which only the tracer was told is followed.
    pub fn catch_up(&mut self) -> Result<()> {
        if child::is_stopped(self.job) { self.follow_stop(libc::SIGSTOP) } else { Ok(()) }
    }

    /// Waits until the job ends.
    pub fn run(mut self) -> Result<Ended> {
        loop {
            if let Some(ended) = self.check()? {
                return Ok(ended);
            }
            match poll(&mut [PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error).doing(|| "cannot wait for signals"),
            }
        }
    }

    /// Does what is to be done about everything that has happened, without waiting. Has the job ended?
    ///
    /// Not while this process traces the job: its stops would be taken for its own.
    pub fn check(&mut self) -> Result<Option<Ended>> {
        loop {
            // Nobody can tell once its end was collected.
            let same_group = shares_our_group(self.job);
            while let Some(change) = child::poll(self.job).doing(|| format!("cannot wait for pid {}", self.job))? {
                let ended = match change {
                    Change::Exited(status) => Some(Ended::Exited(status)),
                    Change::Killed(signal) => Some(Ended::Killed(signal)),
                    Change::Stopped(signal) => {
                        self.follow_stop(signal)?;
                        None
                    }
                    Change::Continued => {
                        self.stopped = false;
                        None
                    }
                };
                if ended.is_some() {
                    self.take_late(same_group)?;
                    return Ok(ended);
                }
            }
            match self.next_signal()? {
                Some(info) => self.pass_on(&info)?,
                None => return Ok(None),
            }
        }
    }

    /// Has the user sent this signal to the job, through this process or by the terminal?
    pub fn has_sent(&self, signal: i32) -> bool {
        Signal::try_from(signal).is_ok_and(|signal| self.sent.contains(signal))
    }

    /// Once the job has ended: has a signal come that asks this process to end?
    pub fn is_asked_to_end(&mut self) -> Result<bool> {
        const ENDING: [i32; 4] = [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT];
        while let Some(info) = self.next_signal()? {
            self.late.push(info.ssi_signo as i32);
        }
        Ok(self.late.iter().any(|signal| ENDING.contains(signal)))
    }

    fn next_signal(&self) -> Result<Option<siginfo>> {
        loop {
            match self.signals.read_signal() {
                Err(Errno::EINTR) => {}
                other => return other.doing(|| "cannot read signals"),
            }
        }
    }

    /// The job has ended; its pid may be somebody else's soon. What it has had is told apart from what it can no more be sent. (The kernel sends a
    /// signal of the terminal to a whole group before any of it can be seen to have ended.)
    fn take_late(&mut self, same_group: bool) -> Result<()> {
        while let Some(info) = self.next_signal()? {
            let signal = info.ssi_signo as i32;
            if has_had_it(info.ssi_code, info.ssi_pid, self.job, same_group) {
                self.note_sent(&info);
            } else if signal != libc::SIGCHLD {
                self.late.push(signal);
            }
        }
        Ok(())
    }

    /// Of what the job has had by itself, what was sent by the terminal.
    fn note_sent(&mut self, info: &siginfo) {
        if info.ssi_code > 0
            && let Ok(signal) = Signal::try_from(info.ssi_signo as i32)
        {
            self.sent.add(signal);
        }
    }

    fn pass_on(&mut self, info: &siginfo) -> Result<()> {
        let signal = info.ssi_signo as i32;
        if signal == libc::SIGCHLD {
            return if self.adopts { orphans::collect(self.job) } else { Ok(()) };
        }
        if has_had_it(info.ssi_code, info.ssi_pid, self.job, shares_our_group(self.job)) {
            self.note_sent(info);
            return Ok(());
        }
        self.send(signal)
    }

    fn send(&mut self, signal: i32) -> Result<()> {
        if let Some(terminal) = self.terminal.as_mut().filter(|_| signal == libc::SIGCONT) {
            terminal.hand_over(self.job)?;
        }
        if let Ok(signal) = Signal::try_from(signal) {
            self.sent.add(signal);
        }
        match signal::kill(self.job, signal) {
            // It has just ended; that is told next.
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            other => other.doing(|| format!("cannot pass signal {signal} on to pid {}", self.job)),
        }
    }

    /// The job was stopped: so are we, if there is a shell to see it.
    fn follow_stop(&mut self, signal: i32) -> Result<()> {
        let news = !std::mem::replace(&mut self.stopped, true);
        tracing::debug!("pid {} was stopped by signal {signal}", self.job);
        let Some(terminal) = self.terminal.as_mut().filter(|_| news) else { return Ok(()) };
        terminal.take_back()?;
        // Our whole group, as the terminal would: the shell waits for every process of a pipeline.
        signal::kill(Pid(-getpgrp().as_raw()), libc::SIGSTOP).doing(|| "cannot stop ckpt like its job")
    }
}

/// Readable when there is something to [`StandIn::check`].
impl AsFd for StandIn {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.signals.as_fd()
    }
}

/// Did the job get this signal by itself? It sent it, or the kernel did to the process group that the two share.
fn has_had_it(code: i32, sender: u32, job: Pid, same_group: bool) -> bool {
    let sent_by_kernel = code > 0;
    if sent_by_kernel { same_group } else { sender == job.0 as u32 }
}

fn shares_our_group(job: Pid) -> bool {
    unistd::getpgid(Some(unistd::Pid::from_raw(job.0))) == Ok(getpgrp())
}

/// The terminal of which ckpt's process group was the foreground.
#[derive(Debug)]
struct Terminal {
    file: File,
    handed_over: bool,
}

impl Terminal {
    /// `None`: there is none, or it belongs to another group (ckpt runs in the background).
    fn own() -> Option<Terminal> {
        let file = File::options().read(true).write(true).open("/dev/tty").ok()?;
        (tcgetpgrp(&file) == Ok(getpgrp())).then_some(Terminal { file, handed_over: false })
    }

    /// Makes the job's group the foreground, if it has one of its own in this session and we are the foreground now.
    fn hand_over(&mut self, job: Pid) -> Result<()> {
        let job = unistd::Pid::from_raw(job.0);
        let (Ok(group), Ok(session)) = (unistd::getpgid(Some(job)), unistd::getsid(Some(job))) else {
            return Ok(());
        };
        let ours = getpgrp();
        if group == ours || unistd::getsid(None) != Ok(session) || tcgetpgrp(&self.file) != Ok(ours) {
            return Ok(());
        }
        tcsetpgrp(&self.file, group).doing(|| "cannot give the terminal to the restarted program")?;
        self.handed_over = true;
        Ok(())
    }

    fn take_back(&mut self) -> Result<()> {
        if std::mem::take(&mut self.handed_over) {
            match tcsetpgrp(&self.file, getpgrp()) {
                // The terminal has gone.
                Err(nix::errno::Errno::EIO | nix::errno::Errno::ENOTTY) => {}
                other => other.map_err(io::Error::from).doing(|| "cannot take the terminal back")?,
            }
        }
        Ok(())
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        if let Err(error) = self.take_back() {
            tracing::warn!("{error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_that_the_job_has_had_is_not_sent_again() {
        let job = Pid(77);
        assert!(has_had_it(libc::SI_KERNEL, 0, job, true));
        assert!(!has_had_it(libc::SI_KERNEL, 0, job, false));
        assert!(!has_had_it(libc::SI_USER, 5, job, true));
        assert!(has_had_it(libc::SI_USER, 77, job, true));
    }
}
