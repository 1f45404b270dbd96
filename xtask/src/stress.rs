//! `cargo xtask stress`: cuts without number of jobs that verify themselves.

use anyhow::Result;

use crate::command::{self, cargo, target_dir};

/// Builds ckpt and the jobs, and runs `stress` of tests/ with these arguments.
pub fn run(arguments: &[String]) -> Result<()> {
    let release = target_dir().join("release");
    command::run(cargo().args(["build", "--release", "--package", "ckpt-tests", "--bin", "lapper", "--bin", "stress"]))?;
    let mut stress = std::process::Command::new(release.join("stress"));
    if std::env::var_os("CKPT_BIN").is_none() {
        command::run(cargo().args(["build", "--release", "--package", "ckpt"]))?;
        stress.env("CKPT_BIN", release.join("ckpt"));
    }
    command::run(stress.args(arguments))
}
