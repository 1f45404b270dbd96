//! Descriptors that stand for events: eventfd, timerfd, signalfd, epoll, pidfd.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::time::Duration;

use ckpt_tests::checks::{Checks, said, same};
use ckpt_tests::sys::{pidfd, raw};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use super::{Made, boxed};

/// Makes them.
pub fn add(checks: &mut Checks) {
    checks.add("eventfd", eventfd());
    checks.add("eventfd-semaphore", semaphore());
    for (name, clock) in CLOCKS {
        checks.add(&format!("timerfd-{name}"), timerfd(*clock));
    }
    checks.add("timerfd-absolute", timerfd_absolute());
    checks.add("timerfd-expired", timerfd_expired());
    checks.add("timerfd-disarmed", timerfd_disarmed());
    checks.add("signalfd", signalfd());
    checks.add("epoll", epoll());
    checks.add("epoll-nested", epoll_nested());
    checks.add("epoll-duplicate", epoll_duplicate());
    checks.add("pidfd", own_pidfd());
}

const CLOCKS: &[(&str, ClockId)] =
    &[("monotonic", ClockId::CLOCK_MONOTONIC), ("realtime", ClockId::CLOCK_REALTIME), ("boottime", ClockId::CLOCK_BOOTTIME)];

fn eventfd() -> Made {
    let event = EventFd::from_value_and_flags(41, EfdFlags::EFD_NONBLOCK)?;
    event.write(1)?;
    boxed(move || {
        same("count", said("read", event.read())?, 42)?;
        same("then empty", event.read(), Err(nix::errno::Errno::EAGAIN))?;
        said("write", event.write(42)).map(drop)
    })
}

fn semaphore() -> Made {
    let event = EventFd::from_value_and_flags(2, EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_SEMAPHORE)?;
    boxed(move || {
        same("one", said("read", event.read())?, 1)?;
        same("two", said("read", event.read())?, 1)?;
        same("then empty", event.read(), Err(nix::errno::Errno::EAGAIN))?;
        said("write", event.write(2)).map(drop)
    })
}

/// A long time and then in turns: the time that is left only shrinks.
fn timerfd(clock: ClockId) -> Made {
    let timer = TimerFd::new(clock, TimerFlags::TFD_NONBLOCK)?;
    let (first, interval) = (Duration::from_secs(1000), Duration::from_millis(12_345));
    timer.set(Expiration::IntervalDelayed(first.into(), interval.into()), TimerSetTimeFlags::empty())?;
    boxed(move || match said("timerfd_gettime", timer.get())? {
        Some(Expiration::IntervalDelayed(left, then)) => {
            same("interval", Duration::from(then), interval)?;
            let left = Duration::from(left);
            same(&format!("{left:?} is left of {first:?}"), left <= first && left > Duration::from_secs(900), true)
        }
        other => Err(format!("set to {other:?}")),
    })
}

fn timerfd_absolute() -> Made {
    let timer = TimerFd::new(ClockId::CLOCK_REALTIME, TimerFlags::TFD_NONBLOCK)?;
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_REALTIME)?;
    let at = nix::sys::time::TimeSpec::new(now.tv_sec() + 1000, 0);
    timer.set(Expiration::OneShot(at), TimerSetTimeFlags::TFD_TIMER_ABSTIME)?;
    boxed(move || match said("timerfd_gettime", timer.get())? {
        Some(Expiration::OneShot(left)) => {
            let left = Duration::from(left);
            same(&format!("{left:?} is left"), left <= Duration::from_secs(1000) && left > Duration::from_secs(900), true)
        }
        other => Err(format!("set to {other:?}")),
    })
}

/// Expirations that nobody has read yet.
fn timerfd_expired() -> Made {
    let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::empty())?;
    timer.set(Expiration::OneShot(Duration::from_millis(1).into()), TimerSetTimeFlags::empty())?;
    let mut event = [nix::poll::PollFd::new(timer.as_fd(), nix::poll::PollFlags::POLLIN)];
    nix::poll::poll(&mut event, 1000u16)?;
    boxed(move || {
        let mut count = 0u64;
        let fd = timer.as_fd().as_raw_fd();
        same("bytes", said("read", raw::call(libc::SYS_read, &[fd.into(), raw::Arg::to(&mut count), 8.into()]))?, 8)?;
        same("expirations", count, 1)?;
        // For the next look.
        said("timerfd_settime", timer.set(Expiration::OneShot(Duration::from_nanos(1).into()), TimerSetTimeFlags::empty()))?;
        let mut event = [nix::poll::PollFd::new(timer.as_fd(), nix::poll::PollFlags::POLLIN)];
        said("poll", nix::poll::poll(&mut event, 1000u16)).map(drop)
    })
}

fn timerfd_disarmed() -> Made {
    let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::empty())?;
    boxed(move || same("is set", said("timerfd_gettime", timer.get())?.is_some(), false))
}

/// A signal waits to be read.
fn signalfd() -> Made {
    let set: SigSet = [Signal::SIGUSR2, Signal::SIGURG].into_iter().collect();
    let fd = SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK)?;
    let raise = || nix::sys::signal::kill(nix::unistd::getpid(), Signal::SIGUSR2);
    raise()?;
    boxed(move || {
        let Some(info) = said("read", fd.read_signal())? else { return Err("no signal is pending".into()) };
        let found = (info.ssi_signo, info.ssi_pid, info.ssi_code);
        same("signal", found, (libc::SIGUSR2 as u32, std::process::id(), libc::SI_USER))?;
        same("a second one", said("read", fd.read_signal())?.is_some(), false)?;
        said("kill", raise())
    })
}

