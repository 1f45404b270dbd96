//! Many live cuts of a job that writes all the time: the pauses, and the job's longest gap.

use std::time::Duration;

use anyhow::Result;
use ckpt_tests::watched::{Watch, number};

use super::{Bench, Outcome, Workload, saving};
use crate::figure::Figures;
use crate::writer::Writer;

/// See the module.
pub const WORKLOAD: Workload = Workload {
    name: "pauses",
    about: "jobs of 256 MiB, 1 GiB and 4 GiB that write a page drawn at random every 40 us, or without a rest, under `ckpt watch --interval 20ms` \
            for 10 s: some hundred live cuts each",
    run,
};

const SECONDS: u64 = 10;
/// Size, nanoseconds between two pages, and the names of the pauses and of the longest gap.
const JOBS: &[(u64, u64, &str, &str)] = &[
    (256, 40_000, "pause, 256 MiB, 100 MB/s", "longest gap, 256 MiB, 100 MB/s"),
    (1024, 40_000, "pause, 1 GiB, 100 MB/s", "longest gap, 1 GiB, 100 MB/s"),
    (4096, 40_000, "pause, 4 GiB, 100 MB/s", "longest gap, 4 GiB, 100 MB/s"),
    (256, 0, "pause, 256 MiB, full speed", "longest gap, 256 MiB, full speed"),
    (1024, 0, "pause, 1 GiB, full speed", "longest gap, 1 GiB, full speed"),
];

fn run(bench: &Bench) -> Result<Outcome> {
    let (mut figures, mut notes) = (Figures::default(), Vec::new());
    for &(mebibytes, each_ns, pause, gap) in JOBS {
        let scratch = match saving::scratch(3 * mebibytes)? {
            Ok(scratch) => scratch,
            Err(reason) => {
                notes.push(format!("{pause} was not measured: {reason}"));
                continue;
            }
        };
        eprintln!("  {pause}");
        let mut writer = Writer::start(&bench.programs, scratch.path(), mebibytes)?;
        let dir = scratch.path().join("images");
        let watch = Watch::start(writer.job(), &dir, "20ms", &["--codec", "raw", "--keep", "2"]);
        watch.wait_for(1);
        let worked = writer.work(SECONDS, each_ns)?;
        let cuts = watch.end();
        // The first one holds the moment in which the tracker began.
        let mut pauses: Vec<u64> = cuts.iter().skip(1).map(|cut| number(cut, "pause_us")).collect();
        pauses.iter().for_each(|us| figures.time(pause, Duration::from_micros(*us)));
        figures.time(gap, Duration::from_micros(worked.gap_us));
        pauses.sort_unstable();
        let taken_again = cuts.iter().filter(|cut| cut["live_fallback"].is_string()).count();
        let part = |of_100: usize| pauses.get(pauses.len() * of_100 / 100).copied().unwrap_or_default();
        notes.push(format!(
            "{pause}: {} cuts, p50 {} us, p99 {} us, longest {} us; {taken_again} were not live",
            pauses.len(),
            part(50),
            part(99),
            pauses.last().copied().unwrap_or_default()
        ));
    }
    let ratios = JOBS.windows(2).filter_map(|two| figures.ratio(two[1].2, two[0].2)).collect();
    Ok(Outcome::Measured { notes, figures: figures.into_vec(), ratios })
}
