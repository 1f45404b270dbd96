//! A timer that makes a blocking system call of this thread return EINTR when its time is up.

use std::io;
use std::mem::MaybeUninit;
use std::ptr::null_mut;
use std::sync::OnceLock;
use std::time::Duration;

/// While it lives, this thread's blocking calls return EINTR from the deadline on, again and again (so that one which begins just
/// after the first signal is not missed).
#[derive(Debug)]
pub struct Deadline {
    timer: libc::timer_t,
}

/// How often a call is interrupted once the deadline has passed.
const REPEAT_NS: i64 = 10_000_000;

fn signal() -> i32 {
    libc::SIGRTMAX() - 2
}

extern "C" fn nothing(_: i32) {}

fn install_handler() -> io::Result<()> {
    static DONE: OnceLock<Option<i32>> = OnceLock::new();
    let failed = DONE.get_or_init(|| {
        // SAFETY: zero is a valid sigaction; the handler does nothing at all, so it may run at any time. Without SA_RESTART,
        // which is the point.
        let result = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = nothing as *const () as usize;
            libc::sigaction(signal(), &raw const action, null_mut())
        };
        if result == 0 { None } else { io::Error::last_os_error().raw_os_error() }
    });
    failed.map_or(Ok(()), |errno| Err(io::Error::from_raw_os_error(errno)))
}

impl Deadline {
    /// Starts the timer for the calling thread.
    pub fn arm(after: Duration) -> io::Result<Deadline> {
        install_handler()?;
        let mut timer = MaybeUninit::uninit();
        // SAFETY: zero is a valid sigevent; the pointers outlive the call; the thread id is our own.
        let timer = unsafe {
            let mut event: libc::sigevent = std::mem::zeroed();
            event.sigev_notify = libc::SIGEV_THREAD_ID;
            event.sigev_signo = signal();
            event.sigev_notify_thread_id = libc::gettid();
            if libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, timer.as_mut_ptr()) != 0 {
                return Err(io::Error::last_os_error());
            }
            timer.assume_init()
        };
        let deadline = Deadline { timer };
        let after = after.max(Duration::from_nanos(1));
        let spec = libc::itimerspec {
            it_value: libc::timespec { tv_sec: after.as_secs() as i64, tv_nsec: i64::from(after.subsec_nanos()) },
            it_interval: libc::timespec { tv_sec: 0, tv_nsec: REPEAT_NS },
        };
        // SAFETY: the timer exists, the struct outlives the call.
        if unsafe { libc::timer_settime(deadline.timer, 0, &raw const spec, null_mut()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(deadline)
    }
}

impl Drop for Deadline {
    fn drop(&mut self) {
        // SAFETY: the timer is ours and is deleted once.
        unsafe { libc::timer_delete(self.timer) };
    }
}
