//! What is refused of a process as a whole, before it is touched.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use super::task::Subject;
use super::{Collector, cpu, fanotify, fs_state, lsm, machine, task_registry, tcp_sockets, terminals};
use crate::error::{Doing, Error, Refusal, Result};
use crate::ids::{Pid, Tid};
use crate::sys::status::Status;
use crate::sys::{parallel, pidfd, procfs, ptrace};
use crate::tracee::freeze::{self, FrozenProcess};
use crate::tracee::tree::{FrozenTree, members};

/// Namespaces that a process may have for itself without its state depending on them being made again.
const HARMLESS_NAMESPACES: &[&str] = &["cgroup", "pid_for_children", "time_for_children"];

/// Checks what can be seen of the tree below `root` without stopping it; what stands against it is added to `refusals`. Returns those of its members that
/// can be looked at closer.
pub fn tree(root: Pid, refusals: &mut Vec<Refusal>) -> Result<Vec<Pid>> {
    match self::root(root) {
        // Of what is no process that can be saved, there is nothing more to tell.
        Err(Error::Refused(refusal)) => {
            refusals.push(refusal);
            return Ok(Vec::new());
        }
        other => other?,
    }
    while_it_lives(root, || {
        let mut open = Vec::new();
        for member in members(root)?.into_iter().filter(|member| !member.dead) {
            match process(member.pid, refusals) {
                // It has ended meanwhile.
                Err(_) if member.pid != root && procfs::is_ending(member.pid) => {}
                other => open.extend(other?.then_some(member.pid)),
            }
        }
        tcp_sockets::prepare(&open);
        Ok(open)
    })
}

/// The same for processes that have come since: those of a tree that stands still now, but for `checked`.
pub fn newcomers(tree: &FrozenTree, checked: &[Pid]) -> Result<()> {
    let mut refusals = Vec::new();
    for pid in tree.pids().into_iter().filter(|pid| !checked.contains(pid)) {
        program(pid, &mut refusals)?;
        namespaces(pid, &mut refusals)?;
    }
    if refusals.is_empty() { Ok(()) } else { Err(Error::RefusedAll(refusals)) }
}

/// Can it be the root of a tree?
fn root(pid: Pid) -> Result<()> {
    let stat = match procfs::stat(pid) {
        Err(Error::Gone(_)) => {
            return Err(Error::Unexpected(format!("cannot checkpoint pid {pid}: there is no such process")));
        }
        other => other?,
    };
    const PF_KTHREAD: u32 = 0x0020_0000;
    if stat.flags & PF_KTHREAD != 0 {
        return Err(refused(pid, "the process", "is a thread of the kernel", "name a process"));
    }
    if procfs::is_dead(stat.state) && only_dead_threads(pid)? {
        let reason = "has ended and waits for its parent to collect its status";
        return Err(refused(pid, "the process", reason, "name a running process"));
    }
    let status = procfs::status(pid, pid.leader())?;
    if status.tgid != pid.0 {
        let reason = format!("is a thread of process {}", status.tgid);
        return Err(refused(pid, "this number", &reason, "name the process, whose threads are all saved with it"));
    }
    if pid.0 == 1 {
        let reason = "is the init of this pid namespace, whose place no restarted process can take";
        return Err(refused(pid, "the process", reason, "name another process"));
    }
    Ok(())
}

/// What stands against one process of a tree. Can it be looked at closer?
fn process(pid: Pid, refusals: &mut Vec<Refusal>) -> Result<bool> {
    if pid.0 == std::process::id() as i32 {
        refusals.push(refusal(pid, "the process", "is ckpt itself", "name another pid, of which ckpt is no descendant"));
        return Ok(false);
    }
    if procfs::has_died(pid, pid.leader()) {
        if !procfs::is_ending(pid)
            && let Error::Refused(refusal) = freeze::main_thread_has_ended(pid)
        {
            refusals.push(refusal);
        }
        return Ok(false);
    }
    terminals::prepare(pid);
    program(pid, refusals)?;
    tracers(pid, refusals)?;
    namespaces(pid, refusals)?;
    let asking = fanotify::that_ask(pid)?.into_iter();
    refusals.extend(asking.map(|fd| refusal(pid, fanotify::name(fd), fanotify::ASKS, fanotify::CLOSE)));
    Ok(true)
}

/// Are all threads that are left dead? The main thread may end before the others.
fn only_dead_threads(pid: Pid) -> Result<bool> {
    Ok(freeze::threads(pid)?.into_iter().all(|tid| procfs::has_died(pid, tid)))
}

/// What the threads of a process that is killed take at most to end.
const ENDING: Duration = Duration::from_millis(500);

/// Does the work on a running process. If that fails because the process ends meanwhile, its end is what is told, not what it led to.
pub fn while_it_lives<T>(pid: Pid, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let process = match pidfd::open(pid) {
        Err(e) if e.raw_os_error() == Some(libc::ESRCH) => return Err(Error::Gone(pid)),
        other => other.doing(|| format!("cannot get a handle of pid {pid}"))?,
    };
    work().map_err(|error| {
        let is_there = pidfd::exists(process.as_fd()) && !procfs::is_ending(pid);
        // Of threads on their way from the signal that kills them to their end, nothing tells. If the main thread has ended, that may be why.
        let ends = || pidfd::ends_within(process.as_fd(), ENDING).unwrap_or(false);
        if is_there && !(procfs::has_died(pid, pid.leader()) && ends()) {
            return error;
        }
        tracing::debug!("pid {pid} has ended; what that led to: {error}");
        Error::Gone(pid)
    })
}

