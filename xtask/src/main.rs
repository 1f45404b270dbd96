//! `cargo xtask`: the one door for whoever works on ckpt.

mod bench;
mod ci;
mod command;
mod demo;
mod ebpf;
mod machine;
mod prerequisites;
mod stress;
mod test;
mod vm;

use std::process::ExitCode;
use std::time::Duration;

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
    /// Cut jobs that verify themselves thousands of times, and restart them: is any page from the wrong instant?
    Stress {
        /// Arguments: --cuts N, --mode MODE, --tracker TRACKER, --seed N, --minutes N, --json, ... (--help shows them all)
        #[arg(last = true)]
        stress: Vec<String>,
    },
    /// Build the eBPF programs into the object that is committed beside them (on Debian, as root, brings the toolchain)
    Ebpf {
        /// Build nothing; fail if the committed object was not made from the sources as they are
        #[arg(long)]
        check: bool,
    },
    /// Run a command in a virtual machine with Debian's kernel, which is older than PAGEMAP_SCAN (on Debian, as root, brings QEMU)
    Vm {
        /// Run nothing; only bring what it takes
        #[arg(long)]
        prepare: bool,
        /// Seconds after which the machine is killed
        #[arg(long, default_value_t = 1800)]
        limit: u64,
        /// Build nothing; take ckpt and its test programs as they are
        #[arg(long)]
        as_built: bool,
        /// The command, which may be a program of this machine; without one: all tests of soft-dirty bits
        #[arg(last = true)]
        command: Vec<String>,
    },
    /// What must pass before a change is taken: format, lints, the eBPF object, the tests
    Ci,
}

fn main() -> ExitCode {
    let result = match Args::parse().task {
        Task::Demo => demo::run(),
        Task::Test { runner } => test::run(&runner),
        Task::Bench { benches } => bench::run(&benches),
        Task::Stress { stress } => stress::run(&stress),
        Task::Ebpf { check: true } => ebpf::check(),
        Task::Ebpf { check: false } => ebpf::run(),
        Task::Vm { prepare: true, .. } => vm::prepare(),
        Task::Vm { limit, as_built, command: words, .. } => {
            return exit(vm::run(&vm::Run { words, limit: Duration::from_secs(limit), as_built }));
        }
        Task::Ci => ci::run(),
    };
    exit(result.map(|()| ExitCode::SUCCESS))
}

fn exit(result: anyhow::Result<ExitCode>) -> ExitCode {
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}
