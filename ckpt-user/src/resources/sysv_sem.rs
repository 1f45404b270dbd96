//! System V semaphores that the cut uses: sets with a semaphore that a process of it was the last to change, or in which one has something to
//! undo at its end (SEM_UNDO). A set that the cut has made and never used cannot be told from others.
//!
//! A set that nobody has removed outlives its processes. If it is still there at a restart, it gets the values of the image; else one with the
//! same id and key is made. Who was last to change a semaphore, tells GETPID: after a restart it is the process that the values came through.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use super::collector::ObjectKey;
use super::sysv::Made;
use super::{Collector, Restorer};
use crate::error::{Doing, Error, Result};
use crate::ids::Pid;
use crate::image::model::Section;
use crate::sys::sysv::{self, Kind, Listed};
use crate::tracee::batch::Batch;
use crate::tracee::remote::RemoteTask;
use crate::track::ebpf::semaphore_undo;

/// The kind of the object.
pub const KIND: &str = "sysv-sem";

/// A set.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SemaphoresRecord {
    /// Its id (semid), which processes keep.
    pub id: i32,
    /// Its key. 0: none.
    pub key: i32,
    /// Permissions.
    pub mode: u32,
    /// Owner and group.
    pub owner: (u32, u32),
    /// Of each semaphore.
    pub values: Vec<u16>,
    /// What a process adds to each semaphore when it ends.
    pub undo: Vec<(Pid, Vec<i16>)>,
}

/// Collects all sets that the cut uses.
pub fn collect(cx: &mut Collector<'_>) -> Result<()> {
    let doing = || "cannot list the System V semaphores";
    let sets = match sysv::list(Kind::Semaphores) {
        // A kernel without System V IPC.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other.doing(doing)?,
    };
    if sets.is_empty() {
        return Ok(());
    }
    let size = |id: i32| sets.iter().find(|set| set.id == id).map(|set| set.size as usize);
    let mut undo: HashMap<i32, Vec<(Pid, Vec<i16>)>> = HashMap::new();
    let mut unknown = None;
    for &pid in &cx.pids {
        match semaphore_undo(pid, size) {
            Ok(found) => found.into_iter().for_each(|of| undo.entry(of.id).or_default().push((pid, of.adjustments))),
            Err(error) => unknown = Some(error),
        }
    }
    for set in &sets {
        let undo = undo.remove(&set.id).unwrap_or_default();
        let used = match is_used(cx, set) {
            // Somebody has removed it meanwhile.
            Err(error) if sysv::is_removed(&error) => continue,
            used => used.doing(doing)?,
        };
        if undo.is_empty() && !used {
            continue;
        }
        if let Some(error) = &unknown {
            tracing::warn!("what is to be undone in the System V semaphores {} (SEM_UNDO) is not saved: {error}", set.id);
        }
        let values = sysv::values(set.id, set.size as usize).doing(|| format!("cannot read the semaphores {}", set.id))?;
        let record = SemaphoresRecord { id: set.id, key: set.key, mode: set.mode, owner: set.owner, values, undo };
        cx.intern(ObjectKey::Inode(KIND, 0, set.id as u64), |_, _| Ok(Section::encode(KIND, &record)?))?;
    }
    Ok(())
}

fn is_used(cx: &Collector<'_>, set: &Listed) -> std::io::Result<bool> {
    for number in 0..set.size as usize {
        if cx.pids.contains(&Pid(sysv::last_user(set.id, number)?)) {
            return Ok(true);
        }
    }
    Ok(false)
}

impl SemaphoresRecord {
    fn make(&self) -> Result<Made> {
        let doing = || format!("cannot make the System V semaphores {} (key {:#x}) again", self.id, self.key);
        let list = sysv::list(Kind::Semaphores).doing(doing)?;
        if let Some(there) = list.iter().find(|set| set.id == self.id) {
            if (there.key, there.size) != (self.key, self.values.len() as u64) {
                let text = format!("{}: others have the id; remove them (ipcrm -s {}) if nobody uses them", doing(), self.id);
                return Err(Error::Restart(text));
            }
            sysv::set_semaphores(self.id, self.owner, self.mode).doing(doing)?;
            return Ok(Made::found(Kind::Semaphores, self.id));
        }
        sysv::choose_next_id(Kind::Semaphores, self.id).doing(|| format!("{}: cannot choose their id", doing()))?;
        let id = match sysv::make_semaphores(self.key, self.values.len(), self.mode) {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {
                let text =
                    format!("{}: others have the key; remove them (ipcrm -S {:#x}) if nobody uses them", doing(), self.key);
                return Err(Error::Restart(text));
            }
            other => other.doing(doing)?,
        };
        let made = Made::new(Kind::Semaphores, id);
        if id != self.id {
            return Err(Error::Restart(format!("{}: their id is in use", doing())));
        }
        sysv::set_semaphores(self.id, self.owner, self.mode).doing(doing)?;
        Ok(made)
    }

