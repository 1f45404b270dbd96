//! Many cuts of a job that writes all the time, live and by `scan`: the pauses, and the job's longest gap.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use ckpt_tests::watched::Watch;

use super::cuts::Cuts;
use super::{Bench, Outcome, Workload, saving};
use crate::figure::Figures;
use crate::writer::{Contents, Writer};

/// See the module.
pub const WORKLOAD: Workload = Workload {
    name: "pauses",
    about: "jobs of 256 MiB to 8 GiB of compressible pages that write a page drawn at random every 40 us, or without a rest, under \
            `ckpt watch --interval 20ms` with each tracker, until there were 100 cuts for each round, for 20 s of a round at most",
    run,
};

/// Of each round; there are five, if nothing else is said.
const CUTS: usize = 100;
const AT_MOST: Duration = Duration::from_secs(20);
/// The writer is asked so often whether there were enough.
const SECONDS: u64 = 2;

const SIZES: &[(u64, &str)] = &[(256, "256 MiB"), (1024, "1 GiB"), (4096, "4 GiB"), (8192, "8 GiB")];
/// Nanoseconds between two pages.
const RATES: &[(u64, &str)] = &[(40_000, "100 MB/s"), (0, "full speed")];
const TRACKERS: [&str; 2] = ["live", "scan"];

fn run(bench: &Bench) -> Result<Outcome> {
    let (mut figures, mut notes) = (Figures::default(), Vec::new());
    for &(mebibytes, size) in SIZES {
        // Images are small, and old ones are merged away only now and then; what ckpt itself keeps is in it, too.
        let scratch = match saving::scratch_for(mebibytes, mebibytes / 4 + 2048)? {
            Ok(scratch) => scratch,
            Err(reason) => {
                notes.push(format!("{size} was not measured: {reason}"));
                continue;
            }
        };
        let mut writer = Writer::start(&bench.programs, scratch.jobs(), mebibytes, Contents::Compressible)?;
        for &(each_ns, rate) in RATES {
            for tracker in TRACKERS {
                let what = format!("{tracker}, {size}, {rate}");
                eprintln!("  {what}");
                let (cuts, gap) = measure(bench, &mut writer, scratch.path(), tracker, each_ns)?;
                cuts.add_pauses(&pause(tracker, size, rate), &mut figures);
                figures.time(&longest_gap(tracker, size, rate), gap);
                notes.push(format!("{}, {:.2} % written between two", cuts.describe(&what), cuts.percent_written()));
            }
        }
    }
    let each = || RATES.iter().flat_map(|(_, rate)| SIZES.iter().map(move |(_, size)| (*size, *rate)));
    let against_scan =
        each().flat_map(|(size, rate)| [pause, longest_gap].map(|of| TRACKERS.map(|tracker| of(tracker, size, rate))));
    let growth = RATES.iter().flat_map(|(_, rate)| SIZES.windows(2).map(|two| [1, 0].map(|n| pause("live", two[n].1, rate))));
    let ratios = against_scan.chain(growth).filter_map(|[of, to]| figures.ratio(&of, &to)).collect();
    Ok(Outcome::Measured { notes, figures: figures.into_vec(), ratios })
}

fn pause(tracker: &str, size: &str, rate: &str) -> String {
    format!("pause, {tracker}, {size}, {rate}")
}

fn longest_gap(tracker: &str, size: &str, rate: &str) -> String {
    format!("longest gap, {tracker}, {size}, {rate}")
}

/// Cuts while the job works, and its longest gap.
fn measure(bench: &Bench, writer: &mut Writer, folder: &Path, tracker: &str, each_ns: u64) -> Result<(Cuts, Duration)> {
    let dir = folder.join("images");
    let watch = Watch::start(writer.job(), &dir, "20ms", &["--codec", "lz4", "--keep", "2", "--tracker", tracker]);
    watch.wait_for(1);
    let (began, mut gap_us) = (Instant::now(), 0);
    while watch.checkpoints().len() <= CUTS * bench.runs as usize && began.elapsed() < AT_MOST * bench.runs {
        gap_us = gap_us.max(writer.work(SECONDS, each_ns)?.gap_us);
    }
    let cuts = Cuts::of(watch.end());
    std::fs::remove_dir_all(&dir)?;
    Ok((cuts, Duration::from_micros(gap_us)))
}
