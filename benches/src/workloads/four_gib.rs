//! A process of 4 GiB: does ckpt's own memory grow with the process?

use anyhow::Result;

use super::{Bench, Outcome, Workload, saving};

/// See the module.
pub const WORKLOAD: Workload = Workload {
    name: "four-gib",
    about: "a process of 4 GiB, of the same kind; what it is about is the peak memory of ckpt, which should be that of 1 GiB",
    run,
};

const MEBIBYTES: u64 = 4096;

/// Peak memory hardly differs from run to run, and each takes long.
const MOST_RUNS: u32 = 2;

fn run(bench: &Bench) -> Result<Outcome> {
    saving::rounds(bench, MEBIBYTES, bench.runs.min(MOST_RUNS))
}
