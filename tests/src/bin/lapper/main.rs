//! `lapper [PAGES] [WORD...]`: memory whose contents are a function of page and lap. In every lap each page is visited, in a scattered order,
//! wholly verified, and only then written for the next.
//!
//! Says "ready", "lap K" after each lap, "verified K" after the first lap that was begun after a SIGUSR1, and "good" after the lap in which
//! SIGTERM came. At the first wrong byte it says where, what was expected and what found, and ends with status 1.
//!
//! Words for the writing (several share the pages): `store`, `read` (from a pipe), `direct` (from a file with O_DIRECT; where that is
//! impossible, "absent direct: WHY"), `vmwritev`, `outside` (the same by another process), `uring`; with `seldom` most pages are written by `store` all the same. For the pages: `dontneed` (every fifth is dropped instead; every other of these is read at once), `pageout` (every third
//! goes to the swap space after it was written), `mremap` (they move),
//! `remap` (a quarter is mapped anew in every lap), `huge`, `hugetlb` (reserved ones; else "absent hugetlb: WHY"), `shared`. Besides: `brk` (the heap grows and shrinks), `slow` (a pause after each
//! page), `threads N` (each with its part of the pages), `held` (see below).
//!
//! After the lap in which SIGUSR2 came it executes itself, with the word `from LAP` at the end. With `held` it gets the same addresses, and
//! another process holds the old address space.

mod hand;
mod heap;
mod plan;
mod successor;
mod territory;
mod walker;
mod writer;

use std::process::ExitCode;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use hand::Hand;
use heap::Heap;
use plan::{PARTS, Plan, Way};
use successor::Old;
use territory::{HUGE_PART, Kind, Territory};
use walker::Walker;
use writer::Writer;

/// The pause of `slow`.
const PAUSE: Duration = Duration::from_micros(100);

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let result = match &words[..] {
        [word, pid] if word == writer::WORD => writer::serve(pid),
        _ => run(&words),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => fail(&why),
    }
}

/// Other threads may be anywhere, so nobody is waited for.
fn fail(why: &str) -> ! {
    println!("inconsistent: {why}");
    std::process::exit(1)
}

/// What the words ask for.
#[derive(Debug)]
struct Settings {
    pages: usize,
    threads: usize,
    ways: Vec<Way>,
    kind: Kind,
    seldom: bool,
    drops: bool,
    pages_out: bool,
    renews: bool,
    moves: bool,
    grows: bool,
    old: Old,
    from: u64,
    pause: Option<Duration>,
}

impl Settings {
    fn parse(words: &[String]) -> Result<Settings, String> {
        let mut settings = Settings {
            pages: 4096,
            threads: 1,
            ways: Vec::new(),
            kind: Kind::default(),
            seldom: false,
            drops: false,
            pages_out: false,
            renews: false,
            moves: false,
            grows: false,
            old: Old::Gone,
            from: 0,
            pause: None,
        };
        let mut words = words.iter();
        while let Some(word) = words.next() {
            match word.as_str() {
                "store" => settings.ways.push(Way::Store),
                "read" => settings.ways.push(Way::Read),
                "direct" => settings.ways.push(Way::Direct),
                "vmwritev" => settings.ways.push(Way::Writev),
                "outside" => settings.ways.push(Way::Outside),
                "uring" => settings.ways.push(Way::Uring),
                "hugetlb" => settings.kind.hugetlb = true,
                "huge" => settings.kind.huge = true,
                "shared" => settings.kind.shared = true,
                "seldom" => settings.seldom = true,
                "dontneed" => settings.drops = true,
                "pageout" => settings.pages_out = true,
                "remap" => settings.renews = true,
                "mremap" => settings.moves = true,
                "brk" => settings.grows = true,
                "slow" => settings.pause = Some(PAUSE),
                "held" => settings.old = Old::Held,
                "from" => settings.from = number(words.next().map_or("", |n| n))? as u64,
                "threads" => settings.threads = number(words.next().map_or("", |n| n))?.max(1),
                other => settings.pages = number(other)?,
            }
        }
        Ok(settings)
    }

