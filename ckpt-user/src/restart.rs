//! The story of a restart: read what the image holds but its pages, make the hierarchy, give it memory and descriptors, fill the
//! pages in, give every task its state, let go.
//!
//! The new processes are stopped and under our ptrace from their first instant to their last step, and are killed if any step fails or if
//! ckpt dies: a failed restart leaves no process.

mod family;
mod mould;
mod plan;

use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use serde::Serialize;

use crate::error::{Doing, Error, Result};
use crate::ids::{ImageId, ObjRef, Pid, Tid};
use crate::image::model::{ParentRef, Section};
use crate::image::{ImageReader, Metadata, read_stored};
use crate::pipeline::{self, LoadOptions};
use crate::resources::cpu::{self, CpuRecord};
use crate::resources::fd_table::{self, FdTable, OpenFiles};
use crate::resources::memory;
use crate::resources::mm::{self, SharedMemory, Workspace};
use crate::resources::pages::PageTarget;
use crate::resources::restorer::RestoreOptions;
use crate::resources::task::TaskResourceEntry;
use crate::resources::written::{self, Applied};
use crate::resources::{Restorer, in_flight, machine, mqueue, sysv, sysv_shm, task_registry, tun_link, unix_reconnect};
use crate::store::{FanOut, Overlay, Past, parents, past};
use crate::sys::prctl::TILE_DATA;
use crate::sys::{procfs, ptrace};
use crate::tracee::remote::RemoteTask;
use crate::tracee::spawn;

pub use crate::checkpoint::Progress;
pub use crate::store::parents::Input;
use family::Family;
use mould::{Filling, Mould, Sieve};
use plan::{Plan, Task, find};

/// What the user can choose.
#[derive(Debug, Default)]
pub struct Options {
    /// The process shall not be our child: it goes on without ckpt.
    pub detach: bool,
    /// Leave it stopped, as by SIGSTOP (SEED S5).
    pub frozen: bool,
    /// For the kinds of resources.
    pub restore: RestoreOptions,
}

/// What was done, and how long it took. One object of `--json`.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The process that the others descend from.
    pub pid: Pid,
    /// The image.
    pub image_id: Option<ImageId>,
    /// From the start until it ran, microseconds.
    pub total_us: u64,
    /// Pages that the image told of.
    pub pages_total: u64,
    /// Pages that were read from it.
    pub pages_read: u64,
    /// Processes that live.
    pub processes: usize,
    /// Threads of all of them.
    pub threads: usize,
}

/// Processes that are complete and still stopped. If this is dropped, they are gone, and files are again what they had become.
#[derive(Debug)]
pub struct Restarted {
    family: Family,
    /// Those that are to stay stopped.
    frozen: Vec<Pid>,
    files: Applied,
    discard_changes: bool,
    began: Instant,
    report: Report,
}

impl Restarted {
    /// The process that the others descend from.
    pub fn pid(&self) -> Pid {
        self.family.root()
    }

    /// Lets them run (or leaves them stopped, if that was asked for).
    pub fn release(self) -> Result<Report> {
        self.family.release(|pid| self.frozen.contains(&pid))?;
        self.files.settle(self.discard_changes);
        Ok(Report { total_us: self.began.elapsed().as_micros() as u64, ..self.report })
    }
}

