//! The story of a restart: read what the image holds but its pages, make the hierarchy, give it memory and descriptors, fill the
//! pages in, give every task its state, let go.
//!
//! The new process is stopped and under our ptrace from its first instant to its last step, and is killed if any step fails or if
//! ckpt dies: a failed restart leaves no process.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Instant;

use nix::errno::Errno;
use serde::Serialize;

use crate::error::{Doing, Error, Result};
use crate::ids::{ImageId, ObjRef, Pid, Tid};
use crate::image::model::{Section, TaskEntry, TaskKind, TaskState};
use crate::image::{ImageReader, Metadata, read_stored};
use crate::pipeline::{self, LoadOptions};
use crate::resources::cpu::{self, CpuRecord};
use crate::resources::fd_table::{self, FdTable, OpenFiles};
use crate::resources::memory::{self, MemoryRecord};
use crate::resources::mm::{self, MmRecord, Workspace};
use crate::resources::pages::PageTarget;
use crate::resources::restorer::RestoreOptions;
use crate::resources::task::TaskResourceEntry;
use crate::resources::vma::VmaRecord;
use crate::resources::written::{self, Applied};
use crate::resources::{Restorer, controlling, machine, mqueue, sysv, sysv_shm, task_registry};
use crate::store::{Overlay, Past, parents, past};
use crate::sys::{procfs, ptrace, signal};
use crate::tracee::batch::Batch;
use crate::tracee::remote::{Injector, RemoteTask};
use crate::tracee::spawn::{self, Freeing, NewProcess};

pub use crate::checkpoint::Progress;
pub use crate::store::parents::Input;

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
    /// The process.
    pub pid: Pid,
    /// The image.
    pub image_id: Option<ImageId>,
    /// From the start until it ran, microseconds.
    pub total_us: u64,
    /// Pages that the image told of.
    pub pages_total: u64,
    /// Pages that were read from it.
    pub pages_read: u64,
    /// Threads.
    pub threads: usize,
}

/// A process that is complete and still stopped. If it is dropped, it is gone, and files are again what they had become.
#[derive(Debug)]
pub struct Restarted {
    process: NewProcess,
    frozen: bool,
    files: Applied,
    discard_changes: bool,
    began: Instant,
    report: Report,
}

impl Restarted {
    /// Its pid.
    pub fn pid(&self) -> Pid {
        self.process.pid
    }

    /// Lets it run (or leaves it stopped, if that was asked for).
    pub fn release(self) -> Result<Report> {
        let pid = self.process.pid;
        if self.frozen {
            // Taken on its way out of our stop, before any instruction of its own.
            signal::kill(pid, libc::SIGSTOP).doing(|| format!("cannot stop pid {pid}"))?;
        }
        self.process.release()?;
        self.files.settle(self.discard_changes);
        Ok(Report { total_us: self.began.elapsed().as_micros() as u64, ..self.report })
    }
}

/// Everything that an image tells of its one process, decoded and checked.
struct Plan {
    entry: TaskEntry,
    state: TaskState,
    memory: MemoryRecord,
    mm: MmRecord,
    vmas: Vec<VmaRecord>,
    table: FdTable,
}

