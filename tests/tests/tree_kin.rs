//! Process trees: memory, descriptors, directories and signal actions that processes share at any place in the tree (clone(2)), whoever is whose parent.

use ckpt_tests::job::Job;
use ckpt_tests::{ckpt, needs_root, process, python, skip, static_program};
use std::process::Command;
use tempfile::tempdir;

/// For each process of a tree: pid, parent, group, session, exit signal.
fn relations(root: i32) -> Vec<Vec<String>> {
    let mut all = process::descendants(root);
    all.push(root);
    all.sort_unstable();
    let relation = |pid: i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let words: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
        let parent = if pid == root { "outside" } else { words[1] };
        [&pid.to_string(), parent, words[2], words[3], words[35]].map(str::to_owned).to_vec()
    };
    all.into_iter().map(relation).collect()
}

#[test]
fn what_is_shared_across_the_tree() {
    needs_root!();
    let folder = tempdir().unwrap();
    let program = match static_program::build(folder.path(), "kin") {
        Ok(program) => program,
        Err(why) => skip!("a C compiler that builds static programs ({why})"),
    };
    let mut job = python::start(folder.path(), &mut Command::new(program)).unwrap_or_else(|why| panic!("{why}"));
    let image = folder.path().join("image");
    let mut round = 0;
    let mut report = |job: &Job| {
        round += 1;
        let sees = format!("sees {round};");
        job.report().into_iter().map(|line| line.replace(&sees, "sees it;")).collect::<Vec<String>>()
    };
    let (before, related) = (report(&job), relations(job.pid()));
    assert_eq!(related.len(), 10);
    assert_eq!(before.iter().filter(|line| line.contains("sees it;")).count(), 4, "{before:?}");
    for more in [&[][..], &["--tracker", "live"]] {
        ckpt::checkpoint(job.pid(), &image, more);
        assert_eq!((report(&job), relations(job.pid())), (before.clone(), related.clone()));
        ckpt::checkpoint_and_kill(&mut job, &image, more);
        job = ckpt::restart(&job, &image, &[]);
        assert_eq!((report(&job), relations(job.pid())), (before.clone(), related.clone()));
    }
}
