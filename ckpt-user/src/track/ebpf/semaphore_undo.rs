//! What a process will take back when it ends (SEM_UNDO, semop(2)): no system call tells.

use std::sync::{Mutex, PoisonError};

use super::kernel_memory::{KernelMemory, missing};
use super::{EbpfError, Result};
use crate::ids::Pid;
use crate::sys::btf::Btf;

const DOING: &str = "cannot read which semaphore operations are to be undone";

/// Of one set of semaphores.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SemaphoreUndo {
    /// Its id.
    pub id: i32,
    /// What is to be added to each semaphore.
    pub adjustments: Vec<i16>,
}

/// Offsets in bytes within the kernel's structs (ipc/sem.c).
#[derive(Debug)]
struct Layout {
    of_task: u64,
    list: u64,
    next: u64,
    id: u64,
    adjustments: u64,
    /// There is a pointer to them, as in older kernels.
    apart: bool,
}

static READER: Mutex<Option<(KernelMemory, Layout)>> = Mutex::new(None);

/// Of each set in which the process has something to undo. `size`: how many semaphores a set has; `None`: it is no more.
pub fn semaphore_undo(pid: Pid, size: impl Fn(i32) -> Option<usize>) -> Result<Vec<SemaphoreUndo>> {
    // A reader holds nothing that could be half done.
    let mut reader = READER.lock().unwrap_or_else(PoisonError::into_inner);
    if reader.is_none() {
        let btf = Btf::of_kernel().map_err(missing)?;
        let offset = |of: &str, path: &str| btf.offset_of(of, path).map(u64::from).map_err(missing);
        let adjustments = offset("sem_undo", "semadj")?;
        let layout = Layout {
            of_task: offset("task_struct", "sysvsem.undo_list")?,
            list: offset("sem_undo_list", "list_proc")?,
            next: offset("sem_undo", "list_proc")?,
            id: offset("sem_undo", "semid")?,
            adjustments,
            apart: adjustments + 8 <= btf.size_of("sem_undo").map_err(missing)?.into(),
        };
        *reader = Some((KernelMemory::load(&btf)?, layout));
    }
    let Some((memory, layout)) = reader.as_mut() else { return Err(EbpfError::unexpected(DOING, "there is no reader")) };
    let task = memory.task(pid)?;
    let list = memory.number(task + layout.of_task)?;
    let mut found = Vec::new();
    if list == 0 {
        return Ok(found);
    }
    let head = list + layout.list;
    let mut entry = memory.number(head)?;
    /// More than a process can have (SEMMNI).
    const SETS_MAX: usize = 1 << 20;
    for _ in 0..SETS_MAX {
        if entry == head {
            return Ok(found);
        }
        let undo = entry - layout.next;
        // -1: the set was removed.
        let id = memory.bytes(undo + layout.id, 4)?;
        let id = i32::from_ne_bytes(id.try_into().map_err(|_| EbpfError::unexpected(DOING, "an id is too short"))?);
        if let Some(count) = size(id) {
            let at = undo + layout.adjustments;
            let array = if layout.apart { memory.number(at)? } else { at };
            let bytes = memory.bytes(array, count * 2)?;
            let adjustments: Vec<i16> = bytes.chunks_exact(2).map(|two| i16::from_ne_bytes([two[0], two[1]])).collect();
            if adjustments.iter().any(|&adjustment| adjustment != 0) {
                found.push(SemaphoreUndo { id, adjustments });
            }
        }
        entry = memory.number(entry)?;
    }
    Err(EbpfError::unexpected(DOING, "the list does not end"))
}
