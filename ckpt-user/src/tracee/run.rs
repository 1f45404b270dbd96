//! Runs of remote calls: the stub makes one after the other by itself, so that the thread need not be stopped at each.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use super::batch::{Answers, Batch, Call};
use super::quiet::Quiet;
use super::remote::{ALL_SIGNALS, RemoteTask, resolve};
use super::stub::{self, PlannedCall};
use super::thread::gone_or;
use crate::error::{Error, Result};
use crate::ids::Addr;
use crate::sys::ptrace::{self, Regs, Stop};

impl RemoteTask<'_> {
    /// As [`RemoteTask::run`], for calls that change nothing in the task but the memory of the batch: all in one go, with a signal at its end that the program
    /// does not notice. Without one, one after the other.
    pub fn ask(&mut self, batch: Batch) -> Result<Answers> {
        let Some(quiet) = self.thread.quiet()?.filter(|_| batch.calls.len() > 1) else {
            return self.run(batch);
        };
        let count = batch.calls.len();
        let results_at = batch.data.len().next_multiple_of(16);
        let list_at = results_at + (count + 1) * size_of::<i64>();
        let base = self.room((list_at + (count + 1) * size_of::<PlannedCall>()) as u64)?;
        let (results, list) = (base.offset(results_at as u64), base.offset(list_at as u64));
        let ends = std::iter::once(Call { nr: libc::SYS_tgkill, args: quiet.call() });
        let result = |n: usize| results.offset((n * size_of::<i64>()) as u64).0;
        let plan = |(n, call): (usize, Call)| PlannedCall { nr: call.nr, args: resolve(base, &call.args), result: result(n) };
        let calls: Vec<PlannedCall> = batch.calls.into_iter().chain(ends).enumerate().map(plan).collect();
        self.injector.memory().write(base, &batch.data)?;
        let mut run = Run::begin(self, list, &calls, quiet)?;
        run.to(self, count)?;
        run.end(self)?;
        let mut answers = Answers { returned: vec![0; count], data: batch.data };
        self.injector.memory().read(base, &mut answers.data)?;
        self.injector.memory().read(results, bytemuck::cast_slice_mut(&mut answers.returned))?;
        Ok(answers)
    }

    /// Has the task take a descriptor of ours: its number there. The task needs the right to ptrace us.
    pub fn take_ours(&mut self, doing: &str, ours: BorrowedFd<'_>) -> Result<RawFd> {
        let us = self.call(doing, libc::SYS_pidfd_open, [std::process::id().into(), 0.into()])?;
        let taken = self.call(doing, libc::SYS_pidfd_getfd, [us.into(), ours.as_raw_fd().into(), 0.into()]);
        self.call(doing, libc::SYS_close, [us.into()])?;
        Ok(taken? as RawFd)
    }

    /// A call that makes a descriptor, of which `take` makes what it wants; then the task closes it. It does so, too, if ckpt dies meanwhile: but for a program
    /// that would notice any signal.
    pub fn with_descriptor<T>(
        &mut self,
        doing: &str,
        (nr, args): (libc::c_long, [u64; 6]),
        take: impl FnOnce(i32) -> Result<T>,
    ) -> Result<T> {
        let Some(quiet) = self.thread.quiet()? else {
            let fd = self.make(doing, nr, args)?;
            let taken = take(fd as i32);
            self.make("cannot close a descriptor of ckpt's own", libc::SYS_close, [fd, 0, 0, 0, 0, 0])?;
            return taken;
        };
        const CALLS: usize = 4;
        let base = self.room((CALLS * size_of::<PlannedCall>() + size_of::<i64>()) as u64)?;
        let nowhere = base.offset((CALLS * size_of::<PlannedCall>()) as u64).0;
        // The argument of the third call.
        let fd_at = base.offset((2 * size_of::<PlannedCall>() + std::mem::offset_of!(PlannedCall, args)) as u64);
        let stop = PlannedCall { nr: libc::SYS_tgkill, args: resolve(base, &quiet.call()), result: nowhere };
        let calls: [PlannedCall; CALLS] = [
            PlannedCall { nr, args, result: fd_at.0 },
            stop,
            PlannedCall { nr: libc::SYS_close, args: [u64::MAX, 0, 0, 0, 0, 0], result: nowhere },
            stop,
        ];
        let mut run = Run::begin(self, base, &calls, quiet)?;
        run.to(self, 1)?;
        let mut fd = [0i64];
        self.injector.memory().read(fd_at, bytemuck::cast_slice_mut(&mut fd))?;
        let taken = match fd[0] {
            errno @ -4095..0 => {
                Err(Error::os(format!("{doing} (in pid {})", self.pid()), io::Error::from_raw_os_error(-errno as i32)))
            }
            fd => take(fd as i32),
        };
        run.to(self, 3)?;
        run.end(self)?;
        taken
    }
}

