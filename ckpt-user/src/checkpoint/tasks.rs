//! The processes of a tree as the image lists them, and whether they could be made again.

use crate::error::{Error, Refusal, Result};
use crate::ids::Pid;
use crate::image::model::{Shares, TaskEntry, TaskKind, TaskTable};
use crate::resources::hierarchy;
use crate::resources::sharing::Sharing;
use crate::sys::kcmp::Shared;
use crate::sys::procfs;
use crate::tracee::freeze::FrozenProcess;
use crate::tracee::tree::{FrozenTree, Member, members};

/// Those that live and those that have ended, parents before their children.
pub(super) fn table(tree: &FrozenTree, sharing: &Sharing) -> Result<TaskTable> {
    let stopped = |process: &FrozenProcess| {
        let stopped_by = process.threads.iter().find_map(|thread| thread.group_stop);
        // Until then the signal stands in the place of an exit code.
        let stop_untold = stopped_by.is_some() && procfs::stat(process.pid)?.exit_code.is_some_and(|code| code != 0);
        Ok(TaskEntry {
            threads: process.threads.iter().map(|thread| thread.tid).collect(),
            stopped_by,
            stop_untold,
            ..living(process.pid, sharing)?
        })
    };
    let alive = tree.processes.iter().map(stopped);
    let dead = tree.dead.iter().map(ended);
    Ok(TaskTable { tasks: alive.chain(dead).collect::<Result<_>>()? })
}

/// Could these processes be made again?
pub(super) fn check(root: Pid, tasks: &TaskTable) -> Result<()> {
    match hierarchy::plan(tasks) {
        Ok(_) => Ok(()),
        Err(reason) => Err(Error::Refused(Refusal {
            pid: root,
            object: "its family".to_owned(),
            reason: format!("could not be made again: {reason}"),
            advice: "checkpoint a process that all of them descend from, or wait until the one that is named has ended"
                .to_owned(),
            passing: false,
        })),
    }
}

/// How often a tree that changes while it is looked at is looked at again.
const LOOKS: usize = 5;

/// The same of a tree that runs on. As long as processes come and go, there is nothing to tell: they may have been seen half in one family and half in
/// another.
pub(super) fn check_running(root: Pid) -> Result<()> {
    let mut before = None;
    for left in (0..LOOKS).rev() {
        match look(root) {
            Ok(tasks) if before.as_ref() == Some(&tasks) => return check(root, &tasks),
            Ok(tasks) if check(root, &tasks).is_ok() => return Ok(()),
            Ok(tasks) => before = Some(tasks),
            // Somebody has ended meanwhile, most likely.
            Err(error) if left > 0 => tracing::debug!("the family of pid {root} is looked at again: {error}"),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn look(root: Pid) -> Result<TaskTable> {
    let (dead, alive): (Vec<Member>, Vec<Member>) = members(root)?.into_iter().partition(|member| member.dead);
    let pids: Vec<Pid> = alive.iter().map(|member| member.pid).collect();
    let sharing = Sharing::of(&pids)?;
    let alive = pids.iter().map(|&pid| living(pid, &sharing));
    Ok(TaskTable { tasks: alive.chain(dead.iter().map(ended)).collect::<Result<_>>()? })
}

/// Without what only a process tells that stands still.
fn living(pid: Pid, sharing: &Sharing) -> Result<TaskEntry> {
    let shares = |what: Shared| Some(sharing.first(what, pid)).filter(|first| *first != pid);
    Ok(TaskEntry {
        shares: Shares {
            memory: shares(Shared::Memory),
            files: shares(Shared::Files),
            directories: shares(Shared::Directories),
            signal_actions: shares(Shared::SignalActions),
        },
        ..entry(pid, TaskKind::Alive)?
    })
}

fn ended(member: &Member) -> Result<TaskEntry> {
    let status = procfs::stat(member.pid)?.exit_code.unwrap_or(0);
    entry(member.pid, TaskKind::Zombie(status))
}

fn entry(pid: Pid, kind: TaskKind) -> Result<TaskEntry> {
    let stat = procfs::stat(pid)?;
    Ok(TaskEntry {
        pid,
        ppid: Pid(stat.ppid),
        pgid: Pid(stat.pgrp),
        sid: Pid(stat.session),
        threads: Vec::new(),
        kind,
        stopped_by: None,
        stop_untold: false,
        exit_signal: stat.exit_signal.unwrap_or(libc::SIGCHLD),
        shares: Shares::default(),
        comm: stat.comm,
    })
}