    /// The operations that leave the value as it is, and `adjustment` to be undone: struct sembuf, twice.
    fn operations(&self, number: usize, adjustment: i16) -> [[i16; 3]; 2] {
        let (undone, plain) = (libc::SEM_UNDO as i16 | libc::IPC_NOWAIT as i16, libc::IPC_NOWAIT as i16);
        let (number, by) = (number as i16, adjustment);
        let mut operations = [[number, by.saturating_neg(), undone], [number, by, plain]];
        // Downwards first, unless that goes below nothing: there is a greatest value, too.
        let has_enough = self.values.get(usize::from(number as u16)).is_some_and(|&value| value >= by.unsigned_abs());
        let downwards_first = operations[0][1] < 0;
        if has_enough != downwards_first {
            operations.reverse();
        }
        operations
    }
}

/// Makes every set, before the processes.
pub fn make(cx: &mut Restorer<'_>) -> Result<()> {
    for (objref, record) in cx.all::<SemaphoresRecord>(KIND)? {
        cx.shared(objref, |_| record.make())?;
    }
    Ok(())
}

/// Sets all values, through a process of the cut. To be done before [`restore_undo`], which this would void.
pub fn restore_values(cx: &Restorer<'_>, task: &mut RemoteTask<'_>) -> Result<()> {
    for (_, record) in cx.all::<SemaphoresRecord>(KIND)? {
        let mut batch = Batch::new();
        let values = batch.bytes(bytemuck::cast_slice(&record.values));
        let call = batch.call(libc::SYS_semctl, [record.id.into(), 0.into(), libc::SETALL.into(), values.into()]);
        task.run(batch)?.ret(call).doing(|| format!("cannot set the System V semaphores {}", record.id))?;
    }
    Ok(())
}

/// Has the process have to undo what it had to.
pub fn restore_undo(cx: &Restorer<'_>, task: &mut RemoteTask<'_>) -> Result<()> {
    let process = task.pid();
    for (_, record) in cx.all::<SemaphoresRecord>(KIND)? {
        for (_, adjustments) in record.undo.iter().filter(|(pid, _)| *pid == process) {
            for (number, &adjustment) in adjustments.iter().enumerate().filter(|(_, adjustment)| **adjustment != 0) {
                let mut batch = Batch::new();
                let operations = batch.value(&record.operations(number, adjustment));
                let call = batch.call(libc::SYS_semop, [record.id.into(), operations.into(), 2.into()]);
                let answer = task.run(batch)?.ret(call);
                answer.doing(|| format!("cannot have pid {process} undo what it did to semaphores {}", record.id))?;
            }
        }
    }
    Ok(())
}

/// Nothing can fail any more: the sets stay.
pub fn settle(cx: &mut Restorer<'_>) -> Result<()> {
    for (objref, _) in cx.all::<SemaphoresRecord>(KIND)? {
        cx.shared(objref, |_| Err::<Made, _>(Error::Unexpected("a set of semaphores was not made".into())))?.stay();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_leave_the_value_and_stay_within_bounds() {
        for value in [0u16, 1, 5, 32766, 32767] {
            for by in [1i16, -1, 5, -5, 32767, -32767] {
                let record = SemaphoresRecord { values: vec![9, value], ..SemaphoresRecord::default() };
                let (mut now, mut undone) = (i32::from(value), 0);
                for [number, change, flags] in record.operations(1, by) {
                    assert_eq!(number, 1);
                    now += i32::from(change);
                    // Where there is room for it in neither direction, the kernel refuses.
                    let fits = value >= by.unsigned_abs() || by.unsigned_abs() <= 32767 - value;
                    assert!(!fits || (0..=32767).contains(&now), "{value} {by}");
                    undone -= if flags & libc::SEM_UNDO as i16 != 0 { i32::from(change) } else { 0 };
                }
                assert_eq!((now, undone), (value.into(), by.into()));
            }
        }
    }
}
