//! The story of a checkpoint: freeze, collect, read the pages, thaw (or kill), commit.
//!
//! Whatever cannot be saved is refused by name before anything is planted in the target. From the freeze on everything is held by
//! guards: whatever fails, the target runs on, and no image appears.

mod history;
mod live;
mod mappings;
mod phases;
mod precopy;
mod since;
mod tracker;
mod writing;

use std::time::{Duration, Instant};

use rangemap::RangeSet;
use serde::Serialize;

use crate::error::{Doing, Error, Refusal, Result};
use crate::ids::{Addr, ImageId, ObjRef, Pid, Tid};
use crate::image::model::{
    Container, Header, Object, ParentRef, Section, TaskEntry, TaskKind, TaskState, TaskTable, ThreadState,
};
use crate::image::{Codec, ImageWriter, RecordType, Records, TrailerInfo};
use crate::pipeline::{self, DumpOptions, Extent, ExtentKind};
use crate::resources::collector::{CollectOptions, Collected, Content, ObjectKey};
use crate::resources::memory::{MemoryRecord, MemorySource};
use crate::resources::task::Subject;
use crate::resources::vma::{self, VmaRecord};
use crate::resources::{Collector, cpu, fd_table, machine, memory, mm, preflight, task_registry, written};
use crate::store::{Destination, past};
use crate::sys::procfs::Status;
use crate::sys::{procfs, ptrace, signal};
use crate::tracee::batch::Batch;
use crate::tracee::freeze::{self, FrozenProcess, Stragglers};
use crate::tracee::interrupted::{self, Sleep, WaitTimes};
use crate::tracee::maps::{self, Mapping};
use crate::tracee::memory::ProcessMemory;
use crate::tracee::remote::{Injector, RemoteTask};
use crate::tracee::stale;
use crate::track::ebpf::TaskInspector;
pub use crate::track::ebpf::Writes;
use crate::track::hash::PageHashes;
use crate::track::{DirtyTracker, Method};
pub use phases::Phases;
pub use tracker::Tracker;

use live::{Hold, Programs, Split, Trust};
use mappings::Mappings;
use phases::Stopwatch;
use precopy::Spool;
use since::Since;
use writing::{Writing, Written};

/// What happens to the target once its image is whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum After {
    /// It runs on.
    #[default]
    Continue,
    /// It is left stopped, as by SIGSTOP.
    Stop,
    /// It is killed, after the image was brought to disk.
    Kill,
}

/// What the user can choose.
#[derive(Clone, Debug)]
pub struct Options {
    /// What happens to the target afterwards.
    pub after: After,
    /// How pages are compressed.
    pub codec: Codec,
    /// How long to wait for the threads to stop.
    pub freeze_timeout: Duration,
    /// For the kinds of resources.
    pub collect: CollectOptions,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            after: After::default(),
            codec: Codec::Lz4,
            freeze_timeout: Duration::from_secs(10),
            collect: CollectOptions::default(),
        }
    }
}

/// What was done, and how long it took. One object of `--json`.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// The target.
    pub pid: Pid,
    /// Identity of the image.
    pub image_id: ImageId,
    /// The image that this one is an increment of.
    pub parent_id: Option<ImageId>,
    /// Freeze to thaw, the moment in which a tracker began, and what the target was held back later, microseconds.
    pub pause_us: u64,
    /// What the pause is made of.
    pub phases: Phases,
    /// Of the pause, what the target was held back while its pages were copied, because it wrote faster than they could be.
    pub held_us: u64,
    /// Thaw to last page copied. 0: the pages were copied during the pause.
    pub drain_us: u64,
    /// Pages that were copied before the freeze, and not written until then.
    pub pages_precopied: u64,
    /// Pages whose old contents were saved because the target was about to write to them while the others were copied.
    pub pages_preserved: u64,
    /// The time that the target has lost to that, over all its threads, microseconds.
    pub preserving_us: u64,
    /// What the target has written since the cut before, as far as the programs of eBPF see it: where pages are copied while the target runs, from
    /// the second image of a watch on.
    pub writes: Option<Writes>,
    /// Why pages were copied during the pause, after it was tried to copy them while the target ran.
    pub live_fallback: Option<String>,
    /// From the start until the image was on disk under its name.
    pub total_us: u64,
    /// Pages of the target that belong to the image.
    pub pages_total: u64,
    /// Of these, pages whose contents the image holds.
    pub pages_written: u64,
    /// Of these, pages of zeros, which take no room.
    pub pages_zero: u64,
    /// Bytes of the image.
    pub bytes: u64,
    /// How changed pages were found; `live`: and pages were copied while the target ran; `none`: all pages were taken.
    pub tracker: &'static str,
    /// Threads of the target.
    pub threads: usize,
}

