//! `ckpt watch` of a job that verifies its own memory: brought back from the folder after any crash; increments; what is kept.

use std::fs;
use std::process::Command;

use ckpt_tests::ckpt;
use ckpt_tests::job::Job;
use ckpt_tests::laps;
use ckpt_tests::moments::Moments;
use ckpt_tests::watched::{self, Watch, is_increment, number};
use ckpt_tests::{each_mode, needs_root, process, program};
use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::{TempDir, tempdir};

fn start(words: &str) -> (TempDir, Job) {
    let folder = tempdir().unwrap();
    let job = laps::start(folder.path(), program!("lapper"), words);
    (folder, job)
}

/// Often and seldom, in the same folder.
fn survives_crashes(words: &str) {
    let moments = Moments::new();
    let (_folder, mut job) = start(words);
    for (interval, times) in [("200ms", 2), ("20ms", 3)] {
        job = watched::survives_crashes(job, interval, times, &moments, laps::verify);
    }
    laps::finish(job);
}

each_mode!(survives_crashes);

/// What is tracked is an address space, and the process gets a new one: also if the old one is still there, with the same mappings, and another
/// watch has the kernel note writes in the new one.
#[test]
fn another_program_is_executed() {
    needs_root!();
    for words in ["256 slow", "256 slow held"] {
        let (folder, mut job) = start(words);
        for _ in 0..2 {
            let dir = folder.path().join("images");
            let watch = Watch::start(&job, &dir, "20ms", &[]);
            watch.wait_for(2);
            laps::succeed(&job);
            let done = watch.checkpoints().len();
            watch.wait_for(done + 3);
            let mut other = Watch::start(&job, &folder.path().join("others"), "20ms", &[]);
            other.wait_for(2);
            let done = watch.checkpoints().len();
            watch.wait_for(done + 4);
            watch.crash(&mut job, &Moments::new());
            other.wait();
            job = ckpt::restart(&job, &dir, &[]);
            laps::verify(&job);
        }
        laps::finish(job);
    }
}

/// A checkpoint beside a watch protects the same memory for a moment, but takes nothing of what the watch is to learn. A lap takes longer than
/// the image that follows, so that nothing mends what is missing there.
#[test]
fn a_checkpoint_beside_a_watch() {
    needs_root!();
    let (folder, mut job) = start("4096 slow");
    let dir = folder.path().join("images");
    for _ in 0..3 {
        let watch = Watch::start(&job, &dir, "100ms", &[]);
        watch.wait_for(3);
        // Only one can trace a thread at a time, so it may be refused.
        let outcome = ckpt::try_checkpoint(job.pid(), &folder.path().join("image"), &[]);
        assert!(outcome.status.success() || outcome.stderr.contains("there can be only one"), "{}", outcome.stderr);
        let done = watch.checkpoints().len();
        watch.wait_for(done + 1);
        watch.crash(&mut job, &Moments::new());
        job = ckpt::restart(&job, &dir, &[]);
        laps::verify(&job);
    }
    laps::finish(job);
}

#[test]
fn the_end_of_a_watch_leaves_the_job_alone() {
    needs_root!();
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let (folder, job) = start("512 threads 2");
        let mut watch = Watch::start(&job, &folder.path().join("images"), "20ms", &[]);
        watch.wait_for(3);
        watch.ckpt().signal(signal);
        assert_eq!(watch.wait().code(), Some(0), "{}", watch.ckpt().output());
        laps::finish(job);
    }
}

/// What was not written in between is in no increment.
#[test]
fn increments_are_small() {
    needs_root!();
    let (folder, mut job) = start("8192 slow");
    let dir = folder.path().join("images");
    let watch = Watch::start(&job, &dir, "50ms", &[]);
    watch.wait_for(8);
    let checkpoints = watch.end();
    let (increments, full): (Vec<&Value>, Vec<&Value>) = checkpoints.iter().partition(|checkpoint| is_increment(checkpoint));
    assert!(!increments.is_empty() && !full.is_empty(), "{checkpoints:#?}");
    let least = |all: &[&Value], key| all.iter().map(|checkpoint| number(checkpoint, key)).min().unwrap_or_default();
    for key in ["bytes", "pages_written"] {
        let (small, large) = (least(&increments, key), least(&full, key));
        assert!(small * 4 < large, "{key} of the smallest increment is {small}, and of a full image {large}");
    }
    for increment in increments {
        let (pages, bytes) = (number(increment, "pages_written"), number(increment, "bytes"));
        assert!(bytes < pages * 4096 * 102 / 100 + (1 << 10), "{bytes} bytes for {pages} pages: {increment}");
        assert!(number(increment, "pages_total") >= 8192, "{increment}");
    }
    job.kill();
    laps::finish(ckpt::restart(&job, &dir, &[]));
}

