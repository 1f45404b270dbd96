//! `cargo xtask ebpf`: builds the eBPF programs into the object that is committed beside their source, so that whoever installs
//! ckpt needs neither an eBPF toolchain nor the time to bring one.

mod build;
mod linker;
mod seal;
mod sources;
mod strip;
mod toolchain;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use crate::command::root;
use seal::Seal;
use toolchain::Toolchain;

/// The package of the programs, and the folder that holds it.
const PACKAGE: &str = "ckpt-ebpf";

fn prebuilt() -> PathBuf {
    root().join(PACKAGE).join("prebuilt")
}

fn object_file() -> PathBuf {
    prebuilt().join("ckpt-ebpf.o")
}

/// Builds the object anew, with its seal. Brings what that takes.
pub fn run() -> Result<()> {
    let toolchain = Toolchain::ensure()?;
    let linker = linker::ensure(toolchain.llvm)?;
    let sources = sources::hash()?;
    let object = strip::debug_information(&build::run(&toolchain, &linker)?)?;
    let seal = Seal { sources, object: sources::hash_of(&object) };
    let file = object_file();
    fs::create_dir_all(prebuilt()).with_context(|| format!("cannot make {}", prebuilt().display()))?;
    let before = fs::read(&file).ok();
    fs::write(&file, &object).with_context(|| format!("cannot write {}", file.display()))?;
    seal.write(&prebuilt())?;
    let what = match before {
        Some(before) if before == object => "as before",
        Some(_) => "changed; commit it",
        None => "new; commit it",
    };
    println!("{}: {} bytes, {what}", file.display(), object.len());
    Ok(())
}

/// Fails if the committed object is not the one that was made from the sources as they are. Builds nothing.
pub fn check() -> Result<()> {
    if let Some(why) = stale()? {
        bail!("the committed eBPF object is stale: {why}; run `cargo xtask ebpf` and commit {PACKAGE}/prebuilt");
    }
    println!("The committed eBPF object was made from the sources as they are.");
    Ok(())
}

/// Why the committed object cannot be relied on, if so.
pub fn stale() -> Result<Option<String>> {
    let file = object_file();
    let object = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let now = Seal { sources: sources::hash()?, object: sources::hash_of(&object) };
    Ok(Seal::read(&prebuilt())?.differs(&now))
}
