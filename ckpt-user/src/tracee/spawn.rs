//! Making the tasks of a restart: processes with given pids that do nothing, stopped, under our ptrace.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use super::batch::Batch;
use super::remote::{Injector, RemoteTask};
use super::thread::{StoppedThread, gone_or};
use crate::error::{Doing, Error, Result};
use crate::ids::{Pid, Tid};
use crate::sys::clone::{self, Cloned, Leash};
use crate::sys::ptrace::{self, Stop};
use crate::sys::{pidfd, procfs};

/// A process that is being built. Dropped before [`NewProcess::release`], it is killed: a failed restart leaves nothing behind.
#[derive(Debug)]
pub struct NewProcess {
    /// Its pid.
    pub pid: Pid,
    /// Its threads, the leader first.
    pub threads: Vec<StoppedThread>,
    armed: bool,
}

/// PTRACE options while a process is built: it must die with us, and its threads and children must stop as they are born.
pub const OPTIONS: i32 =
    libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_TRACECLONE | libc::PTRACE_O_TRACEFORK | libc::PTRACE_O_EXITKILL;

impl NewProcess {
    /// Makes a process with the id `pid`, a copy of ckpt that never runs any code of it but a wait.
    ///
    /// `orphan`: not as our child, but as an orphan, so that it outlives us without noticing.
    pub fn spawn(pid: Pid, orphan: bool) -> Result<NewProcess> {
        wait_for_burial(pid)?;
        let leash = Leash::new().doing(|| "cannot make a pipe")?;
        let freeing = Freeing::new();
        let made = loop {
            let made = if orphan { clone::orphan_with_pid(pid) } else { clone::child_with_pid(pid, 0) };
            match made {
                Err(error) if error.raw_os_error() == Some(libc::EEXIST) && freeing.goes_on(pid.0) => {}
                made => break made,
            }
        };
        match made {
            Ok(Cloned::Child) => leash.wait(),
            Ok(Cloned::Parent(got)) => debug_assert_eq!(got, pid),
            Err(error) => return Err(explain(pid, error)),
        }
        let mut process = NewProcess { pid, threads: Vec::new(), armed: true };
        let tid = pid.leader();
        gone_or(pid, ptrace::seize(tid, OPTIONS), || format!("cannot trace the new process {pid}"))?;
        gone_or(pid, ptrace::interrupt(tid), || format!("cannot stop the new process {pid}"))?;
        process.adopt(tid)?;
        // From here on the kernel kills it if we die.
        drop(leash);
        Ok(process)
    }

    /// A process that another one under our ptrace has just made, and that has not reported its first stop yet.
    pub fn born(pid: Pid) -> Result<NewProcess> {
        let mut process = NewProcess { pid, threads: Vec::new(), armed: true };
        process.adopt(pid.leader())?;
        Ok(process)
    }

    /// Has it end as `status` tells, in the words of wait(2): so that its parent finds just that. `injector`: for calls in it.
    pub fn end(mut self, injector: &mut Injector, status: i32) -> Result<()> {
        let (pid, tid) = (self.pid, self.pid.leader());
        let doing = || format!("cannot have pid {pid} end");
        let signal = if libc::WIFSIGNALED(status) { libc::WTERMSIG(status) } else { 0 };
        let mut task = RemoteTask::new(injector, &mut self.threads[0]);
        match signal {
            0 => task.last_call(libc::SYS_exit_group, libc::WEXITSTATUS(status) as u64)?,
            libc::SIGKILL => {
                drop(task);
                crate::sys::signal::kill(pid, signal).doing(doing)?;
            }
            signal => {
                // No core of it, and no handler of ckpt's.
                let mut batch = Batch::new();
                let (none, default) = (batch.value(&[0u64; 2]), batch.value(&[0u64; 4]));
                let limit = batch.call(libc::SYS_setrlimit, [libc::RLIMIT_CORE.into(), none.into()]);
                let action = batch.call(libc::SYS_rt_sigaction, [signal.into(), default.into(), 0.into(), 8.into()]);
                let answers = task.run(batch)?;
                answers.ret(limit).and(answers.ret(action)).doing(doing)?;
                task.leave()?;
                drop(task);
                gone_or(pid, ptrace::set_sigmask(tid, 0), doing)?;
                crate::sys::signal::tgkill(pid, tid, signal).doing(doing)?;
                gone_or(pid, ptrace::cont(tid, 0), doing)?;
                self.deliver(signal)?;
            }
        }
        self.armed = false;
        ptrace::wait_for_end(tid).doing(doing)
    }

    /// Has all its threads stop as by SIGSTOP, without an instruction of their own.
    pub fn stop(&mut self) -> Result<()> {
        let (pid, signal) = (self.pid, libc::SIGSTOP);
        let doing = || format!("cannot stop pid {pid}");
        crate::sys::signal::tgkill(pid, pid.leader(), signal).doing(doing)?;
        for thread in &self.threads {
            let tid = thread.tid;
            let mut pass = 0;
            loop {
                gone_or(pid, ptrace::cont(tid, pass), doing)?;
                match gone_or(pid, ptrace::wait(tid, true), doing)? {
                    Some(Stop::Event(by)) if by == signal => break,
                    Some(Stop::Signal(got)) if got == signal => pass = signal,
                    Some(Stop::Ended(_)) => return Err(Error::Gone(pid)),
                    _ => pass = 0,
                }
            }
        }
        Ok(())
    }

