//! Reading a tree that stands still: everything that an image holds of it but the contents of its pages.

use std::collections::{BTreeMap, HashSet};
use std::time::Instant;

use super::Options;
use super::answered::{Answered, Asking};
use super::freezer::{Frozen, Injectors, States};
use super::mappings::Mapped;
use super::phases::Stopwatch;
use super::since::Since;
use super::tasks;
use super::trackers::Trackers;
use super::twins;
use crate::error::{Error, Refusal, Result};
use crate::ids::{ObjRef, Pid};
use crate::image::model::{Container, Object, Section, TaskState, TaskTable, ThreadState};
use crate::image::{RecordType, Records};
use crate::pipeline::{Extent, ExtentKind};
use crate::resources::collector::{Collected, Content, ObjectKey};
use crate::resources::fd_table::{self, Descriptions};
use crate::resources::mapped_file::LookedAt;
use crate::resources::memory::{self, MemoryRecord, MemorySource};
use crate::resources::outsiders::Outsiders;
use crate::resources::sharing::Sharing;
use crate::resources::task::Subject;
use crate::resources::vma::{self, SharedSeen, VmaRecord};
use crate::resources::{Collector, cpu, in_flight, machine, mm, preflight, sysv, task_registry, written};
use crate::store::{SamePages, past, same};
use crate::sys::kcmp::Shared;
use crate::sys::status::Status;
use crate::sys::{prctl, procfs};
use crate::tracee::batch::Batch;
use crate::tracee::freeze::FrozenProcess;
use crate::tracee::maps;
use crate::tracee::memory::ProcessMemory;
use crate::tracee::remote::{Injector, RemoteTask};
use crate::track::Touched;

/// Everything that an image of the target holds but the contents of its pages.
pub(super) struct Cut {
    pub(super) memories: Vec<CutMemory>,
    tasks: TaskTable,
    container: Container,
    objects: Vec<Object>,
    states: Vec<TaskState>,
    /// What a whole image holds.
    pub(super) extents: Vec<Extent>,
    /// Pages that it holds for other memories, too.
    pub(super) pages_shared: u64,
    pub(super) source: MemorySource,
    /// Pages that were written since the last cut, or since memory was protected before the freeze.
    pub(super) found: u64,
    /// Contents that nobody changes: they can be read after the target goes on.
    pub(super) copies: HashSet<ObjRef>,
    /// Protect the memory for this cut alone, where no tracker does anyway.
    pub(super) armed: Option<Trackers>,
}

/// An address space in a cut.
#[derive(Debug)]
pub(super) struct CutMemory {
    /// As the image calls it.
    pub(super) mm: ObjRef,
    /// The process that it is seen through.
    pub(super) pid: Pid,
    pub(super) vmas: Vec<VmaRecord>,
}

impl Cut {
    /// All of it but the pages, encoded.
    pub(super) fn records(&self) -> Result<Records> {
        let mut records = Records::default();
        records.push(RecordType::Container, &self.container)?;
        records.push(RecordType::Tasks, &self.tasks)?;
        for object in &self.objects {
            records.push(RecordType::Object, object)?;
        }
        for state in &self.states {
            records.push(RecordType::TaskState, state)?;
        }
        for vma in self.memories.iter().flat_map(|memory| &memory.vmas) {
            records.push(RecordType::Vma, vma)?;
        }
        Ok(records)
    }
}

