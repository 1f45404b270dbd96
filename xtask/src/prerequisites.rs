//! What the tests need beside Rust: real programs, which are checkpointed and restarted. On Debian, as root, the missing ones are
//! installed; everywhere else it is said exactly what is missing.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::command;

/// Something that the tests need. One more is one more line in [`TABLE`].
struct Prerequisite {
    /// What it is.
    name: &'static str,
    /// Is it there?
    probe: Probe,
    /// The Debian package that brings it.
    package: &'static str,
    /// What for.
    why: &'static str,
}

enum Probe {
    /// A program in PATH.
    Program(&'static str),
    /// A file.
    File(&'static str),
    /// A command that succeeds.
    Succeeds(&'static [&'static str]),
}

const TABLE: &[Prerequisite] = &[
    Prerequisite {
        name: "Python",
        probe: Probe::File("/usr/bin/python3"),
        package: "python3",
        why: "threads that hash are checkpointed, and the demo's computation",
    },
    Prerequisite {
        name: "NumPy for it",
        probe: Probe::Succeeds(&["/usr/bin/python3", "-c", "import numpy"]),
        package: "python3-numpy",
        why: "a numerical computation is checkpointed",
    },
    Prerequisite {
        name: "xz",
        probe: Probe::Program("xz"),
        package: "xz-utils",
        why: "a compression by two threads is checkpointed",
    },
    Prerequisite {
        name: "sqlite3",
        probe: Probe::Program("sqlite3"),
        package: "sqlite3",
        why: "a growing database is checkpointed",
    },
    Prerequisite {
        name: "redis-server",
        probe: Probe::Program("redis-server"),
        package: "redis-server",
        why: "a server with its data and its listening socket is checkpointed",
    },
    Prerequisite {
        name: "gcc",
        probe: Probe::Program("gcc"),
        package: "gcc",
        why: "small programs in C, also static ones, are checkpointed",
    },
    Prerequisite {
        name: "libc for static programs",
        probe: Probe::Succeeds(&["sh", "-c", "test -f \"$(gcc -print-file-name=libc.a)\""]),
        package: "libc6-dev",
        why: "the same",
    },
];

impl Probe {
    fn holds(&self) -> bool {
        match self {
            Probe::Program(name) => command::find(name).is_some(),
            Probe::File(path) => Path::new(path).exists(),
            Probe::Succeeds(words) => {
                let mut command = Command::new(words[0]);
                command.args(&words[1..]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
                // What cannot even be started is not there.
                command.status().is_ok_and(|status| status.success())
            }
        }
    }
}

/// Makes sure that everything is there that the tests need.
pub fn ensure() -> Result<()> {
    ensure_all("The tests need", TABLE)
}

/// Makes sure that Python is there, which is all that the demo needs.
pub fn ensure_python() -> Result<()> {
    ensure_all("The demo needs", &TABLE[..1])
}

fn ensure_all(who: &str, needed: &[Prerequisite]) -> Result<()> {
    let missing: Vec<&Prerequisite> = needed.iter().filter(|p| !p.probe.holds()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    println!("{who} programs that are not on this machine:");
    for p in &missing {
        println!("  {:24} (Debian: {:13}) {}", p.name, p.package, p.why);
    }
    let mut packages: Vec<&str> = missing.iter().map(|p| p.package).collect();
    packages.dedup();
    if command::find("apt-get").is_none() {
        bail!("install them and try again (apt-get, which would do it by itself, is not here)");
    }
    if !is_root()? {
        bail!("install them and try again, or run this as root; on Debian: sudo apt-get install {}", packages.join(" "));
    }
    println!("Installing: {}", packages.join(" "));
    install(&packages)?;
    let still: Vec<&str> = missing.iter().filter(|p| !p.probe.holds()).map(|p| p.name).collect();
    if !still.is_empty() {
        bail!("apt-get went well, but still missing: {}", still.join(", "));
    }
    Ok(())
}

fn install(packages: &[&str]) -> Result<()> {
    command::run(apt_get().args(["update", "--quiet"]))?;
    command::run(apt_get().args(["install", "--yes", "--quiet", "--no-install-recommends"]).args(packages))?;
    if packages.contains(&"redis-server") {
        // Debian starts it as a service at once and at every boot; the tests start their own.
        command::run(Command::new("service").args(["redis-server", "stop"]))?;
        command::run(Command::new("update-rc.d").args(["redis-server", "disable"]))?;
    }
    Ok(())
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command
}

/// Is our effective user id 0?
pub fn is_root() -> Result<bool> {
    let status = fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
    let uids = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    Ok(uids.and_then(|ids| ids.split_whitespace().nth(1)) == Some("0"))
}
