//! Memory: mappings of every kind keep their contents, their places and their attributes (SEED.md, "private, file-mapped,
//! anonymous-shared memory").

use std::process::Command;

use ckpt_tests::checks::{self, end, verify};
use ckpt_tests::job::Job;
use ckpt_tests::{ckpt, maps, needs_root, process, program, python, story};
use tempfile::{TempDir, tempdir};

/// What a machine may not have: reserved huge pages, guard pages (Linux 6.13), names of memory (CONFIG_ANON_VMA_NAME).
const MAY_BE_ABSENT: &[&str] = &["hugetlb", "guard", "named"];

fn start(folder: &TempDir) -> Job {
    checks::start(folder.path(), program!("landscape"), MAY_BE_ABSENT)
}

#[test]
fn the_program_itself_is_right() {
    let folder = tempdir().unwrap();
    let job = start(&folder);
    verify(&job);
    verify(&job);
    end(job);
}

#[test]
fn a_checkpoint_changes_nothing() {
    needs_root!();
    let folder = tempdir().unwrap();
    let job = start(&folder);
    verify(&job);
    let (mappings, look) = (maps::read(job.pid()), process::look(job.pid()));
    ckpt::checkpoint(job.pid(), &folder.path().join("image"), &[]);
    maps::assert_same(&mappings, &maps::read(job.pid()));
    process::assert_same(&look, &process::look(job.pid()));
    verify(&job);
    end(job);
}

#[test]
fn s16_a_restart_brings_everything_back() {
    needs_root!();
    let folder = tempdir().unwrap();
    let mut job = start(&folder);
    let mappings = maps::read(job.pid());
    for codec in ["lz4", "raw"] {
        let image = folder.path().join(codec);
        ckpt::checkpoint_and_kill(&mut job, &image, &["--codec", codec]);
        job = ckpt::restart(&job, &image, &[]);
        maps::assert_same(&mappings, &maps::read(job.pid()));
    }
    verify(&job);
    verify(&job);
    end(job);
}

/// Pages of zeros, and pages that were never touched, take no room.
#[test]
fn s16_zero_pages_carry_no_data() {
    needs_root!();
    let folder = tempdir().unwrap();
    let mut command = Command::new("/usr/bin/python3");
    command.args(["-c", "b = bytearray(256 << 20)\nprint('ready', flush=True)\nimport signal; signal.pause()"]);
    let mut job = Job::start(folder.path(), &mut command);
    job.wait_for_line("ready");
    let image = folder.path().join("image");
    let report = ckpt::checkpoint_and_kill(&mut job, &image, &[]);
    let bytes = report["bytes"].as_u64().unwrap();
    assert!(bytes < 32 << 20, "256 MiB of zeros have made an image of {bytes} bytes");
    let job = ckpt::restart(&job, &image, &[]);
    let resident = process::status(job.pid(), "VmRSS").unwrap();
    let kib: u64 = resident.split(' ').next().unwrap().parse().unwrap();
    assert!(kib < 64 << 10, "zeros have become {resident} of memory");
}

/// A thousand pieces of shared memory, each of a few pages with a gap behind it, which a child has, too.
const PIECES: &str = "
c.mmap.restype = ctypes.c_void_p
c.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
def piece(n):
    at = c.mmap(None, 4096 * (2 + n % 5), 3, 0x21, -1, 0)
    assert c.munmap(ctypes.c_void_p(at + 4096 * (1 + n % 5)), 4096) == 0
    return at
pieces = [piece(n) for n in range(1000)]
word = lambda at: ctypes.c_uint64.from_address(at)
last = lambda n: pieces[n] + 4096 * (n % 5) + 4088
for n, at in enumerate(pieces): word(last(n)).value = n + 1
child = os.fork()
if not child:
    while True:
        signal.sigwait([signal.SIGUSR1])
        for n, at in enumerate(pieces): word(last(n)).value += 1
        word(pieces[0]).value += 1
n = 0
def report():
    global n
    n += 1
    os.kill(child, signal.SIGUSR1)
    while word(pieces[0]).value < n: time.sleep(0.001)
    wrong = [k for k in range(1, 1000) if word(last(k)).value != k + 1 + n]
    if wrong: print('wrong:', wrong[:10])
    print('report', n)
    print('done', flush=True)
";

#[test]
fn many_pieces_of_shared_memory() {
    needs_root!();
    let folder = tempdir().unwrap();
    let job = python::rest_after(folder.path(), PIECES).unwrap();
    story::stays_as_it_was(job, &folder.path().join("image"), |job| python::reports(job, 1));
}