/// When the pages of the memory are copied.
#[derive(Clone, Copy, PartialEq, Eq)]
enum When {
    /// While the target runs on after the cut.
    Live,
    /// Before the freeze; what was written since, during it.
    Early,
    /// With the target stopped.
    Stopped,
}

/// Pages done, of pages to do.
pub type Progress<'a> = &'a (dyn Fn(u64, u64) + Sync);

/// A process that is checkpointed, once or again and again.
#[derive(Debug)]
pub struct Target {
    pid: Pid,
    options: Options,
    inspector: Inspector,
    since: Since,
    programs: Programs,
    trust: Trust,
    mappings: Mappings,
    stragglers: Stragglers,
}

/// Reads the waits of threads from the kernel. Loading it takes a while, so it is done only where it is needed, and once.
#[derive(Debug)]
enum Inspector {
    NotNeededYet,
    Loaded(TaskInspector),
    NotHere,
}

impl Inspector {
    fn loaded(&self) -> Option<&TaskInspector> {
        if let Inspector::Loaded(inspector) = self { Some(inspector) } else { None }
    }
}

impl Target {
    /// The process `pid`, whose images are all whole.
    pub fn new(pid: Pid, tracker: Tracker, options: Options) -> Target {
        let (inspector, since) = (Inspector::NotNeededYet, Since::Nothing);
        let (programs, trust, mappings) = (tracker.programs, Trust::default(), Mappings::default());
        let stragglers = Stragglers::default();
        Target { pid, options, inspector, since, programs, trust, mappings, stragglers }
    }

    /// The process `pid`, of which only the first image is whole: each later one is an increment of the one before.
    pub fn tracked(pid: Pid, tracker: Tracker, options: Options) -> Target {
        Target { since: Since::Tracked(Box::new(since::Tracking::new(tracker.method))), ..Target::new(pid, tracker, options) }
    }

    /// The process `pid`, whose images are increments of `parent`, the pages of which have these hashes.
    pub fn since(parent: ParentRef, hashes: PageHashes, pid: Pid, tracker: Tracker, options: Options) -> Target {
        Target { since: Since::Hashed(parent, hashes), ..Target::new(pid, tracker, options) }
    }

    /// From now on it is another process, of which nothing is known yet.
    pub fn follow(&mut self, pid: Pid) {
        self.pid = pid;
        self.since.forget();
        (self.trust, self.mappings, self.stragglers) = (Trust::default(), Mappings::default(), Stragglers::default());
    }

