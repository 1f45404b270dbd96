//! Files and directories of /proc/PID, where PID is a process of the cut: opened again once that process is there.
//!
//! Such a file belongs to the process that had the number when it was opened, and some belong to the memory that it had then. Where either is
//! gone, the name leads to something else, and the descriptor is refused.
//!
//! ckpt opens the file, and each process that has it takes a duplicate: they share the offset as before.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sys::stat::SFlag;
use nix::sys::uio::pread;
use serde::{Deserialize, Serialize};

use super::file::{Descriptor, FileKind, OpenFile, Place};
use super::{Collector, Restorer, fd_table, file_system, named_file, placeholder, regular};
use crate::error::{Doing, Error, Result};
use crate::ids::{ObjRef, Pid, Tid};
use crate::sys::{directory, procfs};
use crate::tracee::remote::RemoteTask;

/// See the module.
#[derive(Debug)]
pub struct ProcessFile;

/// Which file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ProcessFileRecord {
    /// The path: "/proc/4242/status".
    #[serde(with = "serde_bytes")]
    pub path: Vec<u8>,
}

/// What there is of the process that a file was opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The name still leads to it.
    There,
    Gone,
    /// The file does not tell.
    Unknown,
}

/// Files that look into the memory that the process had when they were opened, which it leaves behind at exec(2).
const OF_MEMORY: &[&[u8]] = &[b"maps", b"smaps", b"smaps_rollup", b"numa_maps", b"mem", b"environ", b"auxv", b"pagemap"];
/// linux/capability.h.
const CAP_SYS_ADMIN: u32 = 21;

impl ProcessFile {
    /// The file as ckpt has opened it, the first time that it is asked for. The process must be there.
    pub fn ours<'c>(
        cx: &'c mut Restorer<'_>,
        objref: ObjRef,
        common: &OpenFile,
        record: &ProcessFileRecord,
    ) -> Result<&'c mut OwnedFd> {
        let path = PathBuf::from(OsString::from_vec(record.path.clone()));
        if !names_a_process(path.as_os_str()) {
            return Err(Error::Restart(format!("the image takes {} for a file of a process", path.display())));
        }
        cx.shared(objref, |_| {
            let file = named_file::open(&path, common.flags).doing(|| format!("cannot open {} again", path.display()))?;
            let file = OwnedFd::from(file);
            fd_table::set_common(file.as_fd(), common)?;
            have_it_written_anew(&file, common);
            Ok(file)
        })
    }
}

impl FileKind for ProcessFile {
    const KIND: &'static str = "process-file";
    type Record = ProcessFileRecord;
    const ATTACHES_IN_EACH: bool = true;

    fn matches(d: &Descriptor<'_>) -> bool {
        names_a_process(d.link) && file_system::is_proc(d.own)
    }

    fn collect(cx: &mut Collector<'_>, d: &Descriptor<'_>) -> Result<ProcessFileRecord> {
        let refuse = |reason: &str| cx.refuse(d.pid, name(d.fd, d.link), reason, CLOSE);
        let doing = || format!("cannot look at {} of pid {}", name(d.fd, d.link), d.pid);
        let path = fd_table::without_deleted(d.link);
        let Some(id) = id_of(path).filter(|_| on_our_proc(d)) else {
            return refuse("is of another mount of /proc, whose processes ckpt does not know");
        };
        if d.fd < 0 || d.info.all("lock").next().is_some() {
            return refuse("looks into a process, and is mapped or locked, which cannot be had again");
        }
        match state(d, Path::new(path)).doing(doing)? {
            State::Gone => return refuse_gone(cx, d.pid, d.fd, d.link),
            State::Unknown => {
                return refuse(&format!("looks into a pid {id}, and does not tell whether that is the present one"));
            }
            State::There => {}
        }
        let status = match procfs::status(Pid(id), Tid(id)) {
            Err(Error::Gone(_)) => return refuse_gone(cx, d.pid, d.fd, d.link),
            other => other?,
        };
        if !cx.pids.contains(&Pid(status.tgid)) {
            let reason = format!("looks into pid {id}, which has ended or is not being checkpointed");
            let advice = "checkpoint a process that both descend from, or let the program close it";
            return cx.refuse(d.pid, name(d.fd, d.link), reason, advice);
        }
        if let Some(what) = OF_MEMORY.iter().find(|&&what| is_file_of(d, what)) {
            if !is_present_memory(d, what).doing(doing)? {
                return refuse(&format!(
                    "looks into memory that pid {id} had before it executed another program, or cannot be read by ckpt to tell"
                ));
            }
            let opener = procfs::status(d.pid, d.pid.leader())?;
            // Of one that is in flight, nobody knows who has opened it.
            if *what == b"pagemap" && !cx.pids.contains(&d.pid) {
                return refuse(
                    "would tell ckpt where in the machine's memory its pages are, and nobody knows whether the program may",
                );
            }
            if *what == b"pagemap" && opener.capeff & (1 << CAP_SYS_ADMIN) == 0 {
                return refuse("would tell more than before if ckpt opened it: where in the machine's memory its pages are");
            }
        }
        Ok(ProcessFileRecord { path: path.as_bytes().to_vec() })
    }

