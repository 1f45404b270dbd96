//! The story of a watch: a job is checkpointed again and again into a folder, until it ends or the watch is to end.
//!
//! Only the first image is whole, the others are increments. A checkpoint that fails leaves the job running and the older images good; the
//! next one holds what it should have. Between checkpoints one thread waits for everything at once: the time of the next, the end of the
//! job, signals. Checkpoints are made on that thread too, for a tracer must not change. Older points are merged on another.

mod chain;
mod cost;
mod restarts;
mod retention;

use std::num::NonZeroUsize;
use std::ops::RangeInclusive;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use serde::Serialize;

use crate::checkpoint::{self, Report, Target, Tracker, Writes};
use crate::error::{Doing, Error, Result};
use crate::ids::Pid;
use crate::stand_in::{Ended, StandIn};
use crate::store::{Folder, Lock};
use crate::sys::pidfd;
use crate::sys::readiness::Waiting;
use chain::{Chain, Link};
use cost::Costs;
pub use restarts::Restarts;
use retention::Retention;

/// When the next checkpoint is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interval {
    /// This long after the last one began.
    Fixed(Duration),
    /// So long that what checkpoints cost and what a failure loses are least together, by Young's formula: the root of twice the cost of a
    /// checkpoint times the mean time between failures.
    Auto {
        /// That mean time.
        mtbf: Duration,
    },
}

/// Before anything is known of the cost of a checkpoint.
const FIRST_AUTO: Duration = Duration::from_secs(10);
/// Not more often than this.
const SHORTEST_AUTO: Duration = Duration::from_millis(100);

impl Interval {
    /// From one checkpoint to the next, if one costs the job `cost`.
    pub fn after(self, cost: Option<Duration>) -> Duration {
        match (self, cost) {
            (Interval::Fixed(interval), _) => interval,
            (Interval::Auto { .. }, None) => FIRST_AUTO,
            (Interval::Auto { mtbf }, Some(cost)) => {
                let seconds = (2.0 * cost.as_secs_f64() * mtbf.as_secs_f64()).sqrt();
                Duration::from_secs_f64(seconds.min(mtbf.as_secs_f64())).max(SHORTEST_AUTO)
            }
        }
    }
}

/// What the user can choose.
#[derive(Clone, Debug)]
pub struct Options {
    /// Of each checkpoint.
    pub checkpoint: checkpoint::Options,
    /// When.
    pub interval: Interval,
    /// How many restart points are kept. `None`: all.
    pub keep: Option<NonZeroUsize>,
    /// How often to tell how long it is until the next checkpoint. `None`: never.
    pub tell_every: Option<Duration>,
}

/// What is watched.
#[derive(Debug)]
pub enum Job {
    /// A child of ours, for which we stand in.
    Ours(StandIn),
    /// A process of somebody else's.
    Theirs(Stranger),
}

/// A process that runs whether it is watched or not. SIGINT, SIGTERM and SIGHUP end the watch.
#[derive(Debug)]
pub struct Stranger {
    process: OwnedFd,
    signals: SignalFd,
}

impl Stranger {
    /// Finds it. From now on the signals that end the watch do nothing else to this process.
    pub fn find(pid: Pid) -> Result<Stranger> {
        let process = match pidfd::open(pid) {
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) => {
                return Err(Error::Unexpected(format!("cannot watch pid {pid}: there is no such process")));
            }
            other => other.doing(|| format!("cannot get a handle of pid {pid}"))?,
        };
        let set: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGCHLD].into_iter().collect();
        set.thread_block().doing(|| "cannot block signals")?;
        let signals = SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK);
        Ok(Stranger { process, signals: signals.doing(|| "cannot make a descriptor for signals")? })
    }

    fn is_asked(&mut self) -> Result<bool> {
        while let Some(signal) = self.signals.read_signal().doing(|| "cannot read a signal")? {
            // That of a thread that has stopped late only wakes us.
            if signal.ssi_signo != Signal::SIGCHLD as u32 {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn check(&mut self) -> Result<Option<End>> {
        if self.is_asked()? {
            return Ok(Some(End::Asked));
        }
        let ended = pidfd::has_ended(self.process.as_fd()).doing(|| "cannot look at the job")?;
        Ok(ended.then_some(End::Gone))
    }
}

/// Why a watch has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Our child has ended like this.
    Job(Ended),
    /// The process of somebody else's has ended.
    Gone,
    /// A signal has asked for it.
    Asked,
}

impl Job {
    /// What has happened, without waiting.
    fn check(&mut self) -> Result<Option<End>> {
        match self {
            Job::Ours(child) => Ok(child.check()?.map(End::Job)),
            Job::Theirs(process) => process.check(),
        }
    }

    /// After a checkpoint, of which the job's stops could not be told apart.
    fn catch_up(&mut self) -> Result<()> {
        match self {
            Job::Ours(child) => child.catch_up(),
            Job::Theirs(_) => Ok(()),
        }
    }

    /// Once the watch is over: has a signal come that asks ckpt itself to end?
    fn is_asked_again(&mut self) -> Result<bool> {
        match self {
            Job::Ours(child) => child.is_asked_to_end(),
            Job::Theirs(process) => process.is_asked(),
        }
    }

    /// Readable when a signal has come.
    fn signals(&self) -> BorrowedFd<'_> {
        match self {
            Job::Ours(child) => child.as_fd(),
            Job::Theirs(process) => process.signals.as_fd(),
        }
    }

    /// One of these is readable then.
    fn descriptors(&self) -> (BorrowedFd<'_>, BorrowedFd<'_>) {
        match self {
            Job::Ours(child) => (child.as_fd(), child.as_fd()),
            Job::Theirs(process) => (process.process.as_fd(), process.signals.as_fd()),
        }
    }
}

