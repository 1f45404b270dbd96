//! fanotify(7): a group, and what it marks: inodes, mounts and file systems, with the events that it wants and those that it ignores.
//!
//! Marks are set late in a restart, so that what ckpt does with files is not reported. Events that wait cannot be had again. Nor can what others
//! wait for the program to permit: a group that asks for permission events is refused.

use std::ffi::OsString;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::file::{Descriptor, FileKind, OpenFile};
use super::inode_name::{self, Inode};
use super::{Collector, Restorer, descriptors};
use crate::error::{Doing, Error, Result};
use crate::ids::Pid;
use crate::sys::{fanotify, mounts, procfs, queue};

/// See the module.
#[derive(Debug)]
pub struct Fanotify;

/// The state of a group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FanotifyRecord {
    /// The flags of fanotify_init: class, what events report.
    pub flags: u32,
    /// The open flags of the files that events bring.
    pub event_flags: u32,
    /// What is marked.
    pub marks: Vec<Mark>,
}

/// What a mark is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum On {
    /// A file or directory.
    Inode,
    /// All that is seen through a mount.
    Mount,
    /// All of a file system.
    FileSystem,
}

/// One mark.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    /// What it is on.
    pub on: On,
    /// The file, or where the file system is mounted.
    #[serde(with = "serde_bytes")]
    pub path: Vec<u8>,
    /// FAN_OPEN, FAN_ONDIR, ...
    pub mask: u32,
    /// Events that are not reported.
    pub ignored: u32,
    /// FAN_MARK_IGNORED_SURV_MODIFY, FAN_MARK_EVICTABLE, FAN_MARK_IGNORE.
    pub flags: u32,
}

/// A mark as fdinfo tells it.
struct Seen {
    of: Of,
    mask: u32,
    ignored: u32,
    flags: u32,
}

enum Of {
    Inode(Inode),
    Mount(u64),
    FileSystem((u64, u64)),
}

const LINK: &str = "anon_inode:[fanotify]";
/// Why a group that asks for permission events is refused, and what can be done.
pub const ASKS: &str = "decides what other programs may open, and who waits for its answer cannot be seen";
/// See above.
pub const CLOSE: &str = "let the program close it first";
/// linux/fanotify.h.
const FAN_MARK_ADD: u32 = 0x1;
const FAN_MARK_DONT_FOLLOW: u32 = 0x4;
const FAN_MARK_MOUNT: u32 = 0x10;
const FAN_MARK_IGNORED_MASK: u32 = 0x20;
const FAN_MARK_IGNORED_SURV_MODIFY: u32 = 0x40;
const FAN_MARK_FILESYSTEM: u32 = 0x100;
const FAN_MARK_EVICTABLE: u32 = 0x200;
const FAN_MARK_IGNORE: u32 = 0x400;
const FAN_ENABLE_AUDIT: u32 = 0x40;
/// FAN_CLASS_CONTENT and FAN_CLASS_PRE_CONTENT.
const ASKING_CLASSES: u32 = 0xc;
/// FAN_OPEN_PERM, FAN_ACCESS_PERM, FAN_OPEN_EXEC_PERM, FAN_PRE_ACCESS.
const PERMISSION_EVENTS: u32 = 0x10000 | 0x20000 | 0x40000 | 0x10_0000;
/// linux/capability.h.
const CAP_SYS_ADMIN: u32 = 21;

impl FileKind for Fanotify {
    const KIND: &'static str = "fanotify";
    type Record = FanotifyRecord;

    fn matches(d: &Descriptor<'_>) -> bool {
        d.link == LINK
    }

