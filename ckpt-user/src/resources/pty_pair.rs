//! A pseudoterminal itself, which the openings of its two sides share: number, settings, what waits in it, whose controlling terminal it is.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use nix::poll::PollFlags;
use serde::{Deserialize, Serialize};

use super::Collector;
use super::collector::ObjectKey;
use super::file::Descriptor;
use super::holders::Holder;
use super::pty_masters::Masters;
use super::pty_queue::PtyQueues;
use super::terminals::{PtyId, Terminals};
use crate::error::{Doing, Result};
use crate::ids::{ObjRef, Pid};
use crate::image::model::Section;
use crate::sys::tty::{self, Termios2, WindowSize};
use crate::sys::{procfs, queue};
use crate::track::ebpf::{Side, pty_state};

/// The kind of the object.
pub const KIND: &str = "pty-pair";

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PairRecord {
    /// The slave is /dev/pts/NUMBER.
    pub number: u32,
    /// The path by which the master was opened.
    #[serde(with = "serde_bytes")]
    pub path: Vec<u8>,
    /// The slave cannot be opened (unlockpt(3) was not called).
    pub locked: bool,
    /// Packet mode.
    pub packets: bool,
    /// Of the slave.
    pub settings: Termios2,
    /// Of both.
    pub window: WindowSize,
    /// Permissions, owner and group of the slave.
    pub access: (u32, u32, u32),
    /// The slave was never opened. (Where it was, and is not any more, reading from the master fails.)
    pub untouched: bool,
    /// The session whose controlling terminal it is.
    pub session: Option<Pid>,
    /// The process group in its foreground, if anybody is in that.
    pub foreground: Option<Pid>,
    /// What waits in it.
    pub queues: PtyQueues,
}

/// Collects the pseudoterminal whose master `holder` has.
pub fn collect(cx: &mut Collector<'_>, d: &Descriptor<'_>, id: PtyId, holder: &Holder) -> Result<ObjRef> {
    let has_slave = Terminals::of(cx)?.has_slave(id);
    let object = format!("the pseudoterminal /dev/pts/{} (descriptor {})", id.1, d.fd);
    cx.intern(ObjectKey::Inode(KIND, id.0, id.1.into()), |cx, _| {
        let doing = || format!("cannot look at {object} of pid {}", d.pid);
        let master = holder.duplicate()?;
        let fd = master.as_fd();
        let link = format!("/proc/{}/fd/{}", holder.pid, holder.fd);
        let path = fs::read_link(link).doing(doing)?;
        let node = fs::metadata(slave_path(&path, id.1)).doing(doing)?;
        let settings = tty::settings(fd).doing(doing)?;
        if settings.line != 0 {
            let reason = format!("has the line discipline {}, which ckpt cannot save", settings.line);
            return cx.refuse(d.pid, object, reason, "let the program set another one (TIOCSETD)");
        }
        let session = tty::session(fd).doing(doing)?.map(Pid);
        if let Some(session) = session.filter(|session| !cx.pids.contains(session)) {
            let reason = format!("is the controlling terminal of session {session}, whose leader is not in the cut");
            return cx.refuse(d.pid, object, reason, "checkpoint the leader with it, or a process above both");
        }
        let foreground = tty::foreground(fd).doing(doing)?.map(Pid);
        let foreground = foreground.filter(|&group| is_group(&cx.pids, group));
        let hung_up = queue::poll_now(fd).doing(doing)?.contains(PollFlags::POLLHUP);
        let (queues, openings) = queues(cx, d, &object, fd)?;
        // The master counts as one.
        if !has_slave && openings > 1 {
            let reason = "is open in a process that is not in the cut";
            return cx.refuse(d.pid, object, reason, "checkpoint that process with it, or end it");
        }
        let record = PairRecord {
            number: id.1,
            path: path.as_os_str().as_bytes().to_vec(),
            locked: tty::is_locked(fd).doing(doing)?,
            packets: tty::has_packets(fd).doing(doing)?,
            settings,
            window: tty::window_size(fd).doing(doing)?,
            access: (node.mode() & 0o7777, node.uid(), node.gid()),
            untouched: !has_slave && !hung_up,
            session,
            foreground,
            queues,
        };
        Ok(Section::encode(KIND, &record)?)
    })
}

/// What waits, and how often the slave is held open, by the master as well.
fn queues(cx: &Collector<'_>, d: &Descriptor<'_>, object: &str, master: BorrowedFd<'_>) -> Result<(PtyQueues, u32)> {
    let error = match pty_state(master) {
        Ok(state) => {
            let Side { openings, echoes, .. } = state.slave;
            if echoes > 0 {
                tracing::warn!("{echoes} bytes of echo that wait in {object} of pid {} are not saved", d.pid);
            }
            return Ok((PtyQueues::of(&state), openings));
        }
        Err(error) => error,
    };
    let doing = || format!("cannot look at {object} of pid {}", d.pid);
    let waits = queue::readable(master).doing(doing)?;
    if waits > 0 {
        let reason = format!("holds {waits} bytes that nobody has read yet, at which ckpt cannot look without eBPF ({error})");
        return cx.refuse(d.pid, object, reason, "run ckpt as root, or try again");
    }
    tracing::warn!("what was typed into {object} of pid {} and not read yet is not saved: {error}", d.pid);
    Ok((PtyQueues::default(), 1))
}

/// Is a process of the cut in the group?
fn is_group(pids: &[Pid], group: Pid) -> bool {
    pids.iter().any(|&pid| procfs::stat(pid).is_ok_and(|stat| stat.pgrp == group.0))
}

/// Where the slave is, whose master was opened as `ptmx`.
fn slave_path(ptmx: &Path, number: u32) -> PathBuf {
    let folder = ptmx.parent().unwrap_or(Path::new("/"));
    let beside = folder.join("pts");
    (if beside.is_dir() { beside } else { folder.to_owned() }).join(number.to_string())
}

/// The two sides, made anew.
#[derive(Debug)]
pub struct Made {
    /// There is only ever one open file of a master.
    pub master: OwnedFd,
    /// One of our own. `None`: the slave was never opened.
    pub slave: Option<OwnedFd>,
}

impl PairRecord {
    fn name(&self) -> String {
        format!("/dev/pts/{}", self.number)
    }

    /// Makes it.
    pub fn make(&self, masters: &mut Masters) -> Result<Made> {
        let doing = || format!("cannot make {} again", self.name());
        let master = masters.open(Path::new(OsStr::from_bytes(&self.path)), self.number, &self.name())?;
        tty::set_locked(master.as_fd(), false).doing(doing)?;
        let slave = if self.untouched {
            tty::set_settings(master.as_fd(), &self.settings).doing(doing)?;
            None
        } else {
            let slave = tty::open_slave(master.as_fd(), libc::O_RDWR).doing(doing)?;
            let (mode, user, group) = self.access;
            fchown(&slave, Some(user), Some(group)).doing(doing)?;
            fs::File::from(slave.try_clone().doing(doing)?).set_permissions(Permissions::from_mode(mode)).doing(doing)?;
            self.queues.fill(master.as_fd(), slave.as_fd(), &self.settings)?;
            Some(slave)
        };
        tty::set_window_size(master.as_fd(), &self.window).doing(doing)?;
        if self.packets {
            tty::set_packets(master.as_fd()).doing(doing)?;
        }
        Ok(Made { master, slave })
    }

    /// The last step, when everything is open.
    pub fn lock(&self, master: BorrowedFd<'_>) -> Result<()> {
        if self.locked {
            tty::set_locked(master, true).doing(|| format!("cannot lock {}", self.name()))?;
        }
        Ok(())
    }
}
