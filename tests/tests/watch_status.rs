//! The line that `ckpt watch` shows on a terminal, and only there.

use ckpt_tests::laps;
use ckpt_tests::watched::{self, Watch};
use ckpt_tests::{needs_root, program};
use nix::sys::signal::Signal;
use tempfile::tempdir;

#[test]
fn a_file_holds_nothing_of_it() {
    needs_root!();
    let folder = tempdir().unwrap();
    let job = laps::start(folder.path(), program!("lapper"), "512 store");
    let mut watch = Watch::start(&job, &folder.path().join("images"), "1100ms", &[]);
    watch.wait_for(3);
    watch.ckpt().signal(Signal::SIGTERM);
    let output = watch.ckpt().succeed();
    assert!(!output.contains("next checkpoint") && !output.contains("\x1b"), "{output}");
    assert!(watched::images(watch.dir()).len() >= 3);
    laps::finish(job);
}