    /// Checkpoints the process with all its threads.
    ///
    /// Errors: [`Error::Refused`] and [`Error::RefusedAll`] when something cannot be saved (the target was not changed), and whatever the
    /// kernel refuses. The target runs on after every error, and the next image holds what this one should have.
    pub fn checkpoint(&mut self, destination: Destination, progress: Progress<'_>) -> Result<Report> {
        let began = Instant::now();
        let pid = self.pid;
        preflight::process(pid)?;
        let possible = self.options.after == After::Continue && destination.can_begin_again() && self.is_worth_it()?;
        let not_tried = self.trust.reason_against().filter(|_| possible);
        let live = possible && not_tried.is_none() && self.programs.load();
        let when = match live {
            true => When::Live,
            false if self.options.after == After::Continue && self.since.sees() => When::Early,
            false => When::Stopped,
        };
        let (saved, live_fallback) = preflight::while_it_lives(pid, || match self.save(&destination, when, progress) {
            Err(Error::Void(why)) => {
                tracing::info!("the checkpoint of pid {pid} is made again with the process stopped: {why}");
                self.trust.lose(&why);
                destination.begin_again()?;
                Ok((self.save(&destination, When::Stopped, progress)?, Some(why)))
            }
            other => Ok((other?, not_tried)),
        })?;
        if live && live_fallback.is_none() {
            self.trust.win();
        }
        let Saved { header, trailer, held, metadata, pages_total, written } = saved;
        let image_id = header.image_id.unwrap_or(ImageId(0));
        destination.commit()?;
        let tracker = self.since.name(written.live);
        self.since.commit(ParentRef { image_id, trailer_checksum: trailer.trailer_checksum }, held, metadata);
        let mut pause = written.pause;
        if let Some(frozen) = written.frozen {
            // Stopping and killing wait until the image is safe; running on need not.
            let since = frozen.since;
            self.end(frozen.process)?;
            pause = since.elapsed();
        }
        let writes = self.programs.commit_writes();
        if !written.held_back.is_zero() {
            self.programs.grow();
        }
        Ok(Report {
            pid,
            image_id,
            parent_id: header.parent.map(|parent| parent.image_id),
            pause_us: (pause + written.held_back).as_micros() as u64,
            phases: written.phases,
            held_us: written.held_back.as_micros() as u64,
            drain_us: written.drain.as_micros() as u64,
            pages_precopied: written.precopied,
            pages_preserved: written.preserved,
            preserving_us: written.preserving.as_micros() as u64,
            writes,
            live_fallback,
            total_us: began.elapsed().as_micros() as u64,
            pages_total,
            pages_written: written.stats.pages_data,
            pages_zero: written.stats.pages_zero,
            bytes: trailer.bytes,
            tracker,
            threads: written.threads,
        })
    }

    /// Is it worth it to have pages copied while the target runs? To load what that takes for a single image takes longer than to copy a few pages.
    fn is_worth_it(&self) -> Result<bool> {
        const FEW: u64 = (16 << 20) / crate::ids::PAGE_SIZE;
        Ok(self.since.tracks() || self.programs.are_loaded() || procfs::stat(self.pid)?.rss > FEW)
    }

    /// Between checkpoints, whenever there is a SIGCHLD: threads that would not stop in time at the last one, and have since, are let go, and those that
    /// have ended are seen to have. Were there any?
    pub fn let_stragglers_go(&self) -> bool {
        self.stragglers.let_go()
    }

    /// Between checkpoints: bytes of the pages that the target writes in a second, since the last one. `None`: that is not known.
    pub fn rate_of_writing(&mut self) -> Option<u64> {
        self.programs.rate_now()
    }

    /// Does what shall be done with the target once its image is safe.
    fn end(&self, frozen: FrozenProcess) -> Result<()> {
        let pid = self.pid;
        match self.options.after {
            After::Continue => frozen.thaw(),
            After::Stop => {
                signal::kill(pid, libc::SIGSTOP).doing(|| format!("cannot stop pid {pid}"))?;
                frozen.thaw()
            }
            After::Kill => frozen.kill(),
        }
    }

