//! The system calls in which `waiter` waits, and what each must return however often its thread was stopped, saved and brought back.

use std::time::Duration;

/// When the call returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// [`TIME`] of running: while the process does not exist, no time passes for it.
    TimeSpent,
    /// [`TIME`] after the start at the earliest. Whether a time in which the process does not exist counts is not said.
    Moment,
    /// Another thread makes it return, once the program gets SIGUSR1.
    Woken,
}

/// How long the calls with a time-out wait.
pub const TIME: Duration = Duration::from_secs(4);

/// A way to wait.
#[derive(Clone, Copy, Debug)]
pub struct Wait {
    /// The argument of `waiter`.
    pub name: &'static str,
    /// When the call returns.
    pub until: Until,
    /// What it returns: a result, or a negative error number.
    pub result: i64,
    /// The number of the system call.
    pub number: i64,
}

const fn wait(name: &'static str, until: Until, result: i64, number: i64) -> Wait {
    Wait { name, until, result, number }
}

const TIMED_OUT: i64 = -(libc::ETIMEDOUT as i64);
const AGAIN: i64 = -(libc::EAGAIN as i64);
/// What a call returns that a handler has interrupted.
pub const INTERRUPTED: i64 = -(libc::EINTR as i64);

/// Every way in which nothing is noticed.
pub const WAITS: &[Wait] = &[
    wait("nanosleep", Until::TimeSpent, 0, libc::SYS_nanosleep),
    wait("nanosleep-same", Until::TimeSpent, 0, libc::SYS_nanosleep),
    wait("nanosleep-null", Until::TimeSpent, 0, libc::SYS_nanosleep),
    wait("clock_nanosleep", Until::TimeSpent, 0, libc::SYS_clock_nanosleep),
    wait("clock_nanosleep-boottime", Until::TimeSpent, 0, libc::SYS_clock_nanosleep),
    wait("futex-timeout", Until::TimeSpent, TIMED_OUT, libc::SYS_futex),
    wait("poll-timeout", Until::TimeSpent, 0, libc::SYS_poll),
    wait("ppoll-timeout", Until::TimeSpent, 0, libc::SYS_ppoll),
    wait("select-timeout", Until::TimeSpent, 0, libc::SYS_select),
    wait("pselect-timeout", Until::TimeSpent, 0, libc::SYS_pselect6),
    wait("epoll_wait-timeout", Until::TimeSpent, 0, libc::SYS_epoll_wait),
    wait("epoll_pwait-timeout", Until::TimeSpent, 0, libc::SYS_epoll_pwait),
    wait("epoll_pwait2-timeout", Until::TimeSpent, 0, libc::SYS_epoll_pwait2),
    wait("timerfd", Until::TimeSpent, 8, libc::SYS_read),
    wait("clock_nanosleep-absolute", Until::Moment, 0, libc::SYS_clock_nanosleep),
    wait("futex-absolute", Until::Moment, TIMED_OUT, libc::SYS_futex),
    wait("futex-realtime", Until::Moment, TIMED_OUT, libc::SYS_futex),
    wait("futex", Until::Woken, 0, libc::SYS_futex),
    wait("futex-pi", Until::Woken, 0, libc::SYS_futex),
    wait("poll", Until::Woken, 1, libc::SYS_poll),
    wait("ppoll", Until::Woken, 1, libc::SYS_ppoll),
    wait("select", Until::Woken, 1, libc::SYS_select),
    wait("pselect", Until::Woken, 1, libc::SYS_pselect6),
    wait("epoll_wait", Until::Woken, 1, libc::SYS_epoll_wait),
    wait("epoll_pwait", Until::Woken, 1, libc::SYS_epoll_pwait),
    wait("read-pipe", Until::Woken, 1, libc::SYS_read),
    wait("readv-pipe", Until::Woken, 1, libc::SYS_readv),
    wait("write-pipe", Until::Woken, 4096, libc::SYS_write),
    wait("read-eventfd", Until::Woken, 8, libc::SYS_read),
    wait("read-signalfd", Until::Woken, 128, libc::SYS_read),
    wait("read-inotify", Until::Woken, 32, libc::SYS_read),
    wait("recvfrom", Until::Woken, 1, libc::SYS_recvfrom),
    wait("recvmsg", Until::Woken, 1, libc::SYS_recvmsg),
    wait("accept", Until::Woken, 0, libc::SYS_accept4),
    wait("open-fifo", Until::Woken, 0, libc::SYS_openat),
    wait("flock", Until::Woken, 0, libc::SYS_flock),
    wait("fcntl-lock", Until::Woken, 0, libc::SYS_fcntl),
    wait("pause", Until::Woken, INTERRUPTED, libc::SYS_pause),
    wait("sigsuspend", Until::Woken, INTERRUPTED, libc::SYS_rt_sigsuspend),
    wait("sigwaitinfo", Until::Woken, libc::SIGUSR2 as i64, libc::SYS_rt_sigtimedwait),
];

/// Calls that the kernel ends with EINTR whenever their thread is stopped (signal(7)), with a time-out in memory that only the
/// program may change, and no other call that does the same: they may be interrupted, but not wait for another time or return anything else.
pub const ENDED_BY_A_STOP: &[Wait] = &[wait("sigtimedwait-timeout", Until::TimeSpent, AGAIN, libc::SYS_rt_sigtimedwait)];
