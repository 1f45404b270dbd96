//! timerfd_create(2), timerfd_gettime(2), timerfd_settime(2), and TFD_IOC_SET_TICKS (Linux 3.17, CONFIG_CHECKPOINT_RESTORE).

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::null_mut;

/// `_IOW('T', 0, __u64)`, include/uapi/linux/timerfd.h.
const TFD_IOC_SET_TICKS: libc::c_ulong = 0x4008_5400;

/// A time as the timer calls take it: seconds and nanoseconds.
pub type Time = (i64, i64);

/// When a timer fires.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Setting {
    /// The first time: from now, or (TFD_TIMER_ABSTIME) on the clock. Zero: never.
    pub value: Time,
    /// And then again every so often. Zero: once only.
    pub interval: Time,
}

fn to_timespec((tv_sec, tv_nsec): Time) -> libc::timespec {
    libc::timespec { tv_sec, tv_nsec }
}

fn check(answer: i32) -> io::Result<()> {
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A new timer of `clock`, close-on-exec, that is not set.
pub fn create(clock: i32) -> io::Result<OwnedFd> {
    // SAFETY: only numbers are passed.
    let fd = unsafe { libc::timerfd_create(clock, libc::TFD_CLOEXEC) };
    check(fd)?;
    // SAFETY: the kernel has just made this descriptor for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The time left, and the interval. The kernel books on this occasion the ticks of an interval timer that nobody has read yet, as any
/// read would; no reader can tell.
pub fn get(fd: BorrowedFd<'_>) -> io::Result<Setting> {
    let mut spec = MaybeUninit::<libc::itimerspec>::uninit();
    // SAFETY: the struct outlives the call, which fills it in when it succeeds.
    let spec = unsafe {
        check(libc::timerfd_gettime(fd.as_raw_fd(), spec.as_mut_ptr()))?;
        spec.assume_init()
    };
    Ok(Setting {
        value: (spec.it_value.tv_sec, spec.it_value.tv_nsec),
        interval: (spec.it_interval.tv_sec, spec.it_interval.tv_nsec),
    })
}

/// Sets the timer. `flags`: TFD_TIMER_ABSTIME, TFD_TIMER_CANCEL_ON_SET.
pub fn set(fd: BorrowedFd<'_>, flags: i32, setting: &Setting) -> io::Result<()> {
    let spec = libc::itimerspec { it_value: to_timespec(setting.value), it_interval: to_timespec(setting.interval) };
    // SAFETY: the struct outlives the call.
    check(unsafe { libc::timerfd_settime(fd.as_raw_fd(), flags, &raw const spec, null_mut()) })
}

/// Has the next read tell `ticks` (not 0) expirations.
pub fn set_ticks(fd: BorrowedFd<'_>, ticks: u64) -> io::Result<()> {
    // SAFETY: the number outlives the call, which only reads it.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), TFD_IOC_SET_TICKS, &raw const ticks) })
}
