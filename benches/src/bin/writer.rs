//! A job that writes to its memory: `writer MEBIBYTES`, or `writer MEBIBYTES compressible`.
//!
//! It fills its memory with noise, or each page with its number again and again, and says "ready". Then it obeys its standard input, line by line:
//!
//! - `touch N`: writes to N pages, scattered over all of the memory, each once; says "touched NANOSECONDS", the time for one.
//! - `fault N`: writes to N pages that it has never had, and gives them back; says "faulted NANOSECONDS", the time for one.
//! - `work SECONDS NANOSECONDS`: for so long, writes to a page drawn at random and computes for so long after each; says "worked STEPS GAP", with
//!   how often it did and the longest time between two steps, in microseconds.

use std::hint::black_box;
use std::io::{self, BufRead, Write};
use std::process::ExitCode;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use ckpt_tests::moments::Moments;

const PAGE: usize = 4096;
/// Coprime to any power of two: one after another, all pages are reached.
const STRIDE: usize = 40_503;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (size, compressible) = match arguments.as_slice() {
        [size] => (size.parse::<usize>().ok(), false),
        [size, word] if word == "compressible" => (size.parse().ok(), true),
        _ => (None, false),
    };
    let Some(bytes) = size.and_then(|n| n.checked_mul(1 << 20)) else {
        eprintln!("usage: writer MEBIBYTES [compressible]");
        return ExitCode::from(2);
    };
    match run(bytes, compressible) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("writer: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(bytes: usize, compressible: bool) -> io::Result<()> {
    let mut memory = vec![0u8; bytes];
    fill(&mut memory, compressible);
    let pages = bytes / PAGE;
    let mut at = 0;
    say("ready")?;
    for line in io::stdin().lock().lines() {
        let line = line?;
        let words: Vec<&str> = line.split(' ').collect();
        let number = |n: usize| words.get(n).and_then(|word| word.parse::<u64>().ok()).unwrap_or(0);
        match words[0] {
            "touch" => {
                let began = Instant::now();
                for _ in 0..number(1) {
                    at = (at + STRIDE) % pages;
                    memory[at * PAGE + 64] ^= 0xff;
                }
                say(&format!("touched {}", began.elapsed().as_nanos() / u128::from(number(1).max(1))))?;
            }
            "fault" => say(&format!("faulted {}", fault(number(1).max(1) as usize)?))?,
            "work" => {
                let (steps, gap) = work(&mut memory, Duration::from_secs(number(1)), Duration::from_nanos(number(2)));
                say(&format!("worked {steps} {}", gap.as_micros()))?;
            }
            other => return Err(io::Error::other(format!("'{other}' is no command"))),
        }
    }
    Ok(())
}

fn fill(memory: &mut [u8], compressible: bool) {
    let noise = Moments::with_seed(7);
    for (n, page) in memory.chunks_exact_mut(PAGE).enumerate() {
        // No page is all zeros: those take no copying.
        let number = (n as u64 + 1).to_le_bytes();
        for word in page.as_chunks_mut::<8>().0 {
            *word = if compressible { number } else { noise.bits().to_le_bytes() };
        }
    }
}

/// Nanoseconds for the first write to a page.
fn fault(pages: usize) -> io::Result<u128> {
    // One fault must be one page.
    nix::sys::prctl::set_thp_disable(true)?;
    let mut fresh = vec![0u8; pages * PAGE];
    let began = Instant::now();
    fresh.iter_mut().step_by(PAGE).for_each(|byte| *black_box(byte) = 1);
    let time = began.elapsed();
    black_box(&fresh);
    Ok(time.as_nanos() / pages as u128)
}

fn work(memory: &mut [u8], time: Duration, each: Duration) -> (u64, Duration) {
    let noise = Moments::with_seed(11);
    let pages = (memory.len() / PAGE) as u64;
    // So many rounds of arithmetic take so long when nothing disturbs.
    let rounds = rounds_in(each);
    let (began, mut last) = (Instant::now(), Instant::now());
    let (mut steps, mut gap) = (0, Duration::ZERO);
    while last - began < time {
        let page = (noise.bits() % pages) as usize;
        // Never back to what it was a moment ago: an unchanged page is not saved.
        let byte = &mut memory[page * PAGE + 128];
        *byte = byte.wrapping_add(1);
        black_box(spin(rounds));
        let now = Instant::now();
        gap = gap.max(now - last);
        last = now;
        steps += 1;
    }
    (steps, gap)
}

fn spin(rounds: u64) -> u64 {
    (0..rounds).fold(1u64, |x, n| black_box(x.wrapping_mul(6364136223846793005).wrapping_add(n)))
}

/// Measured once: what is compared does the same work.
fn rounds_in(each: Duration) -> u64 {
    static PER_SECOND: OnceLock<f64> = OnceLock::new();
    const MANY: u64 = 100_000_000;
    let per_second = PER_SECOND.get_or_init(|| {
        let began = Instant::now();
        black_box(spin(MANY));
        MANY as f64 / began.elapsed().as_secs_f64()
    });
    (per_second * each.as_secs_f64()) as u64
}

fn say(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")?;
    out.flush()
}
