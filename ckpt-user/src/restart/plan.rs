//! Everything that an image tells of its processes, decoded and checked.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::fd::RawFd;

use crate::error::{Error, Result};
use crate::ids::{ObjRef, Pid};
use crate::image::Metadata;
use crate::image::model::{Section, Shares, TaskEntry, TaskKind, TaskState};
use crate::resources::Restorer;
use crate::resources::fd_table::{self, FdTable};
use crate::resources::hierarchy::{self, Hierarchy};
use crate::resources::memory::{self, MemoryRecord};
use crate::resources::mm::{self, MmRecord};
use crate::resources::vma::VmaRecord;
use crate::store::same::{self, Same};
use crate::store::{Mapped, SamePages};

/// See the module.
pub(super) struct Plan {
    /// Every process, parents before their children.
    pub(super) entries: Vec<TaskEntry>,
    pub(super) hierarchy: Hierarchy,
    /// Those that live, in the same order.
    pub(super) tasks: Vec<Task>,
    pub(super) memories: BTreeMap<ObjRef, Memory>,
    pub(super) tables: BTreeMap<ObjRef, FdTable>,
    /// The pages that are mapped.
    pub(super) mapped: Mapped,
    /// The pages that several memories share.
    pub(super) same: Vec<Same>,
}

/// A process that lives.
pub(super) struct Task {
    pub(super) entry: TaskEntry,
    pub(super) state: TaskState,
    pub(super) holds: MemoryRecord,
}

/// An address space.
pub(super) struct Memory {
    /// The first process that has it.
    pub(super) first: Pid,
    pub(super) mm: MmRecord,
    pub(super) vmas: Vec<VmaRecord>,
}

impl Plan {
    /// Errors: an image that is damaged, or asks for the impossible.
    pub(super) fn new(cx: &Restorer<'_>, metadata: &Metadata) -> Result<Plan> {
        let entries = metadata.tasks.tasks.clone();
        let hierarchy = hierarchy::plan(&metadata.tasks)
            .map_err(|why| Error::Restart(format!("the processes of the image cannot be made again: {why}")))?;
        let mut states: HashMap<Pid, &TaskState> = metadata.task_states.iter().map(|state| (state.pid, state)).collect();
        let mut tasks = Vec::new();
        for entry in entries.iter().filter(|entry| entry.kind == TaskKind::Alive) {
            let state = states.remove(&entry.pid).filter(|state| fit(entry, state));
            let state = state.ok_or_else(|| {
                Error::Restart(format!("the task table and the task states of the image do not fit together (pid {})", entry.pid))
            })?;
            let holds: MemoryRecord = find(&state.sections, memory::KIND)?.decode()?;
            tasks.push(Task { entry: entry.clone(), state: state.clone(), holds });
        }
        let root_lives = tasks.first().zip(entries.first()).is_some_and(|(task, entry)| task.entry.pid == entry.pid);
        if !root_lives || !states.is_empty() {
            return Err(Error::Restart("the task table and the task states of the image do not fit together".into()));
        }
        let mut memories = BTreeMap::new();
        let mut tables = BTreeMap::new();
        let vmas: Vec<VmaRecord> = metadata.vmas.iter().map(|vma| vma.decode()).collect::<Result<_, _>>()?;
        for Task { entry, holds, .. } in &tasks {
            let of_mm = || vmas.iter().filter(|vma| vma.mm == holds.mm).cloned().collect();
            match memories.entry(holds.mm) {
                Entry::Vacant(place) => {
                    let mm = cx.record(holds.mm, mm::KIND)?;
                    place.insert(Memory { first: entry.pid, mm, vmas: of_mm() });
                }
                Entry::Occupied(known) => {
                    if entry.shares.memory != Some(known.get().first) {
                        return Err(Error::Restart(format!(
                            "pid {} has the memory of a process that it shares none with",
                            entry.pid
                        )));
                    }
                }
            }
            if let Entry::Vacant(place) = tables.entry(holds.files) {
                place.insert(cx.record(holds.files, fd_table::KIND)?);
            }
        }
        check_shares(&tasks)?;
        let mapped = mm::mapped(&vmas, memories.keys().copied())?;
        let same = cx.all::<SamePages>(same::KIND)?.pop().map_or_else(|| Ok(Vec::new()), |(_, same)| same.all());
        let same = same.map_err(|why| Error::Restart(format!("the image is damaged: {why}")))?;
        Ok(Plan { entries, hierarchy, tasks, memories, tables, mapped, same })
    }

