//! Increments without a watch: `ckpt checkpoint --parent`, where the hashes of the parent's pages tell what has changed, and
//! `ckpt restart --parent`.

use std::fs;
use std::path::{Path, PathBuf};

use ckpt_tests::ckpt;
use ckpt_tests::job::Job;
use ckpt_tests::laps;
use ckpt_tests::watched::{is_increment, number};
use ckpt_tests::{each_mode, needs_root, program};
use serde_json::Value;
use tempfile::{TempDir, tempdir};

fn lapper(words: &str) -> (TempDir, Job) {
    let folder = tempdir().unwrap();
    let job = laps::start(folder.path(), program!("lapper"), words);
    (folder, job)
}

/// `ckpt checkpoint PID -o IMAGE --parent PARENT`, which must make an increment.
fn increment(job: &Job, image: &Path, parents: &[&Path], more: &[&str]) -> Value {
    let arguments = parents.iter().flat_map(|parent| ["--parent", parent.to_str().unwrap()]).chain(more.iter().copied());
    let report = ckpt::try_checkpoint(job.pid(), image, &arguments.collect::<Vec<_>>()).success().json();
    assert!(is_increment(&report), "{report}");
    assert_eq!(report["tracker"], "hash");
    report
}

/// The newest of a chain of three brings the job back, and so does that of which it is an increment.
fn comes_back(words: &str) {
    let (folder, mut job) = lapper(words);
    let [whole, second, third] = ["whole", "second", "third"].map(|name| folder.path().join(name));
    ckpt::checkpoint(job.pid(), &whole, &[]);
    laps::verify(&job);
    increment(&job, &second, &[&whole], &[]);
    laps::verify(&job);
    increment(&job, &third, &[&second], &["--after", "kill"]);
    job.is_killed();
    ckpt::bury_family(job.pid(), &third);
    for image in [&third, &second] {
        let mut back = ckpt::restart(&job, image, &["--files", "rollback"]);
        laps::verify(&back);
        back.kill();
        ckpt::bury_family(job.pid(), image);
    }
}

each_mode!(comes_back);

/// Three images of a job, of which the last has killed it.
fn chain() -> (TempDir, Job, [PathBuf; 3]) {
    let (folder, mut job) = lapper("512 slow");
    let images = ["whole", "second", "third"].map(|name| {
        let place = folder.path().join(name);
        fs::create_dir(&place).unwrap();
        place.join("image")
    });
    ckpt::checkpoint(job.pid(), &images[0], &[]);
    increment(&job, &images[1], &[&images[0]], &[]);
    increment(&job, &images[2], &[&images[1], &images[0]], &["--after", "kill"]);
    job.is_killed();
    (folder, job, images)
}

fn arguments<'a>(parents: &[&'a Path]) -> Vec<&'a str> {
    parents.iter().flat_map(|parent| ["--parent", parent.to_str().unwrap()]).collect()
}

fn refused(image: &Path, parents: &[&Path], words: &[&str]) {
    let said = ckpt::run(ckpt::command(["restart"]).arg(image).args(arguments(parents))).failure();
    assert!(words.iter().all(|word| said.contains(word)) && said.lines().count() == 1, "no {words:?}: {said}");
}

/// In folders of their own, they must be named: in any order.
#[test]
fn parents_are_given_by_name() {
    needs_root!();
    let (_folder, job, [whole, second, third]) = chain();
    refused(&third, &[&second], &[second.to_str().unwrap(), "is an increment of image", "--parent"]);
    refused(&third, &[], &[third.to_str().unwrap(), "is an increment of image", "--parent"]);
    refused(&whole, &[&second], &[second.to_str().unwrap(), "is no parent of"]);
    for parents in [[&*second, &*whole], [&*whole, &*second]] {
        let mut more = arguments(&parents);
        more.extend(["--files", "rollback"]);
        let mut back = ckpt::restart(&job, &third, &more);
        laps::verify(&back);
        back.kill();
    }
}

#[test]
fn an_image_that_is_no_parent() {
    needs_root!();
    let (_folder, job, [whole, second, third]) = chain();
    let (others, other_job) = lapper("64");
    let other = others.path().join("other");
    ckpt::checkpoint(other_job.pid(), &other, &[]);
    refused(&third, &[&second, &whole, &other], &[other.to_str().unwrap(), "is no parent of", third.to_str().unwrap()]);
    laps::verify(&ckpt::restart(&job, &third, &arguments(&[&second, &whole])));
}

/// The id is right, but nothing else: made anew under the same name, or damaged.
#[test]
fn a_damaged_parent_is_named() {
    needs_root!();
    let (_folder, job, [whole, second, third]) = chain();
    let good = fs::read(&second).unwrap();
    let mut bad = good.clone();
    let middle = bad.len() / 2;
    bad[middle] ^= 4;
    fs::write(&second, &bad).unwrap();
    refused(&third, &[&second, &whole], &[second.to_str().unwrap()]);
    let running = lapper("64").1;
    let image = whole.with_file_name("new");
    let said = ckpt::try_checkpoint(running.pid(), &image, &arguments(&[&second, &whole])).failure();
    assert!(said.contains(second.to_str().unwrap()), "{said}");
    assert!(!image.exists() && running.is_alive());
    fs::write(&second, &good[..middle]).unwrap();
    refused(&third, &[&second, &whole], &[second.to_str().unwrap()]);
    fs::write(&second, &good).unwrap();
    laps::verify(&ckpt::restart(&job, &third, &arguments(&[&second, &whole])));
}

/// What has not changed is not in the image, and the newest image may come through a pipe.
#[test]
fn increments_are_small_and_stream() {
    needs_root!();
    let (folder, mut job) = lapper("4096 slow");
    let [whole, second] = ["whole", "second"].map(|name| folder.path().join(name));
    let full = ckpt::try_checkpoint(job.pid(), &whole, &[]).success().json();
    let report = increment(&job, &second, &[&whole], &["--after", "kill"]);
    job.is_killed();
    assert_eq!(report["parent_id"], full["image_id"]);
    assert!(number(&report, "pages_written") * 2 < number(&full, "pages_written"), "{full} {report}");
    let mut command = ckpt::command(["restart", "--detach", "-", "--parent"]);
    command.arg(&whole).stdin(fs::File::open(&second).unwrap());
    ckpt::run(&mut command).success();
    laps::finish(Job::adopt(job.pid(), folder.path()));
}

/// An image must not take the place of the one that it needs.
#[test]
fn the_parent_is_not_overwritten() {
    needs_root!();
    let (folder, job) = lapper("64");
    let image = folder.path().join("image");
    ckpt::checkpoint(job.pid(), &image, &[]);
    let before = fs::read(&image).unwrap();
    let outcome = ckpt::try_checkpoint(job.pid(), &image, &arguments(&[&image]));
    assert_eq!(outcome.status.code(), Some(2), "{}", outcome.stderr);
    assert!(outcome.stderr.contains("its own parent"), "{}", outcome.stderr);
    assert_eq!(fs::read(&image).unwrap(), before);
    laps::finish(job);
}
