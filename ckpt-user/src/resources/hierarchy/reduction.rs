//! The order is found backwards. From the whole family, one process after the other is taken away: one without children, of which everything that it does not
//! have for itself somebody has who can bear it. What then only one process is left to have was that one's own when it was born. Where this
//! goes no further, a process that has descriptors, directories or a session for itself may have taken them after its children were born; until then
//! it had what its maker had. Or somebody else may have been there, and have ended, that bore two of those that are left. That is tried in several ways.
//!
//! The kernel makes families in just these steps. It has one more, which ckpt does not take: a process that executes a program gets another memory.

use std::collections::HashMap;
use std::{fmt, iter};

use super::{Step, Together};
use crate::ids::Pid;
use crate::image::model::{Shares, TaskEntry};

/// What a process may have together with others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Thing {
    Memory,
    Files,
    Directories,
    SignalActions,
    Session,
}

/// Those that clone(2) shares.
pub(super) const SHARED: [Thing; 4] = [Thing::Memory, Thing::Files, Thing::Directories, Thing::SignalActions];

const ALL: [Thing; 5] = [Thing::Memory, Thing::Files, Thing::Directories, Thing::SignalActions, Thing::Session];

/// How many ways are tried at most.
const TRIALS: usize = 1024;

impl Thing {
    /// The first process that has the same.
    pub(super) fn with(self, shares: &Shares) -> Option<Pid> {
        match self {
            Thing::Memory => shares.memory,
            Thing::Files => shares.files,
            Thing::Directories => shares.directories,
            Thing::SignalActions => shares.signal_actions,
            Thing::Session => None,
        }
    }

    fn flag(self) -> Together {
        match self {
            Thing::Memory => Together::MEMORY,
            Thing::Files => Together::FILES,
            Thing::Directories => Together::DIRECTORIES,
            Thing::SignalActions => Together::SIGNAL_ACTIONS,
            Thing::Session => Together::empty(),
        }
    }
}

impl fmt::Display for Thing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Thing::Memory => "memory",
            Thing::Files => "descriptors",
            Thing::Directories => "directories",
            Thing::SignalActions => "signal actions",
            Thing::Session => "the session",
        })
    }
}

/// The steps that make these processes; they have been checked.
///
/// Errors: why there is no way.
pub(super) fn steps(tasks: &[TaskEntry]) -> Result<Vec<Step>, String> {
    let mut trials = TRIALS;
    let mut undone = Left::of(tasks).take_apart(&mut trials).map_err(|left| left.explain())?;
    undone.reverse();
    Ok(undone)
}

/// Processes, those first that are in the table, by their place there, and the steps that make whoever is not here any more.
#[derive(Clone)]
struct Left {
    who: Vec<Process>,
    count: usize,
    /// By how many each thing is had.
    holders: [Vec<usize>; ALL.len()],
    /// Sessions that nobody of the table leads, and not the one that is outside.
    leaderless: Vec<Option<Pid>>,
    /// The steps, the last one first.
    steps: Vec<Step>,
    ghosts: i32,
}

#[derive(Clone)]
struct Process {
    pid: Pid,
    /// Of the first, itself.
    parent: usize,
    exit_signal: i32,
    /// The session that it has made.
    leads: Option<usize>,
    here: bool,
    /// Those that are here.
    children: usize,
    /// What it has; equal numbers mean the same.
    things: [usize; ALL.len()],
}

/// How a process is made.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Child,
    Sister,
    /// A ghost that the maker bears bears it.
    Orphan,
    /// A ghost that the maker bears has it as a sister.
    GhostsSister,
    /// A ghost that is the maker's sister has it as a sister.
    GhostAndSister,
}