/// Every reason why the tree below `root` could not be checkpointed, found without stopping it.
pub fn preflight(root: Pid, options: &Options) -> Result<Vec<Refusal>> {
    let mut refusals = Vec::new();
    let pids = preflight::tree(root, &mut refusals)?;
    if pids.is_empty() {
        return Ok(refusals);
    }
    Outsiders::default().check(root, &pids, &mut refusals)?;
    let mut cx = Collector::new(&options.collect, pids.clone());
    cx.is_running = true;
    let mut met = Descriptions::default();
    preflight::while_it_lives(root, || {
        let sharing = Sharing::default();
        pids.iter().try_for_each(|&pid| {
            let looked = maps::read_with_flags(pid).and_then(|mappings| {
                let mapped = Mapped { mappings, as_left: false };
                outside(&mut cx, pid, &sharing, &mapped, &mut met, &mut Stopwatch::from(Instant::now()))?;
                preflight::directories(&mut cx, pid)
            });
            match looked {
                // It has ended meanwhile, which is no reason against the others.
                Err(Error::Gone(gone)) if gone != root => Ok(()),
                Err(_) if pid != root && procfs::is_ending(pid) => Ok(()),
                other => other,
            }
        })?;
        in_flight::collect(&mut cx, &mut met)?;
        cx.attempt(|_| tasks::check_running(root))
    })?;
    // Some are found both from outside and on the way.
    let others: Vec<Refusal> = cx.refusals().iter().filter(|refusal| !refusals.contains(refusal)).cloned().collect();
    refusals.extend(others);
    Ok(refusals)
}

/// What can be collected without the task's help.
struct Outside {
    mm: ObjRef,
    /// Of a memory that was not seen before.
    memory: Option<CutMemory>,
    fds: Option<ObjRef>,
}

fn outside(
    cx: &mut Collector<'_>,
    pid: Pid,
    sharing: &Sharing,
    mapped: &Mapped,
    met: &mut Descriptions,
    watch: &mut Stopwatch,
) -> Result<Outside> {
    let mut memory = None;
    let first = sharing.first(Shared::Memory, pid);
    let mm = cx.intern(ObjectKey::Task(mm::KIND, first), |cx, mm| {
        let process_memory = ProcessMemory::open(pid)?;
        memory = Some(CutMemory { mm, pid, vmas: vma::collect(cx, pid, mm, &mapped.mappings, mapped.as_left)? });
        Ok(Section::encode(mm::KIND, &mm::collect(cx, pid, &mapped.mappings, &process_memory)?)?)
    })?;
    watch.end_of(|parts| &mut parts.mappings_us);
    let files = sharing.first(Shared::Files, pid);
    let fds = cx.attempt(|cx| fd_table::collect(cx, files, met))?;
    watch.end_of(|parts| &mut parts.descriptors_us);
    Ok(Outside { mm, memory, fds })
}

/// What was done before the freeze.
pub(super) struct Before<'a> {
    /// Memory was protected for this cut alone.
    pub(super) armed: Option<Trackers>,
    /// Pages were copied, so it matters what was written since.
    pub(super) early: bool,
    /// Ends the noting of what is touched since memory was protected: [`crate::track::DirtyTracker::only_touched`]. `None`: that is not known.
    pub(super) noted: &'a mut dyn FnMut() -> Option<Touched>,
}

