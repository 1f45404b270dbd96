//! How the pause grows with the size of a process of which always as much is written: 64 MiB.

use std::time::Duration;

use anyhow::Result;
use ckpt_tests::watched::{Watch, number};

use super::{Bench, Outcome, Workload, saving};
use crate::figure::Figures;
use crate::writer::{Contents, Writer};

/// See the module.
pub const WORKLOAD: Workload = Workload {
    name: "growth",
    about: "processes of 256 MiB to 8 GiB of compressible pages under `ckpt watch`; 64 MiB of scattered pages are written between two checkpoints",
    run,
};

const SIZES: &[(u64, &str)] = &[(256, "pause, 256 MiB"), (1024, "pause, 1 GiB"), (4096, "pause, 4 GiB"), (8192, "pause, 8 GiB")];
const PAGES: u64 = 64 << 8;

fn run(bench: &Bench) -> Result<Outcome> {
    let (mut figures, mut notes) = (Figures::default(), Vec::new());
    for &(mebibytes, name) in SIZES {
        let scratch = match saving::scratch_for(mebibytes, mebibytes / 4 + 1024)? {
            Ok(scratch) => scratch,
            Err(reason) => {
                notes.push(format!("{name} was not measured: {reason}"));
                continue;
            }
        };
        eprintln!("  {name}");
        let mut writer = Writer::start(&bench.programs, scratch.jobs(), mebibytes, Contents::Compressible)?;
        let dir = scratch.path().join("images");
        let watch = Watch::start(writer.job(), &dir, "1s", &["--codec", "lz4"]);
        let mut seen = watch.wait_for(1).len();
        for _ in 0..bench.runs {
            writer.touch(PAGES)?;
            let lines = watch.wait_for(seen + 1);
            seen = lines.len();
            figures.time(name, Duration::from_micros(lines.last().map_or(0, |line| number(line, "pause_us"))));
        }
        watch.end();
    }
    let ratios = SIZES.windows(2).filter_map(|pair| figures.ratio(pair[1].1, pair[0].1)).collect();
    Ok(Outcome::Measured { notes, figures: figures.into_vec(), ratios })
}
