//! Stopping the tree that is checkpointed, so that none of its processes knows of it.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Inspector;
use super::mappings::Mapped;
use super::phases::{Phases, Stopwatch};
use super::urgent::Urgent;
use crate::error::{Doing, Error, Result};
use crate::ids::{Addr, Pid, Tid};
use crate::pipeline::Background;
use crate::resources::machine;
use crate::resources::sharing::Sharing;
use crate::sys::kcmp::Shared;
use crate::sys::ptrace;
use crate::tracee::freeze::{FrozenProcess, Stragglers, threads};
use crate::tracee::interrupted::{self, WaitTimes};
use crate::tracee::maps::{self, Mapping};
use crate::tracee::memory::ProcessMemory;
use crate::tracee::remote::{Injector, RemoteTask};
use crate::tracee::stale;
use crate::tracee::tree::{FrozenTree, members};
use crate::track::ebpf::{AddressSpace, MemoryState, TaskInspector, ThreadState};

/// Stops a tree.
pub(super) struct Freezer<'a> {
    pub(super) root: Pid,
    pub(super) timeout: Duration,
    pub(super) inspector: &'a Inspector,
    pub(super) stragglers: &'a Stragglers,
    pub(super) background: &'a Arc<Background>,
}

/// A tree that stands still.
pub(super) struct Frozen {
    pub(super) tree: FrozenTree,
    /// What its processes have together.
    pub(super) sharing: Sharing,
    pub(super) waits: WaitTimes,
    /// Of the root, as they were a moment before: they are for others to change.
    pub(super) cgroups: Vec<String>,
    /// The mappings of each memory, by the process that it is seen through.
    pub(super) mappings: BTreeMap<Pid, Found>,
    /// As far as the kernel tells.
    pub(super) states: States,
    pub(super) since: Instant,
    pub(super) watch: Stopwatch,
    /// `None`: it will stand still for longer.
    urgent: Option<Urgent>,
}

/// What the kernel itself tells of processes that stand still.
#[derive(Debug, Default)]
pub(super) struct States {
    threads: HashMap<Tid, ThreadState>,
    memories: HashMap<Pid, MemoryState>,
}

impl States {
    pub(super) fn thread(&self, tid: Tid) -> Option<ThreadState> {
        self.threads.get(&tid).copied()
    }

    /// The address space of the process.
    pub(super) fn space(&self, pid: Pid) -> Option<AddressSpace> {
        self.memories.get(&pid).map(|state| state.space)
    }
}

/// The mappings of a memory that stands still.
#[derive(Debug)]
pub(super) enum Found {
    /// They surely are what they were.
    AsBefore(Mapped),
    /// Read anew, without what only smaps tells.
    Read(Vec<Mapping>),
}

impl Found {
    fn list(&mut self) -> &mut Vec<Mapping> {
        match self {
            Found::AsBefore(mapped) => &mut mapped.mappings,
            Found::Read(mappings) => mappings,
        }
    }
}

impl Frozen {
    /// Lets it run on. What its pause was made of is returned, and when it ended: ckpt's own thread may be kept waiting for a processor from then on.
    pub(super) fn thaw(mut self) -> Result<(Phases, Instant)> {
        self.tree.thaw()?;
        let thawed = self.watch.end_of(|parts| &mut parts.thaw_us);
        Ok((self.watch.phases, thawed))
    }

    /// It stands still for as long as it takes to copy or to compare all that it has: others are to run meanwhile.
    pub(super) fn take_time(&mut self) {
        self.urgent = None;
    }

    /// The process that the memory of `pid` is seen through.
    pub(super) fn memory_of(&self, pid: Pid) -> Pid {
        self.sharing.first(Shared::Memory, pid)
    }

    /// How many threads have the memory that is seen through `pid`.
    pub(super) fn threads_of(&self, pid: Pid) -> usize {
        let sharers = self.tree.processes.iter().filter(|process| self.memory_of(process.pid) == pid);
        sharers.map(|process| process.threads.len()).sum()
    }

    /// As the threads stopped: was somebody from outside within the memory that is seen through `pid`?
    pub(super) fn was_entered(&self, pid: Pid) -> bool {
        self.states.memories.get(&pid).is_some_and(|state| state.is_entered(self.threads_of(pid)))
    }

    /// Each memory once: the processes that they are seen through, in the order of the tree.
    pub(super) fn memories(&self) -> Vec<Pid> {
        self.tree.pids().into_iter().filter(|&pid| self.memory_of(pid) == pid).collect()
    }
}