/// Builds the processes of an image, up to the point where they would run. `images`: if it is an increment, its parent, the parent of that, and so
/// on up to a whole image. `again`: the same once more, for pages that processes share and that must be there before them; without, these are copied.
///
/// Errors: an image that is damaged or asks for the impossible, a file that is not what it was, a pid in use, missing rights. No process
/// is left behind.
pub fn restart(
    image: Input,
    images: Vec<Input>,
    again: Option<(Input, Vec<Input>)>,
    options: &Options,
    progress: Progress<'_>,
) -> Result<Restarted> {
    let began = Instant::now();
    let mut reader = ImageReader::new(image)?;
    let stored = read_stored(&mut reader)?;
    parents::check_parent(stored.header.parent, !images.is_empty())?;
    let (images, theirs) = parents::read(images)?;
    let mut metadata = stored.decode(theirs.as_ref())?;
    check_machine(&metadata)?;
    let mut cx = Restorer::new(&options.restore, std::mem::take(&mut metadata.objects));
    let plan = Plan::new(&cx, &metadata)?;
    let past = cx.all(past::KIND)?.pop().map_or_else(Past::default, |(_, past)| past);
    written::prepare(&mut cx)?;
    // Their pids are needed: sockets are to tell who their peers were.
    plan.entries.iter().try_for_each(|entry| spawn::wait_for_burial(entry.pid))?;

    // Everything that the processes will hold open is made by us first; they inherit it.
    let tables: Vec<&FdTable> = plan.tables.values().collect();
    let mut mapped_files: Vec<ObjRef> =
        plan.memories.values().flat_map(|memory| mm::files_of(&memory.mm, &memory.vmas)).collect();
    mapped_files.sort_unstable();
    mapped_files.dedup();
    tun_link::make(&mut cx)?;
    let mapped = mm::restore_files(&mut cx, &mapped_files)?;
    let files = fd_table::open(&mut cx, &tables)?;
    let mapped = fd_table::move_up(mapped, &tables)?;
    sysv::make(&mut cx)?;
    cx.settle()?;

    // Before the processes, so that they are gone when they are changed again after an error.
    let mut files_changed = Applied::default();
    let mould = if again.is_some() { Mould::of(&plan) } else { Mould::default() };
    if again.is_none() && !plan.same.is_empty() {
        tracing::info!("pages that processes have shared are copied for each, since the image can be read only once");
    }
    let mut read_before = None;
    let (mut family, workspace, shared) = Family::make(&mut cx, &plan, options.detach, |cx, root| {
        if let Some((image, images)) = again.filter(|_| !mould.is_empty()) {
            read_before = Some(fill(cx, root, &plan, &mould, &mapped, (image, images))?);
        }
        Ok(())
    })?;
    build(&cx, &mut family, &plan, &mould, (&mapped, &files, &shared))?;
    for task in &plan.tasks {
        family.make_threads(task.entry.pid, &task.entry.threads)?;
    }

    let target = PageTarget::new(plan.memories.iter().map(|(&mm, memory)| (mm, memory.first, &memory.vmas[..])), &cx)?;
    let sieve = Sieve { mould: &mould, inner: &target };
    let to_all = FanOut::new(&sieve, &mould.to_copy(&plan.same));
    let mut overlay = Overlay::new(&to_all, plan.mapped.clone());
    let stats = pipeline::load(&mut reader, &overlay, &LoadOptions::default(), &|done| progress(done, target.expected()))?;
    if !plan.memories.keys().all(|mm| stats.owners.contains(mm)) {
        return Err(Error::Restart("the image holds no pages of one of its processes".to_owned()));
    }
    if read_before.is_some_and(|before| before != metadata.header.as_parent(stats.trailer_checksum)) {
        return Err(Error::Restart("the image was replaced by another one while it was read".to_owned()));
    }
    parents::load(metadata.header.parent, past, images, &mut overlay)?;
    // Not needed here; but whoever writes the image into a pipe shall get rid of all of it.
    if let Err(error) = reader.read_index() {
        tracing::warn!("the image is whole but for its index: {error}");
    }

    std::mem::take(&mut cx.rollback).apply(&mut files_changed)?;
    let opened = mapped.iter().map(|(&objref, fd)| (objref, fd.as_fd()));
    fd_table::finish(&mut cx, files.iter().chain(opened))?;
    let root = family.root();
    in_flight::restore(&mut cx, &files, &mut family.task(root)?, |file| plan.place_of(file).is_some())?;
    for task in &plan.tasks {
        attach(&mut cx, &mut family, &plan, task)?;
    }
    unix_reconnect::restore(&cx, &files, |pid, file| plan.who_does(pid, file), |pid, work| work(&mut family.task(pid)?))?;
    sysv::restore_shared(&cx, &mut family.task(family.root())?)?;
    // Children before their parents: what a parent is told of them is taken away before it gets what it had been told.
    for task in plan.tasks.iter().rev() {
        give_state(&mut cx, &mut family, task)?;
        set_going(&mut family, &plan, task, workspace)?;
        if was_stopped(task, &family) {
            family.stop(&task.entry)?;
        }
    }
    sysv::settle(&mut cx)?;
    mqueue::settle(&mut cx)?;
    // Those that were stopped before are by now, and `ckpt thaw` is to find them so.
    let frozen = plan.tasks.iter().filter(|task| is_stopped_root(task, &family) || options.frozen && !was_stopped(task, &family));
    let frozen = frozen.map(|task| task.entry.pid).collect();
    let report = Report {
        pid: family.root(),
        image_id: metadata.header.image_id,
        total_us: 0,
        pages_total: stats.pages_data + stats.pages_zero + stats.pages_hole,
        pages_read: stats.pages_data,
        processes: plan.tasks.len(),
        threads: plan.tasks.iter().map(|task| task.state.threads.len()).sum(),
    };
    let discard_changes = options.restore.discard_changes;
    Ok(Restarted { family, frozen, files: files_changed, discard_changes, began, report })
}