fn refusal(pid: Pid, object: impl Into<String>, reason: &str, advice: &str) -> Refusal {
    Refusal { pid, object: object.into(), reason: reason.to_owned(), advice: advice.to_owned(), passing: false }
}

fn refused(pid: Pid, object: &str, reason: &str, advice: &str) -> Error {
    Error::Refused(refusal(pid, object, reason, advice))
}

/// ELF's EI_CLASS: where it stands, and the one that we know.
const EI_CLASS: usize = 4;
const ELFCLASS64: u8 = 2;

fn program(pid: Pid, refusals: &mut Vec<Refusal>) -> Result<()> {
    let doing = || format!("cannot read the program of pid {pid}");
    let mut head = [0; EI_CLASS + 1];
    File::open(format!("/proc/{pid}/exe")).and_then(|file| file.read_exact_at(&mut head, 0)).doing(doing)?;
    if head[EI_CLASS] != ELFCLASS64 {
        refusals.push(refusal(pid, "the process", "runs a 32-bit program", "use a 64-bit build of it"));
    }
    Ok(())
}

fn tracers(pid: Pid, refusals: &mut Vec<Refusal>) -> Result<()> {
    for tid in freeze::threads(pid)? {
        match procfs::status(pid, tid) {
            Ok(status) if status.tracerpid != 0 => {
                let name = fs::read_to_string(format!("/proc/{}/comm", status.tracerpid)).unwrap_or_default();
                let tracer = format!("pid {} ({})", status.tracerpid, name.trim());
                let reason = format!("is being traced by {tracer}, and there can be only one tracer");
                refusals.push(refusal(pid, format!("thread {tid}"), &reason, "end that, or have it detach, first"));
            }
            Ok(status) => lsm::prepare(&status)?,
            // The thread has ended meanwhile.
            Err(Error::Gone(_)) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn namespaces(pid: Pid, refusals: &mut Vec<Refusal>) -> Result<()> {
    let ours = machine::namespaces(Pid(std::process::id() as i32))?;
    for (kind, inode) in machine::namespaces(pid)? {
        let same = ours.iter().any(|(of, n)| *of == kind && *n == inode);
        if !same && !HARMLESS_NAMESPACES.contains(&kind.as_str()) {
            let object = format!("its {kind} namespace");
            let advice = format!("run ckpt inside it: nsenter --target {pid} --all ckpt ...");
            refusals.push(refusal(pid, object, "is not the one that ckpt runs in", &advice));
        }
    }
    Ok(())
}

/// Checks what the threads have beyond memory and descriptors, as far as that can be seen without stopping them.
pub fn directories(cx: &mut Collector<'_>, pid: Pid) -> Result<()> {
    for tid in freeze::threads(pid)? {
        let checked = procfs::status(pid, tid).and_then(|status| {
            let who = Subject { pid, tid, status: &status };
            cx.attempt(|cx| fs_state::check(cx, &who))
        });
        match checked {
            // The thread has ended meanwhile.
            Err(_) if tid != pid.leader() && procfs::has_died(pid, tid) => {}
            other => drop(other?),
        }
    }
    Ok(())
}

/// The status of each thread of these processes.
pub fn statuses(processes: &[FrozenProcess]) -> Result<Vec<Vec<Status>>> {
    /// So many are worth a thread: each takes some ten microseconds.
    const LEAST: usize = 16;
    let all: Vec<(Pid, Tid)> =
        processes.iter().flat_map(|process| &process.threads).map(|thread| (thread.pid, thread.tid)).collect();
    let read = |some: &[(Pid, Tid)]| some.iter().map(|&(pid, tid)| procfs::status(pid, tid)).collect();
    let mut read = parallel::gather(&all, LEAST, read)?.into_iter();
    Ok(processes.iter().map(|process| read.by_ref().take(process.threads.len()).collect()).collect())
}

/// Checks the stopped threads, and prepares those with system call filters for remote calls.
pub fn threads(cx: &mut Collector<'_>, frozen: &FrozenProcess, statuses: &[Status]) -> Result<()> {
    let pid = frozen.pid;
    for (thread, status) in frozen.threads.iter().zip(statuses) {
        let tid = thread.tid;
        cx.attempt(|_| cpu::check(thread))?;
        let who = Subject { pid, tid, status };
        cx.attempt(|_| task_registry::check(&who))?;
        cx.attempt(|cx| fs_state::check(cx, &who))?;
        cx.attempt(|cx| {
            if status.seccomp == Some(0) {
                return Ok(());
            }
            // The filter might kill the thread for a call that the program never makes: it sleeps while we look.
            match ptrace::set_options(tid, libc::PTRACE_O_TRACESYSGOOD | ptrace::O_SUSPEND_SECCOMP) {
                Ok(()) => Ok(()),
                Err(e) if matches!(e.raw_os_error(), Some(libc::EPERM | libc::EINVAL)) => cx.refuse(
                    pid,
                    format!("thread {tid}"),
                    "runs under a seccomp filter, which only root may suspend while the thread is looked at",
                    "run ckpt as root",
                ),
                Err(e) => Err(e).doing(|| format!("cannot suspend the seccomp filter of thread {tid}")),
            }
        })?;
    }
    Ok(())
}
