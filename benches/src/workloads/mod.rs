//! What is measured: one file per workload, and one line in [`ALL`].

mod cuts;
mod faults;
mod four_gib;
mod growth;
mod increments;
mod one_gib;
mod pauses;
mod prefork;
mod redis;
mod saving;
mod shapes;
mod slowdown;
mod small;
mod trees;

use anyhow::Result;

use crate::figure::{Figure, Ratio};
use crate::programs::Programs;

/// All workloads, in the order of the report.
pub const ALL: &[Workload] = &[
    one_gib::WORKLOAD,
    four_gib::WORKLOAD,
    small::WORKLOAD,
    increments::WORKLOAD,
    growth::WORKLOAD,
    slowdown::WORKLOAD,
    faults::WORKLOAD,
    pauses::WORKLOAD,
    shapes::WORKLOAD,
    trees::WORKLOAD,
    prefork::WORKLOAD,
    redis::WORKLOAD,
];

/// Something that is measured.
#[derive(Debug)]
pub struct Workload {
    /// For `--only`, and a heading of the report.
    pub name: &'static str,
    /// One sentence on what is measured.
    pub about: &'static str,
    /// Measures it.
    pub run: fn(&Bench) -> Result<Outcome>,
}

/// What workloads share.
#[derive(Debug)]
pub struct Bench {
    /// What they run.
    pub programs: Programs,
    /// How often each thing is to be measured.
    pub runs: u32,
}

/// What became of a workload.
#[derive(Debug)]
pub enum Outcome {
    /// It ran.
    Measured {
        /// What a reader must know: where the images were, say.
        notes: Vec<String>,
        /// What was measured.
        figures: Vec<Figure>,
        /// What that is in proportion.
        ratios: Vec<Ratio>,
    },
    /// It did not run, for this reason.
    Skipped(String),
}
