//! The compilation of the programs.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::PACKAGE;
use super::toolchain::{Toolchain, cargo_of};
use crate::command::{self, root, target_dir};

const TARGET: &str = "bpfel-unknown-none";

/// Builds the programs, and returns the object as the linker made it.
pub fn run(toolchain: &Toolchain, linker: &Path) -> Result<Vec<u8>> {
    // A folder of its own: the host's builds, with another compiler, would throw out what this one made, and the other way around.
    let target = target_dir().join("ebpf");
    let mut build = cargo_of(toolchain);
    build
        .args(["build", "--release", "--locked", "--package", PACKAGE, "--bin", PACKAGE, "--features", "ebpf"])
        .args(["-Z", "build-std=core", "--target", TARGET, "--target-dir"])
        .arg(&target)
        .env("CARGO_ENCODED_RUSTFLAGS", flags(toolchain, linker)?);
    command::run(&mut build)?;
    let object = target.join(TARGET).join("release").join(PACKAGE);
    fs::read(&object).with_context(|| format!("cannot read {}", object.display()))
}

/// The compiler's flags, separated as cargo wants them.
fn flags(toolchain: &Toolchain, linker: &Path) -> Result<OsString> {
    let mut flags = OsString::from("-Clinker=");
    flags.push(linker);
    // BTF is made from debug information; `v3` has the atomics and the 32-bit jumps of Linux 5.1 and later.
    for flag in ["-Clink-arg=--btf", "-Ctarget-cpu=v3", "-Cdebuginfo=2"] {
        flags.push("\x1f");
        flags.push(flag);
    }
    // The object names its sources in line information: alike wherever it is built.
    for (from, to) in remaps(toolchain)? {
        flags.push("\x1f--remap-path-prefix=");
        flags.push(from);
        flags.push("=");
        flags.push(to);
    }
    Ok(flags)
}

/// Folders of this machine, and what stands for them. Of several that fit, the compiler takes the last.
fn remaps(toolchain: &Toolchain) -> Result<Vec<(PathBuf, &'static str)>> {
    let library = toolchain.library();
    let real = fs::canonicalize(&library).with_context(|| format!("cannot follow {}", library.display()))?;
    let mut remaps = vec![(root().to_owned(), "."), (real, "library"), (library, "library")];
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(Path::new(&std::env::var_os("HOME")?).join(".cargo")));
    let registry = home.map(|home| home.join("registry/src"));
    // One folder for each registry, named after it and a hash.
    for folder in registry.iter().flat_map(fs::read_dir).flatten() {
        remaps.push((folder.context("cannot list cargo's registries")?.path(), "registry"));
    }
    Ok(remaps)
}