impl RemoteTask<'_> {
    /// One call of plain numbers: the raw value that it returns. The thread stops once, at its end.
    pub(super) fn once(&mut self, quiet: Quiet, nr: libc::c_long, args: [u64; 6]) -> Result<i64> {
        let (at, called) = stub::once_and_called();
        let [rdi, rsi, rdx, r10, r8, r9] = args;
        let Quiet { tgid, tid, signal } = quiet;
        let (rbx, r12, r13) = (tgid as u64, tid as u64, signal as u64);
        let rip = self.injector.entry().0 + at;
        let regs = Regs { rip, rax: nr as u64, rdi, rsi, rdx, r10, r8, r9, rbx, r12, r13, ..self.thread.regs };
        self.enter_with(regs, quiet)?;
        let there = self.injector.entry().0 + called;
        let stopped = self.until_signal(quiet.signal, |now| now.rip == there)?;
        self.block_signals()?;
        Ok(stopped.rbp as i64)
    }

    /// Into the stub, with registers of its own, and no signal but the quiet one let through.
    fn enter_with(&mut self, regs: Regs, quiet: Quiet) -> Result<()> {
        let (pid, tid) = (self.pid(), self.tid());
        let doing = || format!("cannot make system calls in thread {tid}");
        if !self.thread.in_stub {
            self.injector.plant(self.thread)?;
        }
        gone_or(pid, ptrace::set_regs(tid, &Regs { orig_rax: u64::MAX, ..regs }), doing)?;
        (self.thread.in_stub, self.thread.at_signals) = (true, false);
        // After the registers, as in `enter_at`.
        gone_or(pid, ptrace::set_sigmask(tid, ALL_SIGNALS & !(1 << (quiet.signal - 1))), doing)
    }

    /// Lets it run until the signal stops it where it `is_there`, by its registers.
    fn until_signal(&mut self, signal: i32, is_there: impl Fn(&Regs) -> bool) -> Result<Regs> {
        let (pid, tid) = (self.pid(), self.tid());
        let doing = || format!("cannot make system calls in thread {tid}");
        let deadline = self.thread.look_after()?;
        loop {
            self.thread.at_signals = false;
            gone_or(pid, ptrace::cont(tid, 0), doing)?;
            match self.thread.wait(&deadline)? {
                Stop::Signal(got) if got == signal => {
                    let now = gone_or(pid, ptrace::get_regs(tid), doing)?;
                    // Elsewhere it came from somebody else, and would have done nothing to the program.
                    if is_there(&now) {
                        self.thread.at_signals = true;
                        return Ok(now);
                    }
                }
                Stop::Signal(signal) => self.thread.hold_back(signal)?,
                Stop::Event(_) | Stop::Other(_) | Stop::Syscall => {}
                Stop::Ended(_) => return Err(Error::Gone(pid)),
            }
        }
    }

    /// The quiet signal is blocked again, as all others are.
    fn block_signals(&self) -> Result<()> {
        let tid = self.tid();
        gone_or(self.pid(), ptrace::set_sigmask(tid, ALL_SIGNALS), || format!("cannot block the signals of thread {tid}"))
    }
}

/// A run of calls that the stub makes by itself, from one call to the next of those that stop it.
struct Run {
    list: Addr,
    signal: i32,
}

impl Run {
    /// The calls are at `list` from then on; none is made yet. The last of them stops it.
    fn begin(task: &mut RemoteTask<'_>, list: Addr, calls: &[PlannedCall], quiet: Quiet) -> Result<Run> {
        task.injector.memory().write(list, bytemuck::cast_slice(calls))?;
        let run = Run { list, signal: quiet.signal };
        let (rip, rbx, rbp) = (task.injector.entry().0 + stub::run_and_called().0, list.0, run.call(calls.len()));
        task.enter_with(Regs { rip, rbx, rbp, ..task.thread.regs }, quiet)?;
        Ok(run)
    }

    fn call(&self, n: usize) -> u64 {
        self.list.offset((n * size_of::<PlannedCall>()) as u64).0
    }

    /// Returns when the call number `n`, which sends the signal, has stopped the thread.
    fn to(&mut self, task: &mut RemoteTask<'_>, n: usize) -> Result<()> {
        let called = task.injector.entry().0 + stub::run_and_called().1;
        task.until_signal(self.signal, |now| now.rip == called && now.rbx == self.call(n)).map(drop)
    }

