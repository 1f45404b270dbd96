//! What the integration tests share: running `ckpt` and the programs that it checkpoints, and comparing before with after.
//!
//! The tests are in `tests/`, one file per feature; the programs of our own, which check themselves, in `src/bin/`. Nothing here knows
//! the library behind `ckpt`: the tests see what a user sees, the command line and `/proc`.

pub mod chain;
pub mod checks;
pub mod ckpt;
pub mod identity;
pub mod image;
pub mod job;
pub mod laps;
pub mod maps;
pub mod moments;
pub mod passing;
pub mod process;
pub mod python;
pub mod scratch_disk;
pub mod skip;
pub mod static_program;
pub mod stood_in;
pub mod story;
pub mod sys;
pub mod terminal;
pub mod tracked;
pub mod waits;
pub mod watched;

/// The path of one of the programs in `src/bin/`.
#[macro_export]
macro_rules! program {
    ($name:literal) => {
        env!(concat!("CARGO_BIN_EXE_", $name))
    };
}
