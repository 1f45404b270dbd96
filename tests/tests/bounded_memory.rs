//! The memory that ckpt itself takes is bounded, whatever the size of the process: less than 128 MiB for one of 4 GiB.

use std::fs;
use std::process::{Command, Stdio};

use ckpt_tests::ckpt::{self, Outcome};
use ckpt_tests::job::Job;
use ckpt_tests::scratch_disk::ScratchDisk;
use ckpt_tests::{needs_root, or_skip, python};
use tempfile::{TempDir, tempdir};

const BOUND: u64 = 128 << 20;

/// Every page is written, and has contents of its own; a quarter of each cannot be compressed.
const FOUR_GIB: &str = "
import mmap, zlib
PART = 64 << 20
m = mmap.mmap(-1, 64 * PART)
part = b''.join(os.urandom(1024) * 4 for _ in range(PART // 4096))
for n in range(64):
    m[n * PART:(n + 1) * PART] = part
    m[n * PART:(n + 1) * PART:4096] = bytes([n]) * (PART // 4096)
def report():
    print('marks', zlib.crc32(m[::4096]))
    print('parts', [zlib.crc32(m[n * PART + n * 4096:n * PART + n * 4096 + (1 << 20)]) for n in range(64)])
    print('done', flush=True)
";

/// Bytes that can be had without swapping.
fn available() -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:")).expect("no MemAvailable");
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

fn start(needed: u64) -> Result<(TempDir, Job), String> {
    let free = available();
    if free < needed {
        return Err(format!("{} MiB of memory are available, and this needs {} MiB", free >> 20, needed >> 20));
    }
    let folder = tempdir().unwrap();
    let job = python::rest_after(folder.path(), FOUR_GIB)?;
    Ok((folder, job))
}

fn is_bounded(outcome: &Outcome) {
    println!("ckpt took {} KiB", outcome.peak_bytes >> 10);
    assert!(outcome.peak_bytes < BOUND, "ckpt took {} MiB", outcome.peak_bytes >> 20);
    // Else it was not measured.
    assert!(outcome.peak_bytes > 1 << 20, "ckpt took {} bytes?", outcome.peak_bytes);
}

#[test]
fn a_checkpoint_of_4_gib() {
    needs_root!();
    let (_folder, job) = or_skip!(start(6 << 30));
    for codec in ["raw", "lz4"] {
        let mut reader = Command::new("wc").arg("-c").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut command = ckpt::command(["checkpoint", &job.pid().to_string(), "--codec", codec, "-o", "-"]);
        let outcome = ckpt::run_with_output(command.stdout(reader.stdin.take().unwrap())).success();
        // The pipe ends when nobody holds its writing end.
        drop(command);
        let counted = reader.wait_with_output().unwrap().stdout;
        let bytes: u64 = String::from_utf8_lossy(&counted).trim().parse().unwrap();
        let expected = if codec == "raw" { 4 << 30 } else { 1 << 30 };
        assert!(bytes > expected, "{codec}: an image of {bytes} bytes");
        is_bounded(&outcome);
    }
}

#[test]
fn a_restart_of_4_gib() {
    needs_root!();
    // The image takes little more than 1 GiB.
    let (folder, mut job) = or_skip!(start(7 << 30));
    let disk = or_skip!(ScratchDisk::new(2 << 30));
    let image = disk.path().join("image");
    let report = job.report();
    let mut checkpoint = ckpt::command(["checkpoint", &job.pid().to_string(), "--after", "kill", "-o"]);
    is_bounded(&ckpt::run(checkpoint.arg(&image)).success());
    job.is_killed();
    let mut cat = Command::new("cat").arg(&image).stdout(Stdio::piped()).spawn().unwrap();
    let mut restart = ckpt::command(["restart", "--detach", "-"]);
    is_bounded(&ckpt::run(restart.stdin(cat.stdout.take().unwrap())).success());
    // Nobody reads on behind the trailer, where a file has its index: then the pipe must have no reader left.
    drop(restart);
    cat.wait().unwrap();
    let job = Job::adopt(job.pid(), folder.path());
    assert_eq!(report, job.report());
}
