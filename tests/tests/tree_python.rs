//! multiprocessing of Python: a pool, queues, a manager behind a unix socket, locks and shared memory in /dev/shm. What a run computes is what
//! an uninterrupted one does.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::process::Command;

use ckpt_tests::job::Job;
use ckpt_tests::{ckpt, needs_root, python, story};
use tempfile::tempdir;

const PROGRAM: &str = "
import hashlib, multiprocessing as mp, sys
from multiprocessing import shared_memory

def work(n):
    d = b'%d' % n
    for _ in range(2000): d = hashlib.sha256(d).digest()
    return d.hex()

def feed(q, r):
    for item in iter(q.get, None): r.put((item, work(item)))

def count(name, lock, times, table):
    shm = shared_memory.SharedMemory(name)
    for n in range(times):
        with lock: shm.buf[:8] = (int.from_bytes(shm.buf[:8], 'little') + 1).to_bytes(8, 'little')
        if n % 50 == 0: table[n] = n * 2
    shm.close()

if __name__ == '__main__':
    mp.set_start_method(sys.argv[1])
    total = hashlib.sha256()
    shm = shared_memory.SharedMemory(create=True, size=1 << 20)
    with mp.Manager() as manager, mp.Pool(3) as pool:
        table, lock = manager.dict(), mp.Lock()
        q, r = mp.Queue(), mp.Queue()
        feeders = [mp.Process(target=feed, args=(q, r)) for _ in range(2)]
        for p in feeders: p.start()
        print('ready', flush=True)
        for n in range(int(sys.argv[2])):
            for x in pool.map(work, range(n * 100, n * 100 + 100)): total.update(x.encode())
            for k in range(50): q.put(k + n)
            total.update(repr(sorted(r.get() for _ in range(50))).encode())
            counters = [mp.Process(target=count, args=(shm.name, lock, 500, table)) for _ in range(2)]
            for p in counters: p.start()
            for p in counters: p.join()
            print('step', n, int.from_bytes(shm.buf[:8], 'little'), total.hexdigest(), sorted(table.items())[-1], flush=True)
        for p in feeders: q.put(None)
        for p in feeders: p.join()
    shm.close()
    shm.unlink()
    print('done', total.hexdigest(), flush=True)
";

fn start(folder: &Path, method: &str, rounds: u32) -> Job {
    let program = folder.join("program.py");
    fs::write(&program, PROGRAM).unwrap();
    let mut command = Command::new(python::PYTHON);
    Job::start(folder, command.arg(program).args([method, &rounds.to_string()]).current_dir(folder))
}

/// Stopped, killed and restarted.
fn survives(method: &str) {
    needs_root!();
    story::survives(|folder| start(folder, method, 10), |job| (job.output(), job.errors()));
}

#[test]
fn what_forks() {
    survives("fork");
}

#[test]
fn what_spawns() {
    survives("spawn");
}

/// Live cuts and increments, and the shared memory is newer than the last of them, or gone.
fn survives_crashes(method: &str, rounds: u32) {
    needs_root!();
    story::survives_crashes(|folder| start(folder, method, rounds), "50ms", 3);
}

#[test]
fn what_forks_under_watch() {
    survives_crashes("fork", 60);
}

#[test]
fn what_spawns_under_watch() {
    survives_crashes("spawn", 40);
}

/// One that knows what its shared memory must hold, under the name that it has and under one that it had.
const SHARED: &str = "
import mmap
name = '/dev/shm/ckpt-test-%d' % os.getpid()
f = os.open(name + '-first', os.O_RDWR | os.O_CREAT | os.O_EXCL)
os.ftruncate(f, 3 << 20)
m = mmap.mmap(f, 3 << 20)
# As sem_open(3) does: made under a name that nobody knows.
os.link(name + '-first', name)
os.unlink(name + '-first')
os.close(f)
g = os.open(name + '-gone', os.O_RDWR | os.O_CREAT | os.O_EXCL)
os.ftruncate(g, 8192)
gone = mmap.mmap(g, 8192)
os.unlink(name + '-gone')
os.close(g)
m[2 << 20:(2 << 20) + 5] = b'first'
gone[5000:5004] = b'gone'
pid = os.fork()
if pid == 0:
    while True: signal.pause()
def report():
    print(m[2 << 20:(2 << 20) + 5], m[:1], gone[5000:5004], flush=True)
    m[2 << 20:(2 << 20) + 5] = b'later'
    print('done', flush=True)
";

#[test]
fn shared_memory_that_is_newer_or_gone() {
    needs_root!();
    let folder = tempdir().unwrap();
    let mut job = python::rest_after(folder.path(), SHARED).unwrap();
    let path = format!("/dev/shm/ckpt-test-{}", job.pid());
    let image = folder.path().join("image");
    ckpt::checkpoint(job.pid(), &image, &[]);
    let inode = fs::metadata(&path).unwrap().ino();
    job.kill();
    for files in ["keep", "rollback"] {
        // Whatever it holds now is not what the program knows of.
        File::options().write(true).open(&path).unwrap().write_all_at(b"other", 2 << 20).unwrap();
        job = ckpt::restart(&job, &image, &["--files", files]);
        assert_eq!(fs::metadata(&path).unwrap().ino(), inode);
        assert_eq!(job.report(), ["b'first' b'\\x00' b'gone'"], "--files {files}");
        job.kill();
    }
    fs::remove_file(&path).unwrap();
    job = ckpt::restart(&job, &image, &["--files", "rollback", "--discard-changes"]);
    assert_eq!(job.report(), ["b'first' b'\\x00' b'gone'"]);
    assert_eq!(&fs::read(&path).unwrap()[2 << 20..(2 << 20) + 5], b"later", "it is not the file of that name");
    job.kill();
    fs::remove_file(&path).unwrap();
    let left = fs::read_dir("/dev/shm").unwrap().map(|entry| entry.unwrap().path().display().to_string());
    let left: Vec<String> = left.filter(|other| other.starts_with(&path)).collect();
    assert!(left.is_empty(), "{left:?} was left behind");
}
