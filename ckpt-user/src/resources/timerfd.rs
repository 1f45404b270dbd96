//! timerfd_create(2): a timer, with the time that was left at the cut, and the expirations that nobody has read yet.
//!
//! What a program asked for in absolute time of a clock that counts from the boot comes back as the time left: such clocks mean nothing
//! on another machine, and the program did not live while it was an image. A point of the wall clock stays that point.

use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use nix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use super::file::{Descriptor, FdInfo, FileKind, OpenFile};
use super::{Collector, Restorer};
use crate::error::{Doing, Error, Result};
use crate::sys::timerfd::{self, Setting, Time};

/// See the module.
#[derive(Debug)]
pub struct Timerfd;

/// The state of a timerfd.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TimerfdRecord {
    /// CLOCK_REALTIME, ...
    pub clock: i32,
    /// The flags of timerfd_settime to set it with again: TFD_TIMER_ABSTIME for a point of the wall clock, else 0, and
    /// TFD_TIMER_CANCEL_ON_SET.
    pub flags: i32,
    /// Time left, or the point of the wall clock. Seconds and nanoseconds; zero: not running.
    pub value: Time,
    /// Interval. Zero: fires once.
    pub interval: Time,
    /// Expirations not read yet.
    pub ticks: u64,
}

/// Linux 3.0, include/linux/timerfd.h.
const TFD_TIMER_CANCEL_ON_SET: i32 = 2;

fn is_wall_clock(clock: i32) -> bool {
    clock == libc::CLOCK_REALTIME || clock == libc::CLOCK_REALTIME_ALARM
}

/// `a + b`, normalized.
fn add(a: Time, b: Time) -> Time {
    let nanoseconds = a.1 + b.1;
    (a.0.saturating_add(b.0).saturating_add(nanoseconds / 1_000_000_000), nanoseconds % 1_000_000_000)
}

impl FileKind for Timerfd {
    const KIND: &'static str = "timerfd";
    type Record = TimerfdRecord;

    fn matches(d: &Descriptor<'_>) -> bool {
        d.link == "anon_inode:[timerfd]"
    }

    fn collect(_cx: &mut Collector<'_>, d: &Descriptor<'_>) -> Result<TimerfdRecord> {
        let doing = || format!("cannot read timerfd {} of pid {}", d.fd, d.pid);
        let left = timerfd::get(d.own).doing(doing)?;
        let now = clock_gettime(ClockId::CLOCK_REALTIME).doing(doing)?;
        // After asking for the time left, which books expirations.
        let (clock, set_flags, ticks) = read_info(d.own)?;
        let mut record = TimerfdRecord { clock, flags: 0, value: left.value, interval: left.interval, ticks };
        if is_wall_clock(clock) && set_flags & libc::TFD_TIMER_ABSTIME != 0 {
            record.flags = set_flags;
            if record.value != (0, 0) {
                record.value = add((now.tv_sec(), now.tv_nsec()), left.value);
            }
        }
        Ok(record)
    }

    fn restore(_cx: &mut Restorer<'_>, _common: &OpenFile, record: &TimerfdRecord) -> Result<OwnedFd> {
        timerfd::create(record.clock).doing(|| format!("cannot make a timer of clock {} again", record.clock))
    }

    /// Sets the timer going: late, because the time that a restart takes is none that the program has lived.
    fn finish(_cx: &mut Restorer<'_>, fd: BorrowedFd<'_>, record: &TimerfdRecord) -> Result<()> {
        let flags = record.flags & (libc::TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET);
        let setting = Setting { value: record.value, interval: record.interval };
        timerfd::set(fd, flags, &setting).doing(|| format!("cannot set a timer of clock {} again", record.clock))?;
        if record.ticks != 0 {
            timerfd::set_ticks(fd, record.ticks).doing(|| "cannot give a timer its expirations (CONFIG_CHECKPOINT_RESTORE)")?;
        }
        Ok(())
    }
}

