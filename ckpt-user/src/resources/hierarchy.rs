//! Who descends from whom, in which session and group: from the task table, the order in which processes must be made.
//!
//! A process gets its session from its maker, when it is born; so a process that is to be in an older session than its parent must be born before
//! the parent makes a session of its own. Sessions and groups whose leader is dead need one for a moment: a *ghost* (SEED S6), a process that
//! takes the id, makes the session or the group, and ends. The same goes for an orphan, whose first parent is dead and who was adopted by
//! a subreaper: somebody of its session bears it, and ends.
//!
//! All of it is found out from the table alone, so a checkpoint can refuse what no restart could make.

use std::collections::{HashMap, HashSet};

use crate::ids::Pid;
use crate::image::model::{Shares, TaskEntry, TaskKind, TaskTable};

/// How the processes of a table are made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hierarchy {
    /// In this order.
    pub steps: Vec<Step>,
    /// Once all are there, in this order.
    pub groups: Vec<Group>,
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
        /// It becomes the sister of its maker, with which it shares something.
        sister: bool,
    },
    /// `by` makes a process that will not stay. `Pid(0)`: any pid will do, it is known as `name`.
    MakeGhost {
        /// The maker.
        by: Pid,
        /// By this it is known in later steps. Positive: it must have that pid.
        name: Pid,
    },
    /// It makes a session of its own.
    Setsid(Pid),
    /// From now on it adopts orphans below it.
    Adopt(Pid),
    /// The ghost ends; its maker collects its status.
    End {
        /// The ghost.
        name: Pid,
        /// The maker.
        by: Pid,
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
    Planner::new(table)?.plan()
}

struct Planner<'a> {
    tasks: &'a [TaskEntry],
    by_pid: HashMap<Pid, &'a TaskEntry>,
    root: &'a TaskEntry,
    steps: Vec<Step>,
    made: HashSet<Pid>,
    /// Ghosts without a pid of the table's: their names are negative.
    unnamed: i32,
}

impl<'a> Planner<'a> {
    fn new(table: &'a TaskTable) -> Result<Planner<'a>, String> {
        let tasks = &table.tasks;
        let Some(root) = tasks.first() else { return Err("there are no processes".to_owned()) };
        let by_pid: HashMap<Pid, &TaskEntry> = tasks.iter().map(|task| (task.pid, task)).collect();
        if by_pid.len() != tasks.len() || tasks.iter().any(|task| task.pid.0 <= 0) {
            return Err("a pid comes twice, or is impossible".to_owned());
        }
        let mut before = HashSet::new();
        for task in tasks {
            if task.pid != root.pid && !before.contains(&task.ppid) {
                return Err(format!("pid {} stands before its parent {}", task.pid, task.ppid));
            }
            if task.kind != TaskKind::Ghost {
                before.insert(task.pid);
            }
        }
        Ok(Planner { tasks, by_pid, root, steps: Vec::new(), made: HashSet::new(), unnamed: 0 })
    }

    fn plan(mut self) -> Result<Hierarchy, String> {
        let root = self.root.pid;
        self.steps.push(Step::Make { by: Pid(0), pid: root, sister: false });
        self.made.insert(root);
        // ckpt's own session stands for the one that was outside of the tree.
        let outside = if self.root.sid == root { Pid(0) } else { self.root.sid };
        self.family(self.root, outside)?;
        self.orphans()?;
        let groups = self.groups()?;
        Ok(Hierarchy { steps: self.steps, groups })
    }

    fn children(&self, of: Pid) -> Vec<&'a TaskEntry> {
        let root = self.root.pid;
        self.tasks.iter().filter(|task| task.ppid == of && task.pid != root).collect()
    }

    /// The session in which a process must be born. `None`: any, since it makes one of its own.
    fn born_in(&self, task: &TaskEntry) -> Option<Pid> {
        if task.sid == task.pid { self.needed_before(task) } else { Some(task.sid) }
    }

