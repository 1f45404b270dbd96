//! Open files: descriptors of every kind keep what they are, and what is in them (SEED.md: "open files, pipes, FIFOs, epoll, eventfd,
//! sockets, file locks and leases", and what came after 2010).

use ckpt_tests::checks::{self, end, verify};
use ckpt_tests::job::Job;
use ckpt_tests::{ckpt, maps, needs_root, process, program};
use tempfile::{TempDir, tempdir};

fn start(folder: &TempDir) -> Job {
    checks::start(folder.path(), program!("filer"), &["tcp-listener-v6"])
}

#[test]
fn the_program_itself_is_right() {
    let folder = tempdir().unwrap();
    let job = start(&folder);
    verify(&job);
    verify(&job);
    end(job);
}

#[test]
fn a_checkpoint_changes_nothing() {
    needs_root!();
    let folder = tempdir().unwrap();
    let job = start(&folder);
    let (mappings, look) = (maps::read(job.pid()), process::look(job.pid()));
    ckpt::checkpoint(job.pid(), &folder.path().join("image"), &[]);
    maps::assert_same(&mappings, &maps::read(job.pid()));
    process::assert_same(&look, &process::look(job.pid()));
    verify(&job);
    verify(&job);
    end(job);
}

#[test]
fn s15_a_restart_brings_everything_back() {
    a_restart_brings_everything_back(&[]);
}

/// The files that it writes come back, too, and what it has of locks and leases on them.
#[test]
fn a_restart_brings_everything_back_with_the_files() {
    a_restart_brings_everything_back(&["--save-files"]);
}

fn a_restart_brings_everything_back(more: &[&str]) {
    needs_root!();
    let folder = tempdir().unwrap();
    let mut job = start(&folder);
    for round in ["first", "second"] {
        let look = process::look(job.pid());
        let image = folder.path().join(round);
        ckpt::checkpoint_and_kill(&mut job, &image, more);
        job = ckpt::restart(&job, &image, &[]);
        process::assert_same(&look, &process::look(job.pid()));
        verify(&job);
    }
    verify(&job);
    end(job);
}