impl Freezer<'_> {
    /// Also returns the means to make calls in it, of which it holds nothing yet.
    pub(super) fn freeze(&self) -> Result<(Frozen, Injectors)> {
        self.freeze_with(|_, _| None)
    }

    /// The same. `as_before` tells the mappings of a process, if they surely are what they were now that its memory is in this state.
    pub(super) fn freeze_with(&self, as_before: impl Fn(Pid, &MemoryState) -> Option<Mapped>) -> Result<(Frozen, Injectors)> {
        let mut waits = WaitTimes::read(&all_threads(self.root)?, self.inspector.loaded().is_some());
        let cgroups = machine::cgroups(self.root)?;
        let urgent = Some(Urgent::begin(self.background));
        let mut tree = FrozenTree::freeze(self.root, self.timeout, self.stragglers)?;
        let (since, mut watch) = (tree.since, Stopwatch::from(tree.since));
        let mut states = States::default();
        for process in &tree.processes {
            if let Some(inspector) = self.inspector.loaded() {
                look(inspector, process.pid, &mut waits, &mut states);
            }
        }
        let sharing = Sharing::of(&tree.pids())?;
        let (mut injectors, mut mappings) = (Injectors(BTreeMap::new()), BTreeMap::new());
        for process in &mut tree.processes {
            let first = sharing.first(Shared::Memory, process.pid);
            let mapped = match mappings.entry(first) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(place) => {
                    place.insert(match states.memories.get(&first).and_then(|state| as_before(first, state)) {
                        Some(mapped) => Found::AsBefore(mapped),
                        None => Found::Read(maps::read(first)?),
                    })
                }
            };
            let injector = injectors.enter(first, process, mapped.list())?;
            mend_interrupted(process, injector.memory(), &waits)?;
        }
        watch.end_of(|parts| &mut parts.freeze_us);
        Ok((Frozen { tree, sharing, waits, cgroups, mappings, states, since, watch, urgent }, injectors))
    }
}

/// Adds what the kernel itself tells of a process that stands still.
fn look(inspector: &TaskInspector, pid: Pid, waits: &mut WaitTimes, states: &mut States) {
    match inspector.look(pid) {
        Ok((threads, memory)) => {
            waits.learn(threads.iter().filter_map(|thread| Some((thread.tid, thread.sleep()?))));
            states.threads.extend(threads.iter().filter_map(|thread| Some((thread.tid, thread.state?))));
            states.memories.insert(pid, memory);
        }
        Err(error) => tracing::warn!("waits are measured without eBPF: {error}"),
    }
}

/// The means to make calls in the memories of a tree, by the process that each is seen through.
pub(super) struct Injectors(BTreeMap<Pid, Injector>);

impl Injectors {
    fn enter(&mut self, first: Pid, process: &mut FrozenProcess, mappings: &mut Vec<Mapping>) -> Result<&Injector> {
        match self.0.entry(first) {
            Entry::Occupied(entered) => {
                let injector = entered.into_mut();
                stale::take_out(process, injector.memory())?;
                Ok(injector)
            }
            Entry::Vacant(place) => Ok(place.insert(stale::enter(process, mappings)?)),
        }
    }

    /// Of the memory that is seen through `first`.
    pub(super) fn of(&mut self, first: Pid) -> Result<&mut Injector> {
        self.0.get_mut(&first).ok_or_else(|| Error::Unexpected(format!("no calls can be made in pid {first}")))
    }

    /// The main thread of a process that a memory is seen through, for calls.
    pub(super) fn leader<'a>(&'a mut self, process: &'a mut FrozenProcess) -> Result<RemoteTask<'a>> {
        Ok(RemoteTask::new(self.of(process.pid)?, process.leader()))
    }

    /// Takes away everything that was planted.
    pub(super) fn remove(mut self, tree: &mut FrozenTree) -> Result<()> {
        tree.processes.iter_mut().try_for_each(|process| match self.0.remove(&process.pid) {
            Some(injector) => injector.remove(process.leader()),
            None => Ok(()),
        })
    }
}

/// Of everything that lives in the tree below `root`.
pub(super) fn all_threads(root: Pid) -> Result<Vec<(Pid, Tid)>> {
    let mut all = Vec::new();
    for member in members(root)?.into_iter().filter(|member| !member.dead) {
        match threads(member.pid) {
            Err(Error::Gone(pid)) if pid != root => {}
            other => all.extend(other?.into_iter().map(|tid| (member.pid, tid))),
        }
    }
    Ok(all)
}

/// A stop makes some calls return EINTR; nobody shall see it. Done at once, so that even if ckpt is killed the target does not.
fn mend_interrupted(frozen: &mut FrozenProcess, memory: &ProcessMemory, waits: &WaitTimes) -> Result<()> {
    for thread in &mut frozen.threads {
        let mended =
            interrupted::mend(&thread.regs, waits.waited_ns(thread.tid), |at| interrupted::timespec_ns(memory, Addr(at)).ok());
        if mended != thread.regs {
            ptrace::set_regs(thread.tid, &mended).doing(|| format!("cannot set the registers of thread {}", thread.tid))?;
            thread.regs = mended;
        }
    }
    Ok(())
}
