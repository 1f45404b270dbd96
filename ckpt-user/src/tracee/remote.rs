//! System calls made inside another task: the one mechanism of both directions.
//!
//! An [`Injector`] belongs to one address space. It plants the [`stub`] where the task can execute it (the slack after the vdso's
//! code) and keeps a little memory in the task for the arguments. A [`RemoteTask`] is one stopped thread with the injector of its
//! process: the first call takes the thread into the stub, dropping the guard takes it out again, with every register, the
//! signal mask and the kernel's memory of an interrupted system call as they were.
//!
//! Crash-only: at each instant, a task that is let go because ckpt died goes on by itself (see [`stub`]). What can stay behind is a
//! few bytes in the slack and one private mapping, which the next ckpt takes away ([`super::stale`]).

use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;

use super::batch::{Answers, Arg, Batch, Slot};
use super::cave::{self, Cave};
use super::maps::Mapping;
use super::memory::ProcessMemory;
use super::stub::{self, Saved, Workspace};
use super::thread::{StoppedThread, gone_or};
use crate::error::{Error, Result};
use crate::ids::{Addr, PAGE_SIZE, PageRange, Pid, Tid};
use crate::sys::deadline::Deadline;
use crate::sys::ptrace::{self, Regs, Stop};

/// Every signal but the two that cannot be blocked.
pub(super) const ALL_SIGNALS: u64 = !0;

/// What ckpt has planted in one address space.
#[derive(Debug)]
pub struct Injector {
    memory: ProcessMemory,
    /// Where the stub is.
    cave: Addr,
    workspace: Workspace,
    /// Stub and workspace are in memory that the caller has mapped for them, and takes away.
    given: bool,
    /// Something was put into the place of the stub.
    planted: bool,
}

impl Injector {
    /// Finds a place for the stub in a stopped process with these mappings. Plants nothing yet. Also returns what is there of a ckpt that was killed; in a
    /// process that was not made by us, see [`super::stale::enter`].
    pub fn new(pid: Pid, mappings: &[Mapping]) -> Result<(Injector, Option<Saved>)> {
        let memory = ProcessMemory::open(pid)?;
        let Cave { at, stale } = cave::find(pid, &memory, mappings)?;
        Ok((Injector { memory, cave: at, workspace: Workspace::default(), given: false, planted: false }, stale))
    }

    /// For a process that has inherited the place of this one's stub and workspace.
    fn inherited(&self, pid: Pid) -> Result<Injector> {
        let memory = ProcessMemory::open(pid)?;
        Ok(Injector { memory, cave: self.cave, workspace: self.workspace, given: self.given, planted: self.planted })
    }

    /// The memory of the process.
    pub fn memory(&self) -> &ProcessMemory {
        &self.memory
    }

    /// From now on works from memory that the caller has mapped: `code` executable, `data` writable, `data_len` bytes.
    pub fn move_to(&mut self, code: Addr, data: Addr, data_len: u64) {
        (self.cave, self.workspace, self.given) = (code, Workspace { addr: data.0, len: data_len }, true);
    }

    /// Is `rip` inside the planted stub?
    fn contains(&self, rip: u64) -> bool {
        (self.cave.0..self.cave.0 + stub::planted_len() as u64).contains(&rip)
    }

    pub(super) fn plant(&mut self, thread: &StoppedThread) -> Result<()> {
        self.planted = true;
        let mut bytes = bytemuck::bytes_of(&Saved::new(&thread.regs, thread.sigmask, self.workspace)).to_vec();
        bytes.extend_from_slice(stub::code());
        self.memory.write(self.cave, &bytes)
    }

    pub(super) fn entry(&self) -> Addr {
        self.cave.offset(size_of::<Saved>() as u64)
    }

    /// Takes away what was planted. `thread` is any stopped thread of the process.
    pub fn remove(mut self, thread: &mut StoppedThread) -> Result<()> {
        if self.given {
            return Ok(());
        }
        if self.workspace.len > 0 {
            self.unmap(thread, self.workspace)?;
        }
        if self.planted { self.clear() } else { Ok(()) }
    }

    /// Unmaps memory of ckpt's own, with the help of a stopped thread.
    pub(super) fn unmap(&mut self, thread: &mut StoppedThread, workspace: Workspace) -> Result<()> {
        let mut task = RemoteTask::new(self, thread);
        task.unmap(workspace)?;
        task.leave()
    }

    /// The place of the stub becomes what it was: zeros.
    pub(super) fn clear(&self) -> Result<()> {
        self.memory.write(self.cave, &vec![0; stub::planted_len()])
    }

