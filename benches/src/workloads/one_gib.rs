//! A process of 1 GiB beside plain copies of its memory.
//!
//! All that a round measures, it measures on the same process, one after the other, so that what disturbs the machine for a while
//! disturbs all of it.

use anyhow::{Context, Result};

use super::saving::{self, LZ4, RAW};
use super::{Bench, Outcome, Workload};
use crate::figure::Figures;
use crate::plain;
use crate::target::Target;

/// See the module.
pub const WORKLOAD: Workload = Workload {
    name: "one-gib",
    about: "a process of 1 GiB, every other page incompressible, the others text; plain copies are one thread with a 1 MiB buffer",
    run,
};

const MEBIBYTES: u64 = 1024;

const READ: &str = "plain copy: process_vm_readv into one buffer";
const READ_AND_WRITE: &str = "plain copy, each buffer written to a file";
const WRITE_BACK: &str = "plain copy back: file to process_vm_writev into untouched memory";

/// The names of the processor times of these.
const READ_CPU: &str = "processor time of the plain copy";
const READ_AND_WRITE_CPU: &str = "processor time of the plain copy with its writing";
const WRITE_BACK_CPU: &str = "processor time of the plain copy back";

fn run(bench: &Bench) -> Result<Outcome> {
    let scratch = match saving::scratch(MEBIBYTES)? {
        Ok(scratch) => scratch,
        Err(reason) => return Ok(Outcome::Skipped(reason)),
    };
    let mut figures = Figures::default();
    for round in 1..=bench.runs {
        eprintln!("  round {round} of {}", bench.runs);
        let target = Target::start(&bench.programs, scratch.jobs(), MEBIBYTES, true)?;
        plain_copies(bench, &target, &mut figures)?;
        saving::round(bench, target, scratch.path(), &mut figures)?;
    }
    let pairs = [
        (RAW.checkpoint, READ),
        (RAW.checkpoint, READ_AND_WRITE),
        (RAW.pause, READ),
        (LZ4.checkpoint, READ),
        (LZ4.checkpoint, READ_AND_WRITE),
        (RAW.restart, READ),
        (RAW.restart, READ_AND_WRITE),
        (RAW.restart, WRITE_BACK),
        (LZ4.restart, READ),
        (LZ4.restart, READ_AND_WRITE),
        (LZ4.restart, WRITE_BACK),
    ];
    let cpu_pairs = [
        (RAW.checkpoint_cpu, READ_AND_WRITE_CPU),
        (LZ4.checkpoint_cpu, READ_AND_WRITE_CPU),
        (RAW.restart_cpu, WRITE_BACK_CPU),
        (LZ4.restart_cpu, WRITE_BACK_CPU),
    ];
    let pairs = pairs.into_iter().chain(cpu_pairs);
    let ratios = pairs.filter_map(|(of, to)| figures.ratio(of, to)).collect();
    Ok(Outcome::Measured { notes: vec![scratch.describe()], figures: figures.into_vec(), ratios })
}

fn plain_copies(bench: &Bench, target: &Target, figures: &mut Figures) -> Result<()> {
    let scratch = crate::scratch::Scratch::with_room_for(MEBIBYTES << 20)?;
    let file = tempfile::tempfile_in(scratch.path()).context("cannot make a file for the copy")?;
    let mut took = |name, cpu, took: plain::Took| {
        figures.time(name, took.wall);
        figures.time(cpu, took.cpu);
    };
    took(READ, READ_CPU, plain::read(target)?);
    took(READ_AND_WRITE, READ_AND_WRITE_CPU, plain::read_and_write(target, &file)?);
    let empty = Target::start(&bench.programs, scratch.jobs(), MEBIBYTES, false)?;
    took(WRITE_BACK, WRITE_BACK_CPU, plain::write_back(&empty, &file)?);
    empty.kill();
    Ok(())
}
