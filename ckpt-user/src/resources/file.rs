//! What every open file description has in common, and the trait of what is special to each kind.

use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;

use nix::sys::stat::FileStat;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::lock::Lock;
use super::registry::FILE_KINDS;
use super::socket::SocketType;
use super::{Collector, Restorer};
use crate::error::Result;
use crate::ids::{ObjRef, Pid};
use crate::image::model::Section;
use crate::tracee::remote::RemoteTask;

/// One descriptor of a frozen task, as the kinds see it.
#[derive(Debug)]
pub struct Descriptor<'a> {
    /// The task.
    pub pid: Pid,
    /// The number of the descriptor in it.
    pub fd: RawFd,
    /// What /proc/PID/fd/N points to: a path, "pipe:[123]", "anon_inode:[eventpoll]", "/memfd:x (deleted)".
    pub link: &'a OsString,
    /// /proc/PID/fdinfo/N, whole.
    pub info: &'a FdInfo,
    /// fstat of it.
    pub stat: &'a FileStat,
    /// Our own duplicate: the same open file description. Reading, seeking or setting flags through it would change the
    /// target, so only calls that change nothing may be made on it. `None` for an O_PATH descriptor where none could be had.
    pub own: BorrowedFd<'a>,
    /// What sort of socket it is. `None`: it is none.
    pub socket: Option<SocketType>,
}

impl<'a> Descriptor<'a> {
    /// Of `own`, a duplicate of the descriptor `fd` of `pid`.
    pub fn new(
        (pid, fd): (Pid, RawFd),
        link: &'a OsString,
        info: &'a FdInfo,
        stat: &'a FileStat,
        own: BorrowedFd<'a>,
    ) -> Descriptor<'a> {
        let is_socket = link.as_bytes().starts_with(b"socket:[") && info.flags & libc::O_PATH == 0;
        let socket = if is_socket { SocketType::of(own) } else { None };
        Descriptor { pid, fd, link, info, stat, own, socket }
    }
}

/// /proc/PID/fdinfo/N.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FdInfo {
    /// The file offset.
    pub pos: i64,
    /// The open flags (octal in the file), O_CLOEXEC included, which belongs to the descriptor.
    pub flags: i32,
    /// The mount it was opened through.
    pub mnt_id: i32,
    /// Every other line, in order: "eventfd-count:                1", "tfd: ...", "lock: ...".
    pub lines: Vec<String>,
}

impl FdInfo {
    /// Parses the text of /proc/PID/fdinfo/N. `None`: not as proc(5) has it.
    pub fn parse(text: &str) -> Option<FdInfo> {
        let mut info = FdInfo::default();
        for line in text.lines() {
            match line.split_once(':') {
                Some(("pos", value)) => info.pos = value.trim().parse().ok()?,
                Some(("flags", value)) => info.flags = i32::from_str_radix(value.trim(), 8).ok()?,
                Some(("mnt_id", value)) => info.mnt_id = value.trim().parse().ok()?,
                _ => info.lines.push(line.to_owned()),
            }
        }
        Some(info)
    }

    /// The value after `key:`, trimmed, of the first such line.
    pub fn get<'a>(&'a self, key: &'a str) -> Option<&'a str> {
        self.all(key).next()
    }

    /// The values of every line that begins with `key:`.
    pub fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.lines.iter().filter_map(move |line| line.strip_prefix(key)?.strip_prefix(':').map(str::trim))
    }
}

/// What belongs to every open file description, whatever its kind.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct OpenFile {
    /// File status and creation flags (O_RDWR, O_APPEND, O_NONBLOCK, ...) as fdinfo tells them, without O_CLOEXEC.
    pub flags: i32,
    /// The file offset.
    pub pos: i64,
    /// F_GETOWN_EX: type and id of who is signalled, if anyone.
    pub owner: Option<(i32, i32)>,
    /// F_GETSIG.
    pub owner_signal: i32,
    /// What /proc/PID/fd/N pointed to, for messages.
    pub link: String,
    /// Locks held through it.
    pub locks: Vec<Lock>,
}

/// Where an open file is in a process of the restart.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// The open file.
    pub objref: ObjRef,
    /// The first number that it has there.
    pub fd: RawFd,
    /// What belongs to every open file.
    pub common: &'a OpenFile,
}

/// A kind of open file. Recognise it, read it from a frozen task, make it again.
pub trait FileKind {
    /// The name of the kind in images.
    const KIND: &'static str;
    /// What an image holds of it, beside [`OpenFile`].
    type Record: Serialize + DeserializeOwned;

    /// What [`FileKind::attach`] does must be done in each process that has the file, not in the first alone.
    const ATTACHES_IN_EACH: bool = false;