    /// Waits until the main thread is about to get a signal, and has it get that.
    fn deliver(&mut self, signal: i32) -> Result<()> {
        let (pid, tid) = (self.pid, self.pid.leader());
        let doing = || format!("cannot have pid {pid} end");
        loop {
            let pass = match gone_or(pid, ptrace::wait(tid, true), doing)? {
                Some(Stop::Signal(got)) if got == signal => {
                    return gone_or(pid, ptrace::cont(tid, signal), doing);
                }
                Some(Stop::Ended(_)) => return Ok(()),
                Some(_) => true,
                None => false,
            };
            if pass {
                gone_or(pid, ptrace::cont(tid, 0), doing)?;
            }
        }
    }

    /// Takes in a thread that has not reported its first stop yet.
    pub fn adopt(&mut self, tid: Tid) -> Result<()> {
        loop {
            match gone_or(self.pid, ptrace::wait(tid, true), || format!("cannot wait for thread {tid}"))? {
                Some(Stop::Event(signal)) => {
                    self.threads.push(StoppedThread::note(self.pid, tid, signal)?);
                    return Ok(());
                }
                Some(Stop::Ended(_)) => return Err(Error::Gone(self.pid)),
                Some(_) => gone_or(self.pid, ptrace::cont(tid, 0), || format!("cannot resume thread {tid}"))?,
                None => {}
            }
        }
    }

    /// Lets all its threads run. [`Error::Gone`]: it was killed at the last moment.
    pub fn release(mut self) -> Result<()> {
        // The leader last: while it stands, the others can still be let go should one of them fail.
        while let Some(thread) = self.threads.pop() {
            let tid = thread.tid;
            if let Err(error) = thread.detach() {
                self.armed = false;
                self.kill(Some(tid));
                return Err(error);
            }
        }
        self.armed = false;
        Ok(())
    }

    /// SIGKILL ends a traced process whatever it does; as its tracer we must collect every thread for it to be gone: ours, and `more`.
    fn kill(&mut self, more: Option<Tid>) {
        if let Err(error) = crate::sys::signal::kill(self.pid, libc::SIGKILL) {
            tracing::warn!("cannot kill the half-made process {}: {error}", self.pid);
            return;
        }
        let leader = self.pid.leader();
        let others = self.threads.iter().map(|t| t.tid).chain(more).filter(|&tid| tid != leader);
        for tid in others.chain([leader]) {
            if let Err(error) = ptrace::wait_for_end(tid) {
                tracing::warn!("cannot wait for the half-made process {}: {error}", self.pid);
            }
        }
    }
}

impl Drop for NewProcess {
    fn drop(&mut self) {
        if self.armed {
            self.kill(None);
        }
    }
}

/// A process that has just been killed keeps its pid until its parent, or init, has collected its status: gives them a moment.
pub fn wait_for_burial(pid: Pid) -> Result<()> {
    let Ok(dead) = pidfd::open(pid) else { return Ok(()) };
    let until = Instant::now() + BURIAL;
    while procfs::thread_state(pid, pid.leader()).is_some_and(procfs::is_dead) && Instant::now() < until {
        // Newer kernels tell when the status was collected (POLLHUP); on others, we look again.
        pidfd::wait_for_burial(dead.as_fd(), BURIAL / 200).doing(|| format!("cannot wait for the dead process {pid}"))?;
    }
    Ok(())
}

/// The kernel frees the ids of a dead task a little later than it forgets the task (Linux 6.15). Nothing tells of it.
#[derive(Debug)]
pub struct Freeing {
    until: Instant,
}

impl Freeing {
    /// To be made before the first attempt to use an id.
    #[expect(clippy::new_without_default, reason = "it begins now")]
    pub fn new() -> Freeing {
        Freeing { until: Instant::now() + BURIAL }
    }

    /// The id was said to be in use. True: nobody has it, so it is worth trying again, after the moment that this has waited.
    pub fn goes_on(&self, id: i32) -> bool {
        let goes_on = Instant::now() < self.until && !Path::new(&format!("/proc/{id}")).exists();
        if goes_on {
            std::thread::sleep(BURIAL / 10_000);
        }
        goes_on
    }
}

/// How long at most.
const BURIAL: Duration = Duration::from_secs(2);

/// Why a process with this pid could not be made.
pub fn explain(pid: Pid, error: io::Error) -> Error {
    match error.raw_os_error() {
        Some(libc::EEXIST) => {
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            Error::Restart(format!("pid {pid} is in use (by '{}'); end that process first", name.trim()))
        }
        Some(libc::EPERM) => Error::Restart(format!(
            "choosing the pid ({pid}) needs CAP_CHECKPOINT_RESTORE in this pid namespace; run ckpt as root"
        )),
        _ => Err::<(), _>(error).doing(|| format!("cannot make a process with pid {pid}")).unwrap_err(),
    }
}

/// The arguments of the remote clone3 that makes a process. `flags`: what it shares with its maker; `set_tid`: where its pid stands, if it must have a given
/// one.
pub fn process_clone_args(flags: i32, exit_signal: i32, set_tid: Option<u64>) -> clone::CloneArgs {
    clone::CloneArgs {
        flags: flags as u64,
        // A sister has that of its maker.
        exit_signal: if flags & libc::CLONE_PARENT != 0 { 0 } else { exit_signal as u64 },
        set_tid: set_tid.unwrap_or(0),
        set_tid_size: set_tid.is_some().into(),
        ..clone::CloneArgs::default()
    }
}

/// The arguments of the remote clone3 that makes one more thread with a given id.
pub fn thread_clone_args(tid: Tid, set_tid: u64) -> clone::CloneArgs {
    debug_assert!(tid.0 > 0);
    let flags =
        libc::CLONE_VM | libc::CLONE_FS | libc::CLONE_FILES | libc::CLONE_SIGHAND | libc::CLONE_THREAD | libc::CLONE_SYSVSEM;
    clone::CloneArgs { flags: flags as u64, set_tid, set_tid_size: 1, ..clone::CloneArgs::default() }
}
