//! A process and everything that descends from it: listed, and stopped as one.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use super::freeze::{FrozenProcess, Seized, Stragglers, threads};
use super::thread::LOOK_AFTER;
use crate::error::{Doing, Error, Result};
use crate::ids::{Pid, Tid};
use crate::sys::deadline::Deadline;
use crate::sys::{kcmp, parallel, procfs};

/// One process of a tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    /// The process.
    pub pid: Pid,
    /// Its parent; of the root, 0.
    pub parent: Pid,
    /// It has ended, and its parent has not collected its status.
    pub dead: bool,
}

/// The tree below `root`, parents before their children. As long as any of it runs, it may change meanwhile.
///
/// Errors: [`Error::Gone`], there is no `root`.
pub fn members(root: Pid) -> Result<Vec<Member>> {
    let mut members = vec![Member { pid: root, parent: Pid(0), dead: false }];
    let mut at = 0;
    while at < members.len() {
        let member = members[at];
        at += 1;
        let children = match children(member.pid) {
            Err(Error::Gone(pid)) if pid != root => continue,
            other => other?,
        };
        members.extend(children.into_iter().map(|pid| Member { pid, parent: member.pid, dead: is_dead(pid) }));
    }
    Ok(members)
}

/// The children of a process, in the order in which they were born.
fn children(pid: Pid) -> Result<Vec<Pid>> {
    /// So many threads are worth one of ours to ask them: each takes some microseconds.
    const LEAST: usize = 32;
    let of_some = |threads: &[Tid]| {
        let mut children = Vec::new();
        for tid in threads {
            let list = match procfs::read_text(format!("/proc/{pid}/task/{tid}/children")) {
                // The thread has ended meanwhile.
                Err(e) if procfs::is_gone(&e) => continue,
                other => other.doing(|| format!("cannot list the children of pid {pid}"))?,
            };
            children.extend(list.split_whitespace().filter_map(|child| child.parse().ok()).map(Pid));
        }
        Ok(children)
    };
    parallel::gather(&threads(pid)?, LEAST, of_some)
}

/// Has the process ended as a whole? Its main thread may have ended alone.
fn is_dead(pid: Pid) -> bool {
    procfs::has_died(pid, pid.leader())
        && threads(pid).is_ok_and(|threads| threads.into_iter().all(|tid| procfs::has_died(pid, tid)))
}

/// A tree whose processes are all stopped. Dropping it lets them go.
#[derive(Debug)]
pub struct FrozenTree {
    /// Those that live, parents before their children.
    pub processes: Vec<FrozenProcess>,
    /// Those that have ended, their status not collected yet.
    pub dead: Vec<Member>,
    /// When the first of its threads was told to stop.
    pub since: Instant,
}

impl FrozenTree {
    /// Stops `root` and everything that descends from it, also what is born meanwhile. After `timeout` everything is let go again.
    ///
    /// Errors: no such process, no right to trace one of them, traced by somebody else, a thread that does not stop in time.
    pub fn freeze(root: Pid, timeout: Duration, stragglers: &Stragglers) -> Result<FrozenTree> {
        stragglers.let_go();
        let mut tree = FrozenTree { processes: Vec::new(), dead: Vec::new(), since: Instant::now() };
        let mut seized = Seized::none(stragglers);
        let deadline = Deadline::arm(timeout.min(LOOK_AFTER)).doing(|| "cannot set a timer".to_owned())?;
        let until = Instant::now() + timeout;
        let mut known = HashSet::new();
        // Those that stand still have no more children; so once nobody is new, nobody is missing.
        let members = loop {
            let members = members(root)?;
            let mut changed = false;
            for member in members.iter().filter(|member| !member.dead) {
                if tree.must_wait(member) {
                    changed = true;
                    continue;
                }
                if known.is_empty() {
                    tree.since = Instant::now();
                }
                let fresh: Vec<Tid> = match threads(member.pid) {
                    Err(Error::Gone(pid)) if pid != root => continue,
                    other => other?.into_iter().filter(|tid| known.insert(*tid)).collect(),
                };
                changed |= !fresh.is_empty();
                fresh.into_iter().try_for_each(|tid| seized.seize(member.pid, tid))?;
            }
            if !changed {
                break members;
            }
            seized.wait(root, timeout, until, |stopped| tree.process(stopped.pid, stragglers).threads.push(stopped))?;
        };
        drop(deadline);
        tree.settle(&members)?;
        Ok(tree)
    }

    /// A child that shares the memory of its parent may be one that the parent waits for until it executes a program or ends (vfork): its parent must
    /// stand still before.
    fn must_wait(&self, member: &Member) -> bool {
        let parent_stands = self.processes.iter().any(|process| process.pid == member.parent);
        member.parent != Pid(0) && !parent_stands && kcmp::share_memory(member.pid, member.parent).unwrap_or(false)
    }

    fn process(&mut self, pid: Pid, stragglers: &Stragglers) -> &mut FrozenProcess {
        let at = self.processes.iter().position(|process| process.pid == pid).unwrap_or_else(|| {
            self.processes.push(FrozenProcess::empty(pid, stragglers));
            self.processes.len() - 1
        });
        &mut self.processes[at]
    }

    /// In the order of `members`, without those that have ended meanwhile.
    fn settle(&mut self, members: &[Member]) -> Result<()> {
        let place = |pid: Pid| members.iter().position(|member| member.pid == pid);
        self.processes.retain(|process| place(process.pid).is_some_and(|at| !members[at].dead));
        self.processes.sort_by_key(|process| place(process.pid));
        self.dead = members.iter().copied().filter(|member| member.dead).collect();
        let root = members.first().map_or(Pid(0), |member| member.pid);
        if self.processes.first().is_none_or(|first| first.pid != root) {
            return Err(Error::Gone(root));
        }
        self.processes.iter_mut().try_for_each(FrozenProcess::settle)
    }

    /// The process that everything else descends from.
    pub fn root(&self) -> Pid {
        self.processes[0].pid
    }

    /// All processes that live.
    pub fn pids(&self) -> Vec<Pid> {
        self.processes.iter().map(|process| process.pid).collect()
    }

    /// How many threads all of them have.
    pub fn thread_count(&self) -> usize {
        self.processes.iter().map(|process| process.threads.len()).sum()
    }

    /// Lets all of it run on.
    pub fn thaw(self) -> Result<()> {
        let mut first = Ok(());
        for process in self.processes {
            // All of them, whatever becomes of one.
            first = first.and(process.thaw());
        }
        first
    }

    /// Kills all of it, and returns once everything is dead.
    pub fn kill(mut self) -> Result<()> {
        // All at once: nobody is to see another's end.
        self.processes.iter().try_for_each(FrozenProcess::send_kill)?;
        // Children first: the end of the root is what others wait for.
        while let Some(process) = self.processes.pop() {
            process.wait_for_end()?;
        }
        Ok(())
    }
}
