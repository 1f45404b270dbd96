use std::collections::BTreeMap;

use super::*;
use crate::image::model::Shares;

fn task(pid: i32, ppid: i32, sid: i32, pgid: i32) -> TaskEntry {
    TaskEntry {
        pid: Pid(pid),
        ppid: Pid(ppid),
        pgid: Pid(pgid),
        sid: Pid(sid),
        threads: Vec::new(),
        kind: TaskKind::Alive,
        stopped_by: None,
        stop_untold: false,
        exit_signal: libc::SIGCHLD,
        shares: Shares::default(),
        comm: String::new(),
    }
}

/// What a kernel knows of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Known {
    parent: Pid,
    sid: Pid,
    pgid: Pid,
    exit_signal: i32,
    /// Numbers of memory, descriptors, directories and signal actions.
    things: [usize; 4],
    adopts: bool,
}

const FLAGS: [Together; 4] = [Together::MEMORY, Together::FILES, Together::DIRECTORIES, Together::SIGNAL_ACTIONS];

/// A kernel, as far as families go.
#[derive(Clone, Debug, Default)]
struct Kernel {
    all: BTreeMap<Pid, Known>,
    things: usize,
}

impl Kernel {
    fn fresh(&mut self) -> usize {
        self.things += 1;
        self.things
    }

    fn root(&mut self, pid: Pid, parent: Pid, sid: Pid, pgid: Pid) {
        let things = [(); 4].map(|()| self.fresh());
        self.all.insert(pid, Known { parent, sid, pgid, exit_signal: libc::SIGCHLD, things, adopts: false });
    }

    fn bear(&mut self, by: Pid, pid: Pid, together: Together, sister: bool, exit_signal: i32) {
        assert!(together.contains(Together::MEMORY) || !together.contains(Together::SIGNAL_ACTIONS));
        let maker = self.all[&by].clone();
        let mut made = Known { parent: by, exit_signal, adopts: false, ..maker.clone() };
        if sister {
            (made.parent, made.exit_signal) = (maker.parent, maker.exit_signal);
        }
        for (n, flag) in FLAGS.into_iter().enumerate().filter(|(_, flag)| !together.contains(*flag)) {
            made.things[n] = self.fresh();
            assert!(!flag.is_empty());
        }
        assert!(self.all.insert(pid, made).is_none(), "{pid} is taken");
    }

    fn setsid(&mut self, pid: Pid) {
        assert!(self.all.values().all(|known| known.sid != pid && known.pgid != pid), "there is a session or group {pid}");
        let known = self.all.get_mut(&pid).unwrap();
        (known.sid, known.pgid) = (pid, pid);
    }

    fn unshare(&mut self, pid: Pid, n: usize) {
        let thing = self.fresh();
        self.all.get_mut(&pid).unwrap().things[n] = thing;
    }

    fn execute(&mut self, pid: Pid) {
        [0, 1, 3].into_iter().for_each(|n| self.unshare(pid, n));
        self.all.get_mut(&pid).unwrap().exit_signal = libc::SIGCHLD;
    }

    /// `root` adopts whom nobody else does.
    fn end(&mut self, pid: Pid, root: Pid) {
        let mut heir = self.all[&pid].parent;
        while heir != root && !self.all[&heir].adopts {
            heir = self.all[&heir].parent;
        }
        self.all.remove(&pid);
        for known in self.all.values_mut().filter(|known| known.parent == pid) {
            (known.parent, known.exit_signal) = (heir, libc::SIGCHLD);
        }
    }

    /// The table of all, parents before children; the root's session and group may be outside.
    fn table(&self, root: Pid) -> TaskTable {
        let mut order = vec![root];
        let mut at = 0;
        while at < order.len() {
            let parent = order[at];
            order.extend(self.all.iter().filter(|(pid, known)| known.parent == parent && **pid != root).map(|(pid, _)| *pid));
            at += 1;
        }
        let mut tasks: Vec<TaskEntry> = Vec::new();
        for pid in &order {
            let known = &self.all[pid];
            let first = |n: usize| {
                let same = |other: &&TaskEntry| self.all[&other.pid].things[n] == known.things[n];
                tasks.iter().find(same).map(|task| task.pid)
            };
            let shares = Shares { memory: first(0), files: first(1), directories: first(2), signal_actions: first(3) };
            let entry = task(pid.0, known.parent.0, known.sid.0, known.pgid.0);
            tasks.push(TaskEntry { shares, exit_signal: known.exit_signal, ..entry });
        }
        TaskTable { tasks }
    }
}