impl Left {
    fn of(tasks: &[TaskEntry]) -> Left {
        let places: HashMap<Pid, usize> = tasks.iter().enumerate().map(|(n, task)| (task.pid, n)).collect();
        let mut sessions: HashMap<Pid, usize> = HashMap::new();
        let mut leaderless = Vec::new();
        let mut who: Vec<Process> = Vec::new();
        let mut holders = ALL.map(|_| vec![0; tasks.len()]);
        for (n, task) in tasks.iter().enumerate() {
            let parent = if n == 0 { 0 } else { places.get(&task.ppid).copied().unwrap_or(0) };
            let session = *sessions.entry(task.sid).or_insert_with(|| {
                leaderless.push(Some(task.sid).filter(|sid| !places.contains_key(sid) && *sid != tasks[0].sid));
                leaderless.len() - 1
            });
            let things = ALL.map(|thing| match thing {
                Thing::Session => session,
                shared => shared.with(&task.shares).and_then(|first| places.get(&first).copied()).unwrap_or(n),
            });
            things.iter().zip(&mut holders).for_each(|(&thing, holders)| holders[thing] += 1);
            let leads = (task.sid == task.pid).then_some(session);
            let exit_signal = task.exit_signal;
            who.push(Process { pid: task.pid, parent, exit_signal, leads, here: true, children: 0, things });
            if n > 0 {
                who[parent].children += 1;
            }
        }
        Left { count: who.len(), who, holders, leaderless, steps: Vec::new(), ghosts: 0 }
    }

    /// Takes all away. Returns the steps, the last one first, or what is left where it goes no further.
    fn take_apart(mut self, trials: &mut usize) -> Result<Vec<Step>, Box<Left>> {
        self.reduce();
        if self.count == 1 {
            self.leave_session(0);
            let (by, pid) = (Pid(0), self.who[0].pid);
            self.steps.push(Step::Make { by, pid, together: Together::empty(), sister: false });
            return Ok(self.steps);
        }
        let leaves = self.leaves();
        let had_other = leaves.iter().flat_map(|&n| self.makers(n).map(move |(maker, way)| (n, maker, way)));
        let tried = had_other.filter_map(|(n, maker, way)| self.with_other(n, maker, way));
        let pairs = leaves.iter().flat_map(|&n| leaves.iter().map(move |&other| (n, other)));
        let in_sessions = pairs.flat_map(|(n, other)| [other, n, self.who[n].parent].map(|session_of| (n, other, session_of)));
        let tried = tried.chain(in_sessions.filter_map(|(n, other, session_of)| self.with_ghost(n, other, session_of)));
        for changed in tried {
            if *trials == 0 {
                break;
            }
            *trials -= 1;
            if let Ok(steps) = changed.take_apart(trials) {
                return Ok(steps);
            }
        }
        Err(Box::new(self))
    }

    /// Takes away whoever can be, as long as there is anybody.
    fn reduce(&mut self) {
        loop {
            let before = self.count;
            // Children stand behind their parents, mostly.
            for n in (1..self.who.len()).rev() {
                if self.is_leaf(n) {
                    self.take_if_possible(n);
                }
            }
            if self.count == before {
                return;
            }
        }
    }

    fn take_if_possible(&mut self, n: usize) -> bool {
        let found = self.makers(n).find(|&(maker, _)| self.lacking(n, maker).next().is_none());
        if let Some((maker, way)) = found {
            self.take(n, maker, way);
        }
        found.is_some()
    }

    fn is_leaf(&self, n: usize) -> bool {
        n > 0 && self.who[n].here && self.who[n].children == 0
    }

    fn leaves(&self) -> Vec<usize> {
        (1..self.who.len()).rev().filter(|&n| self.is_leaf(n)).collect()
    }

    fn here(&self) -> impl Iterator<Item = usize> {
        (0..self.who.len()).filter(|&n| self.who[n].here)
    }

    fn has(&self, n: usize, thing: Thing) -> usize {
        self.who[n].things[thing as usize]
    }

