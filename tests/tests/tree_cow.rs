//! Pages that processes share since a fork (resource "pages shared copy-on-write since fork"): a server with many workers takes the room of one, in its
//! image and after a restart.

use std::path::Path;
use std::process::{Command, Stdio};

use ckpt_tests::ckpt;
use ckpt_tests::job::Job;
use ckpt_tests::moments::Moments;
use ckpt_tests::watched::Watch;
use ckpt_tests::{needs_root, process, python};
use std::time::Duration;
use tempfile::tempdir;

const MIB: u64 = 1 << 20;

/// A server with so many MiB of memory that no compressor makes smaller, and so many workers. Each of them has changed some pages since it was forked, and so
/// has the server itself. Asked for a report, each tells whether its memory is what it must be.
fn server(folder: &Path, mib: u64, workers: u32) -> Job {
    let script = format!(
        "
import mmap, zlib
SIZE, WORKERS = {mib} << 20, {workers}
data = mmap.mmap(-1, SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for at in range(0, SIZE, 1 << 20): data[at:at + (1 << 20)] = os.urandom(1 << 20)
def write(n):
    # Some pages side by side, and some far apart.
    for k in range(48):
        at = (n * 7919 + k * 104729) % (SIZE >> 12) << 12
        data[at:at + 8] = struct.pack('=II', n, k)
    at = (n * 16 + 5) % ((SIZE >> 12) - 16) << 12
    data[at:at + 40000] = bytes([n % 251 + 1]) * 40000
def checksum(): return zlib.crc32(data)
asked, told = [], []
for n in range(WORKERS):
    (r, w), (r2, w2) = os.pipe(), os.pipe()
    if os.fork() == 0:
        for fd in asked + told: os.close(fd)
        os.close(w); os.close(r2)
        write(n)
        mine = checksum()
        os.write(w2, b'up')
        while True:
            word = os.read(r, 1)
            if not word: os._exit(0)
            if word == b'w':
                write(n + 1000)
                mine = checksum()
            os.write(w2, b'ok' if checksum() == mine else b'no')
    os.close(r); os.close(w2)
    asked.append(w); told.append(r2)
    assert os.read(r2, 2) == b'up'
write(WORKERS)
ours = checksum()
def ask(word):
    for w in asked: os.write(w, word)
    return [os.read(r, 2).decode() for r in told]
def report():
    global ours
    good = ask(b'?') == ['ok'] * WORKERS and checksum() == ours
    # From now on it is something else.
    write(2000)
    ours = checksum()
    print('good' if good and ask(b'w') == ['ok'] * WORKERS else 'bad', flush=True)
    print('done', flush=True)
"
    );
    python::rest_after(folder, &script).unwrap_or_else(|why| panic!("this machine cannot do it: {why}"))
}

fn is_good(job: &Job) {
    assert_eq!(job.report(), ["good"]);
}

/// Is one number at most 1.3 times another one?
fn is_about(what: &str, now: u64, before: u64) {
    println!("{what}: {} MiB, compared with {} MiB", now / MIB, before / MIB);
    assert!(now * 10 <= before * 13, "{what}: {now} bytes, compared with {before}");
}

#[test]
fn a_server_takes_the_room_of_one_process() {
    needs_root!();
    let folder = tempdir().unwrap();
    let image = folder.path().join("image");
    let mut job = server(folder.path(), 256, 20);
    let (one, all) = (process::rollup_bytes(job.pid(), "Rss:"), process::proportional_bytes(job.pid()));
    for more in [&["--tracker", "scan"][..], &["--tracker", "live"]] {
        ckpt::checkpoint(job.pid(), &image, more);
        is_about("memory after a checkpoint", process::proportional_bytes(job.pid()), all);
    }
    for _ in 0..2 {
        let report = ckpt::checkpoint_and_kill(&mut job, &image, &[]);
        is_about("image", image.metadata().unwrap().len(), one);
        assert!(report["pages_shared"].as_u64().unwrap() > 19 * 60000, "{report}");
        ckpt::run(ckpt::command(["info", "--verify"]).arg(&image)).success();
        job = ckpt::restart(&job, &image, &[]);
        is_about("memory after a restart", process::proportional_bytes(job.pid()), all);
        is_good(&job);
    }
}

/// What comes through a pipe can be read only once.
#[test]
fn a_server_from_a_pipe() {
    needs_root!();
    let folder = tempdir().unwrap();
    let image = folder.path().join("image");
    let mut job = server(folder.path(), 16, 5);
    ckpt::checkpoint_and_kill(&mut job, &image, &[]);
    let mut cat = Command::new("cat").arg(&image).stdout(Stdio::piped()).spawn().unwrap();
    let pipe = cat.stdout.take().unwrap();
    ckpt::run(ckpt::command(["restart", "--detach", "-"]).stdin(pipe)).success();
    assert!(cat.wait().unwrap().success());
    is_good(&Job::adopt(job.pid(), job.folder()));
}

/// Increments hold what was written, once, whoever has it.
#[test]
fn increments_of_a_server() {
    needs_root!();
    let moments = Moments::new();
    let folder = tempdir().unwrap();
    let mut job = server(folder.path(), 64, 10);
    for (n, tracker) in ["scan", "auto", "live"].into_iter().enumerate() {
        let dir = folder.path().join(format!("images{n}"));
        let before = process::proportional_bytes(job.pid());
        let watch = Watch::start(&job, &dir, "200ms", &["--tracker", tracker]);
        let made = watch.wait_for(2);
        is_good(&job);
        let made_then = watch.wait_for(made.len() + 2);
        for increment in &made_then[made.len()..] {
            let written = increment["pages_written"].as_u64().unwrap();
            assert!(written < 10_000, "{tracker}: {increment}");
        }
        is_about("memory under watch", process::proportional_bytes(job.pid()), before);
        moments.let_pass(Duration::from_millis(100), 0.0, 1.0);
        watch.kill();
        job.kill();
        job = ckpt::restart(&job, &dir, &[]);
        is_about("memory after a restart", process::proportional_bytes(job.pid()), before);
        is_good(&job);
    }
}

/// Increments by the hashes of the parent's pages.
#[test]
fn a_parent_of_a_server() {
    needs_root!();
    let folder = tempdir().unwrap();
    let mut job = server(folder.path(), 32, 6);
    let images = ["whole", "second", "third"].map(|name| folder.path().join(name));
    let parent = |n: usize| ["--parent", images[n].to_str().unwrap()];
    // The interpreters take pages of their own for all that they do for the first time.
    is_good(&job);
    ckpt::checkpoint(job.pid(), &images[0], &[]);
    is_good(&job);
    let report = ckpt::checkpoint(job.pid(), &images[1], &parent(0));
    assert!(report["pages_written"].as_u64().unwrap() < 4000, "{report}");
    is_good(&job);
    ckpt::checkpoint_and_kill(&mut job, &images[2], &[parent(1), parent(0)].concat());
    let job = ckpt::restart(&job, &images[2], &[]);
    is_good(&job);
}
