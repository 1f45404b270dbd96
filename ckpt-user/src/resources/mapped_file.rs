//! The files behind mappings, which become objects of the same kinds as open files: named, deleted, memfd, ...
//!
//! A process has dozens of them, libraries for the most part. They are looked at before the freeze, and in the freeze only asked whether they still are
//! what they were.

use std::cell::OnceCell;
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use nix::sys::stat::{FileStat, fstat};

use super::Collector;
use super::collector::{CollectOptions, Collected, ObjectKey};
use super::file::{self, Descriptor, FdInfo, FileKind, OpenFile};
use super::regular::Regular;
use crate::error::{Doing, Result};
use crate::ids::{ObjRef, Pid};
use crate::image::model::Section;
use crate::tracee::maps::{self, Mapping, MappingKind, VmFlags};

/// Makes an object of the file behind a mapping.
pub fn collect(cx: &mut Collector<'_>, pid: Pid, mapping: &Mapping) -> Result<ObjRef> {
    let writable = is_writable(mapping);
    if !writable && let Some((key, section)) = cx.looked_at.and_then(|looked_at| looked_at.unchanged(mapping)) {
        return cx.intern(key, |_, _| Ok(section.clone()));
    }
    let opened = open_mapped(pid, mapping, writable)?;
    intern_file(cx, pid, &opened, mapping.name.clone(), writable, &mapping.describe())
}

/// Was the file opened for writing, too?
fn is_writable(mapping: &Mapping) -> bool {
    mapping.shared && mapping.flags.contains(VmFlags::MAY_WRITE)
}

fn key((device, inode): (u64, u64), writable: bool) -> ObjectKey {
    ObjectKey::Inode(if writable { "mapped-rw" } else { "mapped" }, device, inode)
}

/// Makes an object of a file that has no descriptor in the target: behind a mapping, or /proc/PID/exe.
pub fn intern_file(
    cx: &mut Collector<'_>,
    pid: Pid,
    opened: &OwnedFd,
    link: OsString,
    writable: bool,
    what: &str,
) -> Result<ObjRef> {
    let stat = fstat(opened).doing(|| format!("cannot look at {what} of pid {pid}"))?;
    cx.intern(key((stat.st_dev, stat.st_ino), writable), |cx, _| {
        let flags = if writable { libc::O_RDWR } else { libc::O_RDONLY };
        let info = FdInfo { flags, ..FdInfo::default() };
        let fd: RawFd = -1;
        let d = Descriptor::new((pid, fd), &link, &info, &stat, opened.as_fd());
        let common = OpenFile { flags, link: link.to_string_lossy().into_owned(), ..OpenFile::default() };
        file::collect(cx, &d, common)
    })
}

/// Opens the very file that is mapped: through /proc/PID/map_files where we may, else by its name if that still names it.
fn open_mapped(pid: Pid, mapping: &Mapping, writable: bool) -> Result<OwnedFd> {
    let link = maps::file_of(pid, mapping.start, mapping.end);
    let open = |path: &std::ffi::OsStr| File::options().read(true).write(writable).open(path);
    let by_link = match open(link.as_ref()) {
        Ok(file) => return Ok(file.into()),
        Err(error) => error,
    };
    match open(&mapping.name) {
        Ok(file) if fstat(&file).is_ok_and(|stat| stat.st_ino == mapping.inode) => Ok(file.into()),
        _ => Err(by_link).doing(|| {
            format!(
                "cannot open the file behind {} of pid {pid} (it was deleted or replaced, and only root may reach it)",
                mapping.describe()
            )
        }),
    }
}

/// Files that were looked at while the target ran: of those that are only read, what an image says of them.
#[derive(Debug, Default)]
pub struct LookedAt(HashMap<Place, Looked>);

/// As /proc/PID/maps tells it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Place {
    device: (u32, u32),
    inode: u64,
    name: OsString,
}

#[derive(Debug)]
struct Looked {
    /// From the look until [`LookedAt::close`]: as long as it is open no other file can have its number.
    open: Option<Open>,
    facts: Facts,
    section: Section,
}

