//! A small process: what a checkpoint and a restart cost however little there is to save.

use anyhow::Result;

use super::{Bench, Outcome, Workload, saving};
use crate::figure::Figures;

/// See the module.
pub const WORKLOAD: Workload = Workload {
    name: "small",
    about: "a process of 8 MiB, of the same kind: the fixed cost, with the start and end of ckpt itself",
    run,
};

const MEBIBYTES: u64 = 8;

fn run(bench: &Bench) -> Result<Outcome> {
    let scratch = match saving::scratch(MEBIBYTES)? {
        Ok(scratch) => scratch,
        Err(reason) => return Ok(Outcome::Skipped(reason)),
    };
    let mut figures = Figures::default();
    for round in 1..=bench.runs {
        eprintln!("  round {round} of {}", bench.runs);
        saving::round(bench, MEBIBYTES, scratch.path(), &mut figures)?;
    }
    Ok(Outcome::Measured { notes: vec![scratch.describe()], figures: figures.into_vec(), ratios: Vec::new() })
}
