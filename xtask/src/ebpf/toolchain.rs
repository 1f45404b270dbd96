//! The compiler for the programs. It must have the sources of the standard library, because no toolchain brings a `core` that is built
//! for eBPF: a nightly with rust-src where there is one (as everywhere with aya), else Debian's package of Rust with its sources.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Result, bail};

use crate::command;
use crate::machine::{self, Prerequisite, Probe};

/// Where Debian's package puts it.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";
/// The first compiler that builds the packages in use (see `rust-version` in Cargo.toml).
const LEAST_MINOR: u32 = 95;

/// See the module.
#[derive(Debug)]
pub struct Toolchain {
    /// The compiler.
    pub rustc: PathBuf,
    /// The cargo that came with it and knows how to build its standard library; `None`: ours will do.
    pub cargo: Option<PathBuf>,
    /// The folder with `lib/rustlib`.
    pub sysroot: PathBuf,
    /// The major version of the LLVM in it: the linker must not have an older one.
    pub llvm: u32,
}

impl Toolchain {
    /// The best one there is; on Debian, as root, installs one if there is none.
    pub fn ensure() -> Result<Toolchain> {
        if let Some(toolchain) = Toolchain::find() {
            return Ok(toolchain);
        }
        println!(
            "No compiler for eBPF: none of the toolchains here is at least 1.{LEAST_MINOR} and has the sources of the standard library.\n\
             Where rustup may fetch components, this brings one: rustup toolchain install nightly --component rust-src"
        );
        machine::ensure(
            "The eBPF build needs",
            &[
                Prerequisite {
                    name: "a Rust compiler",
                    probe: Probe::File(DEBIAN_RUSTC),
                    package: "rustc-web",
                    why: "it compiles the programs",
                },
                Prerequisite {
                    name: "its library's sources",
                    probe: Probe::File("/usr/lib/rustlib/src/rust/library/core/Cargo.toml"),
                    package: "rust-web-src",
                    why: "core is compiled for eBPF",
                },
            ],
        )?;
        let Some(toolchain) = Toolchain::find() else {
            bail!(
                "{DEBIAN_RUSTC} and its sources are there, but it is older than 1.{LEAST_MINOR}; install a nightly with rust-src"
            );
        };
        Ok(toolchain)
    }

    fn find() -> Option<Toolchain> {
        let rustup = |toolchain: &[&str]| {
            let path = output(Command::new("rustup").arg("which").args(toolchain).arg("rustc"))?;
            Some(PathBuf::from(path.trim()))
        };
        let of_rustup = [rustup(&["--toolchain", "nightly"]), rustup(&[])];
        let of_rustup = of_rustup.into_iter().flatten().filter_map(|rustc| {
            let cargo = rustc.with_file_name("cargo");
            Toolchain::examine(&rustc, Some(cargo).filter(|cargo| cargo.is_file()))
        });
        let others = [command::find("rustc"), Some(PathBuf::from(DEBIAN_RUSTC))];
        of_rustup.chain(others.into_iter().flatten().filter_map(|rustc| Toolchain::examine(&rustc, None))).next()
    }

    /// The toolchain of this compiler, if it can build the programs.
    fn examine(rustc: &Path, cargo: Option<PathBuf>) -> Option<Toolchain> {
        let sysroot = PathBuf::from(output(Command::new(rustc).args(["--print", "sysroot"]))?.trim());
        let version = Version::parse(&output(Command::new(rustc).arg("-vV"))?)?;
        let has_sources = library(&sysroot).join("core/Cargo.toml").is_file();
        let suits = has_sources && (version.major, version.minor) >= (1, LEAST_MINOR);
        suits.then(|| Toolchain { rustc: rustc.to_owned(), cargo, sysroot, llvm: version.llvm })
    }

    /// The sources of the standard library.
    pub fn library(&self) -> PathBuf {
        library(&self.sysroot)
    }
}

fn library(sysroot: &Path) -> PathBuf {
    sysroot.join("lib/rustlib/src/rust/library")
}

/// What a command prints, if it can be run and succeeds.
fn output(command: &mut Command) -> Option<String> {
    let output = command.stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A compiler's version.
#[derive(Debug, PartialEq, Eq)]
struct Version {
    major: u32,
    minor: u32,
    llvm: u32,
}

impl Version {
    /// From the output of `rustc -vV`.
    fn parse(text: &str) -> Option<Version> {
        let field = |name| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        let mut release = field("release")?.split('.');
        let mut number = || release.next()?.parse().ok();
        let (major, minor) = (number()?, number()?);
        Some(Version { major, minor, llvm: field("LLVM version")?.split('.').next()?.parse().ok()? })
    }
}

/// Runs cargo with this toolchain, and nothing of the one that runs us.
pub fn cargo_of(toolchain: &Toolchain) -> Command {
    let mut command = match &toolchain.cargo {
        Some(cargo) => Command::new(cargo),
        None => command::cargo(),
    };
    command.current_dir(command::root()).env("RUSTC", &toolchain.rustc);
    // Stable compilers build a standard library only if they are told that this is one of the exceptions.
    command.env("RUSTC_BOOTSTRAP", "1");
    for name in ["RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "RUSTFLAGS", "RUSTUP_TOOLCHAIN"] {
        command.env_remove(name);
    }
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_from_what_the_compiler_says() {
        let text = "rustc 1.97.0-nightly (e50aa6fba 2026-05-19)\nbinary: rustc\nrelease: 1.97.0-nightly\nLLVM version: 22.1.2\n";
        assert_eq!(Version::parse(text), Some(Version { major: 1, minor: 97, llvm: 22 }));
        assert_eq!(Version::parse("release: 1.63.0\n"), None);
        assert_eq!(Version::parse("release: one\nLLVM version: 22.1.2\n"), None);
        assert_eq!(Version::parse(""), None);
    }
}
