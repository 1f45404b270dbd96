//! `steadfast THREADS STEPS [WORD...]`: computes in every thread a chain of hashes, keeps registers, thread-local variables, timers, signal
//! handlers, pending signals, kernel objects, memory and mutexes busy meanwhile, and checks all of it at every step.
//!
//! Says "ready", in the end "steps N digest D" ([`ckpt_tests::chain::digest`]), or what is inconsistent, with status 1. STEPS 0: until
//! SIGTERM. Its working directory gets a file for each thread.
//!
//! The word `interruptible` says that EINTR without a signal is nothing inconsistent: a tool that dies in the middle of its work may cause
//! it, as any debugger does. `fileless` says that nothing of it shall be in a file, so that an image stays good while the program goes on.

mod attributes;
mod mutex;
mod objects;
mod registers;
mod signals;

use std::cell::Cell;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier};
use std::thread;

use ckpt_tests::chain;
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use attributes::Attributes;
use mutex::{Counter, Kind};
use objects::Objects;
use registers::Registers;

/// Steps between two meetings of all threads.
const ROUND: u64 = 32;

thread_local! {
    static LATEST: Cell<u64> = const { Cell::new(0) };
}

/// What all threads share.
struct Shared {
    threads: u64,
    steps: u64,
    barrier: Barrier,
    end: AtomicBool,
    robust: &'static Counter,
    inheriting: &'static Counter,
    /// Expirations that the thread of the timerfd has read.
    ticks: AtomicU64,
    registers: Registers,
    interruptible: bool,
    fileless: bool,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let number = |n: usize| words[n].parse().expect("usage: steadfast THREADS STEPS [interruptible] [fileless]");
    match run(number(0), number(1), &words[2..]) {
        Ok((steps, digest)) => {
            println!("steps {steps} digest {digest:016x}");
            ExitCode::SUCCESS
        }
        Err(what) => fail(&what),
    }
}

/// Other threads may be anywhere, so nobody is waited for.
fn fail(what: &str) -> ! {
    println!("inconsistent: {what}");
    std::process::exit(1)
}

fn run(threads: u64, steps: u64, words: &[String]) -> Result<(u64, u64), String> {
    let has = |word: &str| words.iter().any(|given| given == word);
    let shared = Arc::new(Shared {
        threads,
        steps,
        barrier: Barrier::new(threads as usize),
        end: AtomicBool::new(false),
        robust: Counter::new(Kind::Robust),
        inheriting: Counter::new(Kind::PriorityInheritance),
        ticks: AtomicU64::new(0),
        registers: Registers::detect(),
        interruptible: has("interruptible"),
        fileless: has("fileless"),
    });
    println!("registers: {}", shared.registers.names());
    // Threads inherit this, and let the signals in when they have a stack for them.
    signals::hold_back();
    signals::install();
    let ticker = thread::spawn({
        let shared = Arc::clone(&shared);
        move || tick(&shared)
    });
    let workers: Vec<_> = (0..threads)
        .map(|index| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || work(&shared, index).unwrap_or_else(|what| fail(&format!("thread {index}: {what}"))))
        })
        .collect();
    let mut digest = 0;
    let mut done = 0;
    for worker in workers {
        let (steps, value) = worker.join().map_err(|_| "a thread panicked")?;
        digest = chain::join(digest, value);
        done = steps;
    }
    ticker.join().map_err(|_| "the thread of the timerfd panicked")?;
    // The last worker has left this locked; only the kernel could notice.
    match shared.robust.lock() {
        libc::EOWNERDEAD => Ok((done, digest)),
        other => Err(format!("the robust mutex of a thread that has ended gives {other} instead of EOWNERDEAD")),
    }
}

/// Waits for the ticks of a timerfd until the end.
fn tick(shared: &Shared) {
    let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_CLOEXEC).expect("no timerfd");
    let interval = nix::sys::time::TimeSpec::new(0, 11_000_000);
    timer.set(Expiration::Interval(interval), TimerSetTimeFlags::empty()).expect("cannot set a timerfd");
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).expect("no epoll");
    epoll.add(&timer, EpollEvent::new(EpollFlags::EPOLLIN, 77)).expect("cannot add to epoll");
    while !shared.end.load(Ordering::Relaxed) {
        let mut events = [EpollEvent::empty(); 2];
        match epoll.wait(&mut events, EpollTimeout::NONE) {
            Ok(1) if events[0].data() == 77 => {}
            Err(Errno::EINTR) if shared.interruptible => continue,
            // This thread blocks every signal that has a handler, so nothing may interrupt it.
            other => fail(&format!("waiting for the timerfd gave {other:?}")),
        }
        timer.wait().unwrap_or_else(|error| fail(&format!("reading the timerfd gave {error}")));
        shared.ticks.fetch_add(1, Ordering::Relaxed);
    }
}

/// One worker. Returns how many steps it has made, and its value.
fn work(shared: &Shared, index: u64) -> Result<(u64, u64), String> {
    signals::enter_thread();
    signals::let_in();
    let attributes = Attributes::choose(index as usize);
    let mut objects = Objects::new(shared.fileless).map_err(|error| format!("cannot make objects: {error}"))?;
    let mut value = chain::start(index);
    let mut step = 0;
    shared.barrier.wait();
    if index == 0 {
        signals::start_timers();
        println!("ready");
    }
    while !meet(shared, index, step)? {
        for _ in 0..ROUND {
            LATEST.set(value);
            objects.put(value).map_err(|error| format!("cannot fill objects: {error}"))?;
            signals::queue(value);
            shared.robust.increment()?;
            shared.registers.hold(value)?;
            shared.inheriting.increment()?;
            signals::take(value)?;
            objects.take(value)?;
            attributes.check()?;
            signals::check_handlers()?;
            if LATEST.get() != value {
                return Err("a thread-local variable has changed".into());
            }
            value = chain::step(value, step);
            step += 1;
        }
    }
    objects.check_all()?;
    if index == 0 {
        let before = shared.ticks.load(Ordering::Relaxed);
        signals::check_timers()?;
        println!("timers have run; the timerfd has ticked {before} times");
    }
    if index == shared.threads - 1 {
        // Left locked on purpose.
        signals::hold_back();
        shared.robust.lock();
    }
    Ok((step, value))
}

/// All threads meet: what they have counted together must be right. Is it the end?
fn meet(shared: &Shared, index: u64, step: u64) -> Result<bool, String> {
    if shared.barrier.wait().is_leader() {
        let expected = shared.threads * step;
        let found = [shared.robust.get(), shared.inheriting.get()];
        if found != [expected; 2] {
            return Err(format!("counters under mutexes: {found:?} instead of {expected}"));
        }
        if step > 0 {
            signals::take_for_process(step)?;
        }
        signals::queue_for_process(step + ROUND);
        let enough = if shared.steps == 0 { signals::asked_to_end() } else { step >= shared.steps };
        shared.end.store(enough, Ordering::Relaxed);
    }
    if index == 0 && step > 0 && step.is_multiple_of(1024) {
        println!("step {step}");
    }
    shared.barrier.wait();
    Ok(shared.end.load(Ordering::Relaxed))
}
