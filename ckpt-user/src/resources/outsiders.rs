//! Connections within the tree of which a process outside of it has an end open, too, by fork: the image would hold a connection that leads to a
//! process of the tree, while the program may be speaking with the one outside. They are refused. Of pipes, where that is mostly left over from a fork, a
//! warning tells.
//!
//! This is looked for before the freeze, since it takes a look at all descriptors of the machine, and not at each of many cuts.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fs;
use std::io;
use std::os::fd::RawFd;
use std::os::unix::ffi::OsStrExt;
use std::time::{Duration, Instant};

use super::descriptors;
use super::file::FdInfo;
use super::holders::Holder;
use super::unix_backlog;
use crate::error::{Doing, Error, Refusal, Result};
use crate::ids::Pid;
use crate::sys::inet_diag::{InetDiag, InetSocket};
use crate::sys::procfs;
use crate::sys::tcp::state;
use crate::sys::unix_diag::UnixDiag;

/// A descriptor that may have another end.
#[derive(Clone, Copy, Debug)]
struct Place {
    pid: Pid,
    fd: RawFd,
}

/// The pipes and sockets of some processes, by inode.
#[derive(Debug, Default)]
struct Held {
    sockets: HashMap<u32, Place>,
    pipes: HashMap<u32, Vec<Place>>,
}

/// The inode in a link like "socket:[123]".
fn inode_in(link: &[u8], sort: &str) -> Option<u32> {
    let number = link.strip_prefix(sort.as_bytes())?.strip_prefix(b":[")?.strip_suffix(b"]")?;
    std::str::from_utf8(number).ok()?.parse().ok()
}

impl Held {
    fn by(pids: &[Pid]) -> Held {
        let mut held = Held::default();
        for &pid in pids {
            each_link(pid, |fd, link| {
                let place = Place { pid, fd };
                if let Some(inode) = inode_in(link, "socket") {
                    held.sockets.entry(inode).or_insert(place);
                } else if let Some(inode) = inode_in(link, "pipe") {
                    held.pipes.entry(inode).or_default().push(place);
                }
            });
        }
        held
    }
}

/// What the descriptors of a process point to. Of one that has ended, or that we may not look at, nothing can be said.
fn each_link(pid: Pid, mut see: impl FnMut(RawFd, &[u8])) {
    for fd in descriptors::numbers(pid).into_iter().flatten() {
        if let Ok(Some(link)) = descriptors::link(pid, fd) {
            see(fd, link.as_os_str().as_bytes());
        }
    }
}

/// Looks at a tree again and again, but not more often than it takes for something to change that matters.
#[derive(Debug, Default)]
pub struct Outsiders {
    /// When nobody was found the last time.
    clear: Option<Instant>,
    /// Pipes of which it was told that somebody else has them.
    told: HashSet<(Pid, u32)>,
}

/// As long as nobody was found, nobody is looked for.
const SECONDS: Duration = Duration::from_secs(5);

impl Outsiders {
    /// Refuses the connections within the tree below `root` that somebody outside has, too. `pids`: those of the tree that were found.
    pub fn check(&mut self, root: Pid, pids: &[Pid], refusals: &mut Vec<Refusal>) -> Result<()> {
        if self.clear.is_some_and(|last| last.elapsed() < SECONDS) {
            return Ok(());
        }
        let (found, before) = (self.look(root, pids)?, refusals.len());
        refusals.extend(found);
        self.clear = (refusals.len() == before).then(Instant::now);
        Ok(())
    }

    fn look(&mut self, root: Pid, pids: &[Pid]) -> Result<Vec<Refusal>> {
        let held = Held::by(pids);
        let mut within = tcp_within(&held);
        within.extend(unix_within(&held).doing(|| "cannot ask the kernel about unix sockets (NETLINK_SOCK_DIAG)")?);
        let pipes: HashSet<u32> =
            held.pipes.iter().filter(|(_, places)| has_both_ends(places)).map(|(inode, _)| *inode).collect();
        let mut refusals = Vec::new();
        if within.is_empty() && pipes.is_empty() {
            return Ok(refusals);
        }
        for pid in others(pids).doing(|| "cannot list the processes")? {
            let (mut sockets, mut shared_pipes) = (BTreeSet::new(), BTreeSet::new());
            each_link(pid, |_, link| {
                sockets.extend(inode_in(link, "socket").filter(|inode| within.contains(inode)));
                shared_pipes.extend(inode_in(link, "pipe").filter(|inode| pipes.contains(inode)));
            });
            if (sockets.is_empty() && shared_pipes.is_empty()) || is_ckpt(pid) || has_come_or_gone(root, pid)? {
                continue;
            }
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            let who = format!("pid {pid} ({})", name.trim());
            for place in sockets.into_iter().filter_map(|inode| held.sockets.get(&inode)) {
                refusals.push(Refusal {
                    pid: place.pid,
                    object: format!("descriptor {} (socket)", place.fd),
                    reason: format!(
                        "is an end of a connection within the tree that {who} has open, too, which is not being checkpointed"
                    ),
                    advice: "checkpoint a process that both descend from, or let one of the two close it".to_owned(),
                    passing: false,
                });
            }
            for inode in shared_pipes {
                let Some(Place { pid: of, fd }) = held.pipes.get(&inode).and_then(|places| places.first()) else { continue };
                if self.told.insert((pid, inode)) {
                    tracing::warn!(
                        "{who} has the pipe open that is descriptor {fd} of pid {of}: after a restart, it will not be the same one"
                    );
                }
            }
        }
        Ok(refusals)
    }
}