/// Gives the first process, before it has children, what it and they share. Returns who the image is.
fn fill(
    cx: &Restorer<'_>,
    root: &mut RemoteTask<'_>,
    plan: &Plan,
    mould: &Mould,
    mapped: &HashMap<ObjRef, OwnedFd>,
    (image, images): (Input, Vec<Input>),
) -> Result<Option<ParentRef>> {
    let files = mapped.iter().map(|(&objref, fd)| (objref, fd.as_fd())).collect();
    mm::map_plain(root, &mould.mappings.iter().collect::<Vec<_>>(), &files)?;
    let name = ObjRef(0);
    let target = PageTarget::new([(name, root.pid(), &mould.mappings[..])], cx)?;
    let filling = Filling { mould, inner: &target, name };
    let mut overlay = Overlay::new(&filling, plan.mapped.clone());
    let mut reader = ImageReader::new(image)?;
    let stored = read_stored(&mut reader)?;
    let (images, theirs) = parents::read(images)?;
    let header = stored.header.clone();
    let past = parents::past_of(&stored.resolve(theirs.as_ref())?)?;
    let stats = pipeline::load(&mut reader, &overlay, &LoadOptions::default(), &|_| {})?;
    parents::load(header.parent, past, images, &mut overlay)?;
    Ok(header.as_parent(stats.trailer_checksum))
}

fn check_machine(metadata: &Metadata) -> Result<()> {
    let (theirs, ours) = (metadata.header.xcr0, machine::xcr0());
    if theirs & !ours != 0 {
        return Err(Error::Restart(format!(
            "the image was made on a processor with extensions that this one lacks (XCR0 bits {:#x}); restart it on such a machine",
            theirs & !ours
        )));
    }
    Ok(())
}

/// Address spaces and descriptors.
fn build(
    cx: &Restorer<'_>,
    family: &mut Family,
    plan: &Plan,
    mould: &Mould,
    (mapped, files, shared): (&HashMap<ObjRef, OwnedFd>, &OpenFiles, &SharedMemory),
) -> Result<()> {
    let none = HashSet::new();
    let segments = sysv_shm::all(cx)?;
    let borrowed = mapped.iter().map(|(&objref, fd)| (objref, fd.as_fd())).collect();
    for task in &plan.tasks {
        let (pid, memory) = (task.entry.pid, plan.memory(task)?);
        let mut leader = family.task(pid)?;
        if task.holds.xcomp_permitted & TILE_DATA != 0 {
            let args = [memory::ARCH_REQ_XCOMP_PERM.into(), TILE_DATA.trailing_zeros().into()];
            leader.call("cannot get permission to use AMX", libc::SYS_arch_prctl, args)?;
        }
        if memory.first == pid {
            let born = mould.part(task.holds.mm).map_or(&none, |part| &part.mappings);
            let (unmap, give_up) = mould.rest(task.holds.mm);
            mm::keep(&mut leader, &unmap, &give_up, memory.vmas.iter().filter(|vma| born.contains(&vma.start)))?;
            mm::map(&mut leader, &memory.mm, task.holds.brk, &memory.vmas, &borrowed, shared, &segments, born)?;
        }
    }
    // Only now: what one process closes, another may have mapped.
    for task in plan.tasks.iter().filter(|task| task.entry.shares.files.is_none()) {
        fd_table::place(&mut family.task(task.entry.pid)?, plan.table(task)?, files)?;
    }
    Ok(())
}

