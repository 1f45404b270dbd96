//! A process of a given size, to be checkpointed: `sized MEBIBYTES` fills that much memory, `sized MEBIBYTES untouched` only reserves it.
//!
//! Every other page is noise, which nothing compresses; the pages between are lines of text, which everything does; none is all zeros.
//! Once the memory is as it shall be, it says "ready ADDRESS BYTES" (of whole pages) and sleeps. On SIGUSR1 it looks at every page and
//! says "intact" or "damaged", then "done".

use std::io::{self, Write};
use std::process::ExitCode;

use ckpt_tests::moments::Moments;
use nix::sys::signal::{SigSet, Signal};

const PAGE: usize = 4096;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (mebibytes, fill) = match arguments.as_slice() {
        [size] => (size.parse::<usize>(), true),
        [size, word] if word == "untouched" => (size.parse(), false),
        _ => return usage(),
    };
    let Some(bytes) = mebibytes.ok().and_then(|n| n.checked_mul(1 << 20)) else { return usage() };
    match run(bytes, fill) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("sized: {error}");
            ExitCode::FAILURE
        }
    }
}

fn usage() -> ExitCode {
    eprintln!("usage: sized MEBIBYTES [untouched]");
    ExitCode::from(2)
}

fn run(bytes: usize, fill: bool) -> io::Result<()> {
    let mut wake = SigSet::empty();
    wake.add(Signal::SIGUSR1);
    wake.thread_block()?;
    // Zeroed memory of this size comes from mmap, and takes no room before it is written.
    let mut memory = vec![0u8; bytes + PAGE];
    let first = memory.as_ptr().align_offset(PAGE);
    let pages = &mut memory[first..first + bytes];
    if fill {
        pages.chunks_exact_mut(PAGE).enumerate().for_each(|(n, page)| write_page(n, page));
    }
    say(&format!("ready {:#x} {bytes}", pages.as_ptr().addr()))?;
    loop {
        wake.wait()?;
        let mut expected = [0; PAGE];
        let intact = pages.chunks_exact(PAGE).enumerate().all(|(n, page)| {
            write_page(n, &mut expected);
            page == expected
        });
        say(if intact { "intact\ndone" } else { "damaged\ndone" })?;
    }
}

fn say(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")?;
    out.flush()
}

/// What page `n` holds.
fn write_page(n: usize, page: &mut [u8]) {
    if n.is_multiple_of(2) {
        let noise = Moments::with_seed(n as u64);
        for word in page.as_chunks_mut::<8>().0 {
            *word = noise.bits().to_le_bytes();
        }
    } else {
        for (k, line) in page.chunks_exact_mut(32).enumerate() {
            line.copy_from_slice(format!("page {n:10} line {:10}\n", k + 1).as_bytes());
        }
    }
}