    /// Notes, in the task too, where memory of ckpt's own is or is about to be.
    fn note(&mut self, workspace: Workspace, planted: bool) -> Result<()> {
        self.workspace = workspace;
        if planted {
            self.memory.write(self.cave.offset(stub::WORKSPACE_AT), bytemuck::bytes_of(&workspace))?;
        }
        Ok(())
    }
}

/// A stopped thread in which system calls can be made.
#[derive(Debug)]
pub struct RemoteTask<'a> {
    pub(super) injector: &'a mut Injector,
    pub(super) thread: &'a mut StoppedThread,
}

impl<'a> RemoteTask<'a> {
    /// The thread must be stopped and belong to the injector's process.
    pub fn new(injector: &'a mut Injector, thread: &'a mut StoppedThread) -> RemoteTask<'a> {
        RemoteTask { injector, thread }
    }

    /// Its process.
    pub fn pid(&self) -> Pid {
        self.thread.pid
    }

    /// The thread.
    pub fn tid(&self) -> Tid {
        self.thread.tid
    }

    /// The memory of its process.
    pub fn memory(&self) -> &ProcessMemory {
        &self.injector.memory
    }

    /// For a process that it has made.
    pub fn heir(&self, pid: Pid) -> Result<Injector> {
        self.injector.inherited(pid)
    }

    /// Pages of its address space that are ckpt's own, and mapped now.
    pub fn own_pages(&mut self) -> Result<PageRange> {
        let start = self.room(1)?;
        Ok(PageRange { start: start.page(), count: self.injector.workspace.len / PAGE_SIZE })
    }

    /// Threads and processes born from remote calls since this was last asked, each in its first stop.
    pub fn take_born(&mut self) -> Vec<Tid> {
        std::mem::take(&mut self.thread.born)
    }

    /// From now on works from memory that the caller has mapped in the task. See [`Injector::move_to`].
    pub fn move_to(&mut self, code: Addr, data: Addr, data_len: u64) -> Result<()> {
        self.injector.move_to(code, data, data_len);
        self.injector.plant(self.thread)
    }

    /// Makes the calls of a batch, in order, each whatever the ones before it returned.
    pub fn run(&mut self, batch: Batch) -> Result<Answers> {
        if batch.is_empty() {
            return Ok(Answers { returned: Vec::new(), data: batch.data });
        }
        let base = if batch.data.is_empty() { Addr(0) } else { self.room(batch.data.len() as u64)? };
        if !batch.data.is_empty() {
            self.injector.memory.write(base, &batch.data)?;
        }
        let deadline = self.thread.look_after()?;
        let mut answers = Answers { returned: Vec::with_capacity(batch.calls.len()), data: batch.data };
        for call in &batch.calls {
            let value = self.raw(&deadline, call.nr, resolve(base, &call.args))?;
            answers.returned.push(value);
        }
        if !answers.data.is_empty() {
            self.injector.memory.read(base, &mut answers.data)?;
        }
        Ok(answers)
    }

    /// One system call that must succeed; `doing` says what failed otherwise.
    pub fn call<const N: usize>(&mut self, doing: &str, nr: libc::c_long, args: [Arg; N]) -> Result<u64> {
        let mut batch = Batch::new();
        let id = batch.call(nr, args);
        let answers = self.run(batch)?;
        answers.ret(id).map_err(|errno| Error::os(format!("{doing} (in pid {})", self.pid()), errno))
    }

    /// The call with which the process ends.
    pub fn last_call(&mut self, nr: libc::c_long, argument: u64) -> Result<()> {
        let ended = self.raw(&self.thread.look_after()?, nr, [argument, 0, 0, 0, 0, 0]);
        match ended {
            Err(Error::Gone(_)) => {
                self.thread.in_stub = false;
                Ok(())
            }
            Ok(value) => Err(Error::Unexpected(format!("pid {} did not end, but got {value}", self.pid()))),
            Err(error) => Err(error),
        }
    }

    /// Where a piece of a batch's memory will be, for structs that point to others. Only once the workspace is fixed
    /// ([`RemoteTask::move_to`]).
    pub fn address_of(&self, slot: Slot) -> Result<Addr> {
        if !self.injector.given {
            return Err(Error::Unexpected("the workspace may still move".to_owned()));
        }
        Ok(Addr(self.injector.workspace.addr).offset(slot.at as u64))
    }

    /// One system call of plain numbers that must succeed.
    pub(super) fn make(&mut self, doing: &str, nr: libc::c_long, args: [u64; 6]) -> Result<u64> {
        let value = match self.thread.quiet()? {
            Some(quiet) => self.once(quiet, nr, args)?,
            None => self.raw(&self.thread.look_after()?, nr, args)?,
        };
        if (-4095..0).contains(&value) {
            return Err(Error::os(format!("{doing} (in pid {})", self.pid()), io::Error::from_raw_os_error(-value as i32)));
        }
        Ok(value as u64)
    }

    /// Memory in the task of at least `len` bytes.
    pub(super) fn room(&mut self, len: u64) -> Result<Addr> {
        let old = self.injector.workspace;
        if old.len >= len {
            return Ok(Addr(old.addr));
        }
        if self.injector.given {
            return Err(Error::Unexpected(format!("a batch of {len} bytes does not fit into the workspace")));
        }
        if old.len > 0 {
            self.unmap(old)?;
        }
        // Noted before it is there, so that it is found if we die meanwhile. The kernel takes another place if this one is not free.
        let wish = Workspace { addr: random_place(), len: len.next_multiple_of(PAGE_SIZE).max(4 * PAGE_SIZE) };
        self.injector.note(wish, self.thread.in_stub)?;
        let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        let args = [wish.addr, wish.len, prot as u64, flags as u64, u64::MAX, 0];
        let addr = self.make("cannot map a page for ckpt", libc::SYS_mmap, args)?;
        self.injector.note(Workspace { addr, ..wish }, true)?;
        Ok(Addr(addr))
    }

    fn unmap(&mut self, workspace: Workspace) -> Result<()> {
        self.make("cannot unmap ckpt's own page", libc::SYS_munmap, [workspace.addr, workspace.len, 0, 0, 0, 0])?;
        // Gone before anything else can be mapped there.
        self.injector.note(Workspace::default(), true)
    }

    /// One system call: the raw value that it returns.
    fn raw(&mut self, deadline: &Deadline, nr: i64, args: [u64; 6]) -> Result<i64> {
        let (pid, tid) = (self.pid(), self.thread.tid);
        let doing = || format!("cannot make system call {nr} in thread {tid}");
        self.enter(nr, args)?;
        // Once at its entry, once at its exit.
        for _ in 0..2 {
            gone_or(pid, ptrace::cont_to_syscall(tid), doing)?;
            self.expect_syscall_stop(deadline)?;
        }
        let after = gone_or(pid, ptrace::get_regs(tid), doing)?;
        if !self.injector.contains(after.rip) {
            return Err(Error::Unexpected(format!("thread {tid} left the stub at {:#x} during a remote call", after.rip)));
        }
        Ok(after.rax as i64)
    }

    /// Runs instructions of ours in the thread, with `argument` in rdi; they end in a system call, after which it is stopped. Only
    /// once the workspace is fixed ([`RemoteTask::move_to`]): unlike a stub they do not find the way back by themselves.
    pub fn run_code(&mut self, code: &[u8], argument: &[u8]) -> Result<()> {
        if !self.injector.given {
            return Err(Error::Unexpected("code can only run in a task that is being built".to_owned()));
        }
        let at = self.injector.cave.offset(PAGE_SIZE / 2);
        let data = self.room(argument.len() as u64)?;
        self.injector.memory.write(at, code)?;
        self.injector.memory.write(data, argument)?;
        self.enter_at(at, 0, [data.0, 0, 0, 0, 0, 0])?;
        let deadline = self.thread.look_after()?;
        let (pid, tid) = (self.pid(), self.thread.tid);
        for _ in 0..2 {
            gone_or(pid, ptrace::cont_to_syscall(tid), || format!("cannot run code in thread {tid}"))?;
            self.expect_syscall_stop(&deadline)?;
        }
        Ok(())
    }

    /// Sets the registers to the start of the stub with a call in them.
    fn enter(&mut self, nr: i64, args: [u64; 6]) -> Result<()> {
        self.enter_at(self.injector.entry(), nr, args)
    }

    fn enter_at(&mut self, at: Addr, nr: i64, args: [u64; 6]) -> Result<()> {
        let (pid, tid) = (self.pid(), self.thread.tid);
        if !self.thread.in_stub {
            self.injector.plant(self.thread)?;
        }
        let mut regs = self.thread.regs;
        regs.rip = at.0;
        regs.orig_rax = u64::MAX;
        regs.rax = nr as u64;
        [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9] = args;
        let doing = || format!("cannot make system call {nr} in thread {tid}");
        gone_or(pid, ptrace::set_regs(tid, &regs), doing)?;
        self.thread.at_signals = false;
        if !self.thread.in_stub {
            self.thread.in_stub = true;
            // After the registers: should ckpt die between the two, the stub puts the mask back that never changed.
            gone_or(pid, ptrace::set_sigmask(tid, ALL_SIGNALS), doing)?;
        }
        Ok(())
    }

    /// Waits until the thread, let run, is at the entry or the exit of a system call.
    fn expect_syscall_stop(&mut self, deadline: &Deadline) -> Result<()> {
        let (pid, tid) = (self.pid(), self.thread.tid);
        let doing = || format!("cannot resume thread {tid}");
        loop {
            match self.thread.wait(deadline)? {
                Stop::Syscall => return Ok(()),
                Stop::Signal(signal) => self.thread.hold_back(signal)?,
                Stop::Other(libc::PTRACE_EVENT_CLONE | libc::PTRACE_EVENT_FORK) => {
                    let born = gone_or(pid, ptrace::event_message(tid), doing)?;
                    self.thread.born.push(Tid(born as i32));
                }
                Stop::Event(_) | Stop::Other(_) => {}
                Stop::Ended(_) => return Err(Error::Gone(pid)),
            }
            gone_or(pid, ptrace::cont_to_syscall(tid), doing)?;
        }
    }

    /// Begins the one call of `batch` and interrupts it at once: what it returned, as the kernel's way out sees it. A call that waits
    /// gives -ERESTART_RESTARTBLOCK, and the kernel remembers how long it still has to. [`RemoteTask::leave_with`] must follow.
    pub fn run_interrupted(&mut self, batch: Batch) -> Result<i64> {
        let [call] = batch.calls.as_slice() else {
            return Err(Error::Unexpected("one call at a time can be interrupted".to_owned()));
        };
        let base = self.room(batch.data.len().max(1) as u64)?;
        self.injector.memory.write(base, &batch.data)?;
        let args = resolve(base, &call.args);
        let (pid, tid) = (self.pid(), self.thread.tid);
        let doing = || format!("cannot make system call {} in thread {tid}", call.nr);
        self.enter(call.nr, args)?;
        let deadline = self.thread.look_after()?;
        gone_or(pid, ptrace::cont_to_syscall(tid), doing)?;
        self.expect_syscall_stop(&deadline)?;
        // Told to stop before it has begun to wait: whatever waits is interrupted, whatever need not wait ends.
        gone_or(pid, ptrace::interrupt(tid), doing)?;
        gone_or(pid, ptrace::cont_to_syscall(tid), doing)?;
        self.expect_syscall_stop(&deadline)?;
        let after = gone_or(pid, ptrace::get_regs(tid), doing)?;
        Ok(after.rax as i64)
    }

    /// Takes the thread out of the stub: everything is as it was when it was stopped.
    pub fn leave(&mut self) -> Result<()> {
        let (regs, sigmask) = (self.thread.regs, self.thread.sigmask);
        self.leave_with(&regs, sigmask)
    }

    /// Takes the thread out of the stub into other registers and another signal mask: the last step of a restart.
    pub fn leave_with(&mut self, regs: &Regs, sigmask: u64) -> Result<()> {
        let (pid, tid) = (self.pid(), self.thread.tid);
        if self.thread.in_stub {
            self.thread.reach_signals()?;
        }
        let doing = || format!("cannot set the registers of thread {tid}");
        gone_or(pid, ptrace::set_sigmask(tid, sigmask), doing)?;
        gone_or(pid, ptrace::set_regs(tid, regs), doing)?;
        self.thread.in_stub = false;
        self.thread.regs = *regs;
        self.thread.sigmask = sigmask;
        Ok(())
    }
}

/// An address in the wide space that programs leave between their heaps and their stacks.
fn random_place() -> u64 {
    // The standard library seeds these from the system's random numbers.
    let random = RandomState::new().build_hasher().finish();
    0x2000_0000_0000 + (random % (1 << 30)) * PAGE_SIZE
}

pub(super) fn resolve(base: Addr, args: &[Arg; 6]) -> [u64; 6] {
    args.map(|arg| match arg {
        Arg::Num(n) => n,
        Arg::Ptr(slot) => base.0 + slot.at as u64,
    })
}

impl Drop for RemoteTask<'_> {
    fn drop(&mut self) {
        if self.thread.in_stub
            && let Err(error) = self.leave()
        {
            // The thread goes on all the same once it is let go: the stub puts everything back by itself.
            tracing::warn!("cannot take thread {} out of a remote call: {error}", self.thread.tid);
        }
    }
}
