//! System calls made inside another task: the one mechanism of both directions.
//!
//! An [`Injector`] belongs to one address space. It plants the [`stub`] where the task can execute it (the slack after the vdso's
//! code) and keeps a little memory in the task for the arguments. A [`RemoteTask`] is one stopped thread with the injector of its
//! process: the first call takes the thread into the stub, dropping the guard takes it out again, with every register, the
//! signal mask and the kernel's memory of an interrupted system call as they were.
//!
//! Crash-only: at each instant, a task that is let go because ckpt died goes on by itself (see [`stub`]). What can stay behind is a
//! few bytes in the slack and one private mapping.

use std::io;

use super::batch::{Answers, Arg, Batch, Slot};
use super::cave;
use super::memory::ProcessMemory;
use super::stub;
use super::thread::{StoppedThread, gone_or};
use crate::error::{Error, Result};
use crate::ids::{Addr, PAGE_SIZE, Pid, Tid};
use crate::sys::ptrace::{self, Regs, Stop};

/// Every signal but the two that cannot be blocked.
const ALL_SIGNALS: u64 = !0;

/// What ckpt has planted in one address space.
#[derive(Debug)]
pub struct Injector {
    memory: ProcessMemory,
    cave: Addr,
    /// What was in the cave before.
    original: Vec<u8>,
    workspace: Option<Workspace>,
}

#[derive(Clone, Copy, Debug)]
struct Workspace {
    addr: Addr,
    len: u64,
    /// Mapped by us for the injector's life (false: given by the caller, who takes it away).
    ours: bool,
}

impl Injector {
    /// Finds a place for the stub in a stopped process. Plants nothing yet.
    pub fn new(pid: Pid) -> Result<Injector> {
        let memory = ProcessMemory::open(pid)?;
        let cave = cave::find(pid, &memory, stub::planted_len())?;
        let mut original = vec![0; stub::planted_len()];
        memory.read(cave, &mut original)?;
        Ok(Injector { memory, cave, original, workspace: None })
    }

    /// The memory of the process.
    pub fn memory(&self) -> &ProcessMemory {
        &self.memory
    }

    /// From now on works from memory that the caller has mapped: `code` executable, `data` writable, `data_len` bytes.
    pub fn move_to(&mut self, code: Addr, data: Addr, data_len: u64) {
        self.cave = code;
        self.original = Vec::new();
        self.workspace = Some(Workspace { addr: data, len: data_len, ours: false });
    }

    /// Is `regs` inside the planted stub?
    fn contains(&self, rip: u64) -> bool {
        (self.cave.0..self.cave.0 + stub::planted_len() as u64).contains(&rip)
    }

    fn plant(&self, thread: &StoppedThread) -> Result<()> {
        let mut bytes = bytemuck::bytes_of(&stub::Saved::new(&thread.regs, thread.sigmask)).to_vec();
        bytes.extend_from_slice(stub::code());
        self.memory.write(self.cave, &bytes)
    }

    fn entry(&self) -> Addr {
        self.cave.offset(size_of::<stub::Saved>() as u64)
    }

    /// Takes away what was planted. `thread` is any stopped thread of the process.
    pub fn remove(mut self, thread: &mut StoppedThread) -> Result<()> {
        if let Some(workspace) = self.workspace.take().filter(|w| w.ours) {
            let mut task = RemoteTask::new(&mut self, thread);
            task.make("cannot unmap ckpt's own page", libc::SYS_munmap, [workspace.addr.0, workspace.len, 0, 0, 0, 0])?;
            task.leave()?;
        }
        if !self.original.is_empty() {
            self.memory.write(self.cave, &self.original)?;
        }
        Ok(())
    }
}