pub(super) fn collect(
    target: &mut Frozen,
    mut injectors: Injectors,
    mapped: &mut BTreeMap<Pid, Mapped>,
    (options, looked_at): (&Options, &LookedAt),
    (since, answered): (&mut Since, &mut Answered),
    Before { mut armed, early, noted }: Before<'_>,
) -> Result<Cut> {
    let root = target.tree.root();
    let tasks = tasks::table(&target.tree, &target.sharing)?;
    tasks::check(root, &tasks)?;
    let mut cx = Collector::new(&options.collect, target.tree.pids());
    cx.looked_at = Some(looked_at);
    let mut met = Descriptions::default();
    let (mut memories, mut of_processes) = (Vec::new(), Vec::new());
    for pid in target.tree.pids() {
        let seen_through = target.memory_of(pid);
        let mapped = mapped
            .get(&seen_through)
            .ok_or_else(|| Error::Unexpected(format!("the mappings of pid {seen_through} were not read")))?;
        let outside = outside(&mut cx, pid, &target.sharing, mapped, &mut met, &mut target.watch)?;
        memories.extend(outside.memory);
        of_processes.push((outside.mm, outside.fds));
    }
    in_flight::collect(&mut cx, &mut met)?;
    if options.collect.save_files {
        target.take_time();
    }
    written::collect(&mut cx)?;
    cx.attempt(sysv::collect)?;
    target.watch.end_of(|parts| &mut parts.descriptors_us);
    let statuses = preflight::statuses(&target.tree.processes)?;
    for (process, statuses) in target.tree.processes.iter().zip(&statuses) {
        preflight::threads(&mut cx, process, statuses)?;
    }
    if !cx.refusals().is_empty() {
        return Err(Error::RefusedAll(cx.refusals().to_vec()));
    }
    let read = insides(&mut cx, target, &statuses, (&mut injectors, answered), of_processes)
        .and_then(|states| registers(target, &mut injectors, states));
    let states = match read {
        // What was refused there must leave the process as it was, too.
        Err(error) => {
            if let Err(left) = injectors.remove(&mut target.tree)
                && !matches!(left, Error::Gone(_))
            {
                tracing::warn!("what ckpt has put into the processes is still there, until the next checkpoint: {left}");
            }
            return Err(error);
        }
        Ok(states) => states,
    };
    let Frozen { tree, sharing, states: seen, .. } = target;
    let seen_through = |process: &FrozenProcess| sharing.first(Shared::Memory, process.pid) == process.pid;
    for process in tree.processes.iter_mut().filter(|process| seen_through(process)) {
        let space = seen.space(process.pid);
        let mut leader = injectors.leader(process)?;
        since.prepare(&mut leader, space)?;
        if let Some(Err(error)) = armed.as_mut().map(|trackers| trackers.prepare(&mut leader, space)) {
            tracing::info!("pages are copied while the process is stopped: {error}");
            armed = None;
        }
    }
    injectors.remove(&mut target.tree)?;
    target.watch.end_of(|parts| &mut parts.state_us);
    // Last of all: every return to user mode of a thread writes to its memory (rseq).
    let touched = noted();
    let found = since.cut(mapped, early, touched.as_ref())?;
    if let Some(trackers) = &mut armed {
        trackers.cut(mapped, |_| None).into_iter().try_for_each(|(_, cut)| cut.map(drop))?;
    }
    target.watch.end_of(|parts| &mut parts.scan_us);
    let (mut extents, mut shared) = (Vec::new(), SharedSeen::default());
    for CutMemory { pid, vmas, .. } in &mut memories {
        let presence = armed.as_ref().map_or_else(|| since.presence(*pid), |trackers| trackers.presence(*pid));
        extents.extend(vma::pages(*pid, vmas, presence, &mut shared)?);
    }
    target.watch.end_of(|parts| &mut parts.pages_us);
    let same = match since.still_shared(&memories, &mut extents) {
        Some(same) => same,
        None => {
            if memories.len() > 1 {
                target.take_time();
            }
            twins::find(&memories, &mut extents)?
        }
    };
    since.remember_shared(&memories, &same);
    if !same.is_empty() {
        cx.intern(ObjectKey::Task(same::KIND, root), |_, _| Ok(Section::encode(same::KIND, &SamePages::new(&same))?))?;
    }
    target.watch.end_of(|parts| &mut parts.shared_us);
    let of_memories = since.past_of(&memories);
    let (contents, mut past) = since.contents(cx.contents());
    extents.splice(0..0, contents);
    past.owners.extend(of_memories);
    if !past.owners.is_empty() {
        cx.intern(ObjectKey::Task(past::KIND, root), |_, _| Ok(Section::encode(past::KIND, &past)?))?;
    }
    let Collected { objects, contents } = cx.finish()?;
    let copies = contents.iter().filter(|content| content.is_copy).map(|content| content.owner).collect();
    let seen = memories.iter().map(|memory| (memory.mm, memory.pid));
    Ok(Cut {
        tasks,
        container: machine::container(root, target.cgroups.clone())?,
        objects,
        states,
        extents,
        pages_shared: same.iter().map(|same| same.pages.count).sum(),
        found,
        copies,
        source: MemorySource::new(seen, memories.len() > 1, contents)?,
        armed,
        memories,
    })
}

pub(super) fn content_extents(content: &Content) -> impl Iterator<Item = Extent> + '_ {
    content.pages.iter().map(|&pages| Extent { owner: content.owner, pages, kind: ExtentKind::Read })
}