    fn restore(_cx: &mut Restorer<'_>, _common: &OpenFile, _record: &ProcessFileRecord) -> Result<OwnedFd> {
        placeholder::open()
    }

    fn attach(cx: &mut Restorer<'_>, task: &mut RemoteTask<'_>, at: &Place<'_>, record: &ProcessFileRecord) -> Result<()> {
        let doing = format!("cannot open {} again", at.common.link);
        let ours = ProcessFile::ours(cx, at.objref, at.common, record)?;
        let taken = task.take_ours(&doing, ours.as_fd())?;
        placeholder::replace(task, at.fd, taken as u64, &doing)
    }
}

const CLOSE: &str = "let the program close it first";

fn name(fd: RawFd, link: &OsStr) -> String {
    if fd < 0 { link.display().to_string() } else { format!("descriptor {fd} ({})", link.display()) }
}

/// Refuses a file of a process that has ended.
pub fn refuse_gone<T>(cx: &Collector<'_>, pid: Pid, fd: RawFd, link: &OsStr) -> Result<T> {
    let reason =
        "looks into a process, or a part of it, that has ended: reads fail with ESRCH, and such a file cannot be had again";
    cx.refuse(pid, name(fd, link), reason, CLOSE)
}

/// "/proc/4242/...", or any path with such a number where proc(5) is mounted elsewhere.
pub fn names_a_process(path: &OsStr) -> bool {
    let digit = |part: &[u8]| part.first().is_some_and(u8::is_ascii_digit);
    match path.as_bytes().strip_prefix(b"/proc/") {
        Some(rest) => digit(rest),
        None => path.as_bytes().split(|&b| b == b'/').any(|part| digit(part) && part.iter().all(u8::is_ascii_digit)),
    }
}

/// 4242 of "/proc/4242/status" or "/proc/4242 (deleted)".
fn id_of(path: &OsStr) -> Option<i32> {
    let rest = path.as_bytes().strip_prefix(b"/proc/")?;
    let digits = rest.iter().take_while(|b| b.is_ascii_digit()).count();
    std::str::from_utf8(&rest[..digits]).ok()?.parse().ok()
}

fn on_our_proc(d: &Descriptor<'_>) -> bool {
    fs::metadata("/proc").is_ok_and(|proc| proc.dev() == d.stat.st_dev)
}

/// With the offset, the kernel has written text that tells of a process that is half made. A read elsewhere has it forget that, so that the
/// program's next read gets what is true then. What cannot be read so has no text.
fn have_it_written_anew(file: &OwnedFd, common: &OpenFile) {
    if common.flags & libc::O_PATH == 0 && common.pos != 0 {
        let mut elsewhere = [0; 2];
        let length = if common.pos == 2 { 1 } else { 2 };
        if let Err(error) = pread(file, &mut elsewhere[..length], 0) {
            tracing::debug!("{} is not read: {error}", common.link);
        }
    }
}

fn is_file_of(d: &Descriptor<'_>, what: &[u8]) -> bool {
    let last = Path::new(fd_table::without_deleted(d.link)).file_name().map(OsStr::as_bytes);
    last == Some(what) && regular::is_regular(d)
}

fn kind(d: &Descriptor<'_>) -> SFlag {
    SFlag::from_bits_truncate(d.stat.st_mode) & SFlag::S_IFMT
}

/// An inode of /proc is that of one process for ever. The name can lead to a new inode of the same process, though.
fn state(d: &Descriptor<'_>, path: &Path) -> io::Result<State> {
    match fs::symlink_metadata(path) {
        Ok(named) if (named.dev(), named.ino()) == (d.stat.st_dev, d.stat.st_ino) => return Ok(State::There),
        Ok(_) => {}
        Err(error) if is_gone(&error) => return Ok(State::Gone),
        Err(error) => return Err(error),
    }
    // Opened anew through our own link: still for the same process, and without a change to the target's.
    match look_into(d) {
        Ok(()) => Ok(State::There),
        Err(error) if is_gone(&error) => Ok(State::Gone),
        // Nothing is mapped at 0: whose memory is gone has said so before.
        Err(error) if error.raw_os_error() == Some(libc::EIO) => Ok(State::There),
        Err(error) => {
            tracing::debug!("{} does not tell whether its process is there: {error}", d.link.display());
            Ok(State::Unknown)
        }
    }
}

fn look_into(d: &Descriptor<'_>) -> io::Result<()> {
    let own = format!("/proc/self/fd/{}", d.own.as_raw_fd());
    if kind(d) == SFlag::S_IFDIR {
        // Not by readdir(3), which takes the error for the end.
        return directory::read_once(File::open(own)?.as_fd());
    }
    File::open(own)?.read(&mut [0; 8]).map(drop)
}

fn is_gone(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ESRCH) || named_file::is_absent(error)
}