/// An open file, of which it is asked once whether it still is what it was.
#[derive(Debug)]
struct Open {
    fd: OwnedFd,
    same: OnceCell<bool>,
    named: OnceCell<bool>,
}

impl Open {
    fn new(fd: OwnedFd) -> Option<Open> {
        Some(Open { fd, same: OnceCell::new(), named: OnceCell::new() })
    }

    fn is_same(&self, facts: &Facts) -> bool {
        *self.same.get_or_init(|| fstat(&self.fd).is_ok_and(|stat| Facts::of(&stat) == *facts))
    }

    /// What the kernel calls the open file is what it would show of a mapping of it.
    fn is_named(&self, name: &OsStr) -> bool {
        let link = || fs::read_link(format!("/proc/self/fd/{}", self.fd.as_raw_fd()));
        *self.named.get_or_init(|| link().is_ok_and(|link| link.as_os_str() == name))
    }
}

/// What changes if anything of a file does but the time at which it was read: among them the time of the last change of any of these (st_ctime).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Facts {
    id: (u64, u64),
    links: u64,
    mode: u32,
    size: i64,
    mtime: (i64, i64),
    ctime: (i64, i64),
}

impl Facts {
    fn of(stat: &FileStat) -> Facts {
        Facts {
            id: (stat.st_dev, stat.st_ino),
            links: stat.st_nlink,
            mode: stat.st_mode,
            size: stat.st_size,
            mtime: (stat.st_mtime, stat.st_mtime_nsec),
            ctime: (stat.st_ctime, stat.st_ctime_nsec),
        }
    }
}

impl Place {
    fn of(mapping: &Mapping) -> Place {
        Place { device: mapping.device, inode: mapping.inode, name: mapping.name.clone() }
    }
}

impl LookedAt {
    /// While the target runs: looks at the files behind its mappings. What cannot be looked at now is left to the freeze.
    pub fn look(&mut self, options: &CollectOptions, pid: Pid, mappings: &[Mapping]) {
        for mapping in mappings.iter().filter(|mapping| mapping.kind == MappingKind::File && !is_writable(mapping)) {
            let place = Place::of(mapping);
            let known = self.0.get_mut(&place);
            if known.as_ref().is_some_and(|known| known.open.is_some()) {
                continue;
            }
            let Ok(opened) = open_mapped(pid, mapping, false) else { continue };
            let Ok(facts) = fstat(&opened).map(|stat| Facts::of(&stat)) else { continue };
            match known {
                Some(known) if known.facts == facts => known.open = Open::new(opened),
                _ => {
                    if let Some(section) = section(options, pid, mapping, &opened) {
                        self.0.insert(place, Looked { open: Open::new(opened), facts, section });
                    }
                }
            }
        }
    }

    /// Closes them all, and forgets those that were not looked at since this was last called. (An open file keeps its file system from being unmounted.)
    pub fn close(&mut self) {
        self.0.retain(|_, looked| looked.open.take().is_some());
    }

    /// What an image says of the file behind a mapping, if that is what it was.
    fn unchanged(&self, mapping: &Mapping) -> Option<(ObjectKey, &Section)> {
        let Looked { open, facts, section } = self.0.get(&Place::of(mapping))?;
        open.as_ref().is_some_and(|open| open.is_same(facts)).then(|| (key(facts.id, false), section))
    }

    /// With the target stopped: is the file behind a mapping what it was, and has it the name that it had?
    pub fn is_as_it_was(&self, mapping: &Mapping) -> bool {
        let looked = self.0.get(&Place::of(mapping));
        let open = looked.and_then(|looked| Some((looked.open.as_ref()?, &looked.facts)));
        open.is_some_and(|(open, facts)| open.is_same(facts) && open.is_named(&mapping.name))
    }
}

