//! `ckpt thaw`.

use std::process::ExitCode;

use ckpt::Error;
use ckpt::ids::Pid;
use ckpt::sys::{procfs, signal};
use ckpt::tracee::tree::members;

use super::{Failure, output, parse_pid};

/// Let a process run that `ckpt restart --frozen` or `ckpt checkpoint --after stop` has left stopped, and what descends from it. What job control had
/// stopped before stays stopped.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The process
    #[arg(value_name = "PID", value_parser = parse_pid)]
    pid: Pid,
}

impl Args {
    /// Does it.
    pub fn run(self) -> Result<ExitCode, Failure> {
        let pid = self.pid;
        let state = match procfs::stat(pid) {
            Err(Error::Gone(_)) => return Err(Failure::file(format!("cannot thaw pid {pid}"), nix::errno::Errno::ESRCH)),
            other => other?.state,
        };
        if state != 'T' {
            // SIGCONT has a meaning of its own for a program that handles it.
            return Err(Error::Unexpected(format!(
                "pid {pid} is not stopped (its state is '{state}'): there is nothing to thaw"
            ))
            .into());
        }
        // The children first: their parent finds them running.
        for member in members(pid)?.into_iter().rev().filter(|member| !member.dead) {
            if procfs::stat(member.pid)
                .is_ok_and(|stat| stat.state == 'T' && (member.pid == pid || !was_stopped_before(member.pid)))
            {
                let sent = signal::kill(member.pid, libc::SIGCONT);
                sent.map_err(|error| Failure::file(format!("cannot thaw pid {}", member.pid), error))?;
            }
        }
        output::print(&format!("pid {pid} runs on\n"))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Was the stopped process stopped by somebody else, before?
fn was_stopped_before(pid: Pid) -> bool {
    procfs::status(pid, pid.leader()).is_ok_and(|status| !status.stopped_by_us())
}