/// Clock, flags of the last timerfd_settime, and expirations not read yet, from our own fdinfo of the file.
fn read_info(own: BorrowedFd<'_>) -> Result<(i32, i32, u64)> {
    let path = format!("/proc/self/fdinfo/{}", own.as_raw_fd());
    let info = FdInfo::parse(&std::fs::read_to_string(&path).doing(|| format!("cannot read {path}"))?).unwrap_or_default();
    let flags = info.get("settime flags").and_then(|octal| i32::from_str_radix(octal, 8).ok());
    let clock = info.get("clockid").and_then(|n| n.parse().ok());
    let ticks = info.get("ticks").and_then(|n| n.parse().ok());
    match (clock, flags, ticks) {
        (Some(clock), Some(flags), Some(ticks)) => Ok((clock, flags, ticks)),
        _ => Err(Error::Unexpected(format!("{path} does not tell the state of a timer: {:?}", info.lines))),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use nix::poll::PollFlags;
    use nix::unistd::read;

    use super::super::fd_trial::{again, wait_for};
    use super::*;

    fn timer(clock: i32, flags: i32, value: Time, interval: Time) -> OwnedFd {
        let fd = timerfd::create(clock).unwrap();
        timerfd::set(fd.as_fd(), flags, &Setting { value, interval }).unwrap();
        fd
    }

    fn nanoseconds(time: Time) -> i64 {
        time.0 * 1_000_000_000 + time.1
    }

    fn ticks(fd: &OwnedFd) -> u64 {
        let mut value = [0; 8];
        read(fd, &mut value).unwrap();
        u64::from_ne_bytes(value)
    }

    fn now(clock: ClockId) -> Time {
        let now = clock_gettime(clock).unwrap();
        (now.tv_sec(), now.tv_nsec())
    }

    #[test]
    fn the_time_left_comes_back() {
        for clock in [libc::CLOCK_MONOTONIC, libc::CLOCK_REALTIME, libc::CLOCK_BOOTTIME] {
            let old = timer(clock, 0, (100, 0), (7, 5));
            let [new] = again([old.as_fd()]);
            let (a, b) = (timerfd::get(old.as_fd()).unwrap(), timerfd::get(new.as_fd()).unwrap());
            assert!(nanoseconds(b.value).abs_diff(nanoseconds(a.value)) < 1_000_000_000, "{a:?} {b:?}");
            assert_eq!(b.interval, (7, 5));
        }
    }

    #[test]
    fn absolute_times() {
        let at = add(now(ClockId::CLOCK_MONOTONIC), (50, 999_999_999));
        let [new] = again([timer(libc::CLOCK_MONOTONIC, libc::TFD_TIMER_ABSTIME, at, (0, 0)).as_fd()]);
        let left = nanoseconds(timerfd::get(new.as_fd()).unwrap().value);
        assert!((49_000_000_000..51_000_000_000).contains(&left), "{left}");

        let at = add(now(ClockId::CLOCK_REALTIME), (50, 0));
        let flags = libc::TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET;
        let [new] = again([timer(libc::CLOCK_REALTIME, flags, at, (0, 0)).as_fd()]);
        assert_eq!(read_info(new.as_fd()).unwrap().1, flags);
        let left = nanoseconds(timerfd::get(new.as_fd()).unwrap().value);
        assert!((49_000_000_000..51_000_000_000).contains(&left), "{left}");
    }

    #[test]
    fn expirations_not_read_yet() {
        let once = timer(libc::CLOCK_MONOTONIC, 0, (0, 1), (0, 0));
        let often = timer(libc::CLOCK_MONOTONIC, 0, (0, 1), (1000, 0));
        wait_for(&once, PollFlags::POLLIN);
        wait_for(&often, PollFlags::POLLIN);
        let [new_once, new_often] = again([once.as_fd(), often.as_fd()]);
        assert_eq!((ticks(&new_once), ticks(&new_often)), (1, 1));
        assert_eq!((ticks(&once), ticks(&often)), (1, 1), "the target was not changed");
        assert_eq!(timerfd::get(new_once.as_fd()).unwrap().value, (0, 0));
        let left = nanoseconds(timerfd::get(new_often.as_fd()).unwrap().value);
        assert!((990_000_000_000..=1_000_000_000_000).contains(&left), "{left}");
    }

    #[test]
    fn hostile_records_are_errors() {
        let options = super::super::restorer::RestoreOptions::default();
        let mut cx = Restorer::new(&options, Vec::new());
        for (clock, value) in [(77, (1, 1)), (1, (-1, 0)), (1, (0, -1)), (1, (0, 2_000_000_000)), (-5, (i64::MAX, i64::MAX))] {
            let record = TimerfdRecord { clock, value, ..TimerfdRecord::default() };
            let made = Timerfd::restore(&mut cx, &OpenFile::default(), &record);
            assert!(made.and_then(|fd| Timerfd::finish(&mut cx, fd.as_fd(), &record)).is_err());
        }
    }
}