/// What a watch tells while it goes on.
#[derive(Debug)]
pub enum Event<'a> {
    /// An image is in the folder, under this number.
    Checkpoint(u64, &'a Report),
    /// So long it is until the next checkpoint, and so many bytes the job writes in a second, if that is known.
    Waiting(Duration, Option<u64>),
    /// A checkpoint has failed; the job runs on.
    Failed(&'a Error),
    /// Older points could not be merged or removed; all that were there still are.
    NotMerged(&'a Error),
}

/// The longest pause that is told apart, in microseconds: an hour.
const LONGEST_US: u64 = 3_600_000_000;

/// All checkpoints of a watch together.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// Checkpoints made.
    pub checkpoints: u64,
    /// Checkpoints that failed.
    pub failed: u64,
    /// Bytes of their images.
    pub bytes: u64,
    /// Half of the pauses were not longer, in microseconds.
    pub pause_p50_us: u64,
    /// Of 100 pauses, 99 were not longer.
    pub pause_p99_us: u64,
    /// The longest.
    pub pause_max_us: u64,
    /// What was written between the checkpoints, as far as it is known.
    pub writes: Option<AllWrites>,
}

/// What a job has written, between all checkpoints of which that is known.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct AllWrites {
    /// Write faults.
    pub faults: u64,
    /// In so long, microseconds.
    pub during_us: u64,
    /// The most regions of 2 MiB that they were in between two checkpoints.
    pub regions_max: u64,
}

impl AllWrites {
    fn add(&mut self, writes: &Writes) {
        self.faults += writes.faults;
        self.during_us += writes.during_us;
        self.regions_max = self.regions_max.max(writes.regions);
    }

    /// Bytes of the pages that were written, in a second.
    pub fn bytes_per_second(&self) -> u64 {
        Writes { faults: self.faults, during_us: self.during_us, ..Writes::default() }.bytes_per_second()
    }
}

/// See the module.
#[derive(Debug)]
pub struct Watch {
    folder: Folder,
    lock: Arc<Lock>,
    retention: Option<Retention>,
    target: Target,
    options: Options,
    made: Option<RangeInclusive<u64>>,
    /// What the next image stands on, if it is an increment.
    chain: Chain,
    pauses: Histogram<u64>,
    costs: Costs,
    writes: Option<AllWrites>,
    bytes: u64,
    failed: u64,
}

impl Watch {
    /// Watches `pid`, with the images in `folder`, which is made if it is not there.
    ///
    /// Errors: another ckpt works with the folder.
    pub fn new(pid: Pid, folder: &Path, tracker: Tracker, options: Options) -> Result<Watch> {
        let folder = Folder::create(folder)?;
        let lock = Arc::new(folder.lock()?);
        folder.clean(&lock)?;
        let target = Target::tracked(pid, tracker, options.checkpoint.clone());
        let start = |keep| Retention::start(folder.clone(), Arc::clone(&lock), keep, target.background());
        let retention = options.keep.map(start).transpose()?;
        let pauses = Histogram::new_with_bounds(1, LONGEST_US, 3)
            .map_err(|e| Error::Unexpected(format!("cannot make a histogram: {e}")))?;
        let (made, chain, costs, writes) = (None, Chain::default(), Costs::default(), None);
        Ok(Watch { folder, lock, retention, target, options, made, chain, pauses, costs, writes, bytes: 0, failed: 0 })
    }

    /// Goes on with a job that was brought back: as `pid` it begins with a whole image.
    pub fn follow(&mut self, pid: Pid) {
        self.target.follow(pid);
        self.chain.clear();
    }

