//! The program `ckpt`. Everything it can do is in the library; `cli` reads the command line and shows what came of it.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::run()
}
