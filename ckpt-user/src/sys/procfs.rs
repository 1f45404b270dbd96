//! What /proc tells of a process, through the `procfs` crate where it knows, by our own parsers where it does not.

pub use procfs::process::Stat;

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::BorrowedFd;
use std::path::Path;

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use procfs::FromRead;
use procfs::process::Process;

use super::status::Status;
use super::task_file;
use crate::error::{Doing, Error, Result};
use crate::ids::{Pid, Tid};

/// A file of /proc, whole. As [`std::fs::read`], but with room from the beginning: such files do not tell their size, and each read has the kernel write them
/// anew.
pub fn read(path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
    read_whole(File::open(path)?)
}

/// The same of a file that holds text.
pub fn read_text(path: impl AsRef<Path>) -> io::Result<String> {
    text(read(path)?)
}

/// The same of a file in an open folder.
pub fn read_text_in(folder: BorrowedFd<'_>, name: &str) -> io::Result<String> {
    let file = openat(folder, name, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    text(read_whole(file.into())?)
}

fn read_whole(file: File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(8 << 10);
    file.take(u64::MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn text(bytes: Vec<u8>) -> io::Result<String> {
    String::from_utf8(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

/// Does an error in a file or folder of /proc/PID say that the process, thread or descriptor has gone? Who looks a name up there meets ESRCH once the
/// process has ended, ENOENT once its entry has gone, too.
pub fn is_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH))
}

/// /proc/PID/task/TID/status.
pub fn status(pid: Pid, tid: Tid) -> Result<Status> {
    let bytes = task_file::read(pid, tid, "status")?.ok_or(Error::Gone(pid))?;
    Status::parse(&bytes).ok_or_else(|| Error::Unexpected(format!("the status of thread {tid} of pid {pid} makes no sense")))
}

/// /proc/PID/stat.
pub fn stat(pid: Pid) -> Result<Stat> {
    let doing = || format!("cannot read the state of pid {pid}");
    let bytes = match read(format!("/proc/{pid}/stat")) {
        Err(error) if is_gone(&error) => return Err(Error::Gone(pid)),
        other => other.doing(doing)?,
    };
    Stat::from_read(bytes.as_slice()).map_err(|error| from_procfs(pid, error, doing))
}

/// /proc/PID/limits.
pub fn limits(pid: Pid) -> Result<procfs::process::Limits> {
    let limits = Process::new(pid.0).and_then(|p| p.limits());
    limits.map_err(|error| from_procfs(pid, error, || format!("cannot read the limits of pid {pid}")))
}

/// The letter of a thread's state ('R', 'S', 'D', 'T', 't', 'Z', ...). `None`: there is no such thread.
pub fn thread_state(pid: Pid, tid: Tid) -> Option<char> {
    let stat = task_file::read(pid, tid, "stat").ok()??;
    // After the name, which may hold any bytes, in parentheses.
    let name_ends = stat.iter().rposition(|&byte| byte == b')')?;
    stat.get(name_ends + 2).map(|&state| state.into())
}

/// Is that the letter of a thread that has ended?
pub fn is_dead(state: char) -> bool {
    matches!(state, 'Z' | 'X')
}

/// Has the thread ended, whether its tracer and its parent were told or not?
pub fn has_died(pid: Pid, tid: Tid) -> bool {
    thread_state(pid, tid).is_none_or(is_dead)
}

/// Has the process ended, or is every thread of it on its way to the end?
pub fn is_ending(pid: Pid) -> bool {
    let tasks = Process::new(pid.0).and_then(|p| p.tasks());
    tasks.map_or(true, |mut tasks| tasks.all(|task| task.map_or(true, |task| is_thread_ending(&task))))
}

fn is_thread_ending(task: &procfs::process::Task) -> bool {
    /// include/linux/sched.h: getting shut down.
    const PF_EXITING: u32 = 4;
    const KILLED: u64 = 1 << (libc::SIGKILL - 1);
    // What is gone meanwhile has ended.
    task.stat().map_or(true, |stat| is_dead(stat.state) || stat.flags & PF_EXITING != 0)
        || task.status().map_or(true, |status| status.sigpnd & KILLED != 0)
}

/// Bytes of memory that can be had without swapping ("MemAvailable" in /proc/meminfo). `None`: the kernel does not tell.
pub fn available_memory() -> Option<u64> {
    use procfs::Current;
    procfs::Meminfo::current().ok()?.mem_available
}

/// A system call in progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Syscall {
    /// Which.
    pub number: i64,
    /// The registers for arguments, in their order.
    pub arguments: [u64; 6],
}

/// The system call that a thread is waiting in. `None`: it runs, or is in none.
pub fn syscall(pid: Pid, tid: Tid) -> Option<Syscall> {
    parse_syscall(&read_text(format!("/proc/{pid}/task/{tid}/syscall")).ok()?)
}

/// "running", "-1 0x7ffd... 0x7f..." or "230 0x0 ...", with six arguments, the stack pointer and the instruction pointer.
fn parse_syscall(text: &str) -> Option<Syscall> {
    let mut words = text.split_whitespace();
    let number = words.next()?.parse().ok().filter(|&number: &i64| number >= 0)?;
    let mut arguments = [0; 6];
    for argument in &mut arguments {
        *argument = u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok()?;
    }
    Some(Syscall { number, arguments })
}

/// The processor that a thread last ran on.
pub fn last_processor(pid: Pid, tid: Tid) -> Option<u32> {
    let stat = Process::new(pid.0).and_then(|p| p.task_from_tid(tid.0)).and_then(|t| t.stat()).ok()?;
    stat.processor?.try_into().ok()
}

fn from_procfs(pid: Pid, error: procfs::ProcError, doing: impl FnOnce() -> String) -> Error {
    match error {
        procfs::ProcError::NotFound(_) => Error::Gone(pid),
        procfs::ProcError::PermissionDenied(_) => Error::os(doing(), std::io::Error::from_raw_os_error(libc::EACCES)),
        procfs::ProcError::Io(source, _) if is_gone(&source) => Error::Gone(pid),
        procfs::ProcError::Io(source, _) => Error::os(doing(), source),
        other => Error::Unexpected(format!("{}: {other}", doing())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_in_progress_are_told_with_their_arguments() {
        let call = parse_syscall("232 0x4 0x7ffe 0x80 0xffffffff 0x0 0x8 0x7ffe10 0x7f01\n").unwrap();
        assert_eq!(call, Syscall { number: libc::SYS_epoll_wait, arguments: [4, 0x7ffe, 0x80, 0xffff_ffff, 0, 8] });
        for none in ["running\n", "-1 0x7ffe10 0x7f01\n", "232 0x4\n", ""] {
            assert_eq!(parse_syscall(none), None);
        }
    }
}