/// What an image says of a regular file with a name. `None`: it is something else, which may say more than that.
fn section(options: &CollectOptions, pid: Pid, mapping: &Mapping, opened: &OwnedFd) -> Option<Section> {
    let mut cx = Collector::new(options, vec![pid]);
    intern_file(&mut cx, pid, opened, mapping.name.clone(), false, &mapping.describe()).ok()?;
    let Collected { mut objects, contents } = cx.finish().ok()?;
    let section = objects.pop().filter(|_| objects.is_empty() && contents.is_empty())?.section;
    (section.kind == Regular::KIND).then_some(section)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::ids::Addr;
    use crate::tracee::maps;

    /// Our own executable, as it is mapped.
    fn ours() -> (Pid, Mapping) {
        let exe = std::fs::read_link("/proc/self/exe").unwrap();
        let pid = Pid(std::process::id() as i32);
        let mapping = maps::read(pid).unwrap().into_iter().find(|mapping| mapping.name == exe.as_os_str()).unwrap();
        (pid, mapping)
    }

    #[test]
    fn what_was_looked_at_is_told_without_looking_again() {
        let ((pid, mapping), options) = (ours(), CollectOptions::default());
        let mut looked_at = LookedAt::default();
        assert!(looked_at.unchanged(&mapping).is_none());
        looked_at.look(&options, pid, std::slice::from_ref(&mapping));
        let mut fresh = Collector::new(&options, vec![pid]);
        collect(&mut fresh, pid, &mapping).unwrap();
        let objects = fresh.finish().unwrap().objects;
        assert_eq!(looked_at.unchanged(&mapping).unwrap().1, &objects[0].section);
        // From a name that nothing has, nothing could be opened.
        let mut cx = Collector::new(&options, vec![pid]);
        cx.looked_at = Some(&looked_at);
        let elsewhere = Mapping { start: Addr(0), end: Addr(4096), ..mapping.clone() };
        collect(&mut cx, pid, &elsewhere).unwrap();
        assert_eq!(cx.finish().unwrap().objects, objects);
        looked_at.close();
        assert!(looked_at.unchanged(&mapping).is_none(), "another file may have its number by now");
        looked_at.look(&options, pid, std::slice::from_ref(&mapping));
        assert!(looked_at.unchanged(&mapping).is_some());
    }

    #[test]
    fn what_has_changed_is_not_told() {
        let (mut file, options) = (tempfile::NamedTempFile::new().unwrap(), CollectOptions::default());
        let (pid, ours) = ours();
        let metadata = file.as_file().metadata().unwrap();
        let mapping =
            Mapping { inode: metadata.ino(), device: (0, 0), name: file.path().into(), start: Addr(0), end: Addr(4096), ..ours };
        let mut looked_at = LookedAt::default();
        looked_at.look(&options, pid, std::slice::from_ref(&mapping));
        assert!(looked_at.unchanged(&mapping).is_some());
        let again = |looked_at: &mut LookedAt| {
            looked_at.close();
            looked_at.look(&options, pid, std::slice::from_ref(&mapping));
        };
        again(&mut looked_at);
        std::io::Write::write_all(&mut file, b"more").unwrap();
        assert!(looked_at.unchanged(&mapping).is_none());
        again(&mut looked_at);
        assert!(looked_at.unchanged(&mapping).is_some() && looked_at.is_as_it_was(&mapping));
        again(&mut looked_at);
        file.close().unwrap();
        assert!(looked_at.unchanged(&mapping).is_none(), "it has lost its name");
        assert!(!looked_at.is_as_it_was(&mapping));
    }

    /// A folder of its path has another name since, of which the file itself tells nothing.
    #[test]
    fn a_name_that_has_changed_is_seen() {
        let (folder, options) = (tempfile::tempdir().unwrap(), CollectOptions::default());
        let (old, new) = (folder.path().join("old"), folder.path().join("new"));
        fs::create_dir(&old).unwrap();
        let name = old.join("file");
        fs::write(&name, "x").unwrap();
        let (pid, ours) = ours();
        let inode = fs::metadata(&name).unwrap().ino();
        let mapping = Mapping { inode, device: (0, 0), name: name.into(), start: Addr(0), end: Addr(4096), ..ours };
        let mut looked_at = LookedAt::default();
        looked_at.look(&options, pid, std::slice::from_ref(&mapping));
        fs::rename(old, new).unwrap();
        assert!(looked_at.unchanged(&mapping).is_some());
        assert!(!looked_at.is_as_it_was(&mapping));
    }
}
