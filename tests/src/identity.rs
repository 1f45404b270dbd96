//! Everything that `/proc` tells of who and what a process is, by name: what a restart must bring back.

use std::collections::BTreeMap;
use std::fs;

use crate::process;

/// Files that are compared byte by byte: of the process, and of each thread.
const OF_PROCESS: &[&str] = &[
    "cmdline",
    "environ",
    "auxv",
    "limits",
    "cgroup",
    "coredump_filter",
    "oom_score_adj",
    "loginuid",
    "sessionid",
    "uid_map",
    "gid_map",
    "projid_map",
    "setgroups",
    "timens_offsets",
    "mountinfo",
];
const OF_THREAD: &[&str] = &["comm", "personality", "cpuset", "attr/current", "cgroup"];
/// Links.
const LINKS: &[&str] = &["exe", "cwd", "root"];

/// Lines of status that tell what the process has done or what it costs now, not what it is.
const STATUS_MAY_DIFFER: &[&str] = &[
    // Running or waiting, at this moment.
    "State",
    // How large the kernel has made the table of descriptors, not what is in it.
    "FDSize",
    // Queued signals of all processes of the user.
    "SigQ",
    // Statistics.
    "voluntary_ctxt_switches",
    "nonvoluntary_ctxt_switches",
    // What is resident may be swapped out, dropped, or not be needed yet. (Contents and sizes are for the tests of memory.)
    "VmPeak",
    "VmHWM",
    "VmRSS",
    "RssAnon",
    "RssFile",
    "RssShmem",
    "VmPTE",
    "VmSwap",
];

/// Fields of stat, numbered as in proc(5), that tell what the process has done, not what it is: state (3), the kernel's own flags (9), page
/// faults (10 to 13), times (14 to 17), the time of its start (22), resident pages (24), stack pointer, instruction pointer and pending
/// signals as of now (29 to 31), wait channel (35), swapped pages (36, 37), processor (39), delays and guest times (42 to 44).
const STAT_MAY_DIFFER: &[usize] = &[3, 9, 10, 11, 12, 13, 14, 15, 16, 17, 22, 24, 29, 30, 31, 35, 36, 37, 39, 42, 43, 44];

/// All of it, once its threads rest.
pub fn of(pid: i32) -> BTreeMap<String, String> {
    let mut all = process::look(pid);
    let root = format!("/proc/{pid}");
    files(&mut all, &root, OF_PROCESS);
    for link in LINKS {
        all.insert((*link).to_owned(), fs::read_link(format!("{root}/{link}")).map(|to| to.display().to_string()).unwrap());
    }
    for entry in fs::read_dir(format!("{root}/ns")).unwrap() {
        let path = entry.unwrap().path();
        all.insert(path.display().to_string(), fs::read_link(&path).unwrap().display().to_string());
    }
    for tid in process::tids(pid) {
        let folder = format!("{root}/task/{tid}");
        files(&mut all, &folder, OF_THREAD);
        status(&mut all, &folder);
        stat(&mut all, &folder);
        // Not among the files of a thread.
        let slack = fs::read_to_string(format!("/proc/{tid}/timerslack_ns")).unwrap_or_else(|error| error.to_string());
        all.insert(format!("timer slack of {tid}"), slack);
    }
    all
}

fn files(all: &mut BTreeMap<String, String>, folder: &str, names: &[&str]) {
    for name in names {
        let path = format!("{folder}/{name}");
        // What this kernel does not have, it does not have afterwards either.
        let text = fs::read(&path).map_or_else(|error| error.to_string(), |bytes| String::from_utf8_lossy(&bytes).into_owned());
        all.insert(path, text);
    }
}

fn status(all: &mut BTreeMap<String, String>, folder: &str) {
    let text = lossy(&format!("{folder}/status"));
    for (key, value) in text.lines().filter_map(|line| line.split_once(':')) {
        if !STATUS_MAY_DIFFER.contains(&key) {
            all.insert(format!("{folder}/status {key}"), value.trim().to_owned());
        }
    }
}

fn stat(all: &mut BTreeMap<String, String>, folder: &str) {
    let text = lossy(&format!("{folder}/stat"));
    let (_, rest) = text.rsplit_once(") ").expect("the name is in brackets");
    for (n, value) in (3..).zip(rest.split_whitespace()) {
        if !STAT_MAY_DIFFER.contains(&n) {
            all.insert(format!("{folder}/stat, field {n}"), value.to_owned());
        }
    }
}

/// Names of threads may hold any bytes.
fn lossy(path: &str) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_else(|error| panic!("cannot read {path}: {error}"))).into_owned()
}
