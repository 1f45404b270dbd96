//! Jobs under `ckpt watch --tracker`.

use serde_json::Value;
use tempfile::tempdir;

use crate::moments::Moments;
use crate::watched::{self, Watch, is_increment};
use crate::{ckpt, laps, skip};

/// Why this machine lacks a tracker, if it does. `program` is `lapper`.
pub fn missing(program: &str, tracker: &str) -> Option<String> {
    let folder = tempdir().expect("cannot make a folder");
    let job = laps::start(folder.path(), program, "16 slow");
    let outcome = ckpt::try_checkpoint(job.pid(), &folder.path().join("probe"), &["--tracker", tracker]);
    (!outcome.status.success()).then(|| outcome.stderr.trim_end().to_owned())
}

/// Which trackers the checkpoints name.
pub fn names(checkpoints: &[Value]) -> Vec<&str> {
    checkpoints.iter().map(|checkpoint| checkpoint["tracker"].as_str().unwrap_or_default()).collect()
}

/// `program`, which is `lapper`, with these words: watched, killed at any moment, and brought back, several times.
pub fn survives_crashes(program: &str, tracker: &str, words: &str) {
    if let Some(why) = missing(program, tracker) {
        skip!("--tracker {tracker}: {why}");
    }
    let (moments, folder) = (Moments::new(), tempdir().expect("cannot make a folder"));
    let mut job = laps::start(folder.path(), program, words);
    let dir = folder.path().join("images");
    for _ in 0..3 {
        let watch = Watch::start(&job, &dir, "20ms", &["--tracker", tracker]);
        watch.wait_for(4);
        let checkpoints = watch.crash(&mut job, &moments);
        assert!(checkpoints.iter().skip(1).all(is_increment), "{checkpoints:#?}");
        assert!(names(&checkpoints).iter().all(|name| *name == tracker), "{checkpoints:#?}");
        job = ckpt::restart(&job, &dir, &[]);
        laps::verify(&job);
    }
    watched::verify_images(&dir);
    laps::finish(job);
}
