//! Making the tasks of a restart: a process with a given pid that does nothing, stopped, under our ptrace.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

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

/// PTRACE options while a process is built: it must die with us, and its threads must stop as they are born.
pub const OPTIONS: i32 = libc::PTRACE_O_TRACESYSGOOD | libc::PTRACE_O_TRACECLONE | libc::PTRACE_O_EXITKILL;

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
fn wait_for_burial(pid: Pid) -> Result<()> {
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

fn explain(pid: Pid, error: io::Error) -> Error {
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

/// The arguments of the remote clone3 that makes one more thread with a given id.
pub fn thread_clone_args(tid: Tid, set_tid: u64) -> clone::CloneArgs {
    debug_assert!(tid.0 > 0);
    let flags =
        libc::CLONE_VM | libc::CLONE_FS | libc::CLONE_FILES | libc::CLONE_SIGHAND | libc::CLONE_THREAD | libc::CLONE_SYSVSEM;
    clone::CloneArgs { flags: flags as u64, set_tid, set_tid_size: 1, ..clone::CloneArgs::default() }
}
