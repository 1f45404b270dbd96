//! The workloads of `cargo xtask bench`: how long checkpoints and restarts of real processes take, how long the processes stand still,
//! and how much memory that costs, beside what a plain copy of the same bytes takes.
//!
//! Runs the `ckpt` of this workspace as a user does (with the harness of `tests/`), says on standard error what it is doing, and writes
//! `report.md` and `report.json`. Nothing is asserted here but that the processes survive: figures are for people to read.

mod figure;
mod machine;
mod plain;
mod programs;
mod report;
mod scratch;
mod target;
mod workloads;
mod writer;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::Parser;

use crate::machine::Machine;
use crate::programs::Programs;
use crate::report::Report;
use crate::workloads::{ALL, Bench};

/// Measure ckpt, and write report.md and report.json
#[derive(Debug, Parser)]
struct Args {
    /// The folder for the report
    #[arg(long, value_name = "DIR")]
    out: PathBuf,

    /// How often each thing is measured
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    runs: u32,

    /// Only the workloads whose names contain this (may be given more than once)
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let names = || ALL.iter().map(|workload| workload.name).collect::<Vec<_>>().join(", ");
    let wanted: Vec<_> =
        ALL.iter().filter(|w| args.only.is_empty() || args.only.iter().any(|part| w.name.contains(part))).collect();
    ensure!(!wanted.is_empty(), "no workload has such a name; there are: {}", names());
    std::fs::create_dir_all(&args.out).with_context(|| format!("cannot make the folder {}", args.out.display()))?;
    let programs = Programs::build()?;
    let machine = Machine::look(&programs)?;
    let bench = Bench { programs, runs: args.runs };
    let mut report = Report { machine, workloads: Vec::new() };
    for workload in wanted {
        eprintln!("{}: {}", workload.name, workload.about);
        let outcome = (workload.run)(&bench).with_context(|| format!("the workload {} failed", workload.name))?;
        report.add(workload, outcome);
    }
    report.machine.look_again()?;
    report.write(&args.out)
}
