//! Who descends from whom, in which session and group, and what they have together: from the task table, the order in which processes must be made.
//!
//! A process gets its session from its maker, when it is born, and of its maker's memory, descriptors, directories and signal actions those that it is
//! to share. So a process that is to be in an older session than its parent must be born before the parent makes a session of its own; and likewise
//! before the parent takes descriptors for itself (unshare(2)). Sessions and groups whose leader is dead need one for a moment: a *ghost* (SEED S6),
//! a process that takes the id, makes the session or the group, and ends. The same goes for whoever was adopted by a subreaper, since the parent that
//! it had first is dead: somebody that has what it shares bears a ghost, which bears it, and ends. ([`reduction`])
//!
//! All of it is found out from the table alone, so a checkpoint can refuse what no restart could make.

mod reduction;

use std::collections::{HashMap, HashSet};

use bitflags::bitflags;

use crate::ids::Pid;
use crate::image::model::{TaskEntry, TaskKind, TaskTable};

/// How the processes of a table are made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// In this order.
    pub steps: Vec<Step>,
    /// Once all are there, in this order.
    pub groups: Vec<Group>,
}

bitflags! {
    /// What a process has together with its maker.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Together: i32 {
        /// The memory.
        const MEMORY = libc::CLONE_VM;
        /// The descriptor table.
        const FILES = libc::CLONE_FILES;
        /// Working directory, root and umask.
        const DIRECTORIES = libc::CLONE_FS;
        /// What is done about signals.
        const SIGNAL_ACTIONS = libc::CLONE_SIGHAND;
    }
}

/// One thing to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// `by` makes the process `pid` of the table.
    Make {
        /// The maker. Of the root, 0: that is ckpt.
        by: Pid,
        /// The process.
        pid: Pid,
        /// What both have together.
        together: Together,
        /// It becomes the sister of its maker, not its child.
        sister: bool,
    },
    /// `by` makes a process that will not stay.
    MakeGhost {
        /// The maker.
        by: Pid,
        /// By this it is known in later steps. Positive: it must have that pid.
        name: Pid,
        /// What both have together.
        together: Together,
        /// It becomes the sister of its maker, not its child.
        sister: bool,
        /// The signal that its parent gets when it ends.
        signal: i32,
    },
    /// It makes a session of its own.
    Setsid(Pid),
    /// It takes these for itself: the descriptor table or the directories.
    Unshare(Pid, Together),
    /// The ghost ends; its parent collects its status.
    End {
        /// The ghost.
        name: Pid,
        /// The parent.
        parent: Pid,
        /// Who adopts what the ghost has borne.
        heir: Pid,
        /// The signal that the parent gets.
        signal: i32,
    },
}

/// Who comes into a process group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Its number.
    pub pgid: Pid,
    /// Its leader is dead: the first of the members makes a ghost of it.
    pub ghost: bool,
    /// Those that come into it; its leader first, if that lives.
    pub members: Vec<Pid>,
}

/// Finds out how.
///
/// Errors: why there is no way.
pub fn plan(table: &TaskTable) -> Result<Hierarchy, String> {
    check(&table.tasks)?;
    Ok(Hierarchy { steps: reduction::steps(&table.tasks)?, groups: groups(&table.tasks)? })
}

/// Is the table one that a kernel could have?
fn check(tasks: &[TaskEntry]) -> Result<(), String> {
    let Some(root) = tasks.first() else { return Err("there are no processes".to_owned()) };
    let pids: HashSet<Pid> = tasks.iter().map(|task| task.pid).collect();
    if pids.len() != tasks.len() || tasks.iter().any(|task| task.pid.0 <= 0) {
        return Err("a pid comes twice, or is impossible".to_owned());
    }
    let mut before: HashMap<Pid, &TaskEntry> = HashMap::new();
    for task in tasks {
        let parent = before.get(&task.ppid);
        if task.pid != root.pid && parent.is_none_or(|parent| parent.kind == TaskKind::Ghost) {
            return Err(format!("pid {} stands before its parent {}", task.pid, task.ppid));
        }
        for of in reduction::SHARED {
            let first = of.with(&task.shares);
            if first.is_some_and(|first| before.get(&first).is_none_or(|first| of.with(&first.shares).is_some())) {
                return Err(format!("pid {} shares {of} with nobody who could be the first that has them", task.pid));
            }
        }
        if task.shares.signal_actions.is_some() && task.shares.memory.is_none() {
            return Err(format!("pid {} shares signal actions, but no memory", task.pid));
        }
        before.insert(task.pid, task);
    }
    Ok(())
}

fn groups(tasks: &[TaskEntry]) -> Result<Vec<Group>, String> {
    let by_pid: HashMap<Pid, &TaskEntry> = tasks.iter().map(|task| (task.pid, task)).collect();
    let outside = tasks.first().map(|root| root.pgid).filter(|pgid| !by_pid.contains_key(pgid));
    let mut groups: Vec<Group> = Vec::new();
    for task in tasks.iter().filter(|task| Some(task.pgid) != outside && task.sid != task.pid) {
        match groups.iter_mut().find(|group| group.pgid == task.pgid) {
            Some(group) if task.pid == task.pgid => group.members.insert(0, task.pid),
            Some(group) => group.members.push(task.pid),
            None => {
                // The group of a session's leader is there with the session, even if that is dead.
                let ghost = !by_pid.contains_key(&task.pgid) && task.pgid != task.sid;
                groups.push(Group { pgid: task.pgid, ghost, members: vec![task.pid] });
            }
        }
    }
    for group in &groups {
        let sessions: HashSet<Pid> =
            group.members.iter().chain([&group.pgid]).filter_map(|pid| by_pid.get(pid)).map(|task| task.sid).collect();
        if sessions.len() > 1 {
            return Err(format!("the process group {} lies in several sessions", group.pgid));
        }
    }
    Ok(groups)
}

#[cfg(test)]
mod tests;