/// A process that did nothing: its image holds a header, and that nothing has changed.
#[test]
fn increments_of_an_idle_process_are_tiny() {
    needs_root!();
    let folder = tempdir().unwrap();
    let mut job = Job::start(folder.path(), Command::new("sleep").arg("1000"));
    process::look(job.pid());
    let dir = folder.path().join("images");
    let watch = Watch::start(&job, &dir, "20ms", &[]);
    watch.wait_for(50);
    let checkpoints = watch.end();
    for increment in checkpoints.iter().filter(|checkpoint| is_increment(checkpoint)) {
        let (pages, bytes) = (number(increment, "pages_written"), number(increment, "bytes"));
        assert!(bytes < pages * 4096 + (1 << 10), "{bytes} bytes for {pages} pages: {increment}");
    }
    let newest = watched::images(&dir).pop().unwrap();
    let shown = ckpt::run(ckpt::command(["info", "--json"]).arg(&newest)).success().json();
    assert!(number(&shown, "metadata_changes_bytes") < 256 && number(&shown, "mappings") > 0, "{shown}");

    // Away from its parents it is still an image, of which the header can be shown.
    let alone = folder.path().join("alone.ckpt");
    fs::copy(&newest, &alone).unwrap();
    let shown = ckpt::run(ckpt::command(["info", "--verify", "--json"]).arg(&alone)).success().json();
    let why = shown["unresolved"].as_str().unwrap_or_else(|| panic!("{shown}"));
    assert!(why.contains("is an increment of image") && shown["header"]["parent"].is_object(), "{shown}");
    // Beside them all of it can, whatever they are called.
    for (n, image) in watched::images(&dir).iter().enumerate() {
        fs::copy(image, folder.path().join(format!("image of moment {n}"))).unwrap();
    }
    let shown = ckpt::run(ckpt::command(["info", "--json"]).arg(&alone)).success().json();
    assert!(shown["unresolved"].is_null() && number(&shown, "mappings") > 0, "{shown}");

    job.kill();
    let job = ckpt::restart(&job, &dir, &[]);
    assert_eq!(process::status(job.pid(), "Name").as_deref(), Some("sleep"));
}

/// Each object tells of the image that has the same place among the images, and names the one before.
#[test]
fn the_lines_are_true() {
    needs_root!();
    let (folder, job) = start("512 slow");
    let dir = folder.path().join("images");
    let watch = Watch::start(&job, &dir, "50ms", &[]);
    watch.wait_for(4);
    let checkpoints = watch.end();
    let images = watched::images(&dir);
    assert_eq!(images.len(), checkpoints.len(), "{images:?}");
    for (n, (image, checkpoint)) in images.iter().zip(&checkpoints).enumerate() {
        assert_eq!(number(checkpoint, "bytes"), fs::metadata(image).unwrap().len(), "{checkpoint}");
        assert_eq!(checkpoint["image_id"], id_of(image));
        assert_eq!(is_increment(checkpoint), n > 0, "only the first is full: {checkpoints:#?}");
        if n > 0 {
            assert_eq!(checkpoint["parent_id"], checkpoints[n - 1]["image_id"]);
        }
        for key in ["pause_us", "total_us", "pages_total", "pages_written"] {
            number(checkpoint, key);
        }
        assert!(checkpoint["tracker"].is_string(), "{checkpoint}");
    }
    watched::verify_images(&dir);
    laps::finish(job);
}

fn id_of(image: &std::path::Path) -> Value {
    let info = ckpt::run(ckpt::command(["info", "--json"]).arg(image)).success().json();
    info["header"]["image_id"].clone()
}
