//! The command line (docs/cli.md): one file per subcommand, each of which reads its arguments, calls the library and shows what came
//! of it. Only here is anything printed.

mod check;
mod checkpoint;
mod completions;
mod descriptors;
mod failure;
mod generic;
mod info;
mod input;
mod log;
mod man;
mod narrator;
mod output;
mod parents;
mod points;
mod progress;
mod rescue;
mod restart;
mod saving;
mod spool;
mod status;
mod thaw;
mod watch;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use failure::Failure;

/// What scripts rely on.
const EXIT_CODES: &str = "Exit codes: 0 done; 1 failed, the reason is on standard error; 2 wrong usage. A restart in the foreground \
                          ends as its job does.\n\nEnvironment: CKPT_LOG chooses what is logged to standard error, as in \
                          CKPT_LOG=debug or CKPT_LOG=ckpt::restart=trace (default: warn).";

/// Checkpoints running Linux processes to a file, and restarts them from it.
#[derive(Debug, Parser)]
#[command(name = "ckpt", version, after_help = EXIT_CODES)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Checkpoint(checkpoint::Args),
    Restart(restart::Args),
    Watch(watch::Args),
    Info(info::Args),
    Check(check::Args),
    Thaw(thaw::Args),
    Completions(completions::Args),
    Man(man::Args),
}

/// Reads the command line, does what it says, and tells the caller how it went.
pub fn run() -> ExitCode {
    let args = Args::parse();
    let result = log::start(args.command.log_file()).and_then(|()| args.command.run());
    match result {
        Ok(code) => code,
        Err(failure) => failure.report(),
    }
}

impl Command {
    fn log_file(&self) -> Option<&std::path::Path> {
        match self {
            Command::Checkpoint(args) => args.log.as_deref(),
            Command::Restart(args) => args.log.as_deref(),
            Command::Watch(args) => args.log.as_deref(),
            _ => None,
        }
    }

    fn run(self) -> Result<ExitCode, Failure> {
        match self {
            Command::Checkpoint(args) => args.run(),
            Command::Restart(args) => args.run(),
            Command::Watch(args) => args.run(),
            Command::Info(args) => args.run(),
            Command::Check(args) => args.run(),
            Command::Thaw(args) => args.run(),
            Command::Completions(args) => args.run(),
            Command::Man(args) => args.run(),
        }
    }
}

/// For clap: a process id.
fn parse_pid(text: &str) -> Result<ckpt::ids::Pid, String> {
    match text.parse() {
        Ok(pid) if pid > 0 => Ok(ckpt::ids::Pid(pid)),
        _ => Err("a process id is a positive number".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn what_makes_no_sense_together_is_refused() {
        let refused = |words: &[&str]| Args::try_parse_from([&["ckpt"], words].concat()).is_err();
        assert!(refused(&["checkpoint", "1"]));
        assert!(refused(&["checkpoint", "0", "-o", "img"]));
        assert!(refused(&["restart", "img", "--pidfile", "pid"]));
        assert!(refused(&["restart", "img", "--inherit-fd", "x"]));
        assert!(refused(&["watch", "1", "--dir", "images", "--restart-on-failure"]));
        assert!(refused(&["watch", "--dir", "images", "--max-restarts", "3", "--", "job"]));
        assert!(refused(&["watch", "--dir", "images", "--restart-on-failure", "--max-restarts", "0", "--", "job"]));
        assert!(!refused(&["watch", "--dir", "images", "--restart-on-failure", "--max-restarts", "3", "--", "job"]));
        assert!(!refused(&["restart", "img", "--detach", "--pidfile", "pid", "--inherit-fd", "5=7", "--inherit-fd", "6"]));
        assert!(!refused(&["checkpoint", "4242", "-o", "-", "--after", "kill", "--codec", "raw", "--freeze-timeout", "500ms"]));
    }
}
