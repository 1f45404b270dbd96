//! What the figures were measured on.

use std::process::Command;
use std::time::SystemTime;

use anyhow::{Context, Result};
use procfs::{CpuInfo, Current, LoadAverage, Meminfo};
use serde::Serialize;

use crate::programs::Programs;

/// See the module.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// The processor, as it calls itself.
    pub cpu: String,
    /// Processors for us.
    pub cores: usize,
    /// Bytes of memory.
    pub memory_bytes: u64,
    /// Name and release of the kernel.
    pub kernel: String,
    /// Of transparent huge pages for private memory: "always [madvise] never".
    pub huge_pages: String,
    /// When the measuring began, UTC.
    pub date: String,
    /// What `ckpt --version` says.
    pub ckpt: String,
    /// The commit that was built, if it was built from a repository; "+" if there were changes.
    pub commit: Option<String>,
    /// Load average of the last minute when the measuring began: other work disturbs it.
    pub load_before: f32,
    /// The same at the end. The benchmarks themselves bring it to 1 or 2.
    pub load_after: f32,
}

impl Machine {
    /// Looks at the machine, now.
    pub fn look(programs: &Programs) -> Result<Machine> {
        let cpu = CpuInfo::current().context("cannot read /proc/cpuinfo")?;
        let kernel = nix::sys::utsname::uname().context("cannot ask for the kernel's name")?;
        let load = load()?;
        Ok(Machine {
            cpu: cpu.model_name(0).unwrap_or("unknown").to_owned(),
            cores: std::thread::available_parallelism().context("cannot ask for the processors")?.get(),
            memory_bytes: Meminfo::current().context("cannot read /proc/meminfo")?.mem_total,
            kernel: format!("{} {}", kernel.sysname().to_string_lossy(), kernel.release().to_string_lossy()),
            huge_pages: huge_pages(),
            date: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            ckpt: output(Command::new(programs.ckpt()).arg("--version")).context("`ckpt --version` failed")?,
            commit: commit(),
            load_before: load,
            load_after: load,
        })
    }

    /// Looks at what has changed, at the end.
    pub fn look_again(&mut self) -> Result<()> {
        self.load_after = load()?;
        Ok(())
    }
}

/// Bytes of memory that could be used now without swapping.
pub fn available_bytes() -> Result<u64> {
    let memory = Meminfo::current().context("cannot read /proc/meminfo")?;
    memory.mem_available.context("/proc/meminfo has no MemAvailable")
}

fn load() -> Result<f32> {
    Ok(LoadAverage::current().context("cannot read /proc/loadavg")?.one)
}

/// A kernel without huge pages has no such file.
fn huge_pages() -> String {
    let text = std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled");
    text.map_or_else(|_| "none".to_owned(), |text| text.trim().to_owned())
}

/// `None` outside of a repository, or without git.
fn commit() -> Option<String> {
    let git = |arguments: &[&str]| output(Command::new("git").args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")));
    let commit = git(&["rev-parse", "--short=12", "HEAD"])?;
    let changed = git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|changes| !changes.is_empty());
    Some(if changed { commit + "+" } else { commit })
}

fn output(command: &mut Command) -> Option<String> {
    let output = command.output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
