//! Timers that interrupt all threads, handlers on stacks of their own, and signals that stay pending with what they carry.

use std::cell::Cell;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ckpt_tests::sys::memory::Region;
use ckpt_tests::sys::raw::{Arg, call};

/// How often each handler has run.
static TICKS: [AtomicU64; 4] = [const { AtomicU64::new(0) }; 4];
const NAMES: [&str; 4] =
    ["the real-time interval timer", "the virtual interval timer", "the POSIX timer", "the POSIX timer of one thread"];
/// A handler has run on a wrong stack, or was told something wrong.
static WRONG: AtomicU64 = AtomicU64::new(0);
/// The end was asked for (SIGTERM).
static ASKED_TO_END: AtomicBool = AtomicBool::new(false);

/// What the POSIX timers carry.
const VALUE: usize = 0x5eed_0042;
const STACK: usize = 128 * 1024;

thread_local! {
    /// Where this thread's alternate stack is.
    static ALTERNATE: Cell<(usize, usize)> = const { Cell::new((0, 0)) };
}

/// siginfo_t of a queued signal.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Info {
    signo: i32,
    errno: i32,
    code: i32,
    _padding: i32,
    pid: i32,
    uid: u32,
    value: u64,
    _rest: [u64; 12],
}

/// The signal of the POSIX timers: of the process, and of one thread.
fn timer_signals() -> [i32; 2] {
    [libc::SIGRTMIN() + 1, libc::SIGRTMIN() + 2]
}

/// The signal that threads keep pending for themselves, and the one for the whole process.
fn pending_signals() -> [i32; 2] {
    [libc::SIGRTMIN() + 3, libc::SIGRTMIN() + 4]
}

extern "C" fn handler(signal: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let local = 0u8;
    let here = &raw const local as usize;
    let (start, end) = ALTERNATE.get();
    if !(start..end).contains(&here) {
        WRONG.fetch_or(1, Ordering::Relaxed);
    }
    let [process_timer, thread_timer] = timer_signals();
    let n = match signal {
        libc::SIGALRM => 0,
        libc::SIGVTALRM => 1,
        _ if signal == process_timer => 2,
        _ if signal == thread_timer => 3,
        _ => {
            ASKED_TO_END.store(true, Ordering::Relaxed);
            return;
        }
    };
    TICKS[n].fetch_add(1, Ordering::Relaxed);
    // SAFETY: the kernel gives every handler with SA_SIGINFO a valid siginfo; timers fill in the value.
    let (signo, code, value) = unsafe { ((*info).si_signo, (*info).si_code, (*info).si_value().sival_ptr as usize) };
    if signo != signal || (n >= 2 && (code != libc::SI_TIMER || value != VALUE + n)) {
        WRONG.fetch_or(2, Ordering::Relaxed);
    }
}

/// Installs the handlers. Threads must have called [`enter_thread`] before they get a signal.
pub fn install() {
    for signal in handled() {
        // SAFETY: all bytes zero are a valid sigaction; the handler does only what is allowed in one.
        unsafe {
            let mut action = MaybeUninit::<libc::sigaction>::zeroed().assume_init();
            action.sa_sigaction = handler as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
            assert_eq!(libc::sigaction(signal, &action, std::ptr::null_mut()), 0, "cannot install a handler");
        }
    }
}

/// Gives the calling thread its stack for handlers.
pub fn enter_thread() {
    let stack = Region::anonymous(STACK).expect("no memory for a stack");
    let new = libc::stack_t { ss_sp: stack.start as *mut _, ss_flags: 0, ss_size: STACK };
    // SAFETY: the memory is never unmapped.
    assert_eq!(unsafe { libc::sigaltstack(&new, std::ptr::null_mut()) }, 0, "cannot set an alternate stack");
    ALTERNATE.set((stack.start, stack.start + STACK));
}

/// Blocks, in the calling thread and those made by it, every signal that has a handler and every one that shall stay pending.
pub fn hold_back() {
    block(&handled(), libc::SIG_BLOCK);
    block(&pending_signals(), libc::SIG_BLOCK);
}

/// Lets the signals that have a handler in again.
pub fn let_in() {
    block(&handled(), libc::SIG_UNBLOCK);
}

fn handled() -> [i32; 5] {
    let [a, b] = timer_signals();
    [libc::SIGALRM, libc::SIGVTALRM, libc::SIGTERM, a, b]
}

fn block(signals: &[i32], how: i32) {
    let mut set = mask(signals);
    call(libc::SYS_rt_sigprocmask, &[how.into(), Arg::to(&mut set), Arg::NULL, 8.into()]).expect("cannot change the signal mask");
}

fn mask(signals: &[i32]) -> u64 {
    signals.iter().fold(0, |set, signal| set | 1 << (signal - 1))
}