/// Every other process but ckpt.
fn others(pids: &[Pid]) -> io::Result<Vec<Pid>> {
    let known: HashSet<Pid> = pids.iter().copied().chain([Pid(std::process::id() as i32)]).collect();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let pid = entry?.file_name().to_str().and_then(|name| name.parse().ok()).map(Pid);
        found.extend(pid.filter(|pid| !known.contains(pid)));
    }
    Ok(found)
}

/// Another ckpt may look at the same tree.
fn is_ckpt(pid: Pid) -> bool {
    let program = |pid: &str| fs::read_link(format!("/proc/{pid}/exe")).ok();
    program("self").is_some_and(|own| program(&pid.to_string()) == Some(own))
}

/// Is it a process of the tree that has come since, or one that has ended?
fn has_come_or_gone(root: Pid, pid: Pid) -> Result<bool> {
    let mut at = pid;
    loop {
        match procfs::stat(at) {
            _ if at == root => return Ok(true),
            Ok(stat) if stat.ppid > 0 => at = Pid(stat.ppid),
            Ok(_) => break,
            Err(Error::Gone(_)) if at == pid => return Ok(true),
            // The parent has ended meanwhile, and another one takes its place.
            Err(Error::Gone(_)) => at = pid,
            Err(error) => return Err(error),
        }
    }
    Ok(procfs::is_ending(pid))
}

fn has_both_ends(places: &[Place]) -> bool {
    let ends = places.iter().filter_map(|place| {
        let info = FdInfo::parse(&procfs::read_text(format!("/proc/{}/fdinfo/{}", place.pid, place.fd)).ok()?)?;
        Some(Holder::new(place.pid, place.fd, info.flags))
    });
    let (mut reads, mut writes) = (false, false);
    for end in ends {
        reads |= end.reads();
        writes |= end.writes();
    }
    reads && writes
}

/// The TCP sockets whose other end is held, or was not accepted yet.
fn tcp_within(held: &Held) -> HashSet<u32> {
    if held.sockets.is_empty() {
        return HashSet::new();
    }
    // Where the kernel does not tell of them, that is told when they are collected.
    let all = InetDiag::open().and_then(|diag| diag.all()).unwrap_or_default();
    let ends: HashMap<_, u32> = all.iter().map(|one| ((one.local, one.peer), one.inode)).collect();
    let ours = all.iter().filter(|one| one.state != state::LISTEN && held.sockets.contains_key(&one.inode));
    let other_end = |one: &InetSocket| ends.get(&(one.peer, one.local)).copied();
    ours.filter(|one| other_end(one).is_some_and(|inode| inode == 0 || held.sockets.contains_key(&inode)))
        .map(|one| one.inode)
        .collect()
}

/// The unix sockets whose peer is held, or was not accepted yet.
fn unix_within(held: &Held) -> io::Result<HashSet<u32>> {
    if held.sockets.is_empty() {
        return Ok(HashSet::new());
    }
    let all = UnixDiag::open_for_many()?;
    unix_backlog::prepare(&all, held.sockets.keys().copied());
    let peer = |inode: u32| all.look(inode).ok().and_then(|seen| seen.peer.filter(|peer| *peer != 0 || seen.shutdown != 3));
    let is_within = |inode: &u32| match peer(*inode) {
        Some(0) => true,
        // Datagrams may go one way only.
        Some(other) => held.sockets.contains_key(&other) && peer(other) == Some(*inode),
        None => false,
    };
    Ok(held.sockets.keys().copied().filter(is_within).collect())
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    /// Whoever has come into the tree since it was listed is no outsider, nor is who has ended.
    #[test]
    fn some_come_and_go() {
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let (me, theirs) = (Pid(std::process::id() as i32), Pid(child.id() as i32));
        let (come, outside) = (has_come_or_gone(me, theirs), has_come_or_gone(theirs, me));
        drop(child.stdin.take());
        child.wait().unwrap();
        assert_eq!((come.unwrap(), outside.unwrap()), (true, false));
        assert!(has_come_or_gone(me, theirs).unwrap(), "it has ended");
    }

    #[test]
    fn inodes_in_links() {
        assert_eq!(inode_in(b"socket:[123]", "socket"), Some(123));
        assert_eq!(inode_in(b"pipe:[7]", "pipe"), Some(7));
        for other in [&b"pipe:[7]"[..], b"socket:[", b"socket:[]", b"/socket:[1]"] {
            assert_eq!(inode_in(other, "socket"), None);
        }
    }
}
