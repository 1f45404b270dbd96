//! What `/proc` tells of a process, as far as tests compare it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use xxhash_rust::xxh3::xxh3_64;

use crate::job::DEADLINE;

/// A line "Key:\tvalue" of /proc/PID/status, or None if there is no such process or line.
pub fn status(pid: i32, key: &str) -> Option<String> {
    let text = String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/status")).ok()?).into_owned();
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
    let text = String::from_utf8_lossy(&fs::read(format!("/proc/{pid}/task/{tid}/status")).ok()?).into_owned();
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).map(|value| value.trim().to_owned())
}

/// Everything that descends from a process, parents before their children, without itself.
pub fn descendants(pid: i32) -> Vec<i32> {
    let mut all = vec![pid];
    let mut at = 0;
    while let Some(&parent) = all.get(at) {
        at += 1;
        for tid in tids(parent) {
            let list = fs::read_to_string(format!("/proc/{parent}/task/{tid}/children")).unwrap_or_default();
            all.extend(list.split_whitespace().filter_map(|child| child.parse::<i32>().ok()));
        }
    }
    all.remove(0);
    all
}

/// Kills processes that descend from a job of this test, and collects their statuses: they become children of this process when their parents end.
pub fn kill_all(pids: &[i32]) {
    for &pid in pids {
        // It may have ended since.
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    bury(pids);
}

/// Collects the statuses of processes that have ended, or are about to, and whose parents have. Their pids are free then.
pub fn bury(pids: &[i32]) {
    for &pid in pids {
        // Another's child, or collected by its own parent.
        let _ = waitpid(Pid::from_raw(pid), Some(WaitPidFlag::__WALL));
    }
}

/// Of a process and all that descends from it, what each takes of memory, with shared pages divided by those who share them.
pub fn proportional_bytes(root: i32) -> u64 {
    let mut all = descendants(root);
    all.push(root);
    all.into_iter().map(|pid| rollup_bytes(pid, "Pss:")).sum()
}

/// What a process says of its memory, at `key` ("Pss:", say).
pub fn rollup_bytes(pid: i32, key: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("cannot read smaps_rollup");
    let line = text.lines().find_map(|line| line.strip_prefix(key)).expect("a line is missing in smaps_rollup");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("no number in smaps_rollup") * 1024
}

/// Its threads, in order.
pub fn tids(pid: i32) -> Vec<i32> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/task")) else { return Vec::new() };
    let mut tids: Vec<i32> = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    tids.sort_unstable();
    tids
}

/// Its descriptors, and what each leads to. Numbers of pipes and sockets are left out, and the names of files that have none any more: they
/// may be new after a restart.
pub fn descriptors(pid: i32) -> BTreeMap<i32, String> {
    let Ok(entries) = fs::read_dir(format!("/proc/{pid}/fd")) else { return BTreeMap::new() };
    let each = entries.filter_map(|entry| {
        let entry = entry.ok()?;
        let fd = entry.file_name().to_str()?.parse().ok()?;
        let link = fs::read_link(entry.path()).ok()?.to_string_lossy().into_owned();
        let kind = link.split_once(":[").map(|(kind, _)| kind.to_owned());
        let nameless = link.ends_with(" (deleted)").then(|| "(deleted)".to_owned());
        Some((fd, kind.filter(|kind| kind != "anon_inode").or(nameless).unwrap_or(link)))
    });
    each.collect()
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

/// Everything about a process that a refused or failed checkpoint must leave as it was, and a restart bring back, by name. Waits until all its
/// threads rest: some calls change the mask of their thread while they wait.
pub fn look(pid: i32) -> BTreeMap<String, String> {
    let until = Instant::now() + DEADLINE;
    while states(pid).contains(|state| !"STtIZ".contains(state)) {
        assert!(Instant::now() < until, "pid {pid} does not rest (threads {})", states(pid));
        // Nothing tells of it.
        thread::sleep(Duration::from_millis(1));
    }
    let of = |name: &str| format!("/proc/{pid}/{name}");
    let mut look = BTreeMap::from([("threads".to_owned(), format!("{:?}", tids(pid)))]);
    for name in ["exe", "cwd", "root"] {
        look.insert(name.to_owned(), fs::read_link(of(name)).unwrap_or_default().to_string_lossy().into_owned());
    }
    for name in ["cmdline", "environ", "auxv"] {
        let bytes = fs::read(of(name)).unwrap_or_default();
        look.insert(name.to_owned(), format!("{} bytes, hash {:016x}", bytes.len(), xxh3_64(&bytes)));
    }
    look.extend(descriptors(pid).into_iter().map(|(fd, link)| (format!("descriptor {fd}"), link)));
    // The name in it may hold any bytes.
    let text = String::from_utf8_lossy(&fs::read(of("status")).unwrap_or_default()).into_owned();
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    look.extend(lines.filter(|(key, _)| STATUS.contains(key)).map(|(key, value)| (key.to_owned(), value.trim().to_owned())));
    look
}

/// Fails with what differs.
pub fn assert_same(before: &BTreeMap<String, String>, after: &BTreeMap<String, String>) {
    let keys: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let differs = keys.into_iter().filter(|key| before.get(*key) != after.get(*key));
    let lines: Vec<String> =
        differs.map(|key| format!("{key}: {:?} before, {:?} after", before.get(key), after.get(key))).collect();
    assert!(lines.is_empty(), "the process differs:\n{}", lines.join("\n"));
}
