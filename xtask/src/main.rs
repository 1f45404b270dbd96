//! `cargo xtask`: the one door for whoever works on ckpt.

mod bench;
mod ci;
mod command;
mod demo;
mod ebpf;
mod machine;
mod prerequisites;
mod test;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The tasks of ckpt's developers.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask")]
struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Build ckpt, checkpoint a running computation, kill it, restart it, and compare its result with an uninterrupted run
    Demo,
    /// Bring what the tests need (on Debian, as root: with apt-get), run all tests, and say what was skipped and why
    Test {
        /// Arguments for the test runner: cargo-nextest if it is installed, else `cargo test`
        #[arg(last = true)]
        runner: Vec<String>,
    },
    /// Run all of benches/, and write the report as Markdown and JSON
    Bench {
        /// Arguments for the benchmarks
        #[arg(last = true)]
        benches: Vec<String>,
    },
    /// Build the eBPF programs into the object that is committed beside them (on Debian, as root, brings the toolchain)
    Ebpf {
        /// Build nothing; fail if the committed object was not made from the sources as they are
        #[arg(long)]
        check: bool,
    },
    /// What must pass before a change is taken: format, lints, the eBPF object, the tests
    Ci,
}

fn main() -> ExitCode {
    let result = match Args::parse().task {
        Task::Demo => demo::run(),
        Task::Test { runner } => test::run(&runner),
        Task::Bench { benches } => bench::run(&benches),
        Task::Ebpf { check: true } => ebpf::check(),
        Task::Ebpf { check: false } => ebpf::run(),
        Task::Ci => ci::run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
