//! From which NUMA nodes a thread takes its memory (set_mempolicy(2)).
//!
//! Only asked for where there are several nodes to choose from.

use serde::{Deserialize, Serialize};

use super::task::{Subject, TaskResource};
use super::{Collector, Restorer};
use crate::error::{Doing, Error, Result};
use crate::tracee::batch::{Answers, Batch, CallId, Slot};
use crate::tracee::remote::RemoteTask;

/// See the module.
#[derive(Debug, Clone, Copy)]
pub struct MemoryPolicy;

/// The policy.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MemoryPolicyRecord {
    /// MPOL_* with its flags; 0 is the default.
    pub mode: i32,
    /// The nodes, ascending.
    pub nodes: Vec<u32>,
}

/// MAX_NUMNODES of every kernel for x86-64.
const NODES_MAX: u32 = 1024;
/// What the system calls want as the length of a mask of that many bits: they count one more.
const MASK_BITS: u64 = NODES_MAX as u64 + 1;

/// The calls that ask for it.
type Asked = (CallId, Slot, Slot);

fn ask(batch: &mut Batch) -> Asked {
    let (mode, mask) = (batch.room(size_of::<i32>()), batch.room(NODES_MAX as usize / 8));
    let id = batch.call(libc::SYS_get_mempolicy, [mode.into(), mask.into(), MASK_BITS.into(), 0u64.into(), 0u64.into()]);
    (id, mode, mask)
}

fn answer((id, mode, mask): Asked, answers: &Answers) -> Result<MemoryPolicyRecord> {
    let returned = answers.ret(id);
    // Kernels without NUMA.
    let absent =
        super::answer::unless_absent(returned, &[nix::errno::Errno::ENOSYS], || "cannot read a memory policy".to_owned())?;
    if absent.is_none() {
        return Ok(MemoryPolicyRecord::default());
    }
    let mask = answers.bytes(mask);
    let nodes = (0..NODES_MAX).filter(|node| mask[*node as usize / 8] & (1 << (node % 8)) != 0).collect();
    Ok(MemoryPolicyRecord { mode: answers.value(mode), nodes })
}

impl TaskResource for MemoryPolicy {
    const KIND: &'static str = "memory-policy";
    type Record = MemoryPolicyRecord;
    type Asked = Option<Asked>;

    fn ask(who: &Subject<'_>, batch: &mut Batch) -> Result<Self::Asked> {
        let allowed = who.status.mems_allowed_list.as_deref().unwrap_or_default();
        let has_choice = !matches!(allowed, [] | [(_, _)]) || allowed.iter().any(|(first, last)| first != last);
        Ok(has_choice.then(|| ask(batch)))
    }

    fn collect(cx: &mut Collector<'_>, _who: &Subject<'_>, asked: Self::Asked, answers: &Answers) -> Result<Self::Record> {
        let record = asked.map_or(Ok(MemoryPolicyRecord::default()), |asked| answer(asked, answers))?;
        if record != MemoryPolicyRecord::default() {
            cx.is_passing();
        }
        Ok(record)
    }

    fn restore(_cx: &mut Restorer<'_>, task: &mut RemoteTask<'_>, record: &Self::Record) -> Result<()> {
        if *record == MemoryPolicyRecord::default() {
            return Ok(());
        }
        let mut mask = vec![0u8; NODES_MAX as usize / 8];
        for &node in &record.nodes {
            let byte = mask.get_mut(node as usize / 8);
            *byte.ok_or_else(|| Error::Restart(format!("the image names the NUMA node {node}, which cannot be")))? |=
                1 << (node % 8);
        }
        let mut batch = Batch::new();
        let mask = batch.bytes(&mask);
        let id = batch.call(libc::SYS_set_mempolicy, [record.mode.into(), mask.into(), MASK_BITS.into()]);
        let answers = task.run(batch)?;
        answers
            .ret(id)
            .doing(|| format!("cannot bind thread {} to the NUMA nodes {:?} again", task.tid(), record.nodes))
            .map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::trial::Trial;

    #[test]
    fn a_policy_returns() {
        let made = MemoryPolicyRecord { mode: libc::MPOL_BIND, nodes: vec![0] };
        let mut program = Trial::sleep();
        program.restore::<MemoryPolicy>(&made).unwrap();
        let mut batch = Batch::new();
        let asked = ask(&mut batch);
        let answers = program.task().run(batch).unwrap();
        assert_eq!(answer(asked, &answers).unwrap(), made);
    }

    #[test]
    fn nodes_that_are_not_there_are_named() {
        for node in [1000, 5000, u32::MAX] {
            let record = MemoryPolicyRecord { mode: libc::MPOL_BIND, nodes: vec![node] };
            let error = Trial::sleep().restore::<MemoryPolicy>(&record).unwrap_err();
            assert!(error.to_string().contains(&node.to_string()), "{error}");
        }
    }
}
