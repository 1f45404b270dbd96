//! A small process: what a checkpoint and a restart cost however little there is to save.

use anyhow::Result;

use super::{Bench, Outcome, Workload, saving};

/// See the module.
pub const WORKLOAD: Workload = Workload {
    name: "small",
    about: "a process of 8 MiB, of the same kind: the fixed cost, with the start and end of ckpt itself",
    run,
};

const MEBIBYTES: u64 = 8;

fn run(bench: &Bench) -> Result<Outcome> {
    saving::rounds(bench, MEBIBYTES, bench.runs)
}