    /// The older session that some child of a session's leader is in.
    fn needed_before(&self, leader: &TaskEntry) -> Option<Pid> {
        self.children(leader.pid).into_iter().filter_map(|child| self.born_in(child)).find(|&session| {
            // Sessions that begin below the leader, or whose leader is dead, are none that it was born in.
            session != leader.pid && !self.begins_below(session, leader.pid) && self.existed_above(session, leader)
        })
    }

    /// Is the leader of the session a process below `above`?
    fn begins_below(&self, session: Pid, above: Pid) -> bool {
        let mut at = session;
        while let Some(task) = self.by_pid.get(&at) {
            if task.ppid == above {
                return true;
            }
            if task.pid == self.root.pid {
                return false;
            }
            at = task.ppid;
        }
        false
    }

    /// Could a process have inherited the session from its ancestors?
    fn existed_above(&self, session: Pid, task: &TaskEntry) -> bool {
        let mut at = task;
        while at.pid != self.root.pid {
            let Some(parent) = self.by_pid.get(&at.ppid) else { return false };
            if parent.sid == session || parent.pid == session {
                return true;
            }
            at = parent;
        }
        // What was outside of the tree.
        session == self.root.sid
    }

    /// Has a process that was born in the session `born` make its session and its children, and those theirs.
    fn family(&mut self, task: &'a TaskEntry, born: Pid) -> Result<(), String> {
        let leads = task.sid == task.pid;
        let children = self.children(task.pid);
        if leads {
            for child in &children {
                if self.born_in(child) == Some(born) {
                    self.make(task, child, born)?;
                }
            }
            self.steps.push(Step::Setsid(task.pid));
        }
        let own = if leads { task.pid } else { born };
        for child in children {
            if !self.made.contains(&child.pid) && self.born_in(child).is_none_or(|session| session == own) {
                self.make(task, child, own)?;
            }
        }
        Ok(())
    }

    fn make(&mut self, parent: &TaskEntry, child: &'a TaskEntry, session: Pid) -> Result<(), String> {
        let (by, sister) = self.maker(parent, child)?;
        self.steps.push(Step::Make { by, pid: child.pid, sister });
        self.made.insert(child.pid);
        self.family(child, session)
    }

    /// A process shares things with its maker: with its parent, or else it is made as a sister.
    fn maker(&self, parent: &TaskEntry, child: &TaskEntry) -> Result<(Pid, bool), String> {
        let shares = &child.shares;
        let shared = [shares.memory, shares.files, shares.directories, shares.signal_actions];
        let with: HashSet<Pid> = shared.into_iter().flatten().collect();
        let mut with = with.into_iter();
        match (with.next(), with.next()) {
            (None, _) => Ok((parent.pid, false)),
            (Some(one), None) if one == parent.pid => Ok((one, false)),
            (Some(one), None)
                if self.by_pid.get(&one).is_some_and(|sister| sister.ppid == parent.pid) && self.made.contains(&one) =>
            {
                Ok((one, true))
            }
            (Some(one), _) => Err(format!(
                "pid {} shares memory, descriptors or directories with pid {one} (clone(2)), which is neither its parent nor alone in that",
                child.pid
            )),
        }
    }

    /// Whoever could not be made by its parent.
    fn orphans(&mut self) -> Result<(), String> {
        loop {
            // Parents first: what is below an orphan comes with it.
            let next = self.tasks.iter().find(|task| !self.made.contains(&task.pid) && self.made.contains(&task.ppid));
            let Some(orphan) = next else { return Ok(()) };
            let Some(session) = self.born_in(orphan) else {
                return Err(format!("pid {} cannot be made", orphan.pid));
            };
            let adopter = orphan.ppid;
            self.steps.push(Step::Adopt(adopter));
            let (by, name) = match self.by_pid.get(&session) {
                // Somebody of that session bears them all, and ends.
                Some(leader) if self.is_below(leader.pid, adopter) && self.made.contains(&leader.pid) => {
                    self.unnamed -= 1;
                    (leader.pid, Pid(self.unnamed))
                }
                Some(_) => {
                    return Err(format!(
                        "pid {} is in the session {session}, which neither its parent nor anybody below that leads",
                        orphan.pid
                    ));
                }
                // The leader of the session is dead, and stands up once more.
                None => (adopter, session),
            };
            self.steps.push(Step::MakeGhost { by, name });
            if name == session {
                self.steps.push(Step::Setsid(name));
            }
            let sisters: Vec<&TaskEntry> = self
                .tasks
                .iter()
                .filter(|task| !self.made.contains(&task.pid) && task.ppid == adopter && self.born_in(task) == Some(session))
                .collect();
            for orphan in sisters {
                if orphan.shares != Shares::default() {
                    return Err(format!(
                        "pid {}, an orphan, shares memory, descriptors or directories with another process",
                        orphan.pid
                    ));
                }
                self.steps.push(Step::Make { by: name, pid: orphan.pid, sister: false });
                self.made.insert(orphan.pid);
                self.family(orphan, session)?;
            }
            self.steps.push(Step::End { name, by });
        }
    }

