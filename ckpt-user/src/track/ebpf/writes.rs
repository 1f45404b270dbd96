//! How a process writes to its memory between two cuts, from the log of its write faults: how much, where, and how much of it again.
//!
//! A page that was protected at a cut faults at the first write to it, and a new page at the first write at all, so the faults are the pages that the
//! next increment holds, for the most part. These are figures to look at; nothing is decided by them.

use std::time::{Duration, Instant};

use ckpt_ebpf::faults::TaskInfo;
use serde::Serialize;

use super::Result;
use super::fault_log::{FaultLog, Happening};
use super::touched::Noting;
use crate::ids::PAGE_SIZE;
use crate::track::Touched;

/// What a process has written between two cuts, as far as it faulted for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Writes {
    /// Write faults: pages that were written, or came into being, once each; a huge page is one.
    pub faults: u64,
    /// In so many regions of 2 MiB.
    pub regions: u64,
    /// The fewest of these regions that had half of the faults.
    pub hot_regions: u64,
    /// Pages that were written between the two cuts before, too. Of the pages that are in the log.
    pub again: u64,
    /// Faults that the log, or the table of regions, had no room for: of these only the number is known.
    pub lost: u64,
    /// From cut to cut, microseconds.
    pub during_us: u64,
}

impl Writes {
    /// Bytes of the pages that were written, in a second.
    pub fn bytes_per_second(&self) -> u64 {
        rate(self.faults, Duration::from_micros(self.during_us))
    }
}

/// Bytes of so many pages in a second.
fn rate(pages: u64, during: Duration) -> u64 {
    ((pages * PAGE_SIZE) as f64 / during.as_secs_f64().max(1e-6)) as u64
}

/// A rate over a shorter time says nothing: what is written all the time comes in a burst once it was protected.
const LEAST: Duration = Duration::from_millis(250);

/// What was counted at a moment.
#[derive(Clone, Copy, Debug)]
struct Mark {
    at: Instant,
    info: TaskInfo,
    unplaced: u64,
}

/// See the module. One process at a time is looked at, in full.
#[derive(Debug)]
pub struct WriteWatch {
    log: FaultLog,
    /// As the initial pid namespace numbers it.
    tgid: Option<u32>,
    epoch: u64,
    /// The last cut of which there is an image.
    base: Option<Mark>,
    /// The last cut.
    cut: Option<Mark>,
    /// Pages in the log since the base, with their epochs.
    pages: Vec<(u64, u64)>,
    /// Those between the base and the one before, in order.
    before: Vec<u64>,
    /// Other processes that are watched: what they write only matters to `noting`.
    others: Vec<u32>,
    /// What was in the log since [`WriteWatch::begin_noting`].
    noting: Option<Noting>,
}

impl WriteWatch {
    pub(super) fn new(log: FaultLog) -> WriteWatch {
        let (pages, before, others) = (Vec::new(), Vec::new(), Vec::new());
        WriteWatch { log, tgid: None, epoch: 0, base: None, cut: None, pages, before, others, noting: None }
    }

    /// From now on it is this process. Nothing happens if it was before, and has not ended.
    pub fn follow(&mut self, tgid: u32) -> Result<()> {
        if let Some(other) = self.tgid.take_if(|other| *other != tgid) {
            self.log.untrack(other)?;
        }
        if self.tgid.is_none() || self.log.info(tgid)?.is_none() {
            (self.base, self.cut) = (None, None);
            self.log.track(tgid)?;
            self.tgid = Some(tgid);
        }
        Ok(())
    }

    /// From now on the pages are noted that the process, and these others, may write to or give up; see [`WriteWatch::noted`].
    pub fn begin_noting(&mut self, others: Vec<u32>) -> Result<()> {
        for other in self.others.extract_if(.., |other| !others.contains(other)) {
            // Of the process itself everything is watched, though it was another's child before.
            if Some(other) != self.tgid {
                self.log.untrack(other)?;
            }
        }
        for &other in others.iter().filter(|other| Some(**other) != self.tgid) {
            self.log.track(other)?;
        }
        self.others = others;
        self.noting = Some(Noting::default());
        self.look()?;
        self.noting = self.noting.take().map(|before| before.begin(&self.log)).transpose()?;
        Ok(())
    }

    /// How many writes and removals of these processes were noted so far, and since when. `None`: that is not known, or too many.
    pub fn noted_so_far(&mut self, tgids: &[u32]) -> Result<Option<(usize, Instant)>> {
        self.look()?;
        let watched = tgids.iter().all(|tgid| self.others.contains(tgid));
        let Some((noting, cut)) = self.noting.as_ref().zip(self.cut.or(self.base)).filter(|_| watched) else { return Ok(None) };
        Ok(noting.count(&self.log)?.map(|count| (count, cut.at)))
    }

