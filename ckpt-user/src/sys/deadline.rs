//! A timer that makes a blocking system call of this thread return EINTR when its time is up.

use std::cell::Cell;
use std::io;
use std::mem::MaybeUninit;
use std::ptr::null_mut;
use std::sync::OnceLock;
use std::time::Duration;

/// While it lives, this thread's blocking calls return EINTR from the deadline on, again and again (so that one which begins just
/// after the first signal is not missed).
///
/// It belongs to the thread that has armed it, and cannot be given to another.
#[derive(Debug)]
pub struct Deadline {
    timer: Option<Timer>,
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

thread_local! {
    /// A timer of this thread that is not in use: making one costs more than to set one that is there.
    static IDLE: Cell<Option<Timer>> = const { Cell::new(None) };
}

impl Deadline {
    /// Starts the timer for the calling thread.
    pub fn arm(after: Duration) -> io::Result<Deadline> {
        let after = after.max(Duration::from_nanos(1));
        // A process that was forked from this one has the note of its timer, but not the timer.
        let timer = match IDLE.take().filter(|timer| timer.set(after).is_ok()) {
            Some(timer) => timer,
            None => {
                let timer = Timer::create()?;
                timer.set(after)?;
                timer
            }
        };
        Ok(Deadline { timer: Some(timer) })
    }
}

impl Drop for Deadline {
    fn drop(&mut self) {
        if let Some(timer) = self.timer.take()
            && timer.set(Duration::ZERO).is_ok()
        {
            IDLE.set(Some(timer));
        }
    }
}

/// A timer of the calling thread, which sends it the signal.
#[derive(Debug)]
struct Timer(libc::timer_t);

impl Timer {
    fn create() -> io::Result<Timer> {
        install_handler()?;
        let mut timer = MaybeUninit::uninit();
        // SAFETY: zero is a valid sigevent; the pointers outlive the call; the thread id is our own.
        unsafe {
            let mut event: libc::sigevent = std::mem::zeroed();
            event.sigev_notify = libc::SIGEV_THREAD_ID;
            event.sigev_signo = signal();
            event.sigev_notify_thread_id = libc::gettid();
            if libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, timer.as_mut_ptr()) != 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(Timer(timer.assume_init()))
        }
    }

    /// Zero: it is to stand still.
    fn set(&self, after: Duration) -> io::Result<()> {
        let repeat = if after.is_zero() { 0 } else { REPEAT_NS };
        let spec = libc::itimerspec {
            it_value: libc::timespec { tv_sec: after.as_secs() as i64, tv_nsec: i64::from(after.subsec_nanos()) },
            it_interval: libc::timespec { tv_sec: 0, tv_nsec: repeat },
        };
        // SAFETY: the timer exists, the struct outlives the call.
        let result = unsafe { libc::timer_settime(self.0, 0, &raw const spec, null_mut()) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        // SAFETY: the timer is ours and is deleted once.
        unsafe { libc::timer_delete(self.0) };
    }
}
