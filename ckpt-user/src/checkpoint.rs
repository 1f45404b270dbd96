//! The story of a checkpoint: freeze, collect, read the pages, thaw (or kill), commit.
//!
//! Whatever cannot be saved is refused by name before anything is planted in the target. From the freeze on everything is held by
//! guards: whatever fails, the target runs on, and no image appears.

mod answered;
mod collect;
mod freezer;
mod history;
mod kept;
mod live;
mod mappings;
mod phases;
mod prearm;
mod precopy;
mod since;
mod spool;
mod tasks;
mod tracker;
mod trackers;
mod twins;
mod urgent;
mod writing;

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use crate::error::{Doing, Error, Result};
use crate::ids::{ImageId, ObjRef, PageRange, Pid, Tid};
use crate::image::model::{Header, ParentRef};
use crate::image::{Codec, ImageWriter, Records, TrailerInfo};
use crate::pipeline::{self, Background, DumpOptions, ExtentKind};
use crate::resources::collector::CollectOptions;
use crate::resources::mapped_file::LookedAt;
use crate::resources::outsiders::Outsiders;
use crate::resources::{machine, preflight};
use crate::store::Destination;
use crate::sys::{procfs, signal};
use crate::tracee::freeze::Stragglers;
use crate::tracee::interrupted;
use crate::tracee::tree::FrozenTree;
use crate::track::ebpf::TaskInspector;
pub use crate::track::ebpf::Writes;
use crate::track::hash::PageHashes;
pub use collect::preflight;
pub use phases::Phases;
pub use tracker::Tracker;

use answered::Answered;
use collect::{Before, Cut, CutMemory, collect};
use freezer::{Found, Freezer, Frozen, all_threads};
use live::{Hold, Programs, Split, Trust};
use mappings::Mappings;
use prearm::{Pace, prearm};
use precopy::Spools;
use since::{Held, Since};
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
    /// Pages that the scan in the pause has passed over, because the log of write faults had nothing of them; that they were unchanged was proved afterwards.
    /// 0: the scan was of all memory.
    pub pages_unscanned: u64,
    /// Why the scan was of all memory, after it was tried to pass over the most of it.
    pub scan_fallback: Option<String>,
    /// What the target's first process has written since the cut before, as far as the programs of eBPF see it: where pages are copied while the target
    /// runs, from the second image of a watch on.
    pub writes: Option<Writes>,
    /// Why pages were copied during the pause, after it was tried to copy them while the target ran.
    pub live_fallback: Option<String>,
    /// From the start until the image was on disk under its name.
    pub total_us: u64,
    /// Pages of the target that belong to the image.
    pub pages_total: u64,
    /// Of these, pages that several processes share since a fork, without the first of each: they are stored once.
    pub pages_shared: u64,
    /// Pages whose contents the image holds.
    pub pages_written: u64,
    /// Of these, pages of zeros, which take no room.
    pub pages_zero: u64,
    /// Bytes of the image.
    pub bytes: u64,
    /// How changed pages were found; `live`: and pages were copied while the target ran; `none`: all pages were taken.
    pub tracker: &'static str,
    /// Processes of the target.
    pub processes: usize,
    /// Threads of all of them.
    pub threads: usize,
}

/// How long the target runs on between checkpoints that are tried again.
const PAUSES_MS: [u64; 8] = [1, 2, 4, 8, 16, 32, 64, 128];

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

