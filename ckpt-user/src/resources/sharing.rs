//! Which processes of a cut have a kernel object together: by flags of clone(2) they share memory, descriptors, and more.

use std::cmp::Ordering;
use std::collections::HashMap;

use crate::error::{Doing, Result};
use crate::ids::Pid;
use crate::sys::kcmp::{self, Shared};

/// For each process and each thing, the first process that has the same.
#[derive(Debug, Default)]
pub struct Sharing {
    first: HashMap<(Shared, Pid), Pid>,
}

impl Sharing {
    /// Compares processes that do not change meanwhile, in n log n steps.
    pub fn of(pids: &[Pid]) -> Result<Sharing> {
        let mut sharing = Sharing::default();
        if pids.len() > 1 {
            for what in [Shared::Memory, Shared::Files, Shared::Directories] {
                sharing.compare(what, pids)?;
            }
            // Whoever shares the actions of signals shares the memory, too.
            let mut by_memory: HashMap<Pid, Vec<Pid>> = HashMap::new();
            pids.iter().for_each(|&pid| by_memory.entry(sharing.first(Shared::Memory, pid)).or_default().push(pid));
            for group in by_memory.into_values().filter(|group| group.len() > 1) {
                sharing.compare(Shared::SignalActions, &group)?;
            }
        }
        Ok(sharing)
    }

    /// The first process, in the order in which they were compared, that has the same as `pid`: mostly itself.
    pub fn first(&self, what: Shared, pid: Pid) -> Pid {
        self.first.get(&(what, pid)).copied().unwrap_or(pid)
    }

    fn compare(&mut self, what: Shared, pids: &[Pid]) -> Result<()> {
        // The first of each, in the kernel's order.
        let mut firsts: Vec<Pid> = Vec::new();
        for &pid in pids {
            let (mut low, mut high) = (0, firsts.len());
            let found = loop {
                if low == high {
                    break None;
                }
                let middle = low + (high - low) / 2;
                let order = kcmp::shared(what, pid, firsts[middle]);
                match order.doing(|| format!("cannot compare pid {pid} with pid {} (kcmp)", firsts[middle]))? {
                    Ordering::Equal => break Some(firsts[middle]),
                    Ordering::Less => high = middle,
                    Ordering::Greater => low = middle + 1,
                }
            };
            match found {
                Some(first) => drop(self.first.insert((what, pid), first)),
                None => firsts.insert(low, pid),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::*;

    #[test]
    fn processes_of_their_own_share_nothing() {
        let mut children: Vec<Child> = (0..5).map(|_| Command::new("sleep").arg("100").spawn().unwrap()).collect();
        let pids: Vec<Pid> = children.iter().map(|child| Pid(child.id() as i32)).collect();
        let sharing = Sharing::of(&pids).unwrap();
        for &pid in &pids {
            assert_eq!(sharing.first(Shared::Memory, pid), pid);
            assert_eq!(sharing.first(Shared::Files, pid), pid);
        }
        for child in &mut children {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    #[test]
    fn who_is_there_twice_is_the_same() {
        let me = Pid(std::process::id() as i32);
        let sharing = Sharing::of(&[me, me]).unwrap();
        assert_eq!(sharing.first.get(&(Shared::Memory, me)), Some(&me));
    }
}
