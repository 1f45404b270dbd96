//! Tests that cannot run on this machine say so, and count as passed.

use std::fs::OpenOptions;
use std::io::Write;

/// The file to which a line `name<TAB>reason` is appended for every skipped test (`cargo xtask test` sets it).
const SKIPS: &str = "CKPT_TEST_SKIPS";

/// Notes that the test `name` is skipped. Use [`skip!`](crate::skip!).
pub fn note(name: &str, reason: &str) {
    println!("SKIPPED {name}: {reason}");
    let Some(path) = std::env::var_os(SKIPS) else { return };
    let mut file =
        OpenOptions::new().append(true).create(true).open(&path).expect("cannot open the file named by CKPT_TEST_SKIPS");
    // One write, so that lines of tests that run side by side do not mix.
    file.write_all(format!("{name}\t{reason}\n").as_bytes()).expect("cannot note a skipped test");
}

/// Returns from a test that cannot run here, and says why.
#[macro_export]
macro_rules! skip {
    ($($reason:tt)*) => {{
        fn here() {}
        let name = std::any::type_name_of_val(&here).trim_end_matches("::here");
        $crate::skip::note(name, &format!($($reason)*));
        return;
    }};
}

/// What is there, or returns from a test that cannot run here, and says why: the error.
#[macro_export]
macro_rules! or_skip {
    ($there:expr) => {
        match $there {
            Ok(there) => there,
            Err(why) => $crate::skip!("{why}"),
        }
    };
}

/// Is this process root? Returns from the test if not.
#[macro_export]
macro_rules! needs_root {
    () => {
        if !nix::unistd::geteuid().is_root() {
            $crate::skip!("not root");
        }
    };
}