    fn walker(&self, thread: usize, blocks: Option<std::fs::File>) -> Result<Walker, String> {
        let least = if self.kind.hugetlb { PARTS * HUGE_PART } else { PARTS };
        let pages = (self.pages / self.threads).next_multiple_of(least).max(least);
        let territory = Territory::new(pages, self.kind).map_err(|error| format!("cannot map memory: {error}"))?;
        let ways = if self.ways.is_empty() { vec![Way::Store] } else { self.ways.clone() };
        let plan = Plan {
            thread: thread as u64,
            pages,
            ways,
            seldom: self.seldom,
            drops: self.drops,
            pages_out: self.pages_out,
            renews: self.renews,
        };
        let writer = self.ways.contains(&Way::Outside).then(Writer::start).transpose();
        let writer = writer.map_err(|error| format!("cannot start another process: {error}"))?;
        let hand = Hand::new(blocks, writer).map_err(|error| format!("no pipe: {error}"))?;
        let heap = (self.grows && thread == 0).then(Heap::new);
        Ok(Walker { plan, territory, hand, moves: self.moves, heap, pause: self.pause })
    }
}

fn number(word: &str) -> Result<usize, String> {
    word.parse().map_err(|_| format!("usage: lapper [PAGES] [WORD...]; '{word}' is neither"))
}

fn run(words: &[String]) -> Result<(), String> {
    let mut settings = Settings::parse(words)?;
    if settings.old == Old::Held {
        successor::fix_addresses(words).map_err(|error| format!("cannot have the same addresses again: {error}"))?;
    }
    if settings.kind.hugetlb
        && let Err(why) = territory::try_hugetlb()
    {
        println!("absent hugetlb: {why}");
        settings.kind.hugetlb = false;
    }
    let mut blocks = None;
    if settings.ways.contains(&Way::Direct) {
        match hand::open_blocks() {
            Ok(file) => blocks = Some(file),
            Err(why) => {
                println!("absent direct: {why}");
                settings.ways.retain(|way| *way != Way::Direct);
            }
        }
    }
    let signals: SigSet = [Signal::SIGUSR1, Signal::SIGUSR2, Signal::SIGTERM].into_iter().collect();
    let requests = signals.thread_block().and_then(|()| SignalFd::with_flags(&signals, SfdFlags::SFD_NONBLOCK));
    let requests = requests.map_err(|error| format!("no signalfd: {error}"))?;
    let mut walkers = Vec::new();
    for thread in 0..settings.threads {
        let file = blocks.as_ref().map(std::fs::File::try_clone).transpose();
        walkers.push(settings.walker(thread, file.map_err(|error| format!("no descriptor: {error}"))?)?);
    }
    for walker in &mut walkers {
        walker.begin(settings.from)?;
    }
    let (barrier, end) = (Barrier::new(walkers.len()), AtomicBool::new(false));
    let mut own = walkers.remove(0);
    let first = settings.from + 1;
    let succeed = |lap| match successor::hand_over(words, settings.old, lap) {
        Ok(never) => match never {},
        Err(error) => fail(&format!("cannot execute itself: {error}")),
    };
    thread::scope(|scope| {
        for mut walker in walkers {
            let (barrier, end) = (&barrier, &end);
            scope.spawn(move || follow(&mut walker, first, barrier, end));
        }
        lead(&mut own, first, &requests, &barrier, &end, &succeed)
    })
}

/// The laps of the first thread, which speaks for all.
fn lead(
    walker: &mut Walker,
    first: u64,
    requests: &SignalFd,
    barrier: &Barrier,
    end: &AtomicBool,
    succeed: &dyn Fn(u64),
) -> Result<(), String> {
    println!("ready");
    let mut last = false;
    for lap in first.. {
        let (mut verifying, mut successor) = (false, false);
        while let Some(request) = requests.read_signal().map_err(|error| format!("cannot read signals: {error}"))? {
            verifying |= request.ssi_signo == Signal::SIGUSR1 as u32;
            successor |= request.ssi_signo == Signal::SIGUSR2 as u32;
            last |= request.ssi_signo == Signal::SIGTERM as u32;
        }
        end.store(last, Ordering::Relaxed);
        barrier.wait();
        if last {
            break;
        }
        walker.lap(lap).unwrap_or_else(|why| fail(&why));
        barrier.wait();
        println!("lap {lap}");
        if verifying {
            println!("verified {lap}");
        }
        if successor {
            succeed(lap);
        }
    }
    println!("good");
    Ok(())
}

/// The laps of every other thread.
fn follow(walker: &mut Walker, first: u64, barrier: &Barrier, end: &AtomicBool) {
    for lap in first.. {
        barrier.wait();
        if end.load(Ordering::Relaxed) {
            return;
        }
        walker.lap(lap).unwrap_or_else(|why| fail(&why));
        barrier.wait();
    }
}
