//! Cuts of memory that is written at full speed, also by another process: each image is of one instant. A cut that cannot be followed is taken again with the
//! job stopped, and says so.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::time::Duration;

use ckpt_tests::ckpt;
use ckpt_tests::job::Job;
use ckpt_tests::moments::Moments;
use ckpt_tests::watched::{self, Watch, number};
use ckpt_tests::{laps, needs_root, program, python, skip};
use serde_json::Value;
use tempfile::{TempDir, tempdir};

const PAGES: usize = 6000;
const PAGE: usize = 4096;

/// Memory whose pages are written in order by a child, with process_vm_writev, one round after the other, each full of the number of the round: at any
/// instant the first pages are of one round and the others of the one before.
const SWEPT: &str = "
import mmap
PAGES = 6000
memory = mmap.mmap(-1, PAGES * 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for page in range(PAGES): memory[page * 4096:(page + 1) * 4096] = bytes(4096)
address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
class Piece(ctypes.Structure): _fields_ = [('base', ctypes.c_void_p), ('len', ctypes.c_size_t)]
job = os.getpid()
def sweep():
    buffer = ctypes.create_string_buffer(4096)
    local, remote = Piece(ctypes.addressof(buffer), 4096), Piece(0, 4096)
    number = 0
    while True:
        number = number % 250 + 1
        ctypes.memset(buffer, number, 4096)
        for page in range(PAGES):
            remote.base = address + page * 4096
            if c.syscall(311, job, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0) < 0: os._exit(0)
if os.fork() == 0: sweep()
print('at', address, flush=True)
";

/// Of a job that stands still, and has not run since it was brought back.
fn is_of_one_instant(pid: i32, address: u64) {
    let mut memory = vec![0; PAGES * PAGE];
    File::open(format!("/proc/{pid}/mem")).unwrap().read_exact_at(&mut memory, address).unwrap();
    let pages = memory.chunks(PAGE);
    let whole = pages.clone().all(|page| page.iter().all(|byte| *byte == page[0]));
    let mut rounds: Vec<u8> = pages.map(|page| page[0]).collect();
    rounds.dedup();
    let follow = |new: u8, old: u8| new == old % 250 + 1;
    let good = rounds.len() == 1 || rounds.len() == 2 && follow(rounds[0], rounds[1]);
    assert!(whole && good, "of several instants: {rounds:?} (whole pages: {whole})");
}

/// The reasons of those that were taken again.
fn fallbacks(checkpoints: &[Value]) -> Vec<&str> {
    checkpoints.iter().filter_map(|checkpoint| checkpoint["live_fallback"].as_str()).collect()
}

/// The kernel's own writes go through no page fault of the job's: the page tables tell of them, and the cut is void. It is taken again with the tree
/// stopped. (Nobody can stop a process outside of the tree that writes to its memory.)
#[test]
fn writes_of_another_process_void_a_cut() {
    needs_root!();
    let folder = tempdir().unwrap();
    let mut job = python::rest_after(folder.path(), SWEPT).expect("python3 can do it");
    let address = job.wait_for_line("at ")[3..].parse().expect("an address");
    let dir = folder.path().join("images");
    let watch = Watch::start(&job, &dir, "10ms", &[]);
    let made = watch.wait_for(60);
    if made.iter().all(|checkpoint| checkpoint["tracker"] == "hash") {
        skip!("userfaultfd and PAGEMAP_SCAN");
    }
    let fallen = fallbacks(&made);
    watch.kill();
    job.kill();
    if made.iter().any(|checkpoint| checkpoint["tracker"] == "live") || !fallen.is_empty() {
        assert!(fallen.iter().any(|why| why.contains("past the page fault")), "no cut was void: {made:#?}");
    }
    let moments = Moments::new();
    let last = watched::images(&dir).len() as u64;
    for _ in 0..8 {
        let number = (1 + moments.below(last)).to_string();
        let mut restarted = ckpt::restart(&job, &dir, &["--frozen", "--at", &number]);
        is_of_one_instant(restarted.pid(), address);
        restarted.kill();
    }
}

/// A lapper that is watched, at least for so many checkpoints, crashes and is brought back, `times` times: its folder, it, and all checkpoints.
fn through_crashes(words: &str, interval: &str, checkpoints: usize, times: u32) -> (TempDir, Job, Vec<Value>) {
    let (moments, folder) = (Moments::new(), tempdir().unwrap());
    let mut job = laps::start(folder.path(), program!("lapper"), words);
    let dir = folder.path().join("images");
    let mut all = Vec::new();
    for _ in 0..times {
        let watch = Watch::start(&job, &dir, interval, &[]);
        watch.wait_for(checkpoints);
        all.extend(watch.crash(&mut job, &moments));
        job = ckpt::restart(&job, &dir, &[]);
        laps::verify(&job);
    }
    println!("{} of {} were taken again: {:?}", fallbacks(&all).len(), all.len(), fallbacks(&all));
    (folder, job, all)
}

/// Threads of the job write at full speed, and more than the ring of the programs holds: they are held back, or the cut is taken again; nothing is lost.
#[test]
fn more_is_written_than_the_ring_holds() {
    needs_root!();
    let (_folder, job, all) = through_crashes("60000 threads 2 store", "30ms", 5, 2);
    let live = all.iter().any(|checkpoint| number(checkpoint, "pages_preserved") > 0);
    println!("held back: {:?}", all.iter().map(|checkpoint| number(checkpoint, "held_us")).collect::<Vec<_>>());
    assert!(live || fallbacks(&all).is_empty(), "{all:#?}");
    laps::finish(job);
}

/// A process that has a ring of io_uring is refused; one that makes a ring now and then, and has closed it, is not. What the kernel writes for it while pages
/// are copied makes the cut void.
#[test]
fn rings_come_and_go() {
    needs_root!();
    let (_folder, job, _all) = through_crashes("2048 uring seldom threads 2", "10ms", 8, 5);
    laps::finish(job);
}

/// A single image of a program that is large enough is live, too, and nothing of it is from after the cut.
#[test]
fn a_single_image_is_live() {
    needs_root!();
    let folder = tempdir().unwrap();
    let mut job = laps::start(folder.path(), program!("lapper"), "20000 threads 2 store mremap dontneed");
    let image = folder.path().join("image");
    let moments = Moments::new();
    let mut live = 0;
    for _ in 0..6 {
        moments.let_pass(Duration::from_millis(100), 0.0, 1.0);
        let report = ckpt::checkpoint(job.pid(), &image, &[]);
        live += u32::from(report["tracker"] == "live");
        job.kill();
        job = ckpt::restart(&job, &image, &["--files", "rollback"]);
        laps::verify(&job);
    }
    println!("{live} of 6 were live");
    let has_ebpf = Command::new(ckpt::binary()).args(["checkpoint", "1", "--tracker", "live", "-o", "/dev/null"]).output();
    let lacks = has_ebpf.is_ok_and(|output| String::from_utf8_lossy(&output.stderr).contains("--tracker live cannot be used"));
    assert!(lacks || live > 0, "no image was live");
    laps::finish(job);
}
