//! Keeps a folder down to so many restart points while a watch goes on, on a thread of its own.
//!
//! Merging rewrites a whole image, so it is bounded: after each pass the thread rests nine times as long as that took, and takes all points
//! that have piled up at once the next time. It runs with the lowest niceness and idle I/O priority. It does not take SCHED_IDLE: beside a
//! job that keeps every processor busy that would hardly ever run, and the folder would grow. While a cut is made it rests altogether: the job
//! that stands still may have to wait for milliseconds for a processor that even such a thread has just got.

use std::io;
use std::num::NonZeroUsize;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};

use super::Job;
use crate::error::{Doing, Error, Result};
use crate::ids::Tid;
use crate::merge::merge;
use crate::pipeline::Background;
use crate::store::{Folder, Lock, Step, steps};
use crate::sys::readiness::Waiting;
use crate::sys::sched;

/// For each second of merging, so many of rest.
const REST: u32 = 9;
/// The lowest priority there is.
const NICENESS: i32 = 19;
/// How long to wait at most for what wakes us anyway.
const LONG: Duration = Duration::from_secs(3600);
/// IOPRIO_CLASS_IDLE, in the place of the class (linux/ioprio.h).
const IO_IDLE: i32 = 3 << 13;

/// See the module. The thread ends when this is dropped.
#[derive(Debug)]
pub struct Retention {
    keeper: Arc<Keeper>,
    /// Says that there is a new point. `None`: the thread was told to end.
    news: Option<(Sender<()>, Sender<()>)>,
    faults: Receiver<Error>,
    thread: Option<JoinHandle<()>>,
}

/// What it takes to bring a folder down to so many points.
#[derive(Debug)]
pub struct Keeper {
    folder: Folder,
    lock: Arc<Lock>,
    keep: NonZeroUsize,
    background: Arc<Background>,
}

impl Keeper {
    /// Does all that is to be done now. Once it is stopped, it fails if it merges.
    pub fn tidy(&self) -> Result<()> {
        let entries = self.folder.scan()?;
        for step in steps(&entries, self.keep) {
            match step {
                Step::Merge(chain) => {
                    let paths: Vec<&Path> = chain.iter().map(|entry| entry.path.as_path()).collect();
                    let merged = merge(&paths, self.folder.replace(&self.lock, chain[0].number)?, &self.background)?;
                    tracing::info!("merged into {}: {merged:?}", paths[0].display());
                }
                Step::Remove(entry) => self.folder.remove(&self.lock, entry.number)?,
            }
        }
        Ok(())
    }

    /// Does the last of it, on a thread with the priority of ckpt itself: somebody waits for it. If a signal asks ckpt to end, it is left
    /// undone.
    pub fn finish(&self, job: &mut Job) -> Result<()> {
        let waiting = Waiting::new().doing(|| "cannot prepare to wait")?;
        let (ended, ends) = io::pipe().doing(|| "cannot make a pipe")?;
        thread::scope(|scope| {
            let tidying = scope.spawn(move || {
                let tidied = self.tidy();
                drop(ends);
                tidied
            });
            let mut asked = Ok(false);
            while !tidying.is_finished() && matches!(asked, Ok(false)) {
                let waited = waiting.for_either(ended.as_fd(), job.signals(), Instant::now() + LONG);
                asked = waited.doing(|| "cannot wait for the merging").and_then(|()| job.is_asked_again());
            }
            if !matches!(asked, Ok(false)) {
                self.background.stop();
            }
            match tidying.join() {
                Ok(Err(_)) if matches!(asked, Ok(true)) => Ok(()),
                Ok(tidied) => asked.and(tidied),
                Err(_) => Err(panicked()),
            }
        })
    }
}

impl Retention {
    /// Starts the thread, which waits for the first point. It works in the `background`.
    pub fn start(folder: Folder, lock: Arc<Lock>, keep: NonZeroUsize, background: Arc<Background>) -> Result<Retention> {
        let keeper = Arc::new(Keeper { folder, lock, keep, background });
        let (tell, told) = bounded(1);
        let (end, ended) = bounded(0);
        let (report, faults) = unbounded();
        let for_thread = Arc::clone(&keeper);
        let thread = thread::Builder::new().name("ckpt-merge".to_owned());
        let thread = thread.spawn(move || run(&for_thread, &told, &ended, &report)).doing(|| "cannot start a thread to merge")?;
        Ok(Retention { keeper, news: Some((tell, end)), faults, thread: Some(thread) })
    }

    /// There is a new point. Does not wait.
    pub fn look(&self) {
        if let Some((tell, _)) = &self.news {
            // If it is full, the thread has yet to look anyway.
            let _ = tell.try_send(());
        }
    }

    /// What has gone wrong since this was asked last. The same again is not told again.
    pub fn faults(&self) -> impl Iterator<Item = Error> {
        self.faults.try_iter()
    }

    /// Ends the thread, whatever it does, and returns what can go on with it.
    pub fn end(mut self) -> Result<Keeper> {
        if self.join().is_err() {
            return Err(panicked());
        }
        let Keeper { folder, lock, keep, .. } = &*self.keeper;
        Ok(Keeper { folder: folder.clone(), lock: Arc::clone(lock), keep: *keep, background: Arc::default() })
    }

    fn join(&mut self) -> thread::Result<()> {
        self.keeper.background.stop();
        self.news = None;
        self.thread.take().map_or(Ok(()), JoinHandle::join)
    }
}

impl Drop for Retention {
    fn drop(&mut self) {
        if self.join().is_err() {
            tracing::error!("the thread that merges panicked");
        }
    }
}

fn panicked() -> Error {
    Error::Unexpected("the thread that merges panicked: this is an error in ckpt".to_owned())
}

fn run(keeper: &Keeper, told: &Receiver<()>, ended: &Receiver<()>, report: &Sender<Error>) {
    if let Err(error) = give_way() {
        tracing::warn!("merging has the priority of ckpt itself: {error}");
    }
    let mut last = String::new();
    while told.recv().is_ok() {
        let began = Instant::now();
        match keeper.tidy() {
            Ok(()) => last.clear(),
            Err(_) if keeper.background.is_stopped() => return,
            Err(error) => {
                let text = error.to_string();
                // Nobody listens only once the watch is over.
                if text != last && report.send(error).is_err() {
                    return;
                }
                last = text;
            }
        }
        if ended.recv_timeout(began.elapsed() * REST) != Err(RecvTimeoutError::Timeout) {
            return;
        }
    }
}

/// Lowers the priority of the calling thread, and of those that it will start.
fn give_way() -> Result<()> {
    let own = Tid(nix::unistd::gettid().as_raw());
    sched::set_niceness(own, NICENESS).doing(|| "cannot lower the niceness of a thread")?;
    sched::set_io_priority(own, IO_IDLE).doing(|| "cannot lower the I/O priority of a thread")
}