/// Was it stopped by job control, and is not the first of the tree?
fn was_stopped(task: &Task, family: &Family) -> bool {
    task.entry.stopped_by.is_some() && task.entry.pid != family.root()
}

fn is_stopped_root(task: &Task, family: &Family) -> bool {
    task.entry.pid == family.root() && task.entry.stopped_by.is_some()
}

/// With the pages in place: what reads or protects them, and what only a process with its descriptors can do.
fn attach(cx: &mut Restorer<'_>, family: &mut Family, plan: &Plan, task: &Task) -> Result<()> {
    let (pid, memory) = (task.entry.pid, plan.memory(task)?);
    let mut leader = family.task(pid)?;
    if memory.first == pid {
        mm::finish(&mut leader, task.holds.lock_future, &memory.vmas)?;
    }
    if task.entry.shares.files.is_none() {
        fd_table::attach(cx, &mut leader, plan.table(task)?)?;
    }
    Ok(())
}

/// The state of a process and of its threads.
fn give_state(cx: &mut Restorer<'_>, family: &mut Family, task: &Task) -> Result<()> {
    let pid = task.entry.pid;
    sysv::restore_own(cx, &mut family.task(pid)?)?;
    for resource in task_registry::PROCESS_RESOURCES {
        restore_section(cx, &mut family.task(pid)?, resource, &task.state.sections)?;
    }
    for (n, state) in task.state.threads.iter().enumerate() {
        let mut thread = family.thread(pid, n)?;
        if procfs::status(pid, thread.tid())?.seccomp.is_some() {
            suspend_filters(thread.tid(), state.sections.iter().any(|s| s.kind == "seccomp"))?;
        }
        for resource in task_registry::THREAD_RESOURCES {
            restore_section(cx, &mut thread, resource, &state.sections)?;
        }
    }
    Ok(())
}

/// The last calls of a task must not meet the filters that it has just been given.
fn suspend_filters(tid: Tid, has_filters: bool) -> Result<()> {
    match ptrace::set_options(tid, spawn::OPTIONS | ptrace::O_SUSPEND_SECCOMP) {
        Err(error) if has_filters => {
            Err(error).doing(|| format!("cannot suspend the seccomp filters of thread {tid} (only root can)"))
        }
        // Without filters there is nothing to suspend, and without the right nothing is lost.
        _ => Ok(()),
    }
}

fn restore_section(
    cx: &mut Restorer<'_>,
    task: &mut RemoteTask<'_>,
    resource: &TaskResourceEntry,
    sections: &[Section],
) -> Result<()> {
    match sections.iter().find(|s| s.kind == resource.kind) {
        Some(section) => (resource.restore)(cx, task, section),
        // An image of an older version, from before this kind was saved.
        None => {
            tracing::info!("the image holds nothing about '{}' of thread {}", resource.kind, task.tid());
            Ok(())
        }
    }
}

/// Registers, and with the last thread of a memory the workspace goes away.
fn set_going(family: &mut Family, plan: &Plan, task: &Task, workspace: Workspace) -> Result<()> {
    let records: Vec<CpuRecord> =
        task.state.threads.iter().map(|t| Ok(find(&t.sections, cpu::KIND)?.decode()?)).collect::<Result<_>>()?;
    // The first that has the memory is the last to go.
    let is_last = plan.memory(task)?.first == task.entry.pid;
    // The leader last: the stub goes with it.
    for n in (0..records.len()).rev() {
        let mut thread = family.thread(task.entry.pid, n)?;
        cpu::make_room(&mut thread, &records[n])?;
        let asleep = cpu::fall_asleep(&mut thread, &records[n])?;
        if n == 0 && is_last {
            mm::leave_workspace(&mut thread, workspace)?;
        }
        cpu::restore(&mut thread, &records[n], asleep)?;
    }
    Ok(())
}