/// What an epoll instance watches, as /proc tells it.
fn interest(epoll: &Epoll) -> Result<Vec<String>, String> {
    let text = said("fdinfo", std::fs::read_to_string(format!("/proc/self/fdinfo/{}", epoll.0.as_raw_fd())))?;
    // "tfd:  5 events:  19 data: 1111  pos:0 ino:2f sdev:e": what follows the data is new after a restart.
    let each = text.lines().filter(|line| line.starts_with("tfd:")).filter_map(|line| line.split_once(" pos:"));
    let mut all: Vec<String> = each.map(|(what, _)| what.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    all.sort();
    Ok(all)
}

fn ready(epoll: &Epoll) -> Result<Vec<(u64, EpollFlags)>, String> {
    let mut events = [EpollEvent::empty(); 16];
    let count = said("epoll_wait", epoll.wait(&mut events, EpollTimeout::ZERO))?;
    let mut all: Vec<_> = events[..count].iter().map(|event| (event.data(), event.events())).collect();
    all.sort();
    Ok(all)
}

fn watch(epoll: &Epoll, fd: BorrowedFd<'_>, flags: EpollFlags, data: u64) -> nix::Result<()> {
    epoll.add(fd, EpollEvent::new(flags, data))
}

fn epoll() -> Made {
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let always = EventFd::from_value(1)?;
    let edge = EventFd::from_value(0)?;
    let once = EventFd::from_value(1)?;
    let spent = EventFd::from_value(1)?;
    let never = EventFd::from_value(0)?;
    watch(&epoll, spent.as_fd(), EpollFlags::EPOLLIN | EpollFlags::EPOLLONESHOT, u64::MAX)?;
    // Told once; silent from now on.
    epoll.wait(&mut [EpollEvent::empty(); 4], EpollTimeout::ZERO)?;
    watch(&epoll, always.as_fd(), EpollFlags::EPOLLIN | EpollFlags::EPOLLPRI, 0x1_0000_0001)?;
    watch(&epoll, edge.as_fd(), EpollFlags::EPOLLIN | EpollFlags::EPOLLET, 2)?;
    watch(&epoll, once.as_fd(), EpollFlags::EPOLLIN | EpollFlags::EPOLLONESHOT, 3)?;
    watch(&epoll, never.as_fd(), EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP, 4)?;
    let wanted = interest(&epoll).map_err(std::io::Error::other)?;
    let input = EpollFlags::EPOLLIN;
    boxed(move || {
        same("interest", interest(&epoll)?, wanted.clone())?;
        same("ready", ready(&epoll)?, vec![(3, input), (0x1_0000_0001, input)])?;
        same("ready the second time", ready(&epoll)?, vec![(0x1_0000_0001, input)])?;
        said("write", edge.write(1))?;
        same("ready at an edge", ready(&epoll)?, vec![(2, input), (0x1_0000_0001, input)])?;
        same("ready after the edge", ready(&epoll)?, vec![(0x1_0000_0001, input)])?;
        // What is ready may be told again after a restart, as an edge.
        said("read", edge.read())?;
        let mut again = EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLONESHOT, 3);
        said("epoll_ctl", epoll.modify(&once, &mut again))?;
        let _ = (&always, &spent, &never);
        Ok(())
    })
}

/// An instance that watches another one, which watches a pipe.
fn epoll_nested() -> Made {
    let (outer, inner) = (Epoll::new(EpollCreateFlags::empty())?, Epoll::new(EpollCreateFlags::empty())?);
    let (reader, mut writer) = std::io::pipe()?;
    watch(&outer, inner.0.as_fd(), EpollFlags::EPOLLIN, 7)?;
    watch(&inner, reader.as_fd(), EpollFlags::EPOLLIN, 8)?;
    std::io::Write::write_all(&mut writer, b"x")?;
    boxed(move || {
        same("ready outside", ready(&outer)?, vec![(7, EpollFlags::EPOLLIN)])?;
        same("ready inside", ready(&inner)?, vec![(8, EpollFlags::EPOLLIN)])?;
        let _ = (&reader, &writer);
        Ok(())
    })
}

/// One open file, watched under two numbers.
fn epoll_duplicate() -> Made {
    let epoll = Epoll::new(EpollCreateFlags::empty())?;
    let event = EventFd::from_value(1)?;
    let duplicate = event.as_fd().try_clone_to_owned()?;
    watch(&epoll, event.as_fd(), EpollFlags::EPOLLIN, 1)?;
    watch(&epoll, duplicate.as_fd(), EpollFlags::EPOLLIN, 2)?;
    boxed(move || {
        same("ready", ready(&epoll)?, vec![(1, EpollFlags::EPOLLIN), (2, EpollFlags::EPOLLIN)])?;
        let _ = (&event, &duplicate);
        Ok(())
    })
}

fn own_pidfd() -> Made {
    let pid = std::process::id() as i32;
    let handle = pidfd::open(pid)?;
    boxed(move || {
        said("pidfd_send_signal", pidfd::send_signal(handle.as_fd(), 0))?;
        let text = said("fdinfo", std::fs::read_to_string(format!("/proc/self/fdinfo/{}", handle.as_raw_fd())))?;
        same("pid", text.lines().any(|line| line == format!("Pid:\t{pid}")), true)
    })
}
