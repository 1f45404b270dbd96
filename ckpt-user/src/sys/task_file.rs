//! The small files of /proc/PID and /proc/PID/task/TID that hold one value each.

use std::fs;
use std::io;

use super::procfs;
use crate::error::{Doing, Error, Result};
use crate::ids::{Pid, Tid};

/// The path of a thread's own file.
pub fn path(pid: Pid, tid: Tid, name: &str) -> String {
    format!("/proc/{pid}/task/{tid}/{name}")
}

/// Reads a thread's file; `None` when this kernel has no such file. [`Error::Gone`] when there is no such thread any more.
pub fn read(pid: Pid, tid: Tid, name: &str) -> Result<Option<Vec<u8>>> {
    let error = match procfs::read(path(pid, tid, name)) {
        Ok(bytes) => return Ok(Some(bytes)),
        Err(error) => error,
    };
    match error.raw_os_error() {
        Some(libc::ESRCH) => Err(Error::Gone(pid)),
        Some(libc::ENOENT) if !fs::exists(path(pid, tid, "stat")).unwrap_or(false) => Err(Error::Gone(pid)),
        Some(libc::ENOENT) => Ok(None),
        _ => Err(Error::os(format!("cannot read {}", path(pid, tid, name)), error)),
    }
}

/// The same for a file that every kernel has and that holds one line of text, without its newline.
pub fn read_line(pid: Pid, tid: Tid, name: &str) -> Result<String> {
    let bytes = read(pid, tid, name)?;
    let line = bytes.and_then(|bytes| String::from_utf8(bytes).ok());
    let line = line.ok_or_else(|| Error::Unexpected(format!("{} holds no line of text", path(pid, tid, name))))?;
    Ok(line.trim_end_matches('\n').to_owned())
}

/// Writes a file of the process.
pub fn write(pid: Pid, name: &str, value: &str) -> io::Result<()> {
    fs::write(format!("/proc/{pid}/{name}"), value)
}

/// Inode of a namespace ("user", "mnt", ...) of a process.
pub fn namespace(pid: Pid, kind: &str) -> Result<u64> {
    use std::os::unix::fs::MetadataExt;
    let metadata = fs::metadata(format!("/proc/{pid}/ns/{kind}"));
    Ok(metadata.doing(|| format!("cannot read the {kind} namespace of pid {pid}"))?.ino())
}