    /// At a cut, with all processes stopped: what was noted, of all of them together, and it begins anew. `None`: that is not known, or not all of it.
    pub fn noted(&mut self) -> Result<Option<Touched>> {
        self.look()?;
        let Some(noting) = self.noting.take() else { return Ok(None) };
        let noted = noting.end(&self.log)?;
        self.noting = Some(Noting::default().begin(&self.log)?);
        Ok(noted)
    }

    /// At a cut.
    pub fn cut(&mut self) -> Result<()> {
        self.cut = self.mark()?;
        self.epoch += 1;
        self.log.set_epoch(self.epoch)
    }

    /// The image of the last cut is on disk. What was written between the one before and that, if there is one.
    pub fn commit(&mut self) -> Result<Option<Writes>> {
        self.look()?;
        let (Some(tgid), Some(cut)) = (self.tgid, self.cut.take()) else { return Ok(None) };
        let regions = self.log.take_regions(tgid, cut.info.execs, self.epoch)?;
        let epoch = self.epoch;
        let mut pages: Vec<u64> = self.pages.extract_if(.., |(_, when)| *when < epoch).map(|(page, _)| page).collect();
        pages.sort_unstable();
        pages.dedup();
        let again = pages.iter().filter(|page| self.before.binary_search(page).is_ok()).count() as u64;
        self.before = pages;
        let Some(base) = self.base.replace(cut) else { return Ok(None) };
        // Another program: what was counted before is of another memory.
        let since = if base.info.execs == cut.info.execs { base.info } else { TaskInfo::default() };
        let less = |now: u64, then: u64| now.saturating_sub(then);
        let unplaced = less(cut.unplaced, base.unplaced);
        Ok(Some(Writes {
            faults: less(cut.info.write_faults, since.write_faults),
            regions: regions.len() as u64,
            hot_regions: hot(regions.into_values().collect()),
            again,
            lost: less(cut.info.lost, since.lost).max(unplaced),
            during_us: (cut.at - base.at).as_micros() as u64,
        }))
    }

    /// Bytes of the pages written in a second since the last cut of which there is an image. `None`: that is not known, or was just now.
    pub fn rate_now(&mut self) -> Result<Option<u64>> {
        self.look()?;
        let (Some(base), Some(now)) = (self.base, self.mark()?) else { return Ok(None) };
        if now.at - base.at < LEAST {
            return Ok(None);
        }
        let since = if base.info.execs == now.info.execs { base.info.write_faults } else { 0 };
        Ok(Some(rate(now.info.write_faults.saturating_sub(since), now.at - base.at)))
    }

    /// `None`: the process is gone.
    fn mark(&self) -> Result<Option<Mark>> {
        let Some(tgid) = self.tgid else { return Ok(None) };
        let info = self.log.info(tgid)?;
        let unplaced = self.log.counters()?.unplaced;
        Ok(info.map(|info| Mark { at: Instant::now(), info, unplaced }))
    }

    /// Empties the log, so that there is room in it.
    fn look(&mut self) -> Result<()> {
        let WriteWatch { log, tgid, pages, noting, .. } = self;
        log.drain(|of, epoch, happening| {
            if let Some(noting) = noting.as_mut() {
                noting.add(&happening);
            }
            match happening {
                Happening::Write { page, .. } if Some(of) == *tgid => pages.push((page, epoch)),
                Happening::Write { .. } | Happening::Removal { .. } => {}
                Happening::Exec if Some(of) == *tgid => pages.clear(),
                other => tracing::debug!("process {of}: {other:?}"),
            }
        })
    }

    /// The log itself.
    pub fn log(&mut self) -> &mut FaultLog {
        &mut self.log
    }
}

/// How many of these counts, the largest first, are half of all.
fn hot(mut counts: Vec<u64>) -> u64 {
    counts.sort_unstable_by(|a, b| b.cmp(a));
    let all: u64 = counts.iter().sum();
    let before = counts.iter().scan(0, |sum, count| Some(std::mem::replace(sum, *sum + count)));
    before.take_while(|sum| 2 * sum < all).count() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hot_regions_are_the_fewest_that_have_half_of_all() {
        assert_eq!(hot(vec![]), 0);
        assert_eq!(hot(vec![7]), 1);
        assert_eq!(hot(vec![1, 100, 1, 1]), 1);
        assert_eq!(hot(vec![5, 5, 5, 5]), 2);
        assert_eq!(hot(vec![1; 101]), 51);
    }

    #[test]
    fn rates_are_of_whole_pages() {
        assert_eq!(Writes { faults: 250, during_us: 500_000, ..Writes::default() }.bytes_per_second(), 500 * PAGE_SIZE);
    }
}