    fn collect(cx: &mut Collector<'_>, d: &Descriptor<'_>) -> Result<FanotifyRecord> {
        let name = || name(d.fd);
        if procfs::status(d.pid, d.pid.leader())?.capeff & (1 << CAP_SYS_ADMIN) == 0 {
            let reason = "belongs to a program without CAP_SYS_ADMIN, and would tell more than before if ckpt made it";
            return cx.refuse(d.pid, name(), reason, CLOSE);
        }
        let marks = d.info.lines.iter().filter_map(|line| line.strip_prefix("fanotify "));
        let (group, marks): (Vec<&str>, Vec<&str>) = marks.partition(|line| line.starts_with("flags:"));
        let group = group.first().and_then(|line| Some((number(line, "flags")?, number(line, "event-flags")?)));
        let (flags, event_flags) =
            group.ok_or_else(|| Error::Unexpected(format!("no flags in the fdinfo of the {} of pid {}", name(), d.pid)))?;
        let mut seen = Vec::new();
        for line in marks {
            match Seen::parse(line) {
                Some(mark) => seen.push(mark),
                None => {
                    return cx.refuse(
                        d.pid,
                        name(),
                        format!("has a mark of a kind that ckpt does not know ({line})"),
                        "let the program close it first",
                    );
                }
            }
        }
        if seen.iter().any(Seen::asks) {
            return cx.refuse(d.pid, name(), ASKS, CLOSE);
        }
        let marks = with_names(cx, d, seen)?;
        // In the end: what ckpt itself did was seen as well.
        if queue::readable(d.own).doing(|| format!("cannot look at the {} of pid {}", name(), d.pid))? != 0 {
            return cx.refuse_for_now(
                d.pid,
                name(),
                "has events that the program has not read yet, which the kernel does not hand out twice",
                "let the program read them, or try again at a quieter moment",
            );
        }
        Ok(FanotifyRecord { flags, event_flags, marks })
    }

    fn restore(_cx: &mut Restorer<'_>, _common: &OpenFile, record: &FanotifyRecord) -> Result<OwnedFd> {
        let doing = || "cannot make a fanotify group (which needs CAP_SYS_ADMIN)";
        if record.flags & ASKING_CLASSES != 0 {
            // The kernel does not tell whether its answers may be audited. Where that is not to be had, they were not.
            match fanotify::create(record.flags | FAN_ENABLE_AUDIT, record.event_flags) {
                Err(error) if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EPERM)) => {}
                other => return other.doing(doing),
            }
        }
        fanotify::create(record.flags, record.event_flags).doing(doing)
    }

    fn finish(_cx: &mut Restorer<'_>, fd: BorrowedFd<'_>, record: &FanotifyRecord) -> Result<()> {
        record.marks.iter().try_for_each(|mark| mark.set(fd))
    }
}

fn number(line: &str, key: &str) -> Option<u32> {
    inode_name::number(line, key).and_then(|n| n.try_into().ok())
}

impl Seen {
    fn asks(&self) -> bool {
        (self.mask | self.ignored) & PERMISSION_EVENTS != 0
    }

    /// "ino:98c0b4 sdev:fe00000 mflags:0 mask:8000002 ignored_mask:0 fhandle-bytes:8 ...", "mnt_id:1b mflags:0 ..." or "sdev:fe00000 mflags:0 ..."
    fn parse(line: &str) -> Option<Seen> {
        let of = match line.split(':').next()? {
            "ino" => Of::Inode(Inode::parse(line)?),
            "mnt_id" => Of::Mount(inode_name::number(line, "mnt_id")?),
            "sdev" => Of::FileSystem(inode_name::device(line)?),
            _ => return None,
        };
        let known = FAN_MARK_IGNORED_SURV_MODIFY | FAN_MARK_EVICTABLE | FAN_MARK_IGNORE;
        let flags = number(line, "mflags").filter(|flags| flags & !known == 0)?;
        Some(Seen { of, mask: number(line, "mask")?, ignored: number(line, "ignored_mask")?, flags })
    }
}

/// How a group is called in refusals.
pub fn name(fd: RawFd) -> String {
    format!("descriptor {fd} (fanotify)")
}

/// The groups of a process that others may wait for. To be known before it is stopped: ckpt might wait for them, too.
pub fn that_ask(pid: Pid) -> Result<Vec<RawFd>> {
    let doing = || format!("cannot look at the descriptors of pid {pid}");
    let mut groups = Vec::new();
    for fd in descriptors::numbers(pid).doing(doing)? {
        if descriptors::link(pid, fd).doing(doing)?.is_none_or(|link| link.as_os_str() != LINK) {
            continue;
        }
        match procfs::read_text(format!("/proc/{pid}/fdinfo/{fd}")) {
            Ok(text) => {
                let mut marks = text.lines().filter_map(|line| line.strip_prefix("fanotify ")).filter_map(Seen::parse);
                groups.extend(marks.any(|mark| mark.asks()).then_some(fd));
            }
            // Closed meanwhile.
            Err(error) if procfs::is_gone(&error) => {}
            Err(error) => return Err(error).doing(doing),
        }
    }
    Ok(groups)
}