/// Starts all timers; they run until the program ends. One of them signals the calling thread only.
pub fn start_timers() {
    for (which, ms) in [(libc::ITIMER_REAL, 3), (libc::ITIMER_VIRTUAL, 10)] {
        let interval = libc::timeval { tv_sec: 0, tv_usec: ms * 1000 };
        let mut value = libc::itimerval { it_interval: interval, it_value: interval };
        call(libc::SYS_setitimer, &[which.into(), Arg::to(&mut value), Arg::NULL]).expect("cannot set an interval timer");
    }
    let [process_signal, thread_signal] = timer_signals();
    start_timer(libc::SIGEV_SIGNAL, process_signal, VALUE + 2, 5);
    start_timer(libc::SIGEV_THREAD_ID, thread_signal, VALUE + 3, 7);
}

fn start_timer(notify: i32, signal: i32, value: usize, ms: i64) {
    // SAFETY: all bytes zero are a valid sigevent.
    let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
    (event.sigev_notify, event.sigev_signo) = (notify, signal);
    event.sigev_notify_thread_id = nix::unistd::gettid().as_raw();
    event.sigev_value.sival_ptr = value as *mut _;
    let mut id = 0i32;
    let arguments = [libc::CLOCK_MONOTONIC.into(), Arg::to(&mut event), Arg::to(&mut id)];
    call(libc::SYS_timer_create, &arguments).expect("cannot make a timer");
    let interval = libc::timespec { tv_sec: 0, tv_nsec: ms * 1_000_000 };
    let mut times = libc::itimerspec { it_interval: interval, it_value: interval };
    call(libc::SYS_timer_settime, &[id.into(), 0.into(), Arg::to(&mut times), Arg::NULL]).expect("cannot start a timer");
}

/// Makes a signal pending for the calling thread that carries `value`.
pub fn queue(value: u64) {
    let (pid, tid) = (std::process::id() as i32, nix::unistd::gettid().as_raw());
    let [signal, _] = pending_signals();
    let mut info = Info { signo: signal, code: libc::SI_QUEUE, pid, uid: 4711, value, ..Info::default() };
    call(libc::SYS_rt_tgsigqueueinfo, &[pid.into(), tid.into(), signal.into(), Arg::to(&mut info)])
        .expect("cannot queue a signal");
}

/// Makes a signal pending for the whole process.
pub fn queue_for_process(value: u64) {
    let pid = std::process::id() as i32;
    let [_, signal] = pending_signals();
    let mut info = Info { signo: signal, code: libc::SI_QUEUE, pid, uid: 4712, value, ..Info::default() };
    call(libc::SYS_rt_sigqueueinfo, &[pid.into(), signal.into(), Arg::to(&mut info)]).expect("cannot queue a signal");
}

/// Takes the signal of [`queue`], which must carry `value`.
pub fn take(value: u64) -> Result<(), String> {
    take_one(pending_signals()[0], 4711, value)
}

/// Takes the signal of [`queue_for_process`], which must carry `value`.
pub fn take_for_process(value: u64) -> Result<(), String> {
    take_one(pending_signals()[1], 4712, value)
}

fn take_one(signal: i32, uid: u32, value: u64) -> Result<(), String> {
    let (mut set, mut info) = (mask(&[signal]), Info::default());
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    let arguments = [Arg::to(&mut set), Arg::to(&mut info), Arg::to(&mut now), 8.into()];
    let taken = call(libc::SYS_rt_sigtimedwait, &arguments).map_err(|e| format!("signal {signal} is not pending: {e}"))?;
    let found = (taken as i32, info.signo, info.code, info.pid, info.uid, info.value);
    let wanted = (signal, signal, libc::SI_QUEUE, std::process::id() as i32, uid, value);
    if found == wanted { Ok(()) } else { Err(format!("pending signal: {found:x?} instead of {wanted:x?}")) }
}

/// Was the end asked for?
pub fn asked_to_end() -> bool {
    ASKED_TO_END.load(Ordering::Relaxed)
}

/// What the handlers have found wrong.
pub fn check_handlers() -> Result<(), String> {
    match WRONG.load(Ordering::Relaxed) {
        0 => Ok(()),
        1 => Err("a handler ran on another stack than its thread's alternate one".into()),
        _ => Err("a handler was told something else than its timer carries".into()),
    }
}

/// Does every timer still run? Waits until each has ticked once more.
pub fn check_timers() -> Result<(), String> {
    let before = TICKS.each_ref().map(|ticks| ticks.load(Ordering::Relaxed));
    let until = Instant::now() + Duration::from_secs(10);
    for n in 0..TICKS.len() {
        while TICKS[n].load(Ordering::Relaxed) == before[n] {
            // Some clocks only count the time in which we do something.
            std::hint::spin_loop();
            if Instant::now() > until {
                return Err(format!("{} has stopped", NAMES[n]));
            }
        }
    }
    Ok(())
}
