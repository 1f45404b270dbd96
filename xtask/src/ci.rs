//! `cargo xtask ci`: what must pass before a change is taken.

use anyhow::Result;

use crate::command::{self, cargo};
use crate::{ebpf, test};

/// Everything, cheapest first.
pub fn run() -> Result<()> {
    command::run(cargo().args(["fmt", "--all", "--check"]))?;
    command::run(cargo().args(["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    ebpf::check()?;
    // The tests run on what the sources make, whatever compiler made the committed object.
    ebpf::run()?;
    test::run(&[])
}
