//! `cargo xtask bench`: all benchmarks, and where their report is.

use anyhow::{Result, ensure};

use crate::command::{self, cargo, target_dir};

/// Runs benches/ with these arguments more.
pub fn run(arguments: &[String]) -> Result<()> {
    let out = target_dir().join("bench");
    let mut benches = cargo();
    // Workloads that watch a job use the harness of the tests, which must run the same ckpt.
    if std::env::var_os("CKPT_BIN").is_none() {
        command::run(cargo().args(["build", "--release", "--package", "ckpt"]))?;
        benches.env("CKPT_BIN", target_dir().join("release/ckpt"));
    }
    benches.args(["run", "--release", "--package", "ckpt-benches", "--", "--out"]).arg(&out).args(arguments);
    command::run(&mut benches)?;
    for name in ["report.md", "report.json"] {
        let report = out.join(name);
        ensure!(report.is_file(), "the benchmarks ended without writing {}", report.display());
        println!("{}", report.display());
    }
    Ok(())
}