/// Builds the process of an image, up to the point where it would run. `images`: if it is an increment, its parent, the parent of that, and so
/// on up to a whole image.
///
/// Errors: an image that is damaged or asks for the impossible, a file that is not what it was, a pid in use, missing rights. No process
/// is left behind.
pub fn restart(image: Input, images: Vec<Input>, options: &Options, progress: Progress<'_>) -> Result<Restarted> {
    let began = Instant::now();
    let mut reader = ImageReader::new(image)?;
    let stored = read_stored(&mut reader)?;
    parents::check_parent(stored.header.parent, !images.is_empty())?;
    let (images, theirs) = parents::read(images)?;
    let mut metadata = stored.decode(theirs.as_ref())?;
    check_machine(&metadata)?;
    let mut cx = Restorer::new(&options.restore, std::mem::take(&mut metadata.objects));
    let plan = plan(&cx, &metadata)?;
    let past = cx.all(past::KIND)?.pop().map_or_else(Past::default, |(_, past)| past);
    written::prepare(&mut cx)?;

    // Everything that the process will hold open is made by us first; it inherits it.
    let mapped = mm::restore_files(&mut cx, &mm::files_of(&plan.mm, &plan.vmas))?;
    let files = fd_table::open(&mut cx, &[&plan.table])?;
    let mapped = fd_table::move_up(mapped, &[&plan.table])?;
    sysv::make(&mut cx)?;
    cx.settle()?;

    // Before the process, so that it is gone when they are changed again after an error.
    let mut files_changed = Applied::default();
    let mut process = NewProcess::spawn(plan.entry.pid, options.detach)?;
    let (mut injector, _) = Injector::new(plan.entry.pid)?;
    let workspace = build(&mut cx, &mut process, &mut injector, &plan, &mapped, &files)?;
    make_threads(&mut process, &mut injector, &plan)?;

    let target = PageTarget::new(&plan.vmas, plan.memory.mm, plan.entry.pid, &cx)?;
    let mapped_pages = plan.vmas.iter().map(|vma| vma.pages().numbers()).collect();
    let mut overlay = Overlay::new(&target, plan.memory.mm, mapped_pages);
    let stats = pipeline::load(&mut reader, &overlay, &LoadOptions::default(), &|done| progress(done, target.expected()))?;

    if !stats.owners.contains(&plan.memory.mm) {
        return Err(Error::Restart("the image holds no pages of the process".to_owned()));
    }
    parents::load(metadata.header.parent, past, images, &mut overlay)?;
    // Not needed here; but whoever writes the image into a pipe shall get rid of all of it.
    if let Err(error) = reader.read_index() {
        tracing::warn!("the image is whole but for its index: {error}");
    }

    std::mem::take(&mut cx.rollback).apply(&mut files_changed)?;
    let opened = mapped.iter().map(|(&objref, fd)| (objref, fd.as_fd()));
    fd_table::finish(&mut cx, files.iter().chain(opened))?;
    give_state(&mut cx, &mut process, &mut injector, &plan)?;
    set_going(&mut process, &mut injector, &plan, workspace)?;
    sysv::settle(&mut cx)?;
    mqueue::settle(&mut cx)?;
    let frozen = options.frozen || plan.entry.stopped_by.is_some();
    let report = Report {
        pid: plan.entry.pid,
        image_id: metadata.header.image_id,
        total_us: 0,
        pages_total: stats.pages_data + stats.pages_zero + stats.pages_hole,
        pages_read: stats.pages_data,
        threads: plan.state.threads.len(),
    };
    let discard_changes = options.restore.discard_changes;
    Ok(Restarted { process, frozen, files: files_changed, discard_changes, began, report })
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

fn plan(cx: &Restorer<'_>, metadata: &Metadata) -> Result<Plan> {
    let ([entry], [state]) = (metadata.tasks.tasks.as_slice(), metadata.task_states.as_slice()) else {
        return Err(Error::Restart(format!(
            "the image holds {} processes; this version restarts one",
            metadata.tasks.tasks.len()
        )));
    };
    let same_threads = entry.threads.iter().eq(state.threads.iter().map(|t| &t.tid));
    let sane = entry.kind == TaskKind::Alive && entry.pid == state.pid && same_threads && entry.pid.0 > 0;
    if !sane || entry.threads.first() != Some(&entry.pid.leader()) || entry.threads.iter().any(|tid| tid.0 <= 0) {
        return Err(Error::Restart("the task table and the task states of the image do not fit together".into()));
    }
    let memory: MemoryRecord = find(&state.sections, memory::KIND)?.decode()?;
    let mut vmas: Vec<VmaRecord> = metadata.vmas.iter().map(|v| v.decode()).collect::<Result<_, _>>()?;
    vmas.retain(|v| v.mm == memory.mm);
    mm::check(&vmas)?;
    Ok(Plan {
        entry: entry.clone(),
        state: state.clone(),
        mm: cx.record(memory.mm, mm::KIND)?,
        table: cx.record(memory.files, fd_table::KIND)?,
        memory,
        vmas,
    })
}

fn find<'a>(sections: &'a [Section], kind: &str) -> Result<&'a Section> {
    sections.iter().find(|s| s.kind == kind).ok_or_else(|| Error::Restart(format!("the image lacks the section '{kind}'")))
}

/// Session, address space, descriptors.
fn build(
    cx: &mut Restorer<'_>,
    process: &mut NewProcess,
    injector: &mut Injector,
    plan: &Plan,
    mapped: &HashMap<ObjRef, OwnedFd>,
    files: &OpenFiles,
) -> Result<Workspace> {
    let mut task = RemoteTask::new(injector, &mut process.threads[0]);
    let workspace = mm::clear(&mut task, &plan.vmas)?;
    if plan.entry.sid == plan.entry.pid {
        task.call("cannot make a session", libc::SYS_setsid, [])?;
    } else if plan.entry.pgid == plan.entry.pid {
        task.call("cannot make a process group", libc::SYS_setpgid, [0.into(), 0.into()])?;
    }
    if plan.memory.xcomp_permitted & AMX_TILE_DATA != 0 {
        let args = [memory::ARCH_REQ_XCOMP_PERM.into(), AMX_TILE_DATA.trailing_zeros().into()];
        task.call("cannot get permission to use AMX", libc::SYS_arch_prctl, args)?;
    }
    let borrowed = mapped.iter().map(|(&objref, fd)| (objref, fd.as_fd())).collect();
    mm::map(&mut task, &plan.mm, plan.memory.brk, &plan.vmas, &borrowed, &sysv_shm::all(cx)?)?;
    controlling::acquire(cx, &mut task)?;
    controlling::set_foreground(cx, &mut task)?;
    fd_table::place(&mut task, &plan.table, files)?;
    Ok(workspace)
}