/// A stopped thread in which system calls can be made.
#[derive(Debug)]
pub struct RemoteTask<'a> {
    injector: &'a mut Injector,
    thread: &'a mut StoppedThread,
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

    /// Threads born from remote calls since this was last asked, each in its first stop.
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
        let mut answers = Answers { returned: Vec::with_capacity(batch.calls.len()), data: batch.data };
        for call in &batch.calls {
            let value = self.raw(call.nr, resolve(base, &call.args))?;
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

    /// Where a piece of a batch's memory will be, for structs that point to others. Only once the workspace is fixed
    /// ([`RemoteTask::move_to`]).
    pub fn address_of(&self, slot: Slot) -> Result<Addr> {
        match self.injector.workspace {
            Some(workspace) if !workspace.ours => Ok(workspace.addr.offset(slot.at as u64)),
            _ => Err(Error::Unexpected("the workspace may still move".to_owned())),
        }
    }

    /// One system call of plain numbers that must succeed.
    fn make(&mut self, doing: &str, nr: libc::c_long, args: [u64; 6]) -> Result<u64> {
        let value = self.raw(nr, args)?;
        if (-4095..0).contains(&value) {
            return Err(Error::os(format!("{doing} (in pid {})", self.pid()), io::Error::from_raw_os_error(-value as i32)));
        }
        Ok(value as u64)
    }

    /// Memory in the task of at least `len` bytes.
    fn room(&mut self, len: u64) -> Result<Addr> {
        if let Some(workspace) = self.injector.workspace {
            if workspace.len >= len {
                return Ok(workspace.addr);
            }
            if !workspace.ours {
                return Err(Error::Unexpected(format!("a batch of {len} bytes does not fit into the workspace")));
            }
        }
        let len = len.next_multiple_of(PAGE_SIZE).max(4 * PAGE_SIZE);
        let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        let args = [0, len, prot as u64, flags as u64, u64::MAX, 0];
        let addr = Addr(self.make("cannot map a page for ckpt", libc::SYS_mmap, args)?);
        if let Some(old) = self.injector.workspace.replace(Workspace { addr, len, ours: true }) {
            self.make("cannot unmap ckpt's own page", libc::SYS_munmap, [old.addr.0, old.len, 0, 0, 0, 0])?;
        }
        Ok(addr)
    }

    /// One system call: the raw value that it returns.
    fn raw(&mut self, nr: i64, args: [u64; 6]) -> Result<i64> {
        let (pid, tid) = (self.pid(), self.thread.tid);
        let doing = || format!("cannot make system call {nr} in thread {tid}");
        self.enter(nr, args)?;
        // Once at its entry, once at its exit.
        for _ in 0..2 {
            gone_or(pid, ptrace::cont_to_syscall(tid), doing)?;
            self.expect_syscall_stop()?;
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
        if !self.injector.original.is_empty() {
            return Err(Error::Unexpected("code can only run in a task that is being built".to_owned()));
        }
        let at = self.injector.cave.offset(PAGE_SIZE / 2);
        let data = self.room(argument.len() as u64)?;
        self.injector.memory.write(at, code)?;
        self.injector.memory.write(data, argument)?;
        self.enter_at(at, 0, [data.0, 0, 0, 0, 0, 0])?;
        let (pid, tid) = (self.pid(), self.thread.tid);
        for _ in 0..2 {
            gone_or(pid, ptrace::cont_to_syscall(tid), || format!("cannot run code in thread {tid}"))?;
            self.expect_syscall_stop()?;
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
        if !self.thread.in_stub {
            self.thread.in_stub = true;
            // After the registers: should ckpt die between the two, the stub puts the mask back that never changed.
            gone_or(pid, ptrace::set_sigmask(tid, ALL_SIGNALS), doing)?;
        }
        Ok(())
    }

    /// Waits until the thread, let run, is at the entry or the exit of a system call.
    fn expect_syscall_stop(&mut self) -> Result<()> {
        let (pid, tid) = (self.pid(), self.thread.tid);
        let doing = || format!("cannot resume thread {tid}");
        loop {
            match self.thread.wait()? {
                Stop::Syscall => return Ok(()),
                Stop::Signal(signal) => self.thread.hold_back(signal)?,
                Stop::Other(libc::PTRACE_EVENT_CLONE) => {
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
    /// gives -ERESTART_RESTARTBLOCK, and the kernel remembers how long it still has to. The thread is then at an event stop, where
    /// [`RemoteTask::leave_with`] must follow.
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
        gone_or(pid, ptrace::cont_to_syscall(tid), doing)?;
        self.expect_syscall_stop()?;
        // Told to stop before it has begun to wait: whatever waits is interrupted, whatever need not wait ends.
        gone_or(pid, ptrace::interrupt(tid), doing)?;
        gone_or(pid, ptrace::cont_to_syscall(tid), doing)?;
        self.expect_syscall_stop()?;
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
            self.thread.reach_event_stop()?;
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

fn resolve(base: Addr, args: &[Arg; 6]) -> [u64; 6] {
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