    /// The memories, by the process that each is built in.
    pub(super) fn memory(&self, task: &Task) -> Result<&Memory> {
        self.memories.get(&task.holds.mm).ok_or_else(|| Error::Unexpected(format!("pid {} has no memory", task.entry.pid)))
    }

    /// The descriptor table of a process.
    pub(super) fn table(&self, task: &Task) -> Result<&FdTable> {
        self.tables.get(&task.holds.files).ok_or_else(|| Error::Unexpected(format!("pid {} has no descriptors", task.entry.pid)))
    }

    /// A process that has an open file in its descriptor table, and the number there.
    pub(super) fn place_of(&self, file: ObjRef) -> Option<(Pid, RawFd)> {
        self.tasks.iter().find_map(|task| {
            let slot = self.tables.get(&task.holds.files)?.slots.iter().find(|slot| slot.file == file)?;
            Some((task.entry.pid, slot.fd))
        })
    }

    /// Who is to do again what `pid` has done with an open file: that process, if it lives, or whoever has the file, if nobody knows who that was; and the
    /// number of the file there. `None`: no process can.
    pub(super) fn who_does(&self, pid: Option<Pid>, file: Option<ObjRef>) -> Option<(Pid, Option<RawFd>)> {
        let Some(pid) = pid else { return self.place_of(file?).map(|(pid, fd)| (pid, Some(fd))) };
        let task = self.tasks.iter().find(|task| task.entry.pid == pid)?;
        let slots = self.tables.get(&task.holds.files).map_or(&[][..], |table| &table.slots);
        Some((pid, slots.iter().find(|slot| Some(slot.file) == file).map(|slot| slot.fd)))
    }

    /// Is it the pid of any process or thread?
    pub(super) fn uses(&self, pid: Pid) -> bool {
        self.entries.iter().any(|entry| entry.pid == pid || entry.threads.contains(&pid.leader()))
    }

    /// The entry of any process.
    pub(super) fn entry(&self, pid: Pid) -> Option<&TaskEntry> {
        self.entries.iter().find(|entry| entry.pid == pid)
    }
}

fn fit(entry: &TaskEntry, state: &TaskState) -> bool {
    let same_threads = entry.threads.iter().eq(state.threads.iter().map(|thread| &thread.tid));
    same_threads && entry.threads.first() == Some(&entry.pid.leader()) && entry.threads.iter().all(|tid| tid.0 > 0)
}

/// What processes share, and what they hold, must tell the same.
fn check_shares(tasks: &[Task]) -> Result<()> {
    let mut seen = HashSet::new();
    for Task { entry, .. } in tasks {
        seen.insert(entry.pid);
        let Shares { memory, files, directories, signal_actions } = entry.shares;
        let all_seen = [memory, files, directories, signal_actions].into_iter().flatten().all(|with| seen.contains(&with));
        let same = |with: Option<Pid>, of: fn(&MemoryRecord) -> ObjRef| {
            let mine = tasks.iter().find(|task| task.entry.pid == entry.pid).map(|task| of(&task.holds));
            with.is_none_or(|with| tasks.iter().find(|task| task.entry.pid == with).map(|task| of(&task.holds)) == mine)
        };
        if !all_seen || !same(memory, |holds| holds.mm) || !same(files, |holds| holds.files) {
            return Err(Error::Restart(format!("the image tells in two ways what pid {} shares with others", entry.pid)));
        }
    }
    Ok(())
}

pub(super) fn find<'a>(sections: &'a [Section], kind: &str) -> Result<&'a Section> {
    sections.iter().find(|s| s.kind == kind).ok_or_else(|| Error::Restart(format!("the image lacks the section '{kind}'")))
}
