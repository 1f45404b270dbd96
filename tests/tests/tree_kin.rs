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

/// The program, built in `folder`.
macro_rules! kin {
    ($folder:expr) => {
        match static_program::build($folder, "kin") {
            Ok(program) => program,
            Err(why) => skip!("a C compiler that builds static programs ({why})"),
        }
    };
}

#[test]
fn what_is_shared_across_the_tree() {
    needs_root!();
    let folder = tempdir().unwrap();
    let mut job = python::start(folder.path(), &mut Command::new(kin!(folder.path()))).unwrap_or_else(|why| panic!("{why}"));
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

/// Its parent has another memory by now, and so could not bear it.
#[test]
fn who_has_executed_a_program_is_told_of() {
    needs_root!();
    let folder = tempdir().unwrap();
    let mut command = Command::new(kin!(folder.path()));
    let mut job = python::start(folder.path(), command.arg("executes")).unwrap_or_else(|why| panic!("{why}"));
    let related = relations(job.pid());
    let said = ckpt::try_checkpoint(job.pid(), &folder.path().join("image"), &[]).failure();
    assert!(said.contains("its family could not be made again") && said.contains("shares memory with pid"), "{said}");
    assert!(said.contains("has executed a program since"), "{said}");
    assert_eq!((relations(job.pid()), related.len()), (related.clone(), 3));
    job.kill();
}