/// The one extended state that a process must ask for (XSTATE component 18).
const AMX_TILE_DATA: u64 = 1 << 18;

fn make_threads(process: &mut NewProcess, injector: &mut Injector, plan: &Plan) -> Result<()> {
    for &tid in &plan.entry.threads[1..] {
        let freeing = Freeing::new();
        let born = loop {
            match make_thread(process, injector, tid)? {
                Err(Errno::EEXIST) if freeing.goes_on(tid.0) => {}
                made => break made.map_err(|errno| explain_thread(tid, errno))?,
            }
        };
        for tid in born {
            process.adopt(tid)?;
        }
    }
    let made: Vec<Tid> = process.threads.iter().map(|t| t.tid).collect();
    if made != plan.entry.threads {
        return Err(Error::Unexpected(format!("asked for the threads {:?}, got {made:?}", plan.entry.threads)));
    }
    Ok(())
}

fn make_thread(process: &mut NewProcess, injector: &mut Injector, tid: Tid) -> Result<Result<Vec<Tid>, Errno>> {
    let mut task = RemoteTask::new(injector, &mut process.threads[0]);
    let mut batch = Batch::new();
    let set_tid = batch.value(&tid.0);
    let args = spawn::thread_clone_args(tid, task.address_of(set_tid)?.0);
    let args_slot = batch.value(&args);
    let id = batch.call(libc::SYS_clone3, [args_slot.into(), size_of_val(&args).into()]);
    let answers = task.run(batch)?;
    Ok(answers.ret(id).map(|_| task.take_born()))
}

fn explain_thread(tid: Tid, errno: Errno) -> Error {
    match errno {
        Errno::EEXIST => Error::Restart(format!("thread id {tid} is in use; end the process that has it first")),
        other => Error::os(format!("cannot make thread {tid}"), other),
    }
}

/// With the pages in place: what reads or protects them, and the state of the process and of its threads.
fn give_state(cx: &mut Restorer<'_>, process: &mut NewProcess, injector: &mut Injector, plan: &Plan) -> Result<()> {
    {
        let mut leader = RemoteTask::new(injector, &mut process.threads[0]);
        mm::finish(&mut leader, plan.memory.lock_future, &plan.vmas)?;
        fd_table::attach(cx, &mut leader, &plan.table)?;
        sysv::restore_shared(cx, &mut leader)?;
        sysv::restore_own(cx, &mut leader)?;
        for resource in task_registry::PROCESS_RESOURCES {
            restore_section(cx, &mut leader, resource, &plan.state.sections)?;
        }
    }
    for (thread, state) in process.threads.iter_mut().zip(&plan.state.threads) {
        if procfs::status(plan.entry.pid, thread.tid)?.seccomp.is_some() {
            suspend_filters(thread.tid, state.sections.iter().any(|s| s.kind == "seccomp"))?;
        }
        let mut task = RemoteTask::new(injector, thread);
        for resource in task_registry::THREAD_RESOURCES {
            restore_section(cx, &mut task, resource, &state.sections)?;
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

/// Registers, and with the last thread the workspace goes away.
fn set_going(process: &mut NewProcess, injector: &mut Injector, plan: &Plan, workspace: Workspace) -> Result<()> {
    let records: Vec<CpuRecord> =
        plan.state.threads.iter().map(|t| Ok(find(&t.sections, cpu::KIND)?.decode()?)).collect::<Result<_>>()?;
    // The leader last: the stub goes with it.
    for (n, thread) in process.threads.iter_mut().enumerate().rev() {
        let mut task = RemoteTask::new(injector, thread);
        cpu::make_room(&mut task, &records[n])?;
        let asleep = cpu::fall_asleep(&mut task, &records[n])?;
        if n == 0 {
            mm::leave_workspace(&mut task, workspace)?;
        }
        cpu::restore(&mut task, &records[n], asleep)?;
    }
    Ok(())
}
