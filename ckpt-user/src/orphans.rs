//! What is left of a job when its first process has died: everything that descends from it, which the kernel gives to this process.

use nix::errno::Errno;
use nix::sys::prctl::set_child_subreaper;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

use crate::error::{Doing, Result};
use crate::ids::Pid;
use crate::sys::{landlock, signal};
use crate::tracee::tree::{Member, members};

/// From now on processes below this one whose parents end become its children.
pub fn adopt() -> Result<()> {
    set_child_subreaper(true).doing(|| "cannot adopt orphans (PR_SET_CHILD_SUBREAPER)")
}

/// Collects the statuses of those that have ended, but for `job`.
pub fn collect(job: Pid) -> Result<()> {
    for child in below(false)?.into_iter().filter(|child| child.dead && child.pid != job) {
        bury(child.pid, WaitPidFlag::WNOHANG)?;
    }
    Ok(())
}

/// Kills all that are left, so that their pids are free.
pub fn end() -> Result<()> {
    loop {
        let left = below(true)?;
        if left.is_empty() {
            return Ok(());
        }
        for member in left.iter().filter(|member| !member.dead) {
            match signal::kill(member.pid, libc::SIGKILL) {
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                other => other.doing(|| format!("cannot kill pid {}, which the job has left", member.pid))?,
            }
        }
        // The parents first: then the others are ours to wait for.
        left.iter().try_for_each(|member| bury(member.pid, WaitPidFlag::empty()))?;
    }
}

/// Those that descend from this process: its children, or all. (Witnesses are not the job's.)
fn below(all: bool) -> Result<Vec<Member>> {
    let own = Pid(std::process::id() as i32);
    let members = members(own)?.into_iter().skip(1);
    Ok(members.filter(|member| (all || member.parent == own) && !landlock::is_witness(member.pid)).collect())
}

fn bury(pid: Pid, flags: WaitPidFlag) -> Result<()> {
    loop {
        match waitpid(nix::unistd::Pid::from_raw(pid.0), Some(flags | WaitPidFlag::__WALL)) {
            Err(Errno::EINTR) => {}
            // Its own parent has collected it.
            Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..) | WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Ok(()),
            Ok(_) => {}
            Err(error) => return Err(error).doing(|| format!("cannot wait for pid {pid}")),
        }
    }
}
