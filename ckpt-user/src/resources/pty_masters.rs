//! The masters of pseudoterminals. The kernel gives each that is opened the lowest number that is free.

use std::collections::{BTreeMap, HashSet};
use std::fs::OpenOptions;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::error::{Doing, Error, Result};
use crate::sys::tty;

/// Masters that were opened on the way to higher numbers, and are wanted later. All others are given back at once: somebody else may want them.
#[derive(Debug, Default)]
pub struct Masters {
    wanted: HashSet<u32>,
    spare: BTreeMap<(PathBuf, u32), OwnedFd>,
}

impl Masters {
    /// Was it told which will be wanted?
    pub fn is_told(&self) -> bool {
        !self.wanted.is_empty()
    }

    /// Those with these numbers will be wanted.
    pub fn tell(&mut self, wanted: impl IntoIterator<Item = u32>) {
        self.wanted.extend(wanted);
    }

    /// The one with this number, opened as `path`. `name`: of its terminal.
    pub fn open(&mut self, path: &Path, number: u32, name: &str) -> Result<OwnedFd> {
        if let Some(master) = self.spare.remove(&(path.to_owned(), number)) {
            return Ok(master);
        }
        if let Some(master) = self.open_up_to(path, number, name)? {
            return Ok(master);
        }
        // It may have been opened by another path, which leads to the same devices.
        self.spare.clear();
        self.open_up_to(path, number, name)?.ok_or_else(|| {
            Error::Restart(format!(
                "{name} is in use, and the restarted program knows its terminal by that name; end what has it first"
            ))
        })
    }

    /// `None`: somebody has it.
    fn open_up_to(&mut self, path: &Path, number: u32, name: &str) -> Result<Option<OwnedFd>> {
        let doing = || format!("cannot open {} for {name}", path.display());
        let mut others = Vec::new();
        loop {
            let mut options = OpenOptions::new();
            let master: OwnedFd = options.read(true).write(true).custom_flags(libc::O_NOCTTY).open(path).doing(doing)?.into();
            match tty::number(master.as_fd()).doing(doing)? {
                this if this == number => return Ok(Some(master)),
                this if this < number && self.wanted.contains(&this) => drop(self.spare.insert((path.to_owned(), this), master)),
                this if this < number => others.push(master),
                _ => return Ok(None),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_number_is_opened_once_in_any_order() {
        const MANY: usize = 200;
        let (path, mut masters) = (Path::new("/dev/ptmx"), Masters::default());
        // Numbers that nobody has, as other tests open some.
        let free: Vec<u32> = {
            let open = || OpenOptions::new().read(true).write(true).custom_flags(libc::O_NOCTTY).open(path).map(OwnedFd::from);
            let all: Vec<OwnedFd> = (0..MANY).map(|_| open().expect("no pseudoterminals here")).collect();
            all.iter().map(|master| tty::number(master.as_fd()).unwrap()).collect()
        };
        masters.tell(free.iter().copied());
        let wanted = free.iter().rev().step_by(2).chain(free.iter().rev().skip(1).step_by(2));
        let all: Vec<(u32, OwnedFd)> =
            wanted.filter_map(|&number| Some((number, masters.open(path, number, "a test's").ok()?))).collect();
        assert!(all.len() > MANY / 2, "{} were taken by others", MANY - all.len());
        for (number, master) in &all {
            assert_eq!(tty::number(master.as_fd()).unwrap(), *number);
        }
        let error = masters.open(path, all[0].0, "a test's").unwrap_err();
        assert!(error.to_string().contains("is in use"), "{error}");
    }
}
