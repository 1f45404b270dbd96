//! What a `restart_block` means (include/linux/restart_block.h): how a system call that was interrupted goes on.
//!
//! The kernel keeps a function and its argument, which is one of a union; which one is known by the function's name. Where the
//! fields are comes from the kernel's type information.

use std::time::Duration;

use ckpt_ebpf::tasks::RESTART_BLOCK_BYTES;

use crate::ids::Addr;
use crate::sys::btf::{Btf, BtfError};

/// How an interrupted system call goes on.
///
/// It means something only if the thread is stopped within such a call: its system call returned -516 (ERESTART_RESTARTBLOCK), or
/// is restart_syscall(2). Otherwise it is what is left of an earlier one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RestartBlock {
    /// Not at all.
    None,
    /// nanosleep(2) and clock_nanosleep(2) with a relative time.
    Sleep {
        /// When the sleep ends.
        until: Deadline,
        /// Where the program wants to be told the time that was left, if it does.
        remainder: Option<Addr>,
    },
    /// futex(2): FUTEX_WAIT and FUTEX_WAIT_BITSET with a time-out.
    Futex {
        /// The futex.
        address: Addr,
        /// The value that it must have for the thread to wait.
        expected: u32,
        /// For which wake-ups.
        bitset: u32,
        /// FUTEX_PRIVATE_FLAG.
        private: bool,
        /// When the wait ends.
        until: Deadline,
    },
    /// poll(2), which restarts this way only if nothing else is to be done about the signal.
    Poll {
        /// The array of struct pollfd.
        fds: Addr,
        /// Its length.
        count: u32,
        /// When the wait ends; None if it does not by itself.
        until: Option<Deadline>,
    },
    /// By a function that is not known here.
    Unknown {
        /// Its name in the kernel.
        function: String,
    },
}

/// A moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadline {
    /// The clock, as a clockid_t. The clocks of processors are those of the thread that waits. In a time namespace, this is still
    /// the clock of the initial one.
    pub clock: i32,
    /// The moment, since that clock's zero.
    pub at: Duration,
}

impl RestartBlock {
    /// When the call ends by itself.
    pub fn deadline(&self) -> Option<Deadline> {
        match self {
            RestartBlock::Sleep { until, .. } | RestartBlock::Futex { until, .. } => Some(*until),
            RestartBlock::Poll { until, .. } => *until,
            RestartBlock::None | RestartBlock::Unknown { .. } => None,
        }
    }
}

/// Offsets of fields within a restart_block.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    clock: u32,
    remainder_type: u32,
    remainder: u32,
    expires: u32,
    futex: u32,
    futex_value: u32,
    futex_flags: u32,
    futex_bitset: u32,
    futex_time: u32,
    poll_fds: u32,
    poll_count: u32,
    poll_has_timeout: u32,
    poll_seconds: u32,
    poll_nanoseconds: u32,
}

impl Layout {
    pub(super) fn of(btf: &Btf) -> Result<Layout, BtfError> {
        let at = |path: &str| {
            let offset = btf.offset_of("restart_block", path)?;
            // No field is longer than 8 bytes.
            if offset as usize + 8 > RESTART_BLOCK_BYTES {
                return Err(BtfError::Absent(format!(
                    "field {path} in the first {RESTART_BLOCK_BYTES} bytes of a restart_block"
                )));
            }
            Ok(offset)
        };
        let either = |one: &str, other: &str| at(one).or_else(|_| at(other));
        Ok(Layout {
            clock: at("nanosleep.clockid")?,
            remainder_type: at("nanosleep.type")?,
            remainder: at("nanosleep.rmtp")?,
            expires: at("nanosleep.expires")?,
            futex: at("futex.uaddr")?,
            futex_value: at("futex.val")?,
            futex_flags: at("futex.flags")?,
            futex_bitset: at("futex.bitset")?,
            futex_time: at("futex.time")?,
            poll_fds: at("poll.ufds")?,
            poll_count: at("poll.nfds")?,
            poll_has_timeout: at("poll.has_timeout")?,
            poll_seconds: either("poll.tv_sec", "poll.end_time.tv_sec")?,
            poll_nanoseconds: either("poll.tv_nsec", "poll.end_time.tv_nsec")?,
        })
    }

    /// What the block with this function means.
    pub(super) fn decode(&self, function: &str, block: &[u8; RESTART_BLOCK_BYTES]) -> RestartBlock {
        // The compiler may append something to the names of functions that it specialised: hrtimer_nanosleep_restart.isra.0.
        let name = function.split('.').next().unwrap_or(function);
        let word = |at: u32| u32::from_ne_bytes(field(block, at));
        let long = |at: u32| u64::from_ne_bytes(field(block, at));
        let nanoseconds = |at: u32| Duration::from_nanos(long(at));
        let sleep = |clock: i32| RestartBlock::Sleep {
            until: Deadline { clock, at: nanoseconds(self.expires) },
            // TT_NONE is 0.
            remainder: (word(self.remainder_type) != 0).then(|| Addr(long(self.remainder))),
        };
        match name {
            "do_no_restart_syscall" => RestartBlock::None,
            "hrtimer_nanosleep_restart" | "posix_cpu_nsleep_restart" => sleep(word(self.clock) as i32),
            // It keeps an enum alarmtimer_type in place of the clock.
            "alarm_timer_nsleep_restart" if word(self.clock) == 0 => sleep(libc::CLOCK_REALTIME_ALARM),
            "alarm_timer_nsleep_restart" => sleep(libc::CLOCK_BOOTTIME_ALARM),
            "futex_wait_restart" => {
                let flags = FutexFlags::of(word(self.futex_flags));
                let clock = if flags.realtime { libc::CLOCK_REALTIME } else { libc::CLOCK_MONOTONIC };
                RestartBlock::Futex {
                    address: Addr(long(self.futex)),
                    expected: word(self.futex_value),
                    bitset: word(self.futex_bitset),
                    private: !flags.shared,
                    until: Deadline { clock, at: nanoseconds(self.futex_time) },
                }
            }
            "do_restart_poll" => {
                let seconds = Duration::from_secs(long(self.poll_seconds));
                let at = seconds.saturating_add(nanoseconds(self.poll_nanoseconds));
                let has_timeout = word(self.poll_has_timeout) != 0;
                RestartBlock::Poll {
                    fds: Addr(long(self.poll_fds)),
                    count: word(self.poll_count),
                    until: has_timeout.then_some(Deadline { clock: libc::CLOCK_MONOTONIC, at }),
                }
            }
            _ => RestartBlock::Unknown { function: function.to_owned() },
        }
    }
}