/// By which names the marks can be set again.
fn with_names(cx: &Collector<'_>, d: &Descriptor<'_>, seen: Vec<Seen>) -> Result<Vec<Mark>> {
    let inode = |mark: &Seen| if let Of::Inode(inode) = &mark.of { Some(inode.clone()) } else { None };
    let mut names = inode_name::find(d.pid, &seen.iter().filter_map(inode).collect::<Vec<_>>())?;
    let mut marks = Vec::new();
    let mut inodes = 0;
    for Seen { of, mask, ignored, flags } in seen {
        let (on, path, what) = match of {
            Of::Inode(Inode { ino, device: (major, minor), .. }) => {
                let path = names.remove(&inodes);
                inodes += 1;
                (On::Inode, path, format!("the inode {ino} of device {major}:{minor}"))
            }
            Of::Mount(number) => (On::Mount, mount(d.pid, number)?, format!("the mount {number}")),
            Of::FileSystem((major, minor)) => {
                (On::FileSystem, mounted(d.pid, major, minor)?, format!("the file system of device {major}:{minor}"))
            }
        };
        let Some(path) = path else {
            let reason = format!("marks {what}, for which no name can be found");
            let advice =
                "let the program remove that mark if the file was deleted or unmounted; else list its directory, and try again";
            return cx.refuse(d.pid, name(d.fd), reason, advice);
        };
        marks.push(Mark { on, path: path.into_os_string().into_vec(), mask, ignored, flags });
    }
    Ok(marks)
}

/// Where a mount is, unless another one is over it.
fn mount(pid: Pid, number: u64) -> Result<Option<PathBuf>> {
    let doing = || format!("cannot look at mount {number} of pid {pid}");
    let point = mounts::point_of(pid, number).doing(doing)?;
    Ok(match point {
        Some(point) if mounts::number_at(&point).doing(doing)? == number => Some(point),
        _ => None,
    })
}

/// A place where a file system is mounted, and nothing over it.
fn mounted(pid: Pid, major: u64, minor: u64) -> Result<Option<PathBuf>> {
    let all = mounts::with_numbers(pid, major, minor).doing(|| format!("cannot read the mounts of pid {pid}"))?;
    for (number, point) in all {
        if mounts::number_at(&point).doing(|| format!("cannot look at {}", point.display()))? == number {
            return Ok(Some(point));
        }
    }
    Ok(None)
}

fn is_mount_point(path: &Path) -> io::Result<bool> {
    let point = mounts::point_of(Pid(std::process::id() as i32), mounts::number_at(path)?)?;
    Ok(point.is_some_and(|point| point == path))
}

impl Mark {
    fn set(&self, fd: BorrowedFd<'_>) -> Result<()> {
        let path = PathBuf::from(OsString::from_vec(self.path.clone()));
        let doing = || format!("cannot have fanotify mark {} again", path.display());
        let on = match self.on {
            On::Inode => FAN_MARK_DONT_FOLLOW,
            On::Mount => FAN_MARK_MOUNT,
            On::FileSystem => FAN_MARK_FILESYSTEM,
        };
        if self.on != On::Inode && !is_mount_point(&path).doing(doing)? {
            return Err(Error::Restart(format!(
                "nothing is mounted at {}, which a fanotify group marks; mount it again",
                path.display()
            )));
        }
        let flags = FAN_MARK_ADD | on | (self.flags & FAN_MARK_EVICTABLE);
        if self.mask != 0 {
            fanotify::mark(fd, flags, self.mask.into(), &path).doing(doing)?;
        }
        if self.ignored != 0 {
            let how = if self.flags & FAN_MARK_IGNORE != 0 { FAN_MARK_IGNORE } else { FAN_MARK_IGNORED_MASK };
            let flags = flags | how | (self.flags & FAN_MARK_IGNORED_SURV_MODIFY);
            fanotify::mark(fd, flags, self.ignored.into(), &path).doing(doing)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
