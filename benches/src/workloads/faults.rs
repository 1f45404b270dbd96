//! What the programs of eBPF cost at a page fault, where there is nothing to save: of a process that is watched, and of all others.

use std::time::Duration;

use anyhow::Result;
use ckpt_tests::watched::Watch;

use super::{Bench, Outcome, Workload, saving};
use crate::figure::Figures;
use crate::writer::{Contents, Writer};

/// See the module.
pub const WORKLOAD: Workload = Workload {
    name: "faults",
    about: "the first write to a page that is new, with and without `ckpt watch` of this process, or of another one; and to one that a checkpoint has protected, which the kernel notes, and by `live` the programs",
    run,
};

const MEBIBYTES: u64 = 64;
/// At once, and how often in a round.
const PAGES: u64 = 65_536;
const TIMES: u32 = 5;

const ALONE: &str = "write fault, nobody watched";
const OTHER: &str = "write fault, another process watched";
const WATCHED: &str = "write fault, watched";

/// Of the job's own.
const PROTECTED: u64 = 8192;
const WRITE: &str = "write, nobody watched";
const NOTED: &[(&str, &str)] =
    &[("scan", "write to a protected page, --tracker scan"), ("live", "write to a protected page, --tracker live")];

fn run(bench: &Bench) -> Result<Outcome> {
    let scratch = match saving::scratch(8 * MEBIBYTES)? {
        Ok(scratch) => scratch,
        Err(reason) => return Ok(Outcome::Skipped(reason)),
    };
    let mut figures = Figures::default();
    let folder = |name: &str| -> Result<_> {
        let folder = scratch.jobs().join(name);
        std::fs::create_dir(&folder)?;
        Ok(folder)
    };
    let mut writer = Writer::start(&bench.programs, &folder("one")?, MEBIBYTES, Contents::Noise)?;
    let other = Writer::start(&bench.programs, &folder("other")?, MEBIBYTES, Contents::Noise)?;
    for round in 1..=bench.runs {
        eprintln!("  round {round} of {}", bench.runs);
        figures.moment(ALONE, one_fault(&mut writer)?);
        for (name, of_this) in [(OTHER, false), (WATCHED, true)] {
            let dir = scratch.path().join("images");
            let job = if of_this { writer.job() } else { other.job() };
            let watch = Watch::start(job, &dir, "1h", &["--tracker", "live"]);
            watch.wait_for(1);
            figures.moment(name, one_fault(&mut writer)?);
            watch.end();
            std::fs::remove_dir_all(&dir)?;
        }
        figures.moment(WRITE, writer.touch(PROTECTED)?);
        for (tracker, name) in NOTED {
            let dir = scratch.path().join("images");
            let watch = Watch::start(writer.job(), &dir, "1h", &["--tracker", tracker]);
            watch.wait_for(1);
            figures.moment(name, writer.touch(PROTECTED)?);
            watch.end();
            std::fs::remove_dir_all(&dir)?;
        }
    }
    let mut ratios: Vec<_> = [OTHER, WATCHED].iter().filter_map(|of| figures.ratio(of, ALONE)).collect();
    ratios.extend(figures.ratio(NOTED[1].1, NOTED[0].1));
    Ok(Outcome::Measured { notes: vec![scratch.describe()], figures: figures.into_vec(), ratios })
}

/// What is true of most faults, not of those that were disturbed.
fn one_fault(writer: &mut Writer) -> Result<Duration> {
    let mut times = (0..TIMES).map(|_| writer.fault(PAGES)).collect::<Result<Vec<_>>>()?;
    times.sort_unstable();
    Ok(times[times.len() / 2])
}
