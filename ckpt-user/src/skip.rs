//! Tests that cannot run on this machine say so, and count as passed. (The tests of real programs have this file, too.)

use std::fs::OpenOptions;
use std::io::Write;

/// Notes that a test is skipped: in the file, too, that `cargo xtask test` names, by a line `test<TAB>reason`.
pub fn note(test: &str, reason: &str) {
    println!("SKIPPED {test}: {reason}");
    let Some(path) = std::env::var_os("CKPT_TEST_SKIPS") else { return };
    let mut file =
        OpenOptions::new().append(true).create(true).open(path).expect("cannot open the file that CKPT_TEST_SKIPS names");
    // One write, so that lines of tests that run side by side do not mix.
    file.write_all(format!("{test}\t{reason}\n").as_bytes()).expect("cannot note a skipped test");
}
