//! Memory that knows what each of its pages must hold, however they are written: checkpointed, killed and restarted at any moment.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use ckpt_tests::ckpt;
use ckpt_tests::job::Job;
use ckpt_tests::laps;
use ckpt_tests::moments::Moments;
use ckpt_tests::sys::memory::PAGE;
use ckpt_tests::{each_mode, needs_root, program};
use nix::sys::signal::Signal;
use tempfile::tempdir;

fn goes_on(words: &str) {
    let (moments, folder) = (Moments::new(), tempdir().unwrap());
    let image = folder.path().join("image");
    let mut job = laps::start(folder.path(), program!("lapper"), words);
    for _ in 0..3 {
        moments.let_pass(Duration::from_millis(60), 0.0, 1.0);
        ckpt::checkpoint_and_kill(&mut job, &image, &[]);
        job = ckpt::restart(&job, &image, &[]);
        laps::verify(&job);
    }
    laps::finish(job);
}

each_mode!(goes_on);

/// Has one bit of the memory that a lapper looks after turned over, while it is stopped. The byte that it makes is returned.
fn spoil(job: &Job, moments: &Moments) -> u8 {
    // A quarter of a thread's pages: nothing else has the size of one or several of them.
    const PART: usize = 257 * PAGE;
    job.signal(Signal::SIGSTOP);
    job.wait_until_stopped();
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", job.pid())).unwrap();
    let range = |line: &str| {
        let (start, end) = line.split(' ').next()?.split_once('-')?;
        let at = |text| usize::from_str_radix(text, 16).ok();
        Some((at(start)?, at(end)?))
    };
    let mut writable = maps.lines().filter(|line| line.contains(" rw-")).filter_map(range);
    let pages = writable.find(|(start, end)| (end - start).is_multiple_of(PART));
    let (start, end) = pages.unwrap_or_else(|| panic!("no pages:\n{maps}"));
    let at = start as u64 + moments.below((end - start) as u64);
    let memory = OpenOptions::new().read(true).write(true).open(format!("/proc/{}/mem", job.pid())).unwrap();
    let mut byte = [0];
    memory.read_exact_at(&mut byte, at).unwrap();
    byte[0] ^= 16;
    memory.write_all_at(&byte, at).unwrap();
    job.signal(Signal::SIGCONT);
    byte[0]
}

/// The program under test is itself tested: one wrong byte anywhere ends it, and it says where.
#[test]
fn a_wrong_byte_is_found() {
    needs_root!();
    let moments = Moments::new();
    for words in ["1028", "1028 remap shared", "1028 dontneed mremap", "4112 threads 4"] {
        let folder = tempdir().unwrap();
        let mut job = laps::start(folder.path(), program!("lapper"), words);
        job.wait_for_line("lap 3");
        // A page that was just about to be written may hide the byte: then another one is taken.
        let (byte, status) = loop {
            let byte = spoil(&job, &moments);
            if let Ok(status) = job.wait_for_at_most(Duration::from_secs(20)) {
                break (byte, status);
            }
        };
        assert_eq!(status.code(), Some(1), "lapper {words} has not noticed a wrong byte");
        let said = job.output();
        let last = said.lines().last().unwrap_or_default();
        assert!(last.starts_with("inconsistent: ") && last.contains(", page "), "it does not say where: {last}");
        assert!(last.contains("1 bytes differ") && last.contains(&format!("{byte:#04x} found")), "{last}");
    }
}