    /// Writes an image.
    ///
    /// Errors: [`Error::Void`], only if pages are copied live: nothing is lost, but what was written is no image.
    fn save(&mut self, destination: &Destination, when: When, progress: Progress<'_>) -> Result<Saved> {
        let pid = self.pid;
        let (live, early) = (when == When::Live, when == When::Early);
        self.load_inspector(&freeze::threads(pid)?, live);
        self.mappings.look(pid, self.inspector.loaded(), early)?;
        if let Some(inspector) = self.inspector.loaded().filter(|_| self.since.tracks()) {
            self.programs.follow_writes(inspector, pid);
        }
        let freezer =
            Freezer { pid, timeout: self.options.freeze_timeout, inspector: &self.inspector, stragglers: &self.stragglers };
        let (armed, mut first_pause) = match when {
            When::Live | When::Early => prearm(&freezer, &self.options, &mut self.since, &self.mappings)?,
            When::Stopped => (None, Duration::ZERO),
        };
        // Registering memory counts as a change of its mappings.
        self.mappings.look(pid, self.inspector.loaded(), early)?;
        let spool = match early {
            true => copy_early(&freezer, &self.options, &self.since, &self.mappings, &mut first_pause)?,
            false => None,
        };
        let (mut frozen, injector) = freezer.freeze()?;
        let mut mappings = self.mappings.read(pid, self.inspector.loaded())?;
        frozen.watch.end_of(|parts| &mut parts.mappings_us);
        let mut cut = collect(&mut frozen, injector, &mut mappings, &self.options, &mut self.since, (armed, early))?;
        self.programs.cut_writes();
        self.mappings.remember(pid, self.inspector.loaded(), mappings);
        let pages_total = cut.extents.iter().filter(|e| e.kind != ExtentKind::Hole).map(|e| e.pages.count).sum();
        let held = pipeline::pages_of(&cut.extents, cut.mm);
        let parent = self.since.shrink(cut.mm, &cut.vmas, &mut cut.extents);
        let dump = DumpOptions { codec: self.options.codec, known: self.since.known(), ..DumpOptions::default() };
        let protected = match &cut.armed {
            _ if !live => &[],
            Some(tracker) => tracker.protected(),
            None => self.since.protected(),
        };
        // What was copied before counts only if it is known what was written since.
        let spool = spool.zip(self.since.written_since_prearm());
        let split = match &spool {
            Some((spool, written)) => spool.split(&cut.extents, cut.mm, written),
            None => Split::of(&cut.extents, cut.mm, protected),
        };
        let live_cut =
            self.inspector.loaded().filter(|_| live).and_then(|inspector| self.programs.publish(inspector, pid, cut.mm, &split));
        frozen.watch.end_of(|parts| &mut parts.plan_us);
        let header = header(machine::random_id()?, parent, dump.codec)?;
        let base = self.since.metadata().filter(|_| parent.is_some());
        let mut writer = ImageWriter::to_file(destination.writer())?;
        let mut writing = Writing {
            cut: &cut,
            header: &header,
            base,
            metadata: Records::default(),
            dump,
            split: &split,
            progress,
            freezer: &freezer,
        };
        let written = match (&live_cut, &spool) {
            (Some(live_cut), _) => writing.while_it_runs(&mut writer, frozen, live_cut),
            (None, Some((spool, _))) => writing.with_spool(&mut writer, frozen, spool),
            (None, None) => writing.while_it_stands(&mut writer, frozen, self.options.after),
        };
        match written {
            Ok(mut written) => {
                written.pause += first_pause;
                let metadata = writing.metadata;
                Ok(Saved { header, trailer: writer.finish()?, held, metadata, pages_total, written })
            }
            Err(error) => {
                // Whoever reads a stream to its end finds the reason there (SEED S9). That cannot be written where writing failed.
                if let Err(second) = writer.fail(&error.to_string()) {
                    tracing::debug!("cannot record the failure in the image: {second}");
                }
                Err(error)
            }
        }
    }

    /// For threads whose time that is left only the kernel knows, and for live cuts.
    fn load_inspector(&mut self, threads: &[Tid], live: bool) {
        let needed = || live || threads.iter().any(|&tid| interrupted::keeps_its_time(self.pid, tid));
        if matches!(self.inspector, Inspector::NotNeededYet) && needed() {
            self.inspector = TaskInspector::load().map_or_else(
                |error| {
                    tracing::info!("waits are measured without eBPF: {error}");
                    Inspector::NotHere
                },
                Inspector::Loaded,
            );
        }
    }
}

/// An image that is written, but not safe yet.
struct Saved {
    header: Header,
    trailer: TrailerInfo,
    /// Pages of the memory that the image or its parents hold.
    held: RangeSet<u64>,
    metadata: Records,
    pages_total: u64,
    written: Written,
}

fn sleeps(inspector: &TaskInspector, pid: Pid) -> Vec<(Tid, Sleep)> {
    let threads = inspector.threads(pid).unwrap_or_else(|error| {
        tracing::warn!("waits are measured without eBPF: {error}");
        Vec::new()
    });
    threads.iter().filter_map(|thread| Some((thread.tid, thread.sleep()?))).collect()
}

/// Every reason why `pid` could not be checkpointed, found without stopping it.
pub fn preflight(pid: Pid, options: &Options) -> Result<Vec<Refusal>> {
    let mut refusals = match preflight::process(pid) {
        Ok(()) => Vec::new(),
        // Of what is no process that can be saved, there is nothing more to tell.
        Err(Error::Refused(refusal)) => return Ok(vec![refusal]),
        Err(Error::RefusedAll(refusals)) => refusals,
        Err(other) => return Err(other),
    };
    let mut cx = Collector::new(&options.collect, vec![pid]);
    preflight::while_it_lives(pid, || outside(&mut cx, pid, &maps::read_with_flags(pid)?, &mut Stopwatch::start()))?;
    refusals.extend_from_slice(cx.refusals());
    Ok(refusals)
}