    /// Is this descriptor of this kind? Kinds are asked in the order of the registry; the first that says yes has it.
    fn matches(d: &Descriptor<'_>) -> bool;

    /// Reads everything that is needed to make it again. Called once per open file description. Refuses
    /// ([`crate::Refusal`], through [`Collector::refuse`]) what it cannot save. Must not change the target.
    fn collect(cx: &mut Collector<'_>, d: &Descriptor<'_>) -> Result<Self::Record>;

    /// Makes it again, in ckpt itself, before the tasks exist. The flags that fcntl can set, the offset and the owner are set
    /// afterwards by the caller from `common`; what only open can set (access mode, O_PATH, ...) is for the kind.
    fn restore(cx: &mut Restorer<'_>, common: &OpenFile, record: &Self::Record) -> Result<OwnedFd>;

    /// What only a task that has the descriptor in its place (`at`) can do: epoll_ctl, record locks. Called once per
    /// description, in the first process that has it, after all its descriptors are placed.
    fn attach(cx: &mut Restorer<'_>, task: &mut RemoteTask<'_>, at: &Place<'_>, record: &Self::Record) -> Result<()> {
        let _ = (cx, task, at, record);
        Ok(())
    }

    /// What must wait until the contents of files were read from the image (sealing a memfd, taking write permission away).
    fn finish(cx: &mut Restorer<'_>, fd: BorrowedFd<'_>, record: &Self::Record) -> Result<()> {
        let _ = (cx, fd, record);
        Ok(())
    }
}

/// The body of an object that is an open file: what is common, and the kind's own record.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FileBody<R> {
    /// What every open file has.
    pub common: OpenFile,
    /// What this kind has.
    pub record: R,
}

/// A [`FileKind`] with its types erased: a row of the registry.
#[derive(Clone, Copy)]
pub struct FileKindEntry {
    /// [`FileKind::KIND`].
    pub kind: &'static str,
    /// [`FileKind::matches`].
    pub matches: fn(&Descriptor<'_>) -> bool,
    /// [`FileKind::collect`], encoded.
    pub collect: fn(&mut Collector<'_>, &Descriptor<'_>, OpenFile) -> Result<Section>,
    /// [`FileKind::restore`], decoded.
    pub restore: fn(&mut Restorer<'_>, &Section) -> Result<(OwnedFd, OpenFile)>,
    /// [`FileKind::ATTACHES_IN_EACH`].
    pub attaches_in_each: bool,
    /// [`FileKind::attach`], decoded.
    pub attach: fn(&mut Restorer<'_>, &mut RemoteTask<'_>, ObjRef, RawFd, &Section) -> Result<()>,
    /// [`FileKind::finish`], decoded.
    pub finish: fn(&mut Restorer<'_>, BorrowedFd<'_>, &Section) -> Result<()>,
}

impl std::fmt::Debug for FileKindEntry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FileKindEntry").field("kind", &self.kind).finish_non_exhaustive()
    }
}

impl FileKindEntry {
    /// The row for `K`.
    pub const fn of<K: FileKind>() -> FileKindEntry {
        FileKindEntry {
            kind: K::KIND,
            matches: K::matches,
            collect: |cx, d, common| {
                let record = K::collect(cx, d)?;
                Ok(Section::encode(K::KIND, &FileBody { common, record })?)
            },
            restore: |cx, section| {
                let body: FileBody<K::Record> = section.decode()?;
                Ok((K::restore(cx, &body.common, &body.record)?, body.common))
            },
            attaches_in_each: K::ATTACHES_IN_EACH,
            attach: |cx, task, objref, fd, section| {
                let body: FileBody<K::Record> = section.decode()?;
                K::attach(cx, task, &Place { objref, fd, common: &body.common }, &body.record)
            },
            finish: |cx, fd, section| K::finish(cx, fd.as_fd(), &section.decode::<FileBody<K::Record>>()?.record),
        }
    }
}

/// Has the first kind that claims the descriptor collect it; what nobody knows is refused by name.
pub fn collect(cx: &mut Collector<'_>, d: &Descriptor<'_>, common: OpenFile) -> Result<Section> {
    match FILE_KINDS.iter().find(|kind| (kind.matches)(d)) {
        Some(kind) => (kind.collect)(cx, d, common),
        None => cx.refuse(
            d.pid,
            if d.fd < 0 { d.link.display().to_string() } else { format!("descriptor {} ({})", d.fd, d.link.display()) },
            "is of a kind that ckpt cannot save",
            "let the program close it first",
        ),
    }
}

/// The kind that wrote a section.
pub fn kind_of(section: &Section) -> Result<&'static FileKindEntry> {
    FILE_KINDS.iter().find(|kind| kind.kind == section.kind).ok_or_else(|| {
        crate::Error::Restart(format!(
            "the image holds an open file of kind '{}', which this version of ckpt does not know",
            section.kind
        ))
    })
}
