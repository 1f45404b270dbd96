//! `cargo xtask vm`: runs a command in a virtual machine with an older kernel, Debian's. It has ckpt, its test programs, busybox, and
//! an empty disk at /tmp, and swap space; its memory is the root file system. Nothing is installed but QEMU and busybox: the kernel is only fetched.

mod archive;
mod command_line;
mod initramfs;
mod kernel;
mod libraries;
mod qemu;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::command::{self, cargo, target_dir};
use crate::prerequisites;
use command_line::CommandLine;

/// The programs of the tests that the machine has beside ckpt.
const PROGRAMS: &[&str] = &["ckpt", "lapper", "steadfast", "waiter", "filer", "landscape"];

/// Brings QEMU and the kernel, and nothing else.
pub fn prepare() -> Result<()> {
    prerequisites::of_vm()?;
    let kernel = kernel::ensure()?;
    println!("The kernel of the virtual machine: {}", kernel.display());
    Ok(())
}

/// What is to be run, and how.
#[derive(Debug)]
pub struct Run {
    /// The words of the command. None: all tests of soft-dirty bits.
    pub words: Vec<String>,
    /// After this the machine is killed.
    pub limit: Duration,
    /// The programs are taken as they are, and nothing is built.
    pub as_built: bool,
}

/// Runs a command in the machine, from its folder /tmp, and ends as it does.
pub fn run(run: &Run) -> Result<ExitCode> {
    prerequisites::of_vm()?;
    let kernel = kernel::ensure()?;
    if !run.as_built {
        command::run(cargo().args(["build", "--release", "--package", "ckpt", "--bins"]))?;
        command::run(cargo().args(["build", "--release", "--package", "ckpt-tests", "--bins"]))?;
    }
    let words = if run.words.is_empty() { &command_line::of_all_tests()? } else { &run.words };
    let command = CommandLine::new(words, &std::env::current_dir().context("we are in no folder")?);
    let mut files: Vec<PathBuf> = PROGRAMS.iter().map(|name| target_dir().join("release").join(name)).collect();
    files.extend(command.files().cloned());
    let image = initramfs::build(&files, &command)?;
    println!("$ {command} (in a virtual machine)");
    let status = qemu::run(&kernel, &image, run.limit)?;
    Ok(ExitCode::from(status))
}
