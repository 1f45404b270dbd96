//! The programs that take part, built from this workspace: `ckpt`, and the process that it checkpoints.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Where they are.
#[derive(Debug)]
pub struct Programs {
    ckpt: PathBuf,
    sized: PathBuf,
    writer: PathBuf,
}

impl Programs {
    /// Builds them as they would be installed, into the folder that this program is in. Where CKPT_BIN names a `ckpt`, as for the tests,
    /// that one is measured: to compare two of them.
    pub fn build() -> Result<Programs> {
        let ours = std::env::current_exe().context("cannot find this program's own file")?;
        let folder = ours.parent().context("this program is in no folder")?.to_owned();
        let release = folder.file_name().is_some_and(|name| name == "release");
        ensure!(release, "debug builds tell nothing: use `cargo xtask bench`, or cargo's --release");
        let target_dir = folder.parent().context("cargo's folder for releases is in no folder")?;
        let ckpt = match std::env::var_os("CKPT_BIN") {
            Some(path) => PathBuf::from(path),
            None => {
                build(target_dir, "ckpt", "ckpt")?;
                folder.join("ckpt")
            }
        };
        // `cargo run` builds no other program than the one it runs.
        for program in ["sized", "writer"] {
            build(target_dir, env!("CARGO_PKG_NAME"), program)?;
        }
        Ok(Programs { ckpt, sized: folder.join("sized"), writer: folder.join("writer") })
    }

    /// The program that is measured.
    pub fn ckpt(&self) -> &Path {
        &self.ckpt
    }

    /// The program that is checkpointed: see its own words, `src/bin/sized.rs`.
    pub fn sized(&self) -> &Path {
        &self.sized
    }

    /// One that writes meanwhile: `src/bin/writer.rs`.
    pub fn writer(&self) -> &Path {
        &self.writer
    }
}

fn build(target_dir: &Path, package: &str, program: &str) -> Result<()> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")));
    cargo.current_dir(env!("CARGO_MANIFEST_DIR")).arg("build").args(["--release", "--package", package, "--bin", program]);
    let status = cargo.arg("--target-dir").arg(target_dir).status().with_context(|| format!("cannot run {cargo:?}"))?;
    ensure!(status.success(), "cannot build {program}: {cargo:?} ended with {status}");
    Ok(())
}
