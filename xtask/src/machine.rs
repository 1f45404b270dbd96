//! What the tasks need beside Rust, and how it gets onto the machine: on Debian, as root, by apt-get; everywhere else it is said exactly
//! what is missing. Nothing is installed unannounced.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::command;

/// Something that a task needs.
#[derive(Debug)]
pub struct Prerequisite<'a> {
    /// What it is.
    pub name: &'a str,
    /// Is it there?
    pub probe: Probe<'a>,
    /// The Debian package that brings it.
    pub package: &'a str,
    /// What for.
    pub why: &'a str,
}

/// How to find out whether something is there.
#[derive(Debug)]
pub enum Probe<'a> {
    /// A program in PATH.
    Program(&'a str),
    /// A file.
    File(&'a str),
    /// A command that succeeds.
    Succeeds(&'a [&'a str]),
}

impl Probe<'_> {
    /// Looks.
    pub fn holds(&self) -> bool {
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

/// Makes sure that all of it is there. `who` starts a sentence: "The tests need".
pub fn ensure(who: &str, needed: &[Prerequisite<'_>]) -> Result<()> {
    let missing: Vec<&Prerequisite<'_>> = needed.iter().filter(|p| !p.probe.holds()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    println!("{who} what is not on this machine:");
    for p in &missing {
        println!("  {:24} (Debian: {:15}) {}", p.name, p.package, p.why);
    }
    let packages = packages(&missing);
    if !is_debian()? {
        bail!("install what is listed above, and try again (on Debian, as root, it would be installed now)");
    }
    if !is_root()? {
        bail!("run this as root, or install it yourself and try again: sudo apt-get install {}", packages.join(" "));
    }
    println!("Installing: {}", packages.join(" "));
    install(&packages)?;
    let still: Vec<&str> = missing.iter().filter(|p| !p.probe.holds()).map(|p| p.name).collect();
    if !still.is_empty() {
        bail!("apt-get went well, but still missing: {}", still.join(", "));
    }
    Ok(())
}

/// Each package once, in the order in which they were listed.
fn packages<'a>(missing: &[&Prerequisite<'a>]) -> Vec<&'a str> {
    let mut packages = Vec::new();
    for p in missing {
        if !packages.contains(&p.package) {
            packages.push(p.package);
        }
    }
    packages
}

/// Packages that bring a service, and its name.
const SERVICES: &[(&str, &str)] = &[("redis-server", "redis-server"), ("nginx-light", "nginx"), ("postgresql", "postgresql")];

fn install(packages: &[&str]) -> Result<()> {
    command::run(apt_get().args(["update", "--quiet"]))?;
    command::run(apt_get().args(["install", "--yes", "--quiet", "--no-install-recommends"]).args(packages))?;
    for (_, service) in SERVICES.iter().filter(|(package, _)| packages.contains(package)) {
        // Debian starts it as a service at once and at every boot; the tests start their own.
        command::run(Command::new("service").args([service, "stop"]))?;
        command::run(Command::new("update-rc.d").args([service, "disable"]))?;
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

/// Is this Debian, or a system made from it?
fn is_debian() -> Result<bool> {
    // os-release(5): the second stands in for the first.
    for file in ["/etc/os-release", "/usr/lib/os-release"] {
        if Path::new(file).exists() {
            let text = fs::read_to_string(file).with_context(|| format!("cannot read {file}"))?;
            return Ok(names_debian(&text));
        }
    }
    Ok(false)
}

/// Whether an os-release file's ID is debian, or its ID_LIKE, a list, has it.
fn names_debian(os_release: &str) -> bool {
    os_release.lines().filter_map(|line| line.split_once('=')).any(|(key, value)| {
        let value = value.trim().trim_matches(['"', '\'']);
        matches!(key.trim(), "ID" | "ID_LIKE") && value.split_whitespace().any(|id| id == "debian")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debian_and_its_children_are_told_from_others() {
        assert!(names_debian("PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nID=debian\n"));
        assert!(names_debian("ID=ubuntu\nID_LIKE=debian\n"));
        assert!(names_debian("ID=mint\nID_LIKE=\"ubuntu debian\"\n"));
        assert!(names_debian("ID='debian'\n"));
        assert!(!names_debian("ID=fedora\nID_LIKE=\"rhel centos\"\nVARIANT_ID=debian\n"));
        assert!(!names_debian("ID=debianish\n# ID=debian\n"));
        assert!(!names_debian(""));
    }

    #[test]
    fn each_package_is_installed_once() {
        let of = |package| Prerequisite { name: "", probe: Probe::File("/"), package, why: "" };
        let (a, b, c) = (of("gcc"), of("xz-utils"), of("gcc"));
        assert_eq!(packages(&[&a, &b, &c]), ["gcc", "xz-utils"]);
    }

    #[test]
    fn what_is_there_is_found_and_what_is_not_is_not() {
        assert!(Probe::File("/proc/self/status").holds());
        assert!(Probe::Program("sh").holds());
        assert!(Probe::Succeeds(&["sh", "-c", "exit 0"]).holds());
        assert!(!Probe::Succeeds(&["sh", "-c", "exit 1"]).holds());
        assert!(!Probe::Succeeds(&["/nonexistent/program"]).holds());
        assert!(!Probe::Program("no-program-has-this-name").holds());
    }
}