/// What a kernel would make of a plan.
fn act(plan: &Hierarchy, table: &TaskTable) -> Kernel {
    let mut kernel = Kernel::default();
    let root = &table.tasks[0];
    let outside = |id: Pid| if table.tasks.iter().any(|t| t.pid == id) { Pid(1000) } else { id };
    for step in &plan.steps {
        match *step {
            Step::Make { by: Pid(0), pid, .. } => kernel.root(pid, root.ppid, outside(root.sid), outside(root.pgid)),
            Step::Make { by, pid, together, sister } => {
                let signal = table.tasks.iter().find(|task| task.pid == pid).unwrap().exit_signal;
                kernel.bear(by, pid, together, sister, signal);
            }
            Step::MakeGhost { by, name, together, sister, signal } => kernel.bear(by, name, together, sister, signal),
            Step::Setsid(pid) => kernel.setsid(pid),
            Step::Unshare(pid, what) => kernel.unshare(pid, if what == Together::FILES { 1 } else { 2 }),
            Step::End { name, parent, heir, signal } => {
                assert_eq!((kernel.all[&name].parent, kernel.all[&name].exit_signal), (parent, signal));
                kernel.all.get_mut(&heir).unwrap().adopts = true;
                kernel.end(name, root.pid);
                kernel.all.get_mut(&heir).unwrap().adopts = false;
            }
        }
    }
    for group in &plan.groups {
        if !group.ghost && table.tasks.iter().any(|t| t.pid == group.pgid && t.sid != t.pid) {
            assert_eq!(group.members[0], group.pgid, "the leader comes first");
        }
        group.members.iter().for_each(|pid| kernel.all.get_mut(pid).unwrap().pgid = group.pgid);
    }
    kernel
}

fn check_table(table: &TaskTable) -> Result<(), String> {
    let plan = plan(table)?;
    let mut made = act(&plan, table).table(table.tasks[0].pid);
    // The table has those that are dead at its end.
    made.tasks.sort_by_key(|made| table.tasks.iter().position(|task| task.pid == made.pid));
    made.tasks.iter_mut().zip(&table.tasks).for_each(|(made, task)| made.kind = task.kind);
    assert_eq!(made, *table, "{plan:#?}");
    Ok(())
}

fn check(tasks: Vec<TaskEntry>) {
    check_table(&TaskTable { tasks }).unwrap();
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
    let shares = |set: fn(&mut Shares)| {
        let mut sharer = task(12, 11, 10, 10);
        set(&mut sharer.shares);
        wrong(vec![task(10, 2, 10, 10), task(11, 10, 10, 10), sharer])
    };
    // Its parent must have executed a program.
    assert!(shares(|shares| shares.memory = Some(Pid(10))));
    assert!(shares(|shares| shares.memory = Some(Pid(12))));
    assert!(shares(|shares| shares.files = Some(Pid(13))));
    assert!(shares(|shares| shares.signal_actions = Some(Pid(11))));
    assert!(!shares(|shares| shares.files = Some(Pid(10))));
}

/// A life of a family, drawn at random: what its processes do, one after the other.
fn live(seed: &mut impl FnMut(usize) -> usize, moves: usize, execute: bool) -> (Kernel, Pid) {
    let mut kernel = Kernel::default();
    let root = Pid(10);
    kernel.root(root, Pid(2), Pid(10), Pid(10));
    kernel.all.get_mut(&root).unwrap().adopts = true;
    let mut next = 11;
    for _ in 0..moves {
        let pids: Vec<Pid> = kernel.all.keys().copied().collect();
        let pid = pids[seed(pids.len())];
        match seed(10) {
            0..5 if pids.len() < 6 => {
                let flags = [0, libc::CLONE_VM, libc::CLONE_VM | libc::CLONE_SIGHAND][seed(3)]
                    | [0, libc::CLONE_FILES][seed(2)]
                    | [0, libc::CLONE_FS][seed(2)];
                let together = Together::from_bits(flags).unwrap();
                let signal = [libc::SIGCHLD, libc::SIGCHLD, 0][seed(3)];
                kernel.bear(pid, Pid(next), together, pid != root && seed(3) == 0, signal);
                next += 1;
            }
            5 => kernel.unshare(pid, 1 + seed(2)),
            6 if kernel.all.values().all(|known| known.sid != pid && known.pgid != pid) => kernel.setsid(pid),
            7 | 8 if pid != root => kernel.end(pid, root),
            9 if execute => kernel.execute(pid),
            9 => kernel.all.get_mut(&pid).unwrap().adopts = true,
            _ => {}
        }
    }
    (kernel, root)
}

/// Numbers that look random, from a seed.
fn numbers(mut state: u64) -> impl FnMut(usize) -> usize {
    move |below| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 33) % below as u64) as usize
    }
}

#[test]
fn whatever_clone_makes_can_be_made_again() {
    let mut shared = 0;
    for n in 0..60_000 {
        let (kernel, root) = live(&mut numbers(n), 4 + (n % 24) as usize, false);
        let table = kernel.table(root);
        shared += usize::from(table.tasks.iter().any(|task| task.shares != Shares::default()));
        if let Err(why) = check_table(&table) {
            let line = |t: &TaskEntry| format!("{} of {} in {}, {}: {:?}\n", t.pid, t.ppid, t.sid, t.exit_signal, t.shares);
            panic!("family {n}: {why}:\n{}", table.tasks.iter().map(line).collect::<String>());
        }
    }
    assert!(shared > 10_000, "only {shared} families shared anything");
}

/// Executing a program is the one thing that is not done again. Whatever is not refused is made as it was.
#[test]
fn who_has_executed_a_program_may_be_refused() {
    let (mut made, mut refused) = (0, 0);
    for n in 0..20_000u64 {
        let (kernel, root) = live(&mut numbers(n), 4 + (n % 24) as usize, true);
        match check_table(&kernel.table(root)) {
            Ok(()) => made += 1,
            Err(_) => refused += 1,
        }
    }
    assert!(made > 9 * refused && refused > 0, "{made} are made, {refused} are refused");
}
