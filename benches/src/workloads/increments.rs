//! What an increment costs: a process of 1 GiB, of which a part is written, scattered, between two checkpoints of a watch.

use std::time::Duration;

use anyhow::Result;
use ckpt_tests::watched::{Watch, number};

use super::{Bench, Outcome, Workload, saving};
use crate::figure::Figures;
use crate::scratch::Scratch;
use crate::writer::{Contents, Writer};

/// See the module.
pub const WORKLOAD: Workload = Workload {
    name: "increments",
    about: "a process of 1 GiB of noise under `ckpt watch --codec raw`; pages written between two checkpoints, scattered, each once",
    run,
};

const MEBIBYTES: u64 = 1024;
const PAGES: u64 = MEBIBYTES << 8;

/// What is written, and what the figures are called.
struct Part {
    pages: u64,
    dirtied: &'static str,
    image: [&'static str; 2],
    pause: [&'static str; 2],
    total: [&'static str; 2],
}

macro_rules! part {
    ($percent:literal) => {
        Part {
            pages: PAGES * $percent / 100,
            dirtied: concat!("dirtied, ", $percent, " %"),
            image: [concat!("image, live, ", $percent, " %"), concat!("image, scan, ", $percent, " %")],
            pause: [concat!("pause, live, ", $percent, " %"), concat!("pause, scan, ", $percent, " %")],
            total: [concat!("total, live, ", $percent, " %"), concat!("total, scan, ", $percent, " %")],
        }
    };
}

const PARTS: &[Part] = &[part!(1), part!(10), part!(100)];

fn run(bench: &Bench) -> Result<Outcome> {
    let scratch = match saving::scratch(4 * MEBIBYTES)? {
        Ok(scratch) => scratch,
        Err(reason) => return Ok(Outcome::Skipped(reason)),
    };
    let mut figures = Figures::default();
    for part in PARTS {
        for (n, tracker) in ["live", "scan"].into_iter().enumerate() {
            eprintln!("  {tracker}, {}", part.dirtied);
            measure(bench, &scratch, part, n, tracker, &mut figures)?;
        }
    }
    let pairs = PARTS
        .iter()
        .flat_map(|part| [(part.image[0], part.dirtied), (part.image[1], part.dirtied), (part.pause[0], part.pause[1])]);
    let ratios = pairs.filter_map(|(of, to)| figures.ratio(of, to)).collect();
    Ok(Outcome::Measured { notes: vec![scratch.describe()], figures: figures.into_vec(), ratios })
}

fn measure(bench: &Bench, scratch: &Scratch, part: &Part, n: usize, tracker: &str, figures: &mut Figures) -> Result<()> {
    let mut writer = Writer::start(&bench.programs, scratch.jobs(), MEBIBYTES, Contents::Noise)?;
    let dir = scratch.path().join("images");
    let watch = Watch::start(writer.job(), &dir, "4s", &["--codec", "raw", "--tracker", tracker, "--keep", "1"]);
    let mut seen = watch.wait_for(1).len();
    for _ in 0..bench.runs {
        writer.touch(part.pages)?;
        let lines = watch.wait_for(seen + 1);
        seen = lines.len();
        let Some(line) = lines.last() else { continue };
        let time = |key| Duration::from_micros(number(line, key));
        figures.bytes(part.dirtied, part.pages << 12);
        figures.bytes(part.image[n], number(line, "bytes"));
        figures.time(part.pause[n], time("pause_us"));
        figures.time(part.total[n], time("total_us"));
    }
    watch.end();
    std::fs::remove_dir_all(&dir)?;
    Ok(())
}