    fn is_below(&self, pid: Pid, above: Pid) -> bool {
        let mut at = pid;
        loop {
            if at == above {
                return true;
            }
            match self.by_pid.get(&at) {
                Some(task) if at != self.root.pid => at = task.ppid,
                _ => return false,
            }
        }
    }

    fn groups(&self) -> Result<Vec<Group>, String> {
        let outside = Some(self.root.pgid).filter(|pgid| !self.by_pid.contains_key(pgid));
        let mut groups: Vec<Group> = Vec::new();
        for task in self.tasks.iter().filter(|task| Some(task.pgid) != outside && task.sid != task.pid) {
            match groups.iter_mut().find(|group| group.pgid == task.pgid) {
                Some(group) if task.pid == task.pgid => group.members.insert(0, task.pid),
                Some(group) => group.members.push(task.pid),
                None => {
                    // The group of a session's leader is there with the session, even if that is dead.
                    let ghost = !self.by_pid.contains_key(&task.pgid) && task.pgid != task.sid;
                    groups.push(Group { pgid: task.pgid, ghost, members: vec![task.pid] });
                }
            }
        }
        for group in &groups {
            let sessions: HashSet<Pid> =
                group.members.iter().chain([&group.pgid]).filter_map(|pid| self.by_pid.get(pid)).map(|task| task.sid).collect();
            if sessions.len() > 1 {
                return Err(format!("the process group {} lies in several sessions", group.pgid));
            }
        }
        Ok(groups)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task(pid: i32, ppid: i32, sid: i32, pgid: i32) -> TaskEntry {
        TaskEntry {
            pid: Pid(pid),
            ppid: Pid(ppid),
            pgid: Pid(pgid),
            sid: Pid(sid),
            threads: Vec::new(),
            kind: TaskKind::Alive,
            stopped_by: None,
            exit_signal: libc::SIGCHLD,
            shares: Shares::default(),
            comm: String::new(),
        }
    }

    /// What a kernel would make of a plan: parent, session and group of whoever is left.
    fn act(plan: &Hierarchy, table: &TaskTable) -> HashMap<Pid, (Pid, Pid, Pid)> {
        let mut all: HashMap<Pid, (Pid, Pid, Pid)> = HashMap::new();
        let mut adopters = HashSet::new();
        let root = table.tasks[0].pid;
        for step in &plan.steps {
            match *step {
                Step::Make { by: Pid(0), pid, .. } => {
                    let outside = |id: Pid| if table.tasks.iter().any(|t| t.pid == id) { Pid(1000) } else { id };
                    all.insert(pid, (table.tasks[0].ppid, outside(table.tasks[0].sid), outside(table.tasks[0].pgid)));
                }
                Step::Make { by, pid, sister } => {
                    let (parent, sid, pgid) = all[&by];
                    assert!(all.insert(pid, (if sister { parent } else { by }, sid, pgid)).is_none());
                }
                Step::MakeGhost { by, name } => {
                    let (_, sid, pgid) = all[&by];
                    assert!(all.insert(name, (by, sid, pgid)).is_none(), "{name} is taken");
                }
                Step::Setsid(pid) => {
                    let entry = all.get_mut(&pid).unwrap();
                    (entry.1, entry.2) = (pid, pid);
                }
                Step::Adopt(pid) => drop(adopters.insert(pid)),
                Step::End { name, by } => {
                    assert_eq!(all[&name].0, by);
                    let mut heir = by;
                    while !adopters.contains(&heir) && heir != root {
                        heir = all[&heir].0;
                    }
                    all.remove(&name);
                    all.values_mut().filter(|entry| entry.0 == name).for_each(|entry| entry.0 = heir);
                }
            }
        }
        for group in &plan.groups {
            if !group.ghost && table.tasks.iter().any(|t| t.pid == group.pgid && t.sid != t.pid) {
                assert_eq!(group.members[0], group.pgid, "the leader comes first");
            }
            group.members.iter().for_each(|pid| all.get_mut(pid).unwrap().2 = group.pgid);
        }
        all
    }

    fn check(tasks: Vec<TaskEntry>) {
        let table = TaskTable { tasks };
        let plan = plan(&table).unwrap();
        let made = act(&plan, &table);
        let wanted: HashMap<_, _> = table.tasks.iter().map(|t| (t.pid, (t.ppid, t.sid, t.pgid))).collect();
        assert_eq!(made, wanted, "{plan:?}");
    }

    #[test]
    fn a_pipeline_of_a_shell_in_another_session() {
        check(vec![task(10, 2, 5, 10), task(11, 10, 5, 11), task(12, 10, 5, 11), task(13, 10, 5, 10)]);
        check(vec![task(10, 2, 5, 4), task(11, 10, 5, 4)]);
    }

    #[test]
    fn sessions_below_sessions() {
        check(vec![task(10, 2, 10, 10), task(11, 10, 10, 11), task(12, 11, 12, 12), task(13, 12, 12, 13), task(14, 12, 12, 13)]);
    }

    #[test]
    fn a_child_in_an_older_session_than_its_parent() {
        check(vec![task(10, 2, 10, 10), task(11, 10, 11, 11), task(12, 11, 10, 10), task(13, 11, 11, 11)]);
        // Of the root, too: its children were born outside.
        check(vec![task(10, 2, 10, 10), task(11, 10, 10, 10)]);
    }

    #[test]
    fn the_leader_of_a_session_or_a_group_is_dead() {
        check(vec![task(10, 2, 10, 10), task(20, 10, 15, 15), task(21, 10, 15, 16), task(22, 20, 15, 15)]);
        check(vec![task(10, 2, 10, 10), task(20, 10, 10, 17), task(21, 10, 10, 17)]);
    }

    #[test]
    fn an_orphan_of_a_session_that_lives() {
        check(vec![task(10, 2, 10, 10), task(11, 10, 11, 11), task(12, 10, 11, 11)]);
        check(vec![task(10, 2, 10, 10), task(11, 10, 11, 11), task(12, 10, 11, 19), task(13, 12, 13, 13)]);
    }

    #[test]
    fn the_dead_lead_groups() {
        let mut dead = task(11, 10, 10, 11);
        dead.kind = TaskKind::Zombie(0);
        check(vec![task(10, 2, 10, 10), task(12, 10, 10, 11), dead]);
    }

    #[test]
    fn impossible_tables_are_told() {
        assert!(plan(&TaskTable::default()).is_err());
        let wrong = |tasks: Vec<TaskEntry>| plan(&TaskTable { tasks }).is_err();
        assert!(wrong(vec![task(10, 2, 10, 10), task(10, 10, 10, 10)]));
        assert!(wrong(vec![task(10, 2, 10, 10), task(11, 12, 10, 10), task(12, 10, 10, 10)]));
        assert!(wrong(vec![task(10, 2, 10, 10), task(-11, 10, 10, 10)]));
        assert!(wrong(vec![task(10, 2, 10, 10), task(11, 10, 11, 11), task(12, 10, 10, 11)]));
        let mut sharer = task(12, 11, 10, 10);
        sharer.shares.memory = Some(Pid(10));
        assert!(wrong(vec![task(10, 2, 10, 10), task(11, 10, 10, 10), sharer]));
    }
}