/// The bytes at an offset that [`Layout::of`] has checked.
fn field<const N: usize>(block: &[u8; RESTART_BLOCK_BYTES], at: u32) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&block[at as usize..at as usize + N]);
    bytes
}

/// Those flags of kernel/futex/futex.h that are needed.
struct FutexFlags {
    shared: bool,
    realtime: bool,
}

impl FutexFlags {
    /// A wait that restarts has a time-out, and the flag for it, which differs, tells which of two numberings is in use: Linux 6.7
    /// moved them all.
    fn of(flags: u32) -> FutexFlags {
        const HAS_TIMEOUT: u32 = 0x40;
        let (shared, realtime) = if flags & HAS_TIMEOUT != 0 { (0x10, 0x20) } else { (0x01, 0x02) };
        FutexFlags { shared: flags & shared != 0, realtime: flags & realtime != 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As in Linux 6.18.
    const LAYOUT: Layout = Layout {
        clock: 16,
        remainder_type: 20,
        remainder: 24,
        expires: 32,
        futex: 16,
        futex_value: 24,
        futex_flags: 28,
        futex_bitset: 32,
        futex_time: 40,
        poll_fds: 16,
        poll_count: 24,
        poll_has_timeout: 28,
        poll_seconds: 32,
        poll_nanoseconds: 40,
    };

    fn block(words: &[(usize, u32)]) -> [u8; RESTART_BLOCK_BYTES] {
        let mut block = [0; RESTART_BLOCK_BYTES];
        for &(at, word) in words {
            block[at..at + 4].copy_from_slice(&word.to_ne_bytes());
        }
        block
    }

    #[test]
    fn sleeps_have_a_clock_and_maybe_a_remainder() {
        let until = Deadline { clock: libc::CLOCK_BOOTTIME, at: Duration::from_nanos(5 << 32 | 7) };
        let raw = block(&[(16, 7), (32, 7), (36, 5)]);
        let sleep = LAYOUT.decode("hrtimer_nanosleep_restart.isra.0", &raw);
        assert_eq!(sleep, RestartBlock::Sleep { until, remainder: None });
        let raw = block(&[(16, 7), (20, 1), (24, 0x1000), (32, 7), (36, 5)]);
        let sleep = LAYOUT.decode("hrtimer_nanosleep_restart", &raw);
        assert_eq!(sleep, RestartBlock::Sleep { until, remainder: Some(Addr(0x1000)) });
        let alarm = LAYOUT.decode("alarm_timer_nsleep_restart", &block(&[(16, 1)]));
        assert_eq!(alarm.deadline().unwrap().clock, libc::CLOCK_BOOTTIME_ALARM);
    }

    #[test]
    fn both_numberings_of_futex_flags_are_known() {
        for (flags, private, clock) in [
            (0x42, true, libc::CLOCK_MONOTONIC),
            (0x72, false, libc::CLOCK_REALTIME),
            (0x04, true, libc::CLOCK_MONOTONIC),
            (0x07, false, libc::CLOCK_REALTIME),
        ] {
            let raw = block(&[(16, 0x2000), (24, 3), (28, flags), (32, u32::MAX), (40, 9)]);
            let expected = RestartBlock::Futex {
                address: Addr(0x2000),
                expected: 3,
                bitset: u32::MAX,
                private,
                until: Deadline { clock, at: Duration::from_nanos(9) },
            };
            assert_eq!(LAYOUT.decode("futex_wait_restart", &raw), expected, "{flags:#x}");
        }
    }

    #[test]
    fn a_poll_may_have_no_deadline() {
        let endless = LAYOUT.decode("do_restart_poll", &block(&[(16, 0x3000), (24, 2), (32, 1)]));
        assert_eq!(endless, RestartBlock::Poll { fds: Addr(0x3000), count: 2, until: None });
        let timed = LAYOUT.decode("do_restart_poll", &block(&[(24, 2), (28, 1), (32, 1), (40, 500)]));
        assert_eq!(timed.deadline().unwrap().at, Duration::new(1, 500));
        // Whatever is in there, it is no panic.
        LAYOUT.decode("do_restart_poll", &[0xff; RESTART_BLOCK_BYTES]);
    }

    #[test]
    fn other_functions_are_named() {
        assert_eq!(LAYOUT.decode("do_no_restart_syscall", &block(&[])), RestartBlock::None);
        let unknown = LAYOUT.decode("new_restart", &block(&[]));
        assert_eq!(unknown, RestartBlock::Unknown { function: "new_restart".into() });
    }
}
