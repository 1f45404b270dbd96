//! The root file system of the virtual machine: programs at the same places as here, with the libraries that they need.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::archive::Archive;
use super::command_line::CommandLine;
use super::libraries;
use crate::command;

const INIT: &str = include_str!("init.sh");
/// Folders that something is mounted on, or written to.
const FOLDERS: &[&str] = &["bin", "dev", "etc", "proc", "root", "run", "sys", "tmp", "var/tmp"];
/// Who is who: root alone.
const PASSWD: &str = "root:x:0:0:root:/tmp:/bin/sh\n";

/// Makes it of these files, and of the command that it shall run.
pub fn build(files: &[PathBuf], command: &CommandLine) -> Result<Vec<u8>> {
    let busybox = command::find("busybox").context("busybox is not in PATH")?;
    let mut archive = Archive::default();
    FOLDERS.iter().for_each(|folder| archive.folder(folder));
    archive.file("init", INIT.as_bytes());
    archive.file("command", command.script().as_bytes());
    archive.file("etc/passwd", PASSWD.as_bytes());
    archive.file("bin/busybox", &read(&busybox)?);
    archive.link("usr/bin", "/bin");
    let mut all: BTreeSet<PathBuf> = files.iter().cloned().collect();
    for file in files {
        all.extend(libraries::of(file)?);
    }
    for path in all {
        archive.file(&path.to_string_lossy(), &read(&path)?);
    }
    Ok(archive.finish())
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}