    /// The numbers of the images that were made, from the first to the last. `None`: there is none yet.
    pub fn made(&self) -> Option<RangeInclusive<u64>> {
        self.made.clone()
    }

    /// Checkpoints the job until it ends or the watch is to.
    pub fn run(&mut self, job: &mut Job, tell: &mut dyn FnMut(Event<'_>)) -> Result<End> {
        let waiting = Waiting::new().doing(|| "cannot prepare to wait")?;
        let mut due = Instant::now();
        loop {
            if let Some(end) = job.check()? {
                return Ok(end);
            }
            // After the signals were read, so that none is missed.
            if self.target.let_stragglers_go() {
                continue;
            }
            let now = Instant::now();
            if now < due {
                let mut until = due;
                if let Some(every) = self.options.tell_every {
                    tell(Event::Waiting(due - now, self.target.rate_of_writing()));
                    until = due.min(now + every);
                }
                let (one, other) = job.descriptors();
                waiting.for_either(one, other, until).doing(|| "cannot wait for the job")?;
                continue;
            }
            let began = Instant::now();
            let outcome = self.checkpoint();
            job.catch_up()?;
            match outcome {
                Ok((number, report)) => {
                    self.retention.iter().for_each(Retention::look);
                    tell(Event::Checkpoint(number, &report));
                }
                Err(Error::Gone(_)) => {}
                Err(error) => {
                    self.failed += 1;
                    tell(Event::Failed(&error));
                }
            }
            self.tell_faults(tell);
            due = began + self.options.interval.after(self.costs.expected());
        }
    }

    fn tell_faults(&self, tell: &mut dyn FnMut(Event<'_>)) {
        for fault in self.retention.iter().flat_map(Retention::faults) {
            tell(Event::NotMerged(&fault));
        }
    }

    /// When there will be no more checkpoints: brings the folder down to as many points as are to be kept, unless a signal comes first.
    pub fn settle(&mut self, job: &mut Job, tell: &mut dyn FnMut(Event<'_>)) -> Result<()> {
        self.tell_faults(tell);
        let Some(retention) = self.retention.take() else { return Ok(()) };
        if let Err(fault) = retention.end()?.finish(job) {
            tell(Event::NotMerged(&fault));
        }
        Ok(())
    }

    fn checkpoint(&mut self) -> Result<(u64, Report)> {
        self.see_to_chain();
        let (number, destination) = self.folder.next(&self.lock)?;
        let report = self.target.checkpoint(destination, &|_, _| {})?;
        let first = self.made.as_ref().map_or(number, |made| *made.start());
        self.made = Some(first..=number);
        self.chain.add(&self.folder, (number, report.image_id), report.parent_id.is_some());
        // It may have happened meanwhile, too.
        self.see_to_chain();
        self.bytes += report.bytes;
        // Longer pauses than the histogram can hold count as the longest that it can.
        self.pauses.saturating_record(report.pause_us);
        self.costs.add(&report);
        if let Some(writes) = &report.writes {
            self.writes.get_or_insert_default().add(writes);
        }
        Ok((number, report))
    }

    /// Has the next image be a whole one if nothing could be brought back from an increment.
    fn see_to_chain(&mut self) {
        if let Some(Link { number, image_id, .. }) = self.chain.lost(&self.folder) {
            tracing::warn!(
                "image {number} ({image_id}) is not in the folder any more as it was made, or damaged; what stands on it cannot be \
                 restarted: the next one is whole"
            );
            self.chain.clear();
            self.target.begin_anew();
        }
    }

    /// All of them together.
    pub fn summary(&self) -> Summary {
        Summary {
            checkpoints: self.pauses.len(),
            failed: self.failed,
            bytes: self.bytes,
            pause_p50_us: self.pauses.value_at_quantile(0.5),
            pause_p99_us: self.pauses.value_at_quantile(0.99),
            pause_max_us: self.pauses.max(),
            writes: self.writes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_follows_the_cost() {
        let seconds = Duration::from_secs;
        assert_eq!(Interval::Fixed(seconds(30)).after(Some(seconds(5))), seconds(30));
        let auto = Interval::Auto { mtbf: seconds(20_000) };
        assert_eq!(auto.after(Some(seconds(1))), seconds(200));
        assert_eq!(auto.after(None), FIRST_AUTO);
        assert_eq!(auto.after(Some(Duration::ZERO)), SHORTEST_AUTO);
        assert_eq!(
            Interval::Auto { mtbf: seconds(1) }.after(Some(seconds(100))),
            seconds(1),
            "not longer than the time between failures"
        );
    }
}
