//! Standing in for a child: what has become of it, whatever signal it was, and ending as it ended.

use std::io;
use std::mem::MaybeUninit;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::ptr::null_mut;

use nix::sys::signal::SigSet;

use crate::ids::{Pid, Tid};

/// What has become of a child.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It ended by itself, with this status.
    Exited(i32),
    /// A signal ended it.
    Killed(i32),
    /// It was stopped by this signal.
    Stopped(i32),
    /// It goes on after a stop.
    Continued,
}

/// The next change of a child that was not told yet, without waiting for one.
pub fn poll(pid: Pid) -> io::Result<Option<Change>> {
    let mut status = 0;
    // SAFETY: `status` outlives the call.
    match unsafe { libc::waitpid(pid.0, &raw mut status, libc::WNOHANG | libc::WUNTRACED | libc::WCONTINUED) } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(None),
        _ => Ok(Some(decode(status))),
    }
}

/// Waits for the next change of a task that we wait for, be it our child or traced by us, and takes none of it away. `Some`: it has ended, with this
/// wait status. `flags`: those of waitpid(2).
pub(super) fn peek_end(tid: Tid, flags: i32) -> io::Result<Option<i32>> {
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    let flags = flags | libc::WEXITED | libc::WSTOPPED | libc::WNOWAIT;
    // SAFETY: `info` outlives the call.
    if unsafe { libc::waitid(libc::P_PID, tid.0 as libc::id_t, info.as_mut_ptr(), flags) } < 0 {
        let error = io::Error::last_os_error();
        return if error.kind() == io::ErrorKind::Interrupted { Ok(None) } else { Err(error) };
    }
    // SAFETY: it was zeroed, which is a valid value, and then maybe filled in by the kernel.
    let info = unsafe { info.assume_init() };
    // SAFETY: for SIGCHLD, or zeros, these fields are there.
    let (status, code) = (unsafe { info.si_status() }, info.si_code);
    Ok(match code {
        libc::CLD_EXITED => Some((status & 0xff) << 8),
        libc::CLD_KILLED | libc::CLD_DUMPED => Some(status),
        _ => None,
    })
}

/// Waits for a child that does one thing, and ends with 0 or else with the errno that tells why not.
pub(super) fn answer(pid: Pid) -> io::Result<()> {
    let mut status = 0;
    // SAFETY: `status` outlives the calls.
    while unsafe { libc::waitpid(pid.0, &raw mut status, libc::__WALL) } < 0 {
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    match libc::WEXITSTATUS(status) {
        0 if libc::WIFEXITED(status) => Ok(()),
        errno if libc::WIFEXITED(status) => Err(io::Error::from_raw_os_error(errno)),
        _ => Err(io::Error::other("the process that was to do it was killed")),
    }
}

/// Is it a process whose parent we are? The end of one of its other threads is of interest to its tracer alone.
pub(super) fn is_ours(tid: Tid) -> bool {
    let status = procfs::process::Process::new(tid.0).and_then(|process| process.status());
    status.is_ok_and(|status| status.ppid == std::process::id() as i32 && status.tgid == tid.0)
}

/// Is the child stopped by job control at this moment?
pub fn is_stopped(pid: Pid) -> bool {
    super::procfs::thread_state(pid, pid.leader()) == Some('T')
}

/// Starts a command whose signal mask is `mask`, whatever ours is.
pub fn spawn_with_mask(command: &mut Command, mask: SigSet) -> io::Result<Pid> {
    // SAFETY: sigprocmask(2) is a plain system call, which may be made between fork and exec.
    unsafe { command.pre_exec(move || mask.thread_set_mask().map_err(io::Error::from)) };
    command.spawn().map(|child| Pid(child.id() as i32))
}

fn decode(status: i32) -> Change {
    if libc::WIFSTOPPED(status) {
        Change::Stopped(libc::WSTOPSIG(status))
    } else if libc::WIFCONTINUED(status) {
        Change::Continued
    } else if libc::WIFSIGNALED(status) {
        Change::Killed(libc::WTERMSIG(status))
    } else {
        Change::Exited(libc::WEXITSTATUS(status))
    }
}

/// Ends this process by `signal`, without a core dump: so that whoever waits for it learns what its child died of.
pub fn die_by(signal: i32) -> ! {
    let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: plain numbers, and structs that outlive the calls; zero is a valid sigaction (the default) and `sigemptyset` makes the
    // set one. Should the signal not be fatal after all, the status is the one that shells use for it.
    unsafe {
        libc::setrlimit(libc::RLIMIT_CORE, &raw const none);
        libc::prctl(libc::PR_SET_DUMPABLE, 0);
        let action: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal, &raw const action, null_mut());
        let mut set = MaybeUninit::uninit();
        libc::sigemptyset(set.as_mut_ptr());
        libc::sigaddset(set.as_mut_ptr(), signal);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, set.as_ptr(), null_mut());
        libc::raise(signal);
        libc::_exit(128 + signal)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wait_statuses_mean_what_they_say() {
        assert_eq!(decode(0x0300), Change::Exited(3));
        assert_eq!(decode(0x0009), Change::Killed(9));
        assert_eq!(decode(0x0080 | 11), Change::Killed(11));
        assert_eq!(decode(64), Change::Killed(64));
        assert_eq!(decode(0x137f), Change::Stopped(19));
        assert_eq!(decode(0xffff), Change::Continued);
    }
}
