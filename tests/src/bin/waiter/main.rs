//! `waiter NAME`: waits in one system call ([`ckpt_tests::waits`]), made without the C library, so that nothing hides what it returns.
//!
//! Says "waiting", then "returned R after N ns" (R: the result, or a negative error number). SIGUSR1 has another thread wake it. Its
//! working directory gets files.

mod timed;
mod woken;

use std::io;
use std::process::ExitCode;
use std::thread;

use ckpt_tests::sys::raw::{Arg, call};
use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal};
use nix::time::{ClockId, clock_gettime};

/// The call that waits.
type Wait = Box<dyn FnOnce() -> io::Result<i64>>;
/// What makes it return.
type Wake = Box<dyn FnOnce() + Send>;

/// A mask for the time of a call, unlike the one of the thread; the request must not end the program.
const MASK: u64 = 1 << (libc::SIGWINCH - 1) | 1 << (libc::SIGUSR1 - 1);

extern "C" fn handle(_: i32) {}

fn main() -> ExitCode {
    let name = std::env::args().nth(1).unwrap_or_default();
    // For the thread that wakes; and every call that changes the mask for its time must bring this one back.
    let mask: SigSet = [Signal::SIGUSR1, Signal::SIGURG].into_iter().collect();
    mask.thread_set_mask().expect("cannot set the signal mask");
    let action =
        nix::sys::signal::SigAction::new(SigHandler::Handler(handle), nix::sys::signal::SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler does nothing.
    unsafe { nix::sys::signal::sigaction(Signal::SIGUSR2, &action) }.expect("cannot install a handler");
    let prepared = match timed::prepare(&name) {
        Some(wait) => Some((wait, None)),
        None => woken::prepare(&name).map(|(wait, wake)| (wait, Some(wake))),
    };
    let Some((wait, wake)) = prepared else {
        eprintln!("unknown way to wait: {name}");
        return ExitCode::from(2);
    };
    if let Some(wake) = wake {
        thread::spawn(move || wake_on_request(wake));
    }
    let mask = current_mask();
    let began = now_ns();
    println!("waiting");
    let result = wait().unwrap_or_else(|error| -i64::from(error.raw_os_error().unwrap_or(0)));
    let ns = now_ns() - began;
    if current_mask() != mask {
        println!("the signal mask is {:#x} instead of {mask:#x}", current_mask());
    }
    println!("returned {result} after {ns} ns");
    ExitCode::SUCCESS
}

fn wake_on_request(wake: Wake) {
    let mut request = SigSet::empty();
    request.add(Signal::SIGUSR1);
    // sigwait(3) waits on when it is interrupted.
    request.wait().expect("cannot wait for a signal");
    wake();
}

fn current_mask() -> u64 {
    let mut mask = 0u64;
    call(libc::SYS_rt_sigprocmask, &[(SigmaskHow::SIG_BLOCK as i32).into(), Arg::NULL, Arg::to(&mut mask), 8.into()])
        .expect("cannot get the signal mask");
    mask
}

/// Nanoseconds of CLOCK_MONOTONIC.
fn now_ns() -> i64 {
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC).expect("no clock");
    now.tv_sec() * 1_000_000_000 + now.tv_nsec()
}
