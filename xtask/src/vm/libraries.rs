//! The shared libraries that a program needs, as ldd tells.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// Where the loader finds them, the loader included. None, if the program is a static one or a script.
pub fn of(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output().context("cannot run ldd, which is part of the C library's package")?;
    let said = String::from_utf8_lossy(&output.stdout);
    if let Some(missing) = missing(&said) {
        bail!("{} needs {missing}, which is not on this machine", program.display());
    }
    // It fails for what is no dynamic program.
    Ok(if output.status.success() { parse(&said) } else { Vec::new() })
}

/// "libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f...)", "/lib64/ld-linux-x86-64.so.2 (0x00007f...)"
fn parse(said: &str) -> Vec<PathBuf> {
    let path = |line: &str| line.split_whitespace().find(|word| word.starts_with('/')).map(PathBuf::from);
    said.lines().filter_map(path).collect()
}

fn missing(said: &str) -> Option<&str> {
    said.lines().find_map(|line| line.trim().strip_suffix(" => not found"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "\tlinux-vdso.so.1 (0x00007ffd)\n\
        \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007fd0)\n\
        \t/lib64/ld-linux-x86-64.so.2 (0x00007fd1)\n";

    #[test]
    fn files_are_found_in_what_ldd_says() {
        let paths = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"].map(PathBuf::from);
        assert_eq!(parse(SAID), paths);
        assert!(parse("\tstatically linked\n").is_empty());
        assert_eq!(missing(SAID), None);
        assert_eq!(missing("\tlibm.so.6 => not found\n"), Some("libm.so.6"));
    }
}
