//! What `/proc` tells of a process, as far as tests compare it.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

/// A line "Key:\tvalue" of /proc/PID/status, or None if there is no such process or line.
pub fn status(pid: i32, key: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).map(|value| value.trim().to_owned())
}

/// Does the process exist and run (not only wait to be waited for)?
pub fn is_alive(pid: i32) -> bool {
    status(pid, "State").is_some_and(|state| !state.starts_with(['Z', 'X']))
}

/// The letters of the states of its threads: "SSR".
pub fn states(pid: i32) -> String {
    let tids = tids(pid).into_iter();
    tids.filter_map(|tid| status_of_thread(pid, tid, "State")?.chars().next()).collect()
}

fn status_of_thread(pid: i32, tid: i32, key: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{tid}/status")).ok()?;
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).map(|value| value.trim().to_owned())
}

/// Its threads, in order.
pub fn tids(pid: i32) -> Vec<i32> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let mut tids: Vec<i32> = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    tids.sort_unstable();
    tids
}

/// Its descriptors, and what each leads to. Numbers of pipes, sockets and inodes of deleted files are left out: they are new after a restart.
pub fn descriptors(pid: i32) -> BTreeMap<i32, String> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else { return BTreeMap::new() };
    let each = entries.filter_map(|entry| {
        let entry = entry.ok()?;
        let fd = entry.file_name().to_str()?.parse().ok()?;
        let link = fs::read_link(entry.path()).ok()?.to_string_lossy().into_owned();
        let kind = link.split_once(":[").map(|(kind, _)| kind.to_owned());
        Some((fd, kind.filter(|kind| kind != "anon_inode").unwrap_or(link)))
    });
    each.collect()
}

/// Everything about it that a refused or failed checkpoint must leave as it was, and a restart bring back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Look {
    /// Threads.
    pub tids: Vec<i32>,
    /// exe, cwd, root.
    pub links: Vec<PathBuf>,
    /// cmdline, environ and auxv, as bytes.
    pub texts: Vec<Vec<u8>>,
    /// See [`descriptors`].
    pub descriptors: BTreeMap<i32, String>,
    /// Lines of status which depend on nothing but the program.
    pub status: Vec<String>,
}

/// Lines of /proc/PID/status that a checkpoint and a restart must not change.
const STATUS: &[&str] = &[
    "Name",
    "Umask",
    "Tgid",
    "Pid",
    "TracerPid",
    "Uid",
    "Gid",
    "Groups",
    "NSpid",
    "Threads",
    "SigPnd",
    "ShdPnd",
    "SigBlk",
    "SigIgn",
    "SigCgt",
    "CapInh",
    "CapPrm",
    "CapEff",
    "CapBnd",
    "CapAmb",
    "NoNewPrivs",
    "Seccomp",
    "Seccomp_filters",
    "Cpus_allowed",
    "Mems_allowed",
    "VmLck",
    "THP_enabled",
];

/// Takes it all down.
pub fn look(pid: i32) -> Look {
    let of = |name: &str| format!("/proc/{pid}/{name}");
    let text = fs::read_to_string(of("status")).unwrap_or_default();
    let wanted = |line: &&str| line.split_once(':').is_some_and(|(key, _)| STATUS.contains(&key));
    Look {
        tids: tids(pid),
        links: ["exe", "cwd", "root"].map(|name| fs::read_link(of(name)).unwrap_or_default()).to_vec(),
        texts: ["cmdline", "environ", "auxv"].map(|name| fs::read(of(name)).unwrap_or_default()).to_vec(),
        descriptors: descriptors(pid),
        status: text.lines().filter(wanted).map(str::to_owned).collect(),
    }
}
