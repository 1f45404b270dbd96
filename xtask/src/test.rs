//! `cargo xtask test`: all tests, and an account of what was skipped and why.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result};

use crate::command::{self, cargo};
use crate::{ebpf, machine, prerequisites, vm};

/// The environment variable by which a test finds the file where it notes that it was skipped: a line `name<TAB>reason`.
const SKIPS: &str = "CKPT_TEST_SKIPS";

/// Brings what is needed, runs everything, tells what was skipped. Fails if a test does.
pub fn run(runner_arguments: &[String]) -> Result<()> {
    prerequisites::of_tests()?;
    if let Err(why) = vm::prepare() {
        println!("Note: the test that needs a virtual machine will be skipped: {why:#}");
    }
    if !machine::is_root()? {
        println!("Not root: tests that need it will be skipped.");
    }
    if let Some(why) = ebpf::stale()? {
        println!("Note: the tests use the committed eBPF object, and {why}. `cargo xtask ebpf` builds it anew.");
    }
    let skips = tempfile::NamedTempFile::new().context("cannot make the file for the names of skipped tests")?;
    // The tests run the program, but belong to another package: cargo would leave an old one in place.
    command::run(cargo().args(["build", "--release", "--package", "ckpt"]))?;
    let mut tests = cargo();
    if command::find("cargo-nextest").is_some() {
        tests.args(["nextest", "run", "--workspace", "--release", "--no-fail-fast"]).args(runner_arguments);
    } else {
        println!("cargo-nextest is not installed (it would run the tests side by side); using cargo test");
        tests.args(["test", "--workspace", "--release", "--no-fail-fast"]).args(runner_arguments);
    }
    let result = command::run(tests.env(SKIPS, skips.path()));
    report(&fs::read_to_string(skips.path()).context("cannot read the names of skipped tests")?);
    result
}

fn report(skips: &str) {
    let by_reason = by_reason(skips);
    if by_reason.is_empty() {
        println!("\nNo test was skipped.");
        return;
    }
    println!("\nSkipped, though counted as passed above:");
    for (reason, names) in by_reason {
        println!("  {reason}:");
        for name in names {
            println!("    {name}");
        }
    }
}

/// Lines `name<TAB>reason`, by reason.
fn by_reason(skips: &str) -> BTreeMap<&str, Vec<&str>> {
    let mut reasons: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for line in skips.lines().filter(|line| !line.trim().is_empty()) {
        let (name, reason) = line.split_once('\t').unwrap_or((line, "no reason given"));
        let names = reasons.entry(reason).or_default();
        if !names.contains(&name) {
            names.push(name);
        }
    }
    reasons
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skipped_tests_are_listed_once_under_their_reason() {
        let listed = by_reason("a\tnot root\nb\tno AVX\nc\tnot root\na\tnot root\n\nd\n");
        assert_eq!(listed["not root"], ["a", "c"]);
        assert_eq!(listed["no AVX"], ["b"]);
        assert_eq!(listed["no reason given"], ["d"]);
    }
}