    fn end(self, task: &RemoteTask<'_>) -> Result<()> {
        task.block_signals()
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::ids::{Pid, Tid};
    use crate::resources::trial::Trial;
    use crate::sys::procfs;

    fn quiet(pid: Pid, tid: Tid) -> Option<Quiet> {
        let quiet = Quiet::of(&procfs::status(pid, tid).unwrap());
        assert!(quiet.is_some());
        quiet
    }

    fn descriptors(pid: Pid) -> usize {
        std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
    }

    #[test]
    fn a_run_answers_as_calls_one_by_one_do() {
        let mut sleep = Trial::sleep();
        let (pid, tid) = (sleep.pid(), sleep.tids()[0]);
        let ask = || {
            let mut batch = Batch::new();
            let name = batch.room(16);
            batch.call(libc::SYS_getppid, []);
            batch.call(libc::SYS_prctl, [libc::PR_GET_NAME.into(), name.into()]);
            batch.call(libc::SYS_close, [(-1).into()]);
            batch.call(libc::SYS_getpid, []);
            batch
        };
        let one_by_one = sleep.task().run(ask()).unwrap();
        let before = procfs::status(pid, tid).unwrap();
        let mut task = sleep.task();
        let at_once = task.ask(ask()).unwrap();
        assert!(task.thread.quiet().unwrap().is_some());
        task.leave().unwrap();
        assert_eq!((&at_once.returned, &at_once.data), (&one_by_one.returned, &one_by_one.data));
        assert_eq!((at_once.returned[2], at_once.returned[3]), (-i64::from(libc::EBADF), i64::from(pid.0)));
        let after = procfs::status(pid, tid).unwrap();
        assert_eq!((after.sigpnd, after.shdpnd, after.sigblk), (before.sigpnd, before.shdpnd, before.sigblk));
    }

    #[test]
    fn one_call_answers_whether_it_is_quiet_or_not() {
        let mut sleep = Trial::sleep();
        let (pid, tid) = (sleep.pid(), sleep.tids()[0]);
        for quiet in [quiet(pid, tid), None] {
            let mut task = sleep.task();
            task.thread.quiet = Some(quiet);
            assert_eq!(task.make("cannot ask", libc::SYS_getpid, [0; 6]).unwrap(), pid.0 as u64);
            let error = task.make("cannot ask", libc::SYS_close, [u64::MAX, 0, 0, 0, 0, 0]).unwrap_err();
            assert_eq!(error.errno(), Some(libc::EBADF), "{error}");
            let before = task.thread.regs;
            task.leave().unwrap();
            assert_eq!(ptrace::get_regs(tid).unwrap(), before);
        }
    }

    #[test]
    fn a_descriptor_is_there_as_long_as_it_is_wanted() {
        let mut sleep = Trial::sleep();
        let (pid, tid) = (sleep.pid(), sleep.tids()[0]);
        let before = descriptors(pid);
        for quiet in [quiet(pid, tid), None] {
            let open = (libc::SYS_eventfd2, [0; 6]);
            sleep.task().thread.quiet = Some(quiet);
            let there = sleep.task().with_descriptor("cannot make one", open, |fd| Ok((fd, descriptors(pid)))).unwrap();
            assert_eq!((there.1, descriptors(pid)), (before + 1, before), "descriptor {}", there.0);
            let fails = (libc::SYS_dup, [u64::MAX, 0, 0, 0, 0, 0]);
            let error = sleep.task().with_descriptor("cannot make one", fails, |_| Ok(())).unwrap_err();
            assert!(error.to_string().contains("cannot make one"), "{error}");
        }
    }

    /// Whoever traces it is gone in the middle, as if killed: the thread closes the descriptor by itself, and goes on as if nothing had been.
    #[test]
    fn a_descriptor_is_closed_even_if_ckpt_dies() {
        let mut sleep = Trial::sleep();
        let (pid, tid) = (sleep.pid(), sleep.tids()[0]);
        let before = descriptors(pid);
        let mut task = sleep.task();
        let open = (libc::SYS_eventfd2, [0; 6]);
        let result = task.with_descriptor("cannot make one", open, |_| {
            ptrace::detach(tid, 0).unwrap();
            Ok(())
        });
        assert!(matches!(result, Err(Error::Gone(_))), "{result:?}");
        let until = Instant::now() + Duration::from_secs(10);
        while descriptors(pid) > before {
            assert!(Instant::now() < until, "the descriptor is still there");
            std::thread::yield_now();
        }
        // Nobody gets it back into its stub, or out of it.
        std::mem::forget(task);
        assert!(!procfs::has_died(pid, tid));
    }
}
