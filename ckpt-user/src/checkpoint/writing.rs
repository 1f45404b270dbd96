//! Writing an image: what stands before the pages, and the pages, while the target stands still or while it runs.

use std::thread;
use std::time::{Duration, Instant};

use super::kept::Kept;
use super::precopy::Spooled;
use super::{After, Cut, Freezer, Frozen, Hold, Phases, Progress, Split};
use crate::error::{Error, Result};
use crate::image::model::Header;
use crate::image::{ImageWriter, Records};
use crate::pipeline::{self, DumpOptions, DumpStats, Extent, PageSource};
use crate::track::ebpf::{LiveCut, MemoryState};

/// See the module.
pub(super) struct Writing<'a> {
    pub(super) cut: &'a Cut,
    pub(super) header: &'a Header,
    /// The metadata of the parent, if there is one.
    pub(super) base: Option<&'a Records>,
    /// That of the image, once it was written.
    pub(super) metadata: Records,
    pub(super) dump: DumpOptions<'a>,
    pub(super) split: &'a Split,
    pub(super) progress: Progress<'a>,
    pub(super) freezer: &'a Freezer<'a>,
}

/// What has become of the target meanwhile.
#[derive(Default)]
pub(super) struct Written {
    pub(super) stats: DumpStats,
    /// The target ran while pages were copied.
    pub(super) live: bool,
    /// If it must not run before the image is safe.
    pub(super) frozen: Option<Frozen>,
    pub(super) processes: usize,
    pub(super) threads: usize,
    /// From the freeze to the thaw.
    pub(super) pause: Duration,
    pub(super) phases: Phases,
    /// How long it was held back later.
    pub(super) held_back: Duration,
    /// From the thaw until the last page was copied.
    pub(super) drain: Duration,
    /// Pages that were copied before the freeze.
    pub(super) precopied: u64,
    /// Pages that were saved because they were about to change.
    pub(super) preserved: u64,
    /// The time that the target has lost to that, over all its threads.
    pub(super) preserving: Duration,
    /// Pages that the scan in the pause has passed over, and that were unchanged.
    pub(super) unscanned: u64,
}

impl Written {
    /// Nothing is written yet.
    fn of(frozen: &Frozen) -> Written {
        Written { processes: frozen.tree.processes.len(), threads: frozen.tree.thread_count(), ..Written::default() }
    }
}

impl Writing<'_> {
    /// The target stands still until all is written, and then, unless it is to run on, as well.
    pub(super) fn while_it_stands(&mut self, writer: &mut ImageWriter<'_>, mut frozen: Frozen, after: After) -> Result<Written> {
        let (written, since) = (Written::of(&frozen), frozen.since);
        let all = &self.cut.extents;
        let written = if after == After::Continue {
            let (stats, phases, thawed) = self.still(all, writer, frozen)?;
            Written { stats, phases, pause: thawed - since, ..written }
        } else {
            frozen.take_time();
            self.write_metadata(writer)?;
            let stats = self.pages(all, &self.cut.source, writer, 0)?;
            frozen.watch.end_of(|parts| &mut parts.copy_us);
            Written { stats, phases: frozen.watch.phases, frozen: Some(frozen), ..written }
        };
        pipeline::end_owners(all, writer)?;
        Ok(written)
    }

    /// The target stands still until all is read but what was copied before.
    pub(super) fn with_spool(&mut self, writer: &mut ImageWriter<'_>, frozen: Frozen, spooled: &Spooled<'_>) -> Result<Written> {
        let Split { still, moving, later } = self.split;
        let (written, since) = (Written::of(&frozen), frozen.since);
        let (mut stats, phases, thawed) = self.still(still, writer, frozen)?;
        let pause = thawed - since;
        let to_read = pipeline::pages_to_read(still);
        stats += self.pages(later, &self.cut.source, writer, to_read)?;
        stats += self.pages(moving, spooled, writer, to_read + pipeline::pages_to_read(later))?;
        pipeline::end_owners(&self.cut.extents, writer)?;
        let precopied = pipeline::pages_to_read(moving);
        Ok(Written { stats, pause, phases, precopied, ..written })
    }

    /// The target runs as soon as that is safe.
    pub(super) fn while_it_runs(&mut self, writer: &mut ImageWriter<'_>, frozen: Frozen, live: &LiveCut<'_>) -> Result<Written> {
        let Split { still, moving, later } = self.split;
        let (written, since) = (Written::of(&frozen), frozen.since);
        let to_read = pipeline::pages_to_read(still);
        let (mut stats, phases, thawed) = self.still(still, writer, frozen)?;
        let hold = Hold::new(live, self.freezer);
        let all = pipeline::pages_to_read(&self.cut.extents);
        let options = DumpOptions { live: Some(live), ..self.dump };
        let is_as_mapped = |pid, then: &MemoryState| {
            let now = self.freezer.inspector.loaded().map(|inspector| inspector.memory_of(pid));
            now.is_some_and(|now| now.is_ok_and(|now| then.still_holds(&now)))
        };
        let (dumped, proved) = thread::scope(|scope| {
            let proof = scope.spawn(|| live.prove(&is_as_mapped));
            let dumped = pipeline::dump(moving, &self.cut.source, writer, &options, &|done| {
                (self.progress)(to_read + done, all);
                hold.look();
            });
            let panicked = |_| Err(Error::Unexpected("a thread that looks at page tables panicked".to_owned()));
            (dumped, proof.join().unwrap_or_else(panicked))
        });
        let held_back = hold.end();
        // First: what was not seen before the cut makes copying fail, too.
        proved?;
        stats += dumped?;
        stats += self.pages(later, &self.cut.source, writer, to_read + pipeline::pages_to_read(moving))?;
        let drain = thawed.elapsed();
        pipeline::end_owners(&self.cut.extents, writer)?;
        let (preserved, preserving, unscanned) = (live.preserved(), live.time_lost(), live.passed_over());
        let (pause, live) = (thawed - since, !moving.is_empty());
        Ok(Written { stats, live, pause, phases, held_back, drain, preserved, preserving, unscanned, ..written })
    }

    /// Writes what stands before the pages, and those that are to be read while the target stands still, and lets it go: as soon as they are read, if they
    /// are few.
    fn still(
        &mut self,
        still: &[Extent],
        writer: &mut ImageWriter<'_>,
        mut frozen: Frozen,
    ) -> Result<(DumpStats, Phases, Instant)> {
        if let Some(kept) = Kept::read(still, &self.cut.source)? {
            frozen.watch.end_of(|parts| &mut parts.copy_us);
            let (phases, thawed) = frozen.thaw()?;
            self.write_metadata(writer)?;
            return Ok((self.pages(still, &kept, writer, 0)?, phases, thawed));
        }
        frozen.take_time();
        self.write_metadata(writer)?;
        let stats = self.pages(still, &self.cut.source, writer, 0)?;
        frozen.watch.end_of(|parts| &mut parts.copy_us);
        let (phases, thawed) = frozen.thaw()?;
        Ok((stats, phases, thawed))
    }

    fn write_metadata(&mut self, writer: &mut ImageWriter<'_>) -> Result<()> {
        self.metadata = self.cut.records()?;
        writer.metadata(self.header, &self.metadata, self.base)?;
        Ok(())
    }

    fn pages(&self, plan: &[Extent], source: &dyn PageSource, writer: &mut ImageWriter<'_>, before: u64) -> Result<DumpStats> {
        let all = pipeline::pages_to_read(&self.cut.extents);
        pipeline::dump(plan, source, writer, &self.dump, &|done| (self.progress)(before + done, all))
    }
}