/// Everything that an image of the target holds but the contents of its pages.
struct Cut {
    mm: ObjRef,
    tasks: TaskTable,
    container: Container,
    objects: Vec<Object>,
    state: TaskState,
    vmas: Vec<VmaRecord>,
    extents: Vec<Extent>,
    source: MemorySource,
    /// Protects the memory for this cut alone, where no tracker does anyway.
    armed: Option<Armed>,
}

/// A tracker that protects the memory for one cut.
type Armed = Box<dyn DirtyTracker>;

/// Stops the target.
struct Freezer<'a> {
    pid: Pid,
    timeout: Duration,
    inspector: &'a Inspector,
    stragglers: &'a Stragglers,
}

/// A target that stands still, and does not know it.
struct Frozen {
    process: FrozenProcess,
    waits: WaitTimes,
    since: Instant,
    watch: Stopwatch,
}

impl Frozen {
    /// Lets it run on. What its pause was made of is returned.
    fn thaw(mut self) -> Result<Phases> {
        self.process.thaw()?;
        self.watch.end_of(|parts| &mut parts.thaw_us);
        Ok(self.watch.phases)
    }
}

impl Freezer<'_> {
    /// Also returns the means to make calls in it, of which it holds nothing yet.
    fn freeze(&self) -> Result<(Frozen, Injector)> {
        let mut waits = WaitTimes::read(self.pid, &freeze::threads(self.pid)?);
        let (since, mut watch) = (Instant::now(), Stopwatch::start());
        let mut process = FrozenProcess::freeze(self.pid, self.timeout, self.stragglers)?;
        if let Some(inspector) = self.inspector.loaded() {
            waits.learn(sleeps(inspector, self.pid));
        }
        let injector = stale::enter(&mut process)?;
        mend_interrupted(&mut process, injector.memory(), &waits)?;
        watch.end_of(|parts| &mut parts.freeze_us);
        Ok((Frozen { process, waits, since, watch }, injector))
    }
}

