//! What is refused of a process as a whole, before it is touched.

use std::fs;

use super::{Collector, machine};
use crate::error::{Doing, Error, Refusal, Result};
use crate::ids::Pid;
use crate::sys::{procfs, ptrace};
use crate::tracee::freeze::{self, FrozenProcess};

/// Namespaces that a process may have for itself without its state depending on them being made again.
const HARMLESS_NAMESPACES: &[&str] = &["cgroup", "pid_for_children", "time_for_children"];

/// Checks what can be seen without stopping the process.
pub fn process(pid: Pid) -> Result<()> {
    if pid.0 == std::process::id() as i32 {
        return Err(refused(pid, "the process", "is ckpt itself", "name another pid"));
    }
    let stat = match procfs::stat(pid) {
        Err(Error::Gone(_)) => {
            return Err(Error::os(format!("cannot checkpoint pid {pid}"), std::io::Error::from_raw_os_error(libc::ESRCH)));
        }
        other => other?,
    };
    const PF_KTHREAD: u32 = 0x0020_0000;
    if stat.flags & PF_KTHREAD != 0 {
        return Err(refused(pid, "the process", "is a thread of the kernel", "name a process"));
    }
    if stat.state == 'Z' {
        return Err(refused(
            pid,
            "the process",
            "has ended and waits for its parent to collect its status",
            "name a running process",
        ));
    }
    let mut refusals = Vec::new();
    namespaces(pid, &mut refusals)?;
    children(pid, &mut refusals)?;
    if refusals.is_empty() { Ok(()) } else { Err(Error::RefusedAll(refusals)) }
}

fn refusal(pid: Pid, object: impl Into<String>, reason: &str, advice: &str) -> Refusal {
    Refusal { pid, object: object.into(), reason: reason.to_owned(), advice: advice.to_owned() }
}

fn refused(pid: Pid, object: &str, reason: &str, advice: &str) -> Error {
    Error::Refused(refusal(pid, object, reason, advice))
}

fn namespaces(pid: Pid, refusals: &mut Vec<Refusal>) -> Result<()> {
    let ours = machine::container(Pid(std::process::id() as i32))?.namespaces;
    for (kind, inode) in machine::container(pid)?.namespaces {
        let same = ours.iter().any(|(of, n)| *of == kind && *n == inode);
        if !same && !HARMLESS_NAMESPACES.contains(&kind.as_str()) {
            let object = format!("its {kind} namespace");
            let advice = format!("run ckpt inside it: nsenter --target {pid} --all ckpt ...");
            refusals.push(refusal(pid, object, "is not the one that ckpt runs in", &advice));
        }
    }
    Ok(())
}

fn children(pid: Pid, refusals: &mut Vec<Refusal>) -> Result<()> {
    for tid in freeze::threads(pid)? {
        let path = format!("/proc/{pid}/task/{tid}/children");
        let list = match fs::read_to_string(&path) {
            // The thread has ended meanwhile.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => continue,
            other => other.doing(|| format!("cannot list the children of pid {pid}"))?,
        };
        for child in list.split_whitespace() {
            let name = fs::read_to_string(format!("/proc/{child}/comm")).unwrap_or_default();
            refusals.push(refusal(
                pid,
                format!("its child {child} ({})", name.trim()),
                "belongs to it, and ckpt saves single processes so far",
                "wait until it has ended, or checkpoint the child alone",
            ));
        }
    }
    Ok(())
}

/// Checks the stopped threads, and prepares those with system call filters for remote calls.
pub fn threads(cx: &mut Collector<'_>, frozen: &FrozenProcess) -> Result<()> {
    let pid = frozen.pid;
    for thread in &frozen.threads {
        let tid = thread.tid;
        cx.attempt(|cx| {
            if procfs::status(pid, tid)?.seccomp == Some(0) {
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
