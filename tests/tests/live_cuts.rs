//! Cuts of memory that is written at full speed, also from outside: each image is of one instant. A cut that cannot be followed is taken again with the
//! job stopped, and says so.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use ckpt_tests::ckpt;
use ckpt_tests::job::Job;
use ckpt_tests::moments::Moments;
use ckpt_tests::watched::{self, Watch, number};
use ckpt_tests::{laps, needs_root, program, python, skip};
use serde_json::Value;
use tempfile::tempdir;

/// Memory whose pages are written in order, one round after the other, each full of the number of the round: at any instant the first pages are of one
/// round and the others of the one before. Asked, it tells which pages are wrong.
const SWEPT: &str = "
import mmap
PAGES = 6000
memory = mmap.mmap(-1, PAGES * 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for page in range(PAGES): memory[page * 4096:(page + 1) * 4096] = bytes(4096)
address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
print('at', address, flush=True)
def report():
    view = memoryview(memory)
    first = view[0]
    rounds, wrong = [], []
    for page in range(PAGES):
        contents = bytes(view[page * 4096:(page + 1) * 4096])
        if contents.count(contents[0]) != 4096: wrong.append(page)
        elif not rounds or contents[0] != rounds[-1]: rounds.append(contents[0])
    good = not wrong and (len(rounds) == 1 or len(rounds) == 2 and rounds[0] == rounds[1] % 250 + 1)
    print('one instant' if good else f'several instants: {rounds[:9]} {wrong[:9]}', flush=True)
    print('done', flush=True)
";

/// Another process, outside of the tree, writes it with process_vm_writev.
const SWEEPER: &str = "
pid, address = int(sys.argv[1]), int(sys.argv[2])
class Piece(ctypes.Structure): _fields_ = [('base', ctypes.c_void_p), ('len', ctypes.c_size_t)]
buffer = ctypes.create_string_buffer(4096)
local, remote = Piece(ctypes.addressof(buffer), 4096), Piece(0, 4096)
print('ready', flush=True)
number = 0
while True:
    number = number % 250 + 1
    ctypes.memset(buffer, number, 4096)
    for page in range(6000):
        remote.base = address + page * 4096
        if c.syscall(311, pid, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0) < 0: os._exit(0)
";

fn swept(folder: &Path) -> (Job, u64) {
    let job = python::rest_after(folder, SWEPT).expect("python3 can do it");
    let at = job.wait_for_line("at ")[3..].parse().expect("an address");
    (job, at)
}

fn is_of_one_instant(job: &Job) {
    assert_eq!(job.report(), ["one instant"]);
}

/// The reasons of those that were taken again.
fn fallbacks(checkpoints: &[Value]) -> Vec<&str> {
    checkpoints.iter().filter_map(|checkpoint| checkpoint["live_fallback"].as_str()).collect()
}

/// The kernel's own writes go through no page fault of the job's: the page tables tell of them, and the cut is void.
#[test]
fn writes_of_another_process_void_a_cut() {
    needs_root!();
    let (folder, other) = (tempdir().unwrap(), tempdir().unwrap());
    let (mut job, address) = swept(folder.path());
    let mut command = python::command(SWEEPER);
    command.args([job.pid().to_string(), address.to_string()]).stdin(Stdio::null());
    let mut sweeper = Job::start(other.path(), &mut command);
    sweeper.wait_for_line("ready");
    let dir = folder.path().join("images");
    let watch = Watch::start(&job, &dir, "10ms", &[]);
    let made = watch.wait_for(60);
    if made.iter().all(|checkpoint| checkpoint["tracker"] == "hash") {
        skip!("userfaultfd and PAGEMAP_SCAN");
    }
    let fallen = fallbacks(&made);
    watch.kill();
    sweeper.kill();
    job.kill();
    if made.iter().any(|checkpoint| checkpoint["tracker"] == "live") || !fallen.is_empty() {
        assert!(fallen.iter().any(|why| why.contains("past the page fault")), "no cut was void: {made:#?}");
    }
    let moments = Moments::new();
    let last = watched::images(&dir).len() as u64;
    for _ in 0..6 {
        let number = (1 + moments.below(last)).to_string();
        let mut restarted = ckpt::restart(&job, &dir, &["--at", &number]);
        is_of_one_instant(&restarted);
        restarted.kill();
    }
}

/// Threads of the job write at full speed, and more than the ring of the programs holds: they are held back, or the cut is taken again; nothing is lost.
#[test]
fn more_is_written_than_the_ring_holds() {
    needs_root!();
    let folder = tempdir().unwrap();
    let mut job = laps::start(folder.path(), program!("lapper"), "60000 threads 2 store");
    let dir = folder.path().join("images");
    let moments = Moments::new();
    let mut all = Vec::new();
    for _ in 0..2 {
        let watch = Watch::start(&job, &dir, "30ms", &[]);
        watch.wait_for(5);
        all.extend(watch.crash(&mut job, &moments));
        job = ckpt::restart(&job, &dir, &[]);
        laps::verify(&job);
    }
    let live = all.iter().any(|checkpoint| number(checkpoint, "pages_preserved") > 0);
    println!("{} of {} were taken again: {:?}", fallbacks(&all).len(), all.len(), fallbacks(&all));
    println!("held back: {:?}", all.iter().map(|checkpoint| number(checkpoint, "held_us")).collect::<Vec<_>>());
    assert!(live || fallbacks(&all).is_empty(), "{all:#?}");
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