impl Cut {
    /// All of it but the pages, encoded.
    fn records(&self) -> Result<Records> {
        let mut records = Records::default();
        records.push(RecordType::Container, &self.container)?;
        records.push(RecordType::Tasks, &self.tasks)?;
        for object in &self.objects {
            records.push(RecordType::Object, object)?;
        }
        records.push(RecordType::TaskState, &self.state)?;
        for vma in &self.vmas {
            records.push(RecordType::Vma, vma)?;
        }
        Ok(records)
    }
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

/// What can be collected without the task's help.
struct Outside {
    mm: ObjRef,
    vmas: Vec<VmaRecord>,
    extents: Vec<Extent>,
    fds: Option<ObjRef>,
}

fn outside(cx: &mut Collector<'_>, pid: Pid, mappings: &[Mapping], watch: &mut Stopwatch) -> Result<Outside> {
    let mut collected = vma::CollectedVmas::default();
    let mm = cx.intern(ObjectKey::Task(mm::KIND, pid), |cx, mm| {
        let process_memory = ProcessMemory::open(pid)?;
        collected = vma::collect(cx, pid, mm, mappings)?;
        Ok(Section::encode(mm::KIND, &mm::collect(cx, pid, mappings, &process_memory)?)?)
    })?;
    watch.end_of(|parts| &mut parts.pages_us);
    let fds = cx.attempt(|cx| fd_table::collect(cx, pid))?;
    preflight::directories(cx, pid)?;
    watch.end_of(|parts| &mut parts.descriptors_us);
    Ok(Outside { mm, vmas: collected.vmas, extents: collected.extents, fds })
}

fn collect(
    target: &mut Frozen,
    mut injector: Injector,
    mappings: &mut [Mapping],
    options: &Options,
    since: &mut Since,
    (mut armed, early): (Option<Armed>, bool),
) -> Result<Cut> {
    let Frozen { process: frozen, waits, watch, .. } = target;
    let pid = frozen.pid;
    let mut cx = Collector::new(&options.collect, vec![pid]);
    let outside = outside(&mut cx, pid, mappings, watch)?;
    written::collect(&mut cx)?;
    watch.end_of(|parts| &mut parts.descriptors_us);
    let statuses = preflight::threads(&mut cx, frozen)?;
    let Some(fds) = outside.fds.filter(|_| cx.refusals().is_empty()) else {
        return Err(Error::RefusedAll(cx.refusals().to_vec()));
    };
    let (sections, threads) = collect_inside(&mut cx, frozen, &statuses, &mut injector, waits, &outside, fds)?;
    let mut leader = RemoteTask::new(&mut injector, frozen.leader());
    since.prepare(&mut leader)?;
    if let Some(Err(error)) = armed.as_mut().map(|tracker| tracker.prepare(&mut leader)) {
        tracing::info!("pages are copied while the process is stopped: {error}");
        armed = None;
    }
    drop(leader);
    injector.remove(frozen.leader())?;
    watch.end_of(|parts| &mut parts.state_us);
    // Last of all: every return to user mode of a thread writes to its memory (rseq).
    since.cut(mappings, early)?;
    if let Some(tracker) = &mut armed {
        tracker.cut(mappings)?;
    }
    watch.end_of(|parts| &mut parts.scan_us);
    let (mut extents, past) = since.contents(cx.contents());
    extents.extend(outside.extents);
    if !past.contents.is_empty() {
        cx.intern(ObjectKey::Task(past::KIND, pid), |_, _| Ok(Section::encode(past::KIND, &past)?))?;
    }
    let Collected { objects, contents } = cx.finish()?;
    Ok(Cut {
        mm: outside.mm,
        tasks: task_table(frozen)?,
        container: machine::container(pid)?,
        objects,
        state: TaskState { pid, sections, threads },
        vmas: outside.vmas,
        extents,
        source: MemorySource::new(outside.mm, pid, contents)?,
        armed,
    })
}

/// Before the freeze, while the target runs: protects its memory, so that less is left to be done at the cut. A tracker that does not run yet needs the target
/// to stop for a moment: how long is returned, and a tracker that is there for this cut alone, where no other is.
fn prearm(freezer: &Freezer<'_>, target: &Options, since: &mut Since, mappings: &Mappings) -> Result<(Option<Armed>, Duration)> {
    let (mut armed, mut pause) = (None, Duration::ZERO);
    let (mappings, as_left) = mappings.last();
    if since.begins() || !since.tracks() {
        // What cannot be saved is refused before anything is done to the target.
        refuse_memory(freezer.pid, target, mappings)?;
        let (mut frozen, mut injector) = freezer.freeze()?;
        let since_when = frozen.since;
        let mut leader = RemoteTask::new(&mut injector, frozen.process.leader());
        if since.tracks() {
            since.prepare(&mut leader)?;
        } else {
            let started = Method::Scan.start(&mut leader);
            let told = started.inspect_err(|error| tracing::info!("pages are copied while the process is stopped: {error}"));
            armed = told.ok();
        }
        drop(leader);
        injector.remove(frozen.process.leader())?;
        frozen.thaw()?;
        pause = since_when.elapsed();
    }
    match &mut armed {
        Some(tracker) => drop(tracker.prearm(mappings, as_left)?),
        None => since.prearm(mappings, as_left),
    }
    Ok((armed, pause))
}

/// After that, while the target runs: copies what the image will hold for the most part. The target stands still for a moment first, which is added to `pause`
/// ([`precopy`] says why). `None`: it is not worth it.
fn copy_early(
    freezer: &Freezer<'_>,
    options: &Options,
    since: &Since,
    mappings: &Mappings,
    pause: &mut Duration,
) -> Result<Option<Spool>> {
    let owner = ObjRef(1);
    let mut cx = Collector::new(&options.collect, vec![freezer.pid]);
    let collected = match vma::collect(&mut cx, freezer.pid, owner, mappings.last().0) {
        Ok(collected) => collected,
        Err(error) => {
            tracing::debug!("no pages of pid {} are copied before it is stopped: {error}", freezer.pid);
            return Ok(None);
        }
    };
    let pages = since.to_copy_early(owner, collected.extents);
    let room = precopy::room();
    if pages.is_empty() || room == 0 {
        return Ok(None);
    }
    let (frozen, _) = freezer.freeze()?;
    let since_when = frozen.since;
    frozen.thaw()?;
    *pause += since_when.elapsed();
    Spool::fill(freezer.pid, &pages, room).map(Some)
}

/// Refuses what can be seen of the memory of a process that runs. What is only a sign of its running is left to the freeze.
fn refuse_memory(pid: Pid, options: &Options, mappings: &[Mapping]) -> Result<()> {
    let mut cx = Collector::new(&options.collect, vec![pid]);
    // Any number will do, as nothing comes of it.
    if let Err(error) = vma::collect(&mut cx, pid, ObjRef(1), mappings) {
        tracing::debug!("the memory of pid {pid} is looked at again once it is stopped: {error}");
    }
    if cx.refusals().is_empty() { Ok(()) } else { Err(Error::RefusedAll(cx.refusals().to_vec())) }
}

fn content_extents(content: &Content) -> impl Iterator<Item = Extent> + '_ {
    content.pages.iter().map(|&pages| Extent { owner: content.owner, pages, kind: ExtentKind::Read })
}