/// [`inside`] of every process; `of_processes`: what each holds.
fn insides(
    cx: &mut Collector<'_>,
    target: &mut Frozen,
    statuses: &[Vec<Status>],
    (injectors, answered): (&mut Injectors, &mut Answered),
    of_processes: Vec<(ObjRef, Option<ObjRef>)>,
) -> Result<Vec<TaskState>> {
    let Frozen { tree, sharing, states: seen, .. } = target;
    let mut states = Vec::new();
    for ((process, statuses), (mm, fds)) in tree.processes.iter_mut().zip(statuses).zip(of_processes) {
        let pid = process.pid;
        let fds = fds.ok_or_else(|| Error::Unexpected(format!("the descriptors of pid {pid} were not collected")))?;
        let injector = injectors.of(sharing.first(Shared::Memory, pid))?;
        let (sections, threads) = inside(cx, process, statuses, (injector, answered), seen, (mm, fds))?;
        states.push(TaskState { pid, sections, threads });
    }
    answered.end_of_cut();
    Ok(states)
}

/// What only the threads themselves can tell: each answers one batch of system calls. `holds`: the memory and the descriptor table of the process.
fn inside(
    cx: &mut Collector<'_>,
    process: &mut FrozenProcess,
    statuses: &[Status],
    (injector, answered): (&mut Injector, &mut Answered),
    seen: &States,
    holds: (ObjRef, ObjRef),
) -> Result<(Vec<Section>, Vec<ThreadState>)> {
    let pid = process.pid;
    let mut process_sections = Vec::new();
    let mut threads = Vec::new();
    for (n, (thread, status)) in process.threads.iter_mut().zip(statuses).enumerate() {
        let who = Subject { pid, tid: thread.tid, status };
        thread.knows(status);
        let mut batch = Batch::new();
        let of_process = if n == 0 { task_registry::PROCESS_RESOURCES } else { &[] };
        let mut asked = Vec::new();
        for resource in of_process.iter().chain(task_registry::THREAD_RESOURCES) {
            asked.push((resource.ask)(&who, &mut batch)?);
        }
        let memory_asked = (n == 0).then(|| memory::ask(&mut batch));
        let (tid, state) = (thread.tid, seen.thread(thread.tid));
        // The page that ckpt maps in the task for its own use is locked only where everything to come is.
        let locks = || Ok(n == 0 && procfs::status(pid, tid)?.vmlck > status.vmlck);
        let (answers, lock_future) =
            answered.ask(Asking { task: RemoteTask::new(injector, thread), state, locks: &locks }, &batch)?;
        if let Some(asked) = memory_asked {
            let record = MemoryRecord::collect(holds, lock_future, &asked, &answers)?;
            process_sections.push(Section::encode(memory::KIND, &record)?);
            // Where the kernel keeps the permission for them is not among the fields of a task.
            if prctl::has_states_on_demand() {
                cx.is_passing();
            }
        }
        let mut sections = Vec::new();
        for (at, collect) in asked.into_iter().enumerate() {
            let section = collect(cx, &who, &answers)?;
            if at < of_process.len() { process_sections.push(section) } else { sections.push(section) }
        }
        if !cx.take_passing() {
            answered.remember(tid, state, batch, (answers, lock_future));
        }
        threads.push(ThreadState { tid: thread.tid, sections });
    }
    Ok((process_sections, threads))
}

/// Adds what the processor holds of each thread.
fn registers(target: &mut Frozen, injectors: &mut Injectors, mut states: Vec<TaskState>) -> Result<Vec<TaskState>> {
    let Frozen { tree, sharing, waits, watch, .. } = target;
    watch.end_of(|parts| &mut parts.state_us);
    for (process, state) in tree.processes.iter().zip(&mut states) {
        let memory = injectors.of(sharing.first(Shared::Memory, process.pid))?.memory();
        for (thread, state) in process.threads.iter().zip(&mut state.threads) {
            state.sections.push(Section::encode(cpu::KIND, &cpu::collect(thread, memory, waits)?)?);
        }
    }
    watch.end_of(|parts| &mut parts.registers_us);
    Ok(states)
}
