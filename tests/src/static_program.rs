//! A program without a dynamic linker: small, in C, because that is how static programs are mostly made.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Builds `programs/NAME.c` of this package as a static binary in `folder`. The error says what is missing.
pub fn build(folder: &Path, name: &str) -> Result<PathBuf, String> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("programs").join(name).with_extension("c");
    let binary = folder.join(name);
    let mut cc = Command::new("cc");
    cc.args(["-static", "-O2", "-pthread", "-Wall", "-Werror", "-o"]).arg(&binary).arg(&source);
    let output = cc.output().map_err(|error| format!("no C compiler: {error}"))?;
    if output.status.success() {
        return Ok(binary);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    // The program itself must compile; only a C library for static programs may be missing.
    assert!(said.contains("cannot find -l"), "{} does not compile: {said}", source.display());
    Err(format!("no C library for static programs: {said}"))
}