/// Does the file look into the memory that the process has now? (Of a file in the middle of which the program reads, the kernel may write
/// the text anew when it reads on: what it said of a stopped process, it says again.)
fn is_present_memory(d: &Descriptor<'_>, what: &[u8]) -> io::Result<bool> {
    if d.info.flags & libc::O_ACCMODE == libc::O_WRONLY {
        return Ok(false);
    }
    let fresh = File::open(fd_table::without_deleted(d.link))?;
    let (then, now) = (beginning(d.own), beginning(fresh.as_fd()));
    // The auxiliary vector outlives the memory; it tells where the memory was.
    Ok(if what == b"auxv" { then == now } else { gives(&then) == gives(&now) })
}

type Beginning = nix::Result<Vec<u8>>;

fn beginning(fd: BorrowedFd<'_>) -> Beginning {
    let mut buf = vec![0; 512];
    let length = pread(fd, &mut buf, 0)?;
    buf.truncate(length);
    Ok(buf)
}

/// Of memory that is gone there is nothing to be read, not even an error of the address.
fn gives(beginning: &Beginning) -> bool {
    !matches!(beginning, Err(nix::Error::ESRCH)) && !beginning.as_ref().is_ok_and(Vec::is_empty)
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command, Stdio};

    use super::super::fd_trial::{collect, refusal, with_descriptor};
    use super::*;

    fn program() -> Child {
        Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().unwrap()
    }

    fn ended(mut child: Child) {
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn paths() {
        for (path, process, id) in [
            ("/proc/4242/status", true, Some(4242)),
            ("/proc/4242 (deleted)", true, Some(4242)),
            ("/proc/stat", false, None),
            ("/proc/irq/12/smp_affinity", false, None),
            ("/other/proc/7/maps", true, None),
            ("/other/proc/meminfo", false, None),
            ("/proc/99999999999/maps", true, None),
        ] {
            assert_eq!((names_a_process(OsStr::new(path)), id_of(OsStr::new(path))), (process, id), "{path}");
        }
    }

    #[test]
    fn our_own_are_collected() {
        for name in ["status", "maps", "mem", "environ", "auxv", "fd", "task", "", "net/tcp", "mountinfo", "cmdline"] {
            let file = File::open(format!("/proc/self/{name}")).unwrap();
            let record: ProcessFileRecord = collect(&[file.as_fd()]).unwrap().record(0);
            let path = format!("/proc/{}/{name}", std::process::id());
            assert_eq!(String::from_utf8(record.path).unwrap(), path.trim_end_matches('/'));
        }
    }

    #[test]
    fn another_process_is_refused() {
        let child = program();
        let file = File::open(format!("/proc/{}/status", child.id())).unwrap();
        let refused = refusal(&file);
        assert!(refused.contains(&format!("looks into pid {}, which", child.id())), "{refused}");
        ended(child);
        let refused = refusal(&file);
        assert!(refused.contains("that has ended") && refused.contains("ESRCH"), "{refused}");
    }

    /// As it is once another process has the number: the name leads to another inode.
    #[test]
    fn files_tell_themselves_that_their_process_has_ended() {
        let child = program();
        let names = ["status", "stat", "maps", "mem", "cmdline", "map_files", "task", "", "io"];
        let files = names.map(|name| File::open(format!("/proc/{}/{name}", child.id())).unwrap());
        let look = |file: &File| with_descriptor(file.as_fd(), look_into);
        for (name, file) in names.iter().zip(&files) {
            let there = look(file);
            assert!(there.is_ok() || there.as_ref().is_err_and(|e| e.raw_os_error() == Some(libc::EIO)), "{name}: {there:?}");
        }
        ended(child);
        for (name, file) in names.iter().zip(&files) {
            assert!(look(file).is_err_and(|error| is_gone(&error)), "{name} does not tell");
        }
    }

    #[test]
    fn memory_from_before_exec() {
        // The shell opens its own files, and becomes another program.
        let script =
            "exec 3</proc/$$/maps 4</proc/$$/environ 5</proc/$$/auxv 6</proc/$$/mem 7</proc/$$/status; echo; exec sleep 1000";
        let mut child = Command::new("sh").args(["-c", script]).env("A", "b").stdout(Stdio::piped()).spawn().unwrap();
        let pid = Pid(child.id() as i32);
        let is_sleep = || fs::read(format!("/proc/{pid}/comm")).is_ok_and(|name| name == b"sleep\n");
        while !is_sleep() {
            std::thread::yield_now();
        }
        for (fd, what) in [(3, "maps"), (4, "environ"), (5, "auxv"), (6, "mem")] {
            let present = super::super::fd_trial::look_at(pid, fd, |d| is_present_memory(d, what.as_bytes()).unwrap());
            assert!(!present, "{what} is of the memory of sh");
        }
        let refused = super::super::fd_trial::collect_with(&Default::default(), pid, &[3]).map(drop).unwrap_err().to_string();
        assert!(refused.contains("before it executed another program"), "{refused}");
        super::super::fd_trial::collect_with(&Default::default(), pid, &[7]).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
