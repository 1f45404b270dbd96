//! The new processes: made in the order of the plan, each by its parent.

use std::collections::BTreeMap;

use nix::errno::Errno;

use super::plan::Plan;
use crate::error::{Doing, Error, Result};
use crate::ids::{Pid, Tid};
use crate::image::model::{TaskEntry, TaskKind};
use crate::resources::hierarchy::{Group, Step};
use crate::resources::mm::{self, SharedMemory, Workspace};
use crate::resources::vma::VmaRecord;
use crate::resources::{Restorer, controlling};
use crate::sys::signal;
use crate::tracee::batch::Batch;
use crate::tracee::maps;
use crate::tracee::remote::{Injector, RemoteTask};
use crate::tracee::spawn::{self, Freeing, NewProcess};

/// All of them, stopped. If it is dropped, they are gone.
#[derive(Debug)]
pub(super) struct Family {
    root: Pid,
    members: BTreeMap<Pid, Member>,
}

#[derive(Debug)]
struct Member {
    process: NewProcess,
    /// For calls; of a memory that it shares, another one has it.
    injector: Result<Injector, Pid>,
}

impl Family {
    /// Makes the processes of a plan, their sessions and their groups; those that have ended end again. All have everything that ckpt has open, and the
    /// workspace, the shared memory of all and what `prepare` puts into the memory of the first before it has children, and nothing else in memory.
    pub(super) fn make(
        cx: &mut Restorer<'_>,
        plan: &Plan,
        detach: bool,
        prepare: impl FnOnce(&Restorer<'_>, &mut RemoteTask<'_>) -> Result<()>,
    ) -> Result<(Family, Workspace, SharedMemory)> {
        let root = plan.entries[0].pid;
        let mut family = Family { root, members: BTreeMap::new() };
        let process = NewProcess::spawn(root, detach)?;
        let (injector, _) = Injector::new(root, &maps::read(root)?)?;
        family.members.insert(root, Member { process, injector: Ok(injector) });
        let all_vmas: Vec<&VmaRecord> = plan.memories.values().flat_map(|memory| &memory.vmas).collect();
        let workspace = mm::clear(&mut family.task(root)?, all_vmas.iter().copied())?;
        let shared = SharedMemory::make(&mut family.task(root)?, &all_vmas)?;
        prepare(cx, &mut family.task(root)?)?;
        let mut ghosts = BTreeMap::new();
        for step in plan.hierarchy.steps.iter().skip(1) {
            family.take(cx, step, plan, &mut ghosts)?;
        }
        for group in &plan.hierarchy.groups {
            family.join(group)?;
        }
        for entry in plan.entries.iter().filter(|entry| entry.sid == entry.pid) {
            controlling::set_foreground(cx, &mut family.task(entry.pid)?)?;
        }
        family.bury(&plan.entries)?;
        Ok((family, workspace, shared))
    }

    /// The process that the others descend from.
    pub(super) fn root(&self) -> Pid {
        self.root
    }

