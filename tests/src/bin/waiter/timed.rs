//! Calls that return when their time is over.

use std::os::fd::{AsFd, AsRawFd};

use ckpt_tests::sys::raw::{Arg, call};
use ckpt_tests::waits::TIME;
use libc::timespec;
use nix::sys::epoll::{Epoll, EpollCreateFlags};
use nix::sys::timerfd::{self, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use nix::time::{ClockId, clock_gettime};

use super::{MASK, Wait};

/// The word that futex calls wait on.
static WORD: u32 = 1;

/// The call of this name, if there is one.
pub fn prepare(name: &str) -> Option<Wait> {
    Some(match name {
        "nanosleep" => Box::new(|| call(libc::SYS_nanosleep, &[Arg::to(&mut time()), Arg::to(&mut zero())])),
        // As sleep(3) does it.
        "nanosleep-same" => Box::new(|| {
            let mut both = time();
            let at = &raw mut both as usize;
            call(libc::SYS_nanosleep, &[at.into(), at.into()])
        }),
        "nanosleep-null" => Box::new(|| call(libc::SYS_nanosleep, &[Arg::to(&mut time()), Arg::NULL])),
        "clock_nanosleep" => sleep(libc::CLOCK_MONOTONIC),
        "clock_nanosleep-boottime" => sleep(libc::CLOCK_BOOTTIME),
        "clock_nanosleep-absolute" => Box::new(|| {
            let mut until = after(ClockId::CLOCK_MONOTONIC);
            let arguments = [libc::CLOCK_MONOTONIC.into(), libc::TIMER_ABSTIME.into(), Arg::to(&mut until), Arg::NULL];
            call(libc::SYS_clock_nanosleep, &arguments)
        }),
        "futex-timeout" => Box::new(|| futex(libc::FUTEX_WAIT, &mut time(), 0)),
        "futex-absolute" => Box::new(|| futex(libc::FUTEX_WAIT_BITSET, &mut after(ClockId::CLOCK_MONOTONIC), u32::MAX)),
        "futex-realtime" => Box::new(|| {
            futex(libc::FUTEX_WAIT_BITSET | libc::FUTEX_CLOCK_REALTIME, &mut after(ClockId::CLOCK_REALTIME), u32::MAX)
        }),
        "poll-timeout" => Box::new(|| call(libc::SYS_poll, &[Arg::NULL, 0.into(), ms().into()])),
        "ppoll-timeout" => {
            Box::new(|| call(libc::SYS_ppoll, &[Arg::NULL, 0.into(), Arg::to(&mut time()), Arg::to(&mut { MASK }), 8.into()]))
        }
        "select-timeout" => Box::new(|| {
            let mut time = libc::timeval { tv_sec: TIME.as_secs() as i64, tv_usec: 0 };
            call(libc::SYS_select, &[0.into(), Arg::NULL, Arg::NULL, Arg::NULL, Arg::to(&mut time)])
        }),
        "pselect-timeout" => Box::new(|| {
            let mut mask = MASK;
            let mut pair = [&raw mut mask as u64, 8];
            call(libc::SYS_pselect6, &[0.into(), Arg::NULL, Arg::NULL, Arg::NULL, Arg::to(&mut time()), Arg::to(&mut pair)])
        }),
        "epoll_wait-timeout" => epoll(|epoll, events| call(libc::SYS_epoll_wait, &[epoll.into(), events, 4.into(), ms().into()])),
        "epoll_pwait-timeout" => epoll(|epoll, events| {
            call(libc::SYS_epoll_pwait, &[epoll.into(), events, 4.into(), ms().into(), Arg::to(&mut { MASK }), 8.into()])
        }),
        "epoll_pwait2-timeout" => epoll(|epoll, events| {
            let (mut time, mut mask) = (time(), MASK);
            let arguments = [epoll.into(), events, 4.into(), Arg::to(&mut time), Arg::to(&mut mask), 8.into()];
            call(libc::SYS_epoll_pwait2, &arguments)
        }),
        "sigtimedwait-timeout" => Box::new(|| {
            let mut set = 1u64 << (libc::SIGURG - 1);
            call(libc::SYS_rt_sigtimedwait, &[Arg::to(&mut set), Arg::NULL, Arg::to(&mut time()), 8.into()])
        }),
        "timerfd" => {
            let timer = TimerFd::new(timerfd::ClockId::CLOCK_MONOTONIC, TimerFlags::empty()).expect("no timerfd");
            timer.set(Expiration::OneShot(TIME.into()), TimerSetTimeFlags::empty()).expect("cannot set a timerfd");
            Box::new(move || call(libc::SYS_read, &[timer.as_fd().as_raw_fd().into(), Arg::to(&mut 0u64), 8.into()]))
        }
        _ => return None,
    })
}

fn time() -> timespec {
    timespec { tv_sec: TIME.as_secs() as i64, tv_nsec: 0 }
}

fn zero() -> timespec {
    timespec { tv_sec: 0, tv_nsec: 0 }
}

fn ms() -> i32 {
    TIME.as_millis() as i32
}

/// [`TIME`] from now.
fn after(clock: ClockId) -> timespec {
    let now = clock_gettime(clock).expect("no clock");
    timespec { tv_sec: now.tv_sec() + TIME.as_secs() as i64, tv_nsec: now.tv_nsec() }
}

fn sleep(clock: i32) -> Wait {
    Box::new(move || call(libc::SYS_clock_nanosleep, &[clock.into(), 0.into(), Arg::to(&mut time()), Arg::to(&mut zero())]))
}

fn futex(operation: i32, time: &mut timespec, bits: u32) -> std::io::Result<i64> {
    let word = &raw const WORD as usize;
    call(libc::SYS_futex, &[word.into(), operation.into(), 1.into(), Arg::to(time), 0.into(), bits.into()])
}

/// A call on an epoll instance with nothing in it.
fn epoll(wait: impl FnOnce(i32, Arg<'_>) -> std::io::Result<i64> + 'static) -> Wait {
    let epoll = Epoll::new(EpollCreateFlags::empty()).expect("no epoll");
    Box::new(move || wait(epoll.0.as_raw_fd(), Arg::to(&mut [0u64; 8])))
}