    /// Who could bear a process so that it has its parent: most likely ones first.
    fn makers(&self, n: usize) -> impl Iterator<Item = (usize, Way)> {
        let Process { parent, exit_signal, .. } = self.who[n];
        // A session that nobody leads any more takes a ghost.
        let needs_ghost = self.is_own(n, Thing::Session) && self.leaderless[self.has(n, Thing::Session)].is_some();
        let child = (parent, if needs_ghost { Way::GhostsSister } else { Way::Child });
        // A sister ends with the signal of its maker.
        let way = if needs_ghost { Way::GhostAndSister } else { Way::Sister };
        let is_sister = move |other: &usize| *other > 0 && *other != n && self.who[*other].parent == parent;
        let sisters = self.here().filter(is_sister).filter(move |&other| self.who[other].exit_signal == exit_signal);
        // And whoever is adopted, with SIGCHLD.
        let below = self.here().filter(move |&other| exit_signal == libc::SIGCHLD && other != n && self.is_below(other, parent));
        iter::once(child).chain(sisters.map(move |sister| (sister, way))).chain(below.map(|other| (other, Way::Orphan)))
    }

    fn is_below(&self, mut at: usize, above: usize) -> bool {
        while at != above && at != 0 {
            at = self.who[at].parent;
        }
        at == above
    }

    /// What a process must have from its maker, which has another.
    fn lacking(&self, n: usize, maker: usize) -> impl Iterator<Item = Thing> {
        ALL.into_iter().filter(move |&thing| {
            // Nobody is born into the session that it leads itself.
            let differs = self.has(n, thing) != self.has(maker, thing) || thing == Thing::Session && self.leads(n);
            differs && !self.is_born_with_own(n, thing)
        })
    }

    /// Is it what nobody else has, so that it can be made for it when it is born?
    fn is_born_with_own(&self, n: usize, thing: Thing) -> bool {
        self.is_own(n, thing) && (thing != Thing::Session || self.leads(n) || self.leaderless[self.has(n, thing)].is_some())
    }

    fn is_own(&self, n: usize, thing: Thing) -> bool {
        self.holders[thing as usize][self.has(n, thing)] == 1
    }

    /// Does it lead the session in which it is?
    fn leads(&self, n: usize) -> bool {
        self.who[n].leads == Some(self.has(n, Thing::Session))
    }

    /// The same family before the maker took for itself what it lacks, if that is possible, and before it made this process.
    fn with_other(&self, n: usize, maker: usize, way: Way) -> Option<Left> {
        let lacking: Vec<Thing> = self.lacking(n, maker).collect();
        let can_change = |&thing: &Thing| {
            self.is_own(maker, thing)
                && match thing {
                    Thing::Files | Thing::Directories => true,
                    // The root is born in ckpt's own, which is nobody else's.
                    Thing::Session => maker != 0 && self.leads(maker) && !self.leads(n),
                    Thing::Memory | Thing::SignalActions => false,
                }
        };
        if !lacking.iter().all(can_change) {
            return None;
        }
        let mut changed = self.clone();
        for thing in lacking {
            if thing == Thing::Session {
                changed.leave_session(maker);
            } else {
                changed.steps.push(Step::Unshare(self.who[maker].pid, thing.flag()));
            }
            changed.release(maker, thing);
            let other = self.has(n, thing);
            changed.who[maker].things[thing as usize] = other;
            changed.holders[thing as usize][other] += 1;
        }
        changed.take(n, maker, way);
        Some(changed)
    }