    /// The main thread of a process.
    pub(super) fn task(&mut self, pid: Pid) -> Result<RemoteTask<'_>> {
        self.thread(pid, 0)
    }

    /// A thread of a process.
    pub(super) fn thread(&mut self, pid: Pid, n: usize) -> Result<RemoteTask<'_>> {
        let missing = || Error::Unexpected(format!("there is no pid {pid}"));
        let owner = match &self.members.get(&pid).ok_or_else(missing)?.injector {
            Ok(_) => pid,
            Err(owner) => *owner,
        };
        if owner == pid {
            let member = self.members.get_mut(&pid).ok_or_else(missing)?;
            let injector = member.injector.as_mut().map_err(|_| missing())?;
            return Ok(RemoteTask::new(injector, member.process.threads.get_mut(n).ok_or_else(missing)?));
        }
        let (mut injector, mut thread) = (None, None);
        for (of, member) in &mut self.members {
            if *of == owner {
                injector = member.injector.as_mut().ok();
            } else if *of == pid {
                thread = member.process.threads.get_mut(n);
            }
        }
        Ok(RemoteTask::new(injector.ok_or_else(missing)?, thread.ok_or_else(missing)?))
    }

    /// Makes the other threads of a process.
    pub(super) fn make_threads(&mut self, pid: Pid, tids: &[Tid]) -> Result<()> {
        for &tid in &tids[1..] {
            let freeing = Freeing::new();
            let born = loop {
                match self.make_thread(pid, tid)? {
                    Err(Errno::EEXIST) if freeing.goes_on(tid.0) => {}
                    made => break made.map_err(|errno| explain_thread(tid, errno))?,
                }
            };
            let process = &mut self.members.get_mut(&pid).ok_or(Error::Gone(pid))?.process;
            born.into_iter().try_for_each(|tid| process.adopt(tid))?;
        }
        let made: Vec<Tid> = self.tids(pid);
        if made != tids {
            return Err(Error::Unexpected(format!("asked for the threads {tids:?}, got {made:?}")));
        }
        Ok(())
    }

    /// The threads of a process, its main one first.
    pub(super) fn tids(&self, pid: Pid) -> Vec<Tid> {
        self.members.get(&pid).map_or_else(Vec::new, |member| member.process.threads.iter().map(|t| t.tid).collect())
    }

    /// Lets all of them run; those for which `stopped` says so are stopped at once, before any instruction of their own.
    pub(super) fn release(mut self, stopped: impl Fn(Pid) -> bool) -> Result<()> {
        for &pid in self.members.keys().filter(|pid| stopped(**pid)) {
            // Taken on its way out of our stop.
            signal::stop(pid).doing(|| format!("cannot stop pid {pid}"))?;
        }
        let mut released = Vec::new();
        // The root last: nobody is to find it without its children.
        let root = self.members.remove(&self.root);
        while let Some((pid, member)) = self.members.pop_first() {
            if let Err(error) = member.process.release() {
                end_all(&released);
                return Err(error);
            }
            released.push(pid);
        }
        root.map_or(Ok(()), |member| member.process.release()).inspect_err(|_| end_all(&released))
    }

    /// Has a complete process stop as job control has stopped it, and takes away what its parent is told of that, if the parent knew.
    pub(super) fn stop(&mut self, entry: &TaskEntry) -> Result<()> {
        let pid = entry.pid;
        self.members.get_mut(&pid).ok_or(Error::Gone(pid))?.process.stop()?;
        if entry.stop_untold {
            return self.forget_end(entry.ppid, libc::SIGCHLD);
        }
        let mut batch = Batch::new();
        let options = libc::WSTOPPED | libc::WNOHANG | libc::__WALL;
        batch.call(libc::SYS_waitid, [libc::P_PID.into(), pid.0.into(), 0.into(), options.into(), 0.into()]);
        self.task(entry.ppid)?.run(batch)?;
        self.forget_end(entry.ppid, libc::SIGCHLD)
    }

    fn make_thread(&mut self, pid: Pid, tid: Tid) -> Result<Result<Vec<Tid>, Errno>> {
        let mut task = self.task(pid)?;
        let mut batch = Batch::new();
        let set_tid = batch.value(&tid.0);
        let args = spawn::thread_clone_args(tid, task.address_of(set_tid)?.0);
        let args_slot = batch.value(&args);
        let id = batch.call(libc::SYS_clone3, [args_slot.into(), size_of_val(&args).into()]);
        let answers = task.run(batch)?;
        Ok(answers.ret(id).map(|_| task.take_born()))
    }

    fn take(&mut self, cx: &mut Restorer<'_>, step: &Step, plan: &Plan, ghosts: &mut BTreeMap<Pid, Pid>) -> Result<()> {
        let real = |name: Pid, ghosts: &BTreeMap<Pid, Pid>| ghosts.get(&name).copied().unwrap_or(name);
        match *step {
            Step::Make { by, pid, together, sister } => {
                let entry = plan.entry(pid).ok_or_else(|| Error::Unexpected(format!("there is no plan for pid {pid}")))?;
                let flags = together.bits() | if sister { libc::CLONE_PARENT } else { 0 };
                self.child(real(by, ghosts), Some(pid), flags, entry.exit_signal).map(drop)
            }
            Step::MakeGhost { by, name, together, sister, signal } => {
                let flags = together.bits() | if sister { libc::CLONE_PARENT } else { 0 };
                let pid = self.ghost(by, Some(name).filter(|name| name.0 > 0), (flags, signal), plan)?;
                ghosts.insert(name, pid);
                Ok(())
            }
            Step::Setsid(name) => {
                let mut leader = self.task(real(name, ghosts))?;
                leader.call("cannot make a session", libc::SYS_setsid, [])?;
                // Whoever it makes from now on has its terminal from it.
                controlling::acquire(cx, &mut leader)
            }
            Step::Unshare(pid, together) => {
                let args = [together.bits().into()];
                self.task(pid)?.call("cannot take descriptors or directories for itself", libc::SYS_unshare, args).map(drop)
            }
            Step::End { name, parent, heir, signal } => {
                self.adopts(heir, true)?;
                self.end_ghost(real(name, ghosts), parent, signal)?;
                self.adopts(heir, false)
            }
        }
    }

    /// Whether orphans below a process become its children.
    fn adopts(&mut self, pid: Pid, adopts: bool) -> Result<()> {
        let args = [libc::PR_SET_CHILD_SUBREAPER.into(), u64::from(adopts).into()];
        self.task(pid)?.call("cannot change whether it is a subreaper", libc::SYS_prctl, args).map(drop)
    }

    /// Has a process make another one that will not stay: with this pid, or any that nobody of the plan is to have.
    fn ghost(&mut self, by: Pid, wanted: Option<Pid>, (flags, signal): (i32, i32), plan: &Plan) -> Result<Pid> {
        let mut in_the_way = Vec::new();
        let pid = loop {
            let pid = self.child(by, wanted, flags, signal)?;
            if wanted.is_some() || !plan.uses(pid) {
                break pid;
            }
            in_the_way.push(pid);
        };
        let parent = if flags & libc::CLONE_PARENT == 0 { by } else { plan.entry(by).map_or(by, |entry| entry.ppid) };
        in_the_way.into_iter().try_for_each(|pid| self.end_ghost(pid, parent, signal))?;
        Ok(pid)
    }

    /// Has a process make another one: with this pid, or any.
    fn child(&mut self, by: Pid, wanted: Option<Pid>, flags: i32, exit_signal: i32) -> Result<Pid> {
        let freeing = Freeing::new();
        let made = loop {
            match self.clone_in(by, wanted, flags, exit_signal)? {
                Err(Errno::EEXIST) if wanted.is_some_and(|pid| freeing.goes_on(pid.0)) => {}
                made => break made,
            }
        };
        let (pid, heir) = made.map_err(|errno| spawn::explain(wanted.unwrap_or(Pid(0)), errno.into()))?;
        let process = NewProcess::born(pid)?;
        let owner = match &self.members.get(&by).ok_or(Error::Gone(by))?.injector {
            Err(owner) => *owner,
            Ok(_) => by,
        };
        let injector = if flags & libc::CLONE_VM != 0 { Err(owner) } else { Ok(heir) };
        self.members.insert(pid, Member { process, injector });
        Ok(pid)
    }

    fn clone_in(&mut self, by: Pid, wanted: Option<Pid>, flags: i32, exit_signal: i32) -> Result<Result<(Pid, Injector), Errno>> {
        let mut task = self.task(by)?;
        let mut batch = Batch::new();
        let set_tid = match wanted {
            Some(pid) => {
                let slot = batch.value(&pid.0);
                Some(task.address_of(slot)?.0)
            }
            None => None,
        };
        let args = spawn::process_clone_args(flags, exit_signal, set_tid);
        let args_slot = batch.value(&args);
        let id = batch.call(libc::SYS_clone3, [args_slot.into(), size_of_val(&args).into()]);
        let answers = task.run(batch)?;
        let pid = match answers.ret(id) {
            Ok(pid) => Pid(pid as i32),
            Err(errno) => return Ok(Err(errno)),
        };
        let born = task.take_born();
        if born != [pid.leader()] {
            return Err(Error::Unexpected(format!("asked for pid {pid}, got {born:?}")));
        }
        Ok(Ok((pid, task.heir(pid)?)))
    }

    fn end_ghost(&mut self, ghost: Pid, parent: Pid, signal: i32) -> Result<()> {
        self.end(ghost, 0)?;
        let mut batch = Batch::new();
        let wait = batch.call(libc::SYS_wait4, [ghost.0.into(), 0.into(), libc::__WALL.into(), 0.into()]);
        self.task(parent)?.run(batch)?.ret(wait).doing(|| format!("cannot collect the status of pid {ghost}"))?;
        self.forget_end(parent, signal)
    }

    fn end(&mut self, pid: Pid, status: i32) -> Result<()> {
        let Member { process, injector } = self.members.remove(&pid).ok_or(Error::Gone(pid))?;
        match injector {
            Ok(mut own) => process.end(&mut own, status),
            Err(owner) => {
                let owner = self.members.get_mut(&owner).and_then(|member| member.injector.as_mut().ok());
                process.end(owner.ok_or(Error::Gone(pid))?, status)
            }
        }
    }

    /// Takes away the signal that told a process of the end of a child.
    fn forget_end(&mut self, pid: Pid, signal: i32) -> Result<()> {
        if signal == 0 {
            return Ok(());
        }
        let mut batch = Batch::new();
        let (set, timeout) = (batch.value(&(1u64 << (signal - 1))), batch.value(&[0u64; 2]));
        let call = batch.call(libc::SYS_rt_sigtimedwait, [set.into(), 0.into(), timeout.into(), 8.into()]);
        match self.task(pid)?.run(batch)?.ret(call) {
            Ok(_) | Err(Errno::EAGAIN) => Ok(()),
            Err(errno) => Err(Error::os(format!("cannot take away a signal of pid {pid}"), errno)),
        }
    }

    fn join(&mut self, group: &Group) -> Result<()> {
        let Some(&first) = group.members.first() else { return Ok(()) };
        let ghost = if group.ghost { Some(self.child(first, Some(group.pgid), 0, libc::SIGCHLD)?) } else { None };
        for pid in ghost.iter().chain(&group.members) {
            let args = [0.into(), group.pgid.0.into()];
            self.task(*pid)?.call(&format!("cannot join the process group {}", group.pgid), libc::SYS_setpgid, args)?;
        }
        ghost.map_or(Ok(()), |ghost| self.end_ghost(ghost, first, libc::SIGCHLD))
    }

    /// Those that had ended end again, and wait for their parents to collect their statuses.
    fn bury(&mut self, entries: &[TaskEntry]) -> Result<()> {
        for entry in entries {
            if let TaskKind::Zombie(status) = entry.kind {
                let mut batch = Batch::new();
                let name = batch.c_string(entry.comm.as_bytes());
                batch.call(libc::SYS_prctl, [libc::PR_SET_NAME.into(), name.into()]);
                self.task(entry.pid)?.run(batch)?;
                self.end(entry.pid, status)?;
                self.forget_end(entry.ppid, entry.exit_signal)?;
            }
        }
        Ok(())
    }
}

/// Processes that were let go before it failed.
fn end_all(pids: &[Pid]) {
    for &pid in pids {
        if let Err(error) = signal::kill(pid, libc::SIGKILL) {
            tracing::warn!("cannot kill pid {pid} of a tree that is not whole: {error}");
        }
    }
}

fn explain_thread(tid: Tid, errno: Errno) -> Error {
    match errno {
        Errno::EEXIST => Error::Restart(format!("thread id {tid} is in use; end the process that has it first")),
        other => Error::os(format!("cannot make thread {tid}"), other),
    }
}
