//! What a watch costs a job: one that writes some 100 MB of pages in a second and computes in between, with and without.

use std::time::Duration;

use anyhow::Result;
use ckpt_tests::watched::Watch;

use super::{Bench, Outcome, Workload, saving};
use crate::figure::{Figures, Unit};
use crate::writer::{Contents, Writer};

/// See the module.
pub const WORKLOAD: Workload = Workload {
    name: "slowdown",
    about: "a job of 1 GiB that writes a page drawn at random every 40 us (100 MB/s), and computes in between, on its own and under `ckpt watch`",
    run,
};

const MEBIBYTES: u64 = 1024;
/// One run.
const SECONDS: u64 = 8;
/// Between two pages.
const EACH_NS: u64 = 40_000;

const ALONE: &str = "steps, not watched";
const WATCHES: &[(&str, &str, &str)] = &[
    ("1s", "steps, --interval 1s", "longest gap, --interval 1s"),
    ("100ms", "steps, --interval 100ms", "longest gap, --interval 100ms"),
    ("10ms", "steps, --interval 10ms", "longest gap, --interval 10ms"),
];

fn run(bench: &Bench) -> Result<Outcome> {
    let scratch = match saving::scratch(4 * MEBIBYTES)? {
        Ok(scratch) => scratch,
        Err(reason) => return Ok(Outcome::Skipped(reason)),
    };
    let mut figures = Figures::default();
    let mut writer = Writer::start(&bench.programs, scratch.jobs(), MEBIBYTES, Contents::Noise)?;
    for round in 1..=bench.runs {
        eprintln!("  round {round} of {}", bench.runs);
        let worked = writer.work(SECONDS, EACH_NS)?;
        figures.rate(ALONE, Unit::Steps, worked.steps as f64 / SECONDS as f64);
        figures.time("longest gap, not watched", Duration::from_micros(worked.gap_us));
        for &(interval, steps, gap) in WATCHES {
            let dir = scratch.path().join("images");
            let watch = Watch::start(writer.job(), &dir, interval, &["--keep", "1"]);
            watch.wait_for(1);
            let worked = writer.work(SECONDS, EACH_NS)?;
            watch.end();
            std::fs::remove_dir_all(&dir)?;
            figures.rate(steps, Unit::Steps, worked.steps as f64 / SECONDS as f64);
            figures.time(gap, Duration::from_micros(worked.gap_us));
        }
    }
    let ratios = WATCHES.iter().filter_map(|(_, steps, _)| figures.ratio(steps, ALONE)).collect();
    Ok(Outcome::Measured { notes: vec![scratch.describe()], figures: figures.into_vec(), ratios })
}