/// A process that is checkpointed with everything that descends from it, once or again and again.
#[derive(Debug)]
pub struct Target {
    pid: Pid,
    options: Options,
    inspector: Inspector,
    since: Since,
    programs: Programs,
    /// In cuts whose pages are copied while the target runs.
    trust: Trust,
    /// In the log of write faults.
    trust_in_log: Trust,
    mappings: Mappings,
    pace: Pace,
    looked_at: LookedAt,
    stragglers: Stragglers,
    background: Arc<Background>,
    answered: Answered,
    outsiders: Outsiders,
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
        let (programs, mappings, stragglers) = (tracker.programs, Mappings::default(), Stragglers::default());
        let (trust, trust_in_log) = (Trust::default(), Trust::default());
        let (looked_at, background) = (LookedAt::default(), Arc::default());
        Target {
            pid,
            options,
            inspector,
            since,
            programs,
            trust,
            trust_in_log,
            mappings,
            pace: Pace::default(),
            looked_at,
            stragglers,
            background,
            answered: Answered::default(),
            outsiders: Outsiders::default(),
        }
    }

    /// The process `pid`, of which only the first image is whole: each later one is an increment of the one before.
    pub fn tracked(pid: Pid, tracker: Tracker, options: Options) -> Target {
        Target { since: Since::Tracked(Box::new(since::Tracking::new(tracker.method))), ..Target::new(pid, tracker, options) }
    }

    /// The process `pid`, whose images are increments of `parent`, the pages of which have these hashes.
    pub fn since(parent: ParentRef, hashes: PageHashes, pid: Pid, tracker: Tracker, options: Options) -> Target {
        Target { since: Since::Hashed(parent, hashes), ..Target::new(pid, tracker, options) }
    }

    /// What shall rest while a cut is made.
    pub fn background(&self) -> Arc<Background> {
        Arc::clone(&self.background)
    }

    /// The next image is to be a whole one: the last ones are not to be had any more.
    pub fn begin_anew(&mut self) {
        self.since.forget();
    }

    /// From now on it is another process, of which nothing is known yet.
    pub fn follow(&mut self, pid: Pid) {
        self.pid = pid;
        self.since.forget();
        (self.mappings, self.stragglers) = (Mappings::default(), Stragglers::default());
        (self.trust, self.trust_in_log) = (Trust::default(), Trust::default());
        self.outsiders = Outsiders::default();
    }

    /// Checkpoints the process and everything that descends from it.
    ///
    /// Errors: [`Error::Refused`] and [`Error::RefusedAll`] when something cannot be saved (the target was not changed), and whatever the
    /// kernel refuses. The target runs on after every error, and the next image holds what this one should have.
    pub fn checkpoint(&mut self, destination: Destination, progress: Progress<'_>) -> Result<Report> {
        let began = Instant::now();
        let pid = self.pid;
        let mut refusals = Vec::new();
        let pids = preflight::tree(pid, &mut refusals)?;
        self.outsiders.check(pid, &pids, &mut refusals)?;
        if !refusals.is_empty() {
            return Err(Error::RefusedAll(refusals));
        }
        let possible = self.options.after == After::Continue && destination.can_begin_again() && self.is_worth_it(&pids)?;
        let not_tried = self.trust.reason_against().filter(|_| possible);
        let live = possible && not_tried.is_none() && self.programs.load();
        let when = match live {
            true => When::Live,
            false if self.options.after == After::Continue && self.since.sees() => When::Early,
            false => When::Stopped,
        };
        let mut scan_fallback = None;
        let saved =
            preflight::while_it_lives(pid, || match self.save_by_log(&destination, &pids, when, progress, &mut scan_fallback) {
                Err(Error::Void(why) | Error::Unseen(why)) => {
                    tracing::info!("the checkpoint of pid {pid} is made again with the process stopped: {why}");
                    self.trust.lose(&why);
                    destination.begin_again()?;
                    Ok((self.save(&destination, &pids, When::Stopped, progress)?, Some(why)))
                }
                other => Ok((other?, not_tried)),
            });
        if saved.is_err() {
            self.looked_at.close();
        }
        let (saved, live_fallback) = saved?;
        if live && live_fallback.is_none() {
            self.trust.win();
        }
        let Saved { header, trailer, held, metadata, pages_total, pages_shared, written } = saved;
        let image_id = header.image_id.unwrap_or(ImageId(0));
        destination.commit()?;
        let tracker = self.since.name(written.live);
        self.since.commit(ParentRef { image_id, trailer_checksum: trailer.trailer_checksum }, held, metadata);
        let mut pause = written.pause;
        if let Some(frozen) = written.frozen {
            // Stopping and killing wait until the image is safe; running on need not.
            let since = frozen.since;
            self.end(frozen.tree)?;
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
            pages_unscanned: written.unscanned,
            scan_fallback,
            writes,
            live_fallback,
            total_us: began.elapsed().as_micros() as u64,
            pages_total,
            pages_shared,
            pages_written: written.stats.pages_data,
            pages_zero: written.stats.pages_zero,
            bytes: trailer.bytes,
            tracker,
            processes: written.processes,
            threads: written.threads,
        })
    }

    /// Is it worth it to have pages copied while the target runs? To load what that takes for a single image takes longer than to copy a few pages.
    fn is_worth_it(&self, pids: &[Pid]) -> Result<bool> {
        const FEW: u64 = (16 << 20) / crate::ids::PAGE_SIZE;
        // Who has ended meanwhile has no pages.
        let resident = || pids.iter().filter_map(|&pid| procfs::stat(pid).ok()).map(|stat| stat.rss).sum::<u64>();
        Ok(self.since.tracks() || self.programs.are_loaded() || resident() > FEW)
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
    fn end(&self, tree: FrozenTree) -> Result<()> {
        match self.options.after {
            After::Continue => tree.thaw(),
            After::Stop => {
                // What job control has stopped is stopped already, and stays so when the others are let run.
                let running =
                    tree.processes.iter().filter(|process| process.threads.iter().all(|thread| thread.group_stop.is_none()));
                for pid in running.map(|process| process.pid) {
                    signal::stop(pid).doing(|| format!("cannot stop pid {pid}"))?;
                }
                tree.thaw()
            }
            After::Kill => tree.kill(),
        }
    }

    /// Writes an image. If the log of write faults had not all that was written, tries it again without, and says why.
    fn save_by_log(
        &mut self,
        destination: &Destination,
        pids: &[Pid],
        when: When,
        progress: Progress<'_>,
        scan_fallback: &mut Option<String>,
    ) -> Result<Saved> {
        match self.save_patiently(destination, pids, when, progress) {
            Err(Error::Unseen(why)) => {
                tracing::info!("the checkpoint of pid {} is made again with a scan of all memory: {why}", self.pid);
                self.trust_in_log.lose(&why);
                self.trust_in_log.rest_once();
                *scan_fallback = Some(why);
                destination.begin_again()?;
                self.save_patiently(destination, pids, when, progress)
            }
            Ok(saved) => {
                if saved.written.unscanned > 0 {
                    self.trust_in_log.win();
                }
                Ok(saved)
            }
            other => other,
        }
    }

    /// Writes an image, and tries it again a few times where only what may be over in a moment stands against it.
    fn save_patiently(&mut self, destination: &Destination, pids: &[Pid], when: When, progress: Progress<'_>) -> Result<Saved> {
        self.options.collect.last_try = false;
        for pause in PAUSES_MS {
            match self.save(destination, pids, when, progress) {
                Err(error) if error.is_passing() => tracing::info!("the checkpoint is tried again: {error}"),
                other => return other,
            }
            // Nothing tells of it.
            thread::sleep(Duration::from_millis(pause));
        }
        self.options.collect.last_try = true;
        self.save(destination, pids, when, progress)
    }

    /// Writes an image. `pids`: the processes of the target as they were a moment ago, against which nothing stands.
    ///
    /// Errors: [`Error::Void`] and [`Error::Unseen`], only if pages are copied live: nothing is lost, but what was written is no image.
    fn save(&mut self, destination: &Destination, pids: &[Pid], when: When, progress: Progress<'_>) -> Result<Saved> {
        let saved = self.cut_and_write(destination, pids, when, progress);
        self.looked_at.close();
        saved
    }

    fn cut_and_write(&mut self, destination: &Destination, pids: &[Pid], when: When, progress: Progress<'_>) -> Result<Saved> {
        let (live, early) = (when == When::Live, when == When::Early);
        // Its threads get there while memory is protected.
        let resting = self.background.rest();
        self.load_inspector(&all_threads(self.pid)?, live || self.since.tracks());
        let inspector = self.inspector.loaded();
        self.mappings.look(pids, inspector, early)?;
        if let Some(inspector) = inspector.filter(|_| self.since.tracks()) {
            self.programs.follow_writes(inspector, self.pid);
        }
        let freezer = Freezer {
            root: self.pid,
            timeout: self.options.freeze_timeout,
            inspector: &self.inspector,
            stragglers: &self.stragglers,
            background: &self.background,
        };
        let noting = inspector.filter(|_| live && self.since.tracks() && self.trust_in_log.reason_against().is_none());
        let noted = noting.and_then(|inspector| self.programs.noted_so_far(inspector, pids));
        let in_pause = noted
            .filter(|&(touched, cut)| !self.pace.is_worth_it(touched, cut) && !pids.iter().any(|&pid| self.since.begins(pid)));
        let (armed, mut first_pause) = match when {
            When::Live if in_pause.is_some() => (None, Duration::ZERO),
            When::Live | When::Early => {
                if let Some(inspector) = noting {
                    self.programs.begin_noting(inspector, pids);
                }
                prearm(&freezer, &self.options, &mut self.since, &self.mappings, &mut self.pace)?
            }
            When::Stopped => (None, Duration::ZERO),
        };
        // Registering memory counts as a change of its mappings.
        self.mappings.look(pids, inspector, early)?;
        for (pid, mappings, _) in self.mappings.last() {
            self.looked_at.look(&self.options.collect, pid, mappings);
        }
        let spools = match early {
            true => Spools::fill(&freezer, &self.options, &self.since, &self.mappings, &mut first_pause)?,
            false => None,
        };
        let (mappings, looked_at) = (&self.mappings, &self.looked_at);
        let (mut frozen, injectors) = freezer.freeze_with(|pid, state| mappings.unchanged(pid, state, looked_at))?;
        drop(resting);
        preflight::newcomers(&frozen.tree, pids)?;
        let mut mapped = BTreeMap::new();
        for (pid, found) in std::mem::take(&mut frozen.mappings) {
            let found = match found {
                Found::AsBefore(mapped) => mapped,
                Found::Read(mappings) => self.mappings.complete(pid, mappings, inspector)?,
            };
            mapped.insert(pid, found);
        }
        frozen.watch.end_of(|parts| &mut parts.mappings_us);
        let (looked_at, known) = (&self.looked_at, (&mut self.since, &mut self.answered));
        let before = Before { armed, early, noted: &mut || self.programs.noted().filter(|_| noting.is_some()) };
        let mut cut = collect(&mut frozen, injectors, &mut mapped, (&self.options, looked_at), known, before)?;
        self.programs.cut_writes();
        if in_pause.is_some_and(|(touched, _)| Pace::is_deceived(touched, cut.found)) {
            self.trust_in_log.lose("more was written than the log of write faults has");
        }
        let passes_over = cut.memories.iter().any(|memory| !self.since.passed_over(memory.pid).is_empty());
        for (pid, mapped) in mapped {
            self.mappings.remember(pid, inspector, mapped.mappings);
            // Not before memory is protected: who enters it then is seen by the page tables.
            if self.mappings.memory_of(pid).is_some_and(|state| state.is_entered(frozen.threads_of(pid))) {
                self.since.suspect(pid);
            }
        }
        let pages_shared = cut.pages_shared;
        let own = cut.extents.iter().filter(|e| e.kind != ExtentKind::Hole).map(|e| e.pages.count).sum::<u64>();
        let pages_total = own + pages_shared;
        let held = held(&cut);
        let parent = self.since.shrink(&cut.memories, &mut cut.extents);
        let dump = DumpOptions { codec: self.options.codec, known: self.since.known(), ..DumpOptions::default() };
        let (mut split, spooled) = match &spools {
            Some(spools) => {
                let (split, spooled) = spools.split(&cut.extents, &cut.memories, &self.since);
                (split, Some(spooled))
            }
            None if live => (Split::of(&cut.extents, &protected(&cut, &self.since)), None),
            None => (Split::of(&cut.extents, &HashMap::new()), None),
        };
        if live || spooled.is_some() {
            split.leave(&cut.copies);
        }
        let live_cut = match live {
            true => self.programs.publish(&self.mappings, &cut.memories, &split, &self.since),
            false => None,
        };
        if live_cut.is_none() && passes_over {
            return Err(Error::Unseen("nobody watches it after the cut".to_owned()));
        }
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
        let written = match (&live_cut, &spooled) {
            (Some(live_cut), _) => writing.while_it_runs(&mut writer, frozen, live_cut),
            (None, Some(spooled)) => writing.with_spool(&mut writer, frozen, spooled),
            (None, None) => writing.while_it_stands(&mut writer, frozen, self.options.after),
        };
        match written {
            Ok(mut written) => {
                written.pause += first_pause;
                let metadata = writing.metadata;
                Ok(Saved { header, trailer: writer.finish()?, held, metadata, pages_total, pages_shared, written })
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

    /// For threads whose time that is left only the kernel knows, and where memory is watched.
    fn load_inspector(&mut self, threads: &[(Pid, Tid)], watched: bool) {
        let needed = || {
            watched
                || threads
                    .iter()
                    .any(|&(pid, tid)| procfs::syscall(pid, tid).is_some_and(|call| interrupted::keeps_its_time(&call)))
        };
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
    /// Pages of the memories that the image or its parents hold.
    held: Vec<Held>,
    metadata: Records,
    pages_total: u64,
    pages_shared: u64,
    written: Written,
}

/// What the image or its parents will hold.
fn held(cut: &Cut) -> Vec<Held> {
    let mut pages = pipeline::pages_by_owner(&cut.extents);
    let of = |memory: &CutMemory| Held { pid: memory.pid, mm: memory.mm, pages: pages.remove(&memory.mm).unwrap_or_default() };
    cut.memories.iter().map(of).collect()
}

/// The stretches of each memory that are protected since the cut.
fn protected<'a>(cut: &'a Cut, since: &'a Since) -> HashMap<ObjRef, &'a [PageRange]> {
    let of = |pid: Pid| cut.armed.as_ref().map_or_else(|| since.protected(pid), |trackers| trackers.protected(pid));
    cut.memories.iter().map(|memory| (memory.mm, of(memory.pid))).collect()
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