/// What only the threads themselves can tell: each answers one batch of system calls.
fn collect_inside(
    cx: &mut Collector<'_>,
    frozen: &mut FrozenProcess,
    statuses: &[Status],
    injector: &mut Injector,
    waits: &WaitTimes,
    outside: &Outside,
    fds: ObjRef,
) -> Result<(Vec<Section>, Vec<ThreadState>)> {
    let pid = frozen.pid;
    let mut process_sections = Vec::new();
    let mut threads = Vec::new();
    for (n, (thread, status)) in frozen.threads.iter_mut().zip(statuses).enumerate() {
        let who = Subject { pid, tid: thread.tid, status };
        let mut batch = Batch::new();
        let of_process = if n == 0 { task_registry::PROCESS_RESOURCES } else { &[] };
        let mut asked = Vec::new();
        for resource in of_process.iter().chain(task_registry::THREAD_RESOURCES) {
            asked.push((resource.ask)(&who, &mut batch)?);
        }
        let memory_asked = (n == 0).then(|| memory::ask(&mut batch));
        let answers = {
            let mut task = RemoteTask::new(injector, thread);
            let answers = task.run(batch)?;
            task.leave()?;
            answers
        };
        if let Some(asked) = memory_asked {
            // The page that ckpt maps in the task for its own use is locked only where everything to come is.
            let lock_future = procfs::status(pid, thread.tid)?.vmlck > status.vmlck;
            let record = MemoryRecord::collect(outside.mm, fds, lock_future, &asked, &answers)?;
            process_sections.push(Section::encode(memory::KIND, &record)?);
        }
        let mut sections = Vec::new();
        for (at, collect) in asked.into_iter().enumerate() {
            let section = collect(cx, &who, &answers)?;
            if at < of_process.len() { process_sections.push(section) } else { sections.push(section) }
        }
        let record = cpu::collect(thread, injector.memory(), waits)?;
        sections.push(Section::encode(cpu::KIND, &record)?);
        threads.push(ThreadState { tid: thread.tid, sections });
    }
    Ok((process_sections, threads))
}

fn task_table(frozen: &FrozenProcess) -> Result<TaskTable> {
    let stat = procfs::stat(frozen.pid)?;
    let entry = TaskEntry {
        pid: frozen.pid,
        ppid: Pid(stat.ppid),
        pgid: Pid(stat.pgrp),
        sid: Pid(stat.session),
        threads: frozen.threads.iter().map(|t| t.tid).collect(),
        kind: TaskKind::Alive,
        stopped_by: frozen.threads.iter().find_map(|t| t.group_stop),
        comm: stat.comm,
    };
    Ok(TaskTable { tasks: vec![entry] })
}

fn header(image_id: ImageId, parent: Option<ParentRef>, codec: Codec) -> Result<Header> {
    Ok(Header {
        image_id: Some(image_id),
        parent,
        stands_for: None,
        ckpt_version: env!("CARGO_PKG_VERSION").to_owned(),
        kernel: machine::uts()?,
        time: machine::wall_clock()?,
        monotonic_ns: interrupted::clock_ns(libc::CLOCK_MONOTONIC)?,
        boottime_ns: interrupted::clock_ns(libc::CLOCK_BOOTTIME)?,
        page_size: crate::ids::PAGE_SIZE as u32,
        xcr0: machine::xcr0(),
        codec: codec.name().to_owned(),
        scope: "subtree".to_owned(),
    })
}