    /// The same family while somebody was still there who made this process, as a sister, and another one with which it shares something; in the session of
    /// `session_of`. `None`: that makes nothing possible.
    fn with_ghost(&self, n: usize, other: usize, session_of: usize) -> Option<Left> {
        let related = |thing: Thing| self.has(n, thing) == self.has(other, thing);
        // Nobody but what is below it can have been in a session when its leader was born.
        let is_late = [n, other].contains(&session_of) && self.leads(session_of);
        if n == other || is_late || !ALL.into_iter().any(|thing| related(thing) && !self.is_own(n, thing)) {
            return None;
        }
        let parent = self.who[n].parent;
        // What is one's own can be made for it when it is born.
        let source = |thing: Thing| if self.is_own(other, thing) { n } else { other };
        let with_memory = source(Thing::Memory);
        let memory = self.has(with_memory, Thing::Memory);
        let things = ALL.map(|thing| match thing {
            Thing::Session => self.has(session_of, thing),
            // Of the same memory.
            Thing::SignalActions if self.is_own(with_memory, thing) && self.has(parent, Thing::Memory) == memory => {
                self.has(parent, thing)
            }
            Thing::SignalActions => self.has(with_memory, thing),
            shared => self.has(source(shared), shared),
        });
        let mut changed = self.clone();
        changed.ghosts += 1;
        let (pid, exit_signal) = (Pid(-changed.ghosts), self.who[n].exit_signal);
        let heir = self.who[parent].pid;
        changed.steps.push(Step::End { name: pid, parent: heir, heir, signal: exit_signal });
        things.iter().zip(&mut changed.holders).for_each(|(&thing, holders)| holders[thing] += 1);
        changed.who.push(Process { pid, parent, exit_signal, leads: None, here: true, children: 0, things });
        changed.who[parent].children += 1;
        changed.count += 1;
        let both = changed.take_if_possible(n) && changed.take_if_possible(other);
        both.then_some(changed)
    }

    /// If it leads the session in which it is, it was born in another.
    fn leave_session(&mut self, n: usize) {
        if self.leads(n) {
            self.steps.push(Step::Setsid(self.who[n].pid));
        }
    }

    fn release(&mut self, n: usize, thing: Thing) {
        let number = self.has(n, thing);
        self.holders[thing as usize][number] -= 1;
    }

    fn take(&mut self, n: usize, maker: usize, way: Way) {
        let Process { pid, parent, exit_signal: signal, .. } = self.who[n];
        let common = SHARED.into_iter().filter(|&thing| self.has(n, thing) == self.has(maker, thing));
        let together = common.fold(Together::empty(), |all, thing| all | thing.flag());
        let by = self.who[maker].pid;
        self.leave_session(n);
        let is_sister = matches!(way, Way::Sister | Way::GhostsSister | Way::GhostAndSister);
        if matches!(way, Way::Child | Way::Sister) {
            self.make(by, pid, (together, is_sister, signal));
        } else {
            let session = self.has(n, Thing::Session);
            let leader = self.leaderless[session].filter(|_| session != self.has(maker, Thing::Session));
            self.ghosts += 1;
            let name = leader.unwrap_or(Pid(-self.ghosts));
            let heir = self.who[parent].pid;
            self.steps.push(Step::End { name, parent: if way == Way::Orphan { by } else { heir }, heir, signal });
            self.make(name, pid, (together, is_sister, signal));
            if leader.is_some() {
                self.steps.push(Step::Setsid(name));
            }
            self.steps.push(Step::MakeGhost { by, name, together, sister: way == Way::GhostAndSister, signal });
        }
        self.who[n].here = false;
        self.count -= 1;
        self.who[parent].children -= 1;
        ALL.into_iter().for_each(|thing| self.release(n, thing));
    }

    fn make(&mut self, by: Pid, pid: Pid, (together, sister, signal): (Together, bool, i32)) {
        self.steps.push(match pid.0 {
            1.. => Step::Make { by, pid, together, sister },
            _ => Step::MakeGhost { by, name: pid, together, sister, signal },
        });
    }

    /// Why it goes no further.
    fn explain(&self) -> String {
        let leaf = self.leaves().into_iter().find_map(|n| {
            let lacks = self.lacking(n, self.who[n].parent).next()?;
            let with = self.here().find(|&other| other != n && self.has(other, lacks) == self.has(n, lacks));
            Some((self.who[n].pid, self.who[self.who[n].parent].pid, lacks, with.map(|with| self.who[with].pid)))
        });
        match leaf {
            Some((pid, parent, Thing::Session, _)) => {
                format!("pid {pid} is in a session that neither its parent {parent} nor anybody below that can have been in")
            }
            Some((pid, parent, thing, Some(with))) => format!(
                "pid {pid} shares {thing} with pid {with} (clone(2)), but neither its parent {parent} nor anybody below that can have borne it so: \
                 most likely, one of them has executed a program since"
            ),
            _ => "there is no order in which they could have been born".to_owned(),
        }
    }
}
