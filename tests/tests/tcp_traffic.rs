//! Processes that send to each other over TCP as fast as they can, in both directions, and know what each byte must be: checkpointed at any moment.

use std::path::Path;

use ckpt_tests::job::Job;
use ckpt_tests::moments::Moments;
use ckpt_tests::watched::{self, verify_images};
use ckpt_tests::{ckpt, needs_root, python};
use tempfile::tempdir;

/// Two processes for each address, one of which reads slowly where `slow` says so. Each byte of a stream follows from its place. A report says "right" once
/// everybody has checked some more.
const TRAFFIC: &str = "
import mmap, random, select, socket
BASE = random.Random(1).randbytes(65521)
LONG = BASE * 20
shared = mmap.mmap(-1, 4096)
words = memoryview(shared).cast('Q')
def talk(sock, mine, slow):
    'words[mine]: bytes checked; words[mine + 1]: what is wrong.'
    sock.setblocking(False)
    poll = select.poll()
    poll.register(sock, select.POLLIN | select.POLLOUT)
    sent = 0
    random.seed(mine)
    while True:
        for _, events in poll.poll():
            if events & (select.POLLERR | select.POLLHUP): words[mine + 1] = 1
            if events & select.POLLIN:
                try:
                    data = sock.recv(random.choice((1, 777, 4096, 100000, 1000000)))
                    at = words[mine] % 65521
                    if not data or data != LONG[at:at + len(data)]:
                        words[mine + 1] = 2
                        time.sleep(1000)
                    words[mine] += len(data)
                except BlockingIOError: pass
                if slow: time.sleep(random.random() / 100)
            if events & select.POLLOUT:
                try: sent += sock.send(LONG[sent % 65521:][:random.choice((1, 1000, 65483, 1000000))])
                except BlockingIOError: pass
def meet(family, address, slow, mine, prepare=lambda s: None):
    server = socket.socket(family)
    prepare(server)
    server.bind((address, 0))
    server.listen()
    for n in 0, 1:
        if os.fork() == 0:
            if n == 0:
                sock = socket.socket(family)
                prepare(sock)
                to = server.getsockname()
                server.close()
                sock.connect(to)
            else:
                sock, _ = server.accept()
                # Some go on listening.
                if slow: server.close()
            talk(sock, mine + 2 * n, slow and n == 1)
    server.close()
def small(s):
    s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 10000)
    s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 10000)
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
meet(socket.AF_INET, '127.0.0.1', False, 0)
meet(socket.AF_INET6, '::1', True, 4)
meet(socket.AF_INET, '127.0.0.1', True, 8, small)
meet(socket.AF_INET, '127.0.0.2', True, 12)
MINE = range(0, 16, 2)
def report():
    goals = [words[n] + 200000 for n in MINE]
    end = time.time() + 60
    while any(words[n] < goal for n, goal in zip(MINE, goals)) and not any(words[n + 1] for n in MINE) and time.time() < end: time.sleep(0.001)
    wrong = [(n, words[n + 1], words[n] - goal) for n, goal in zip(MINE, goals) if words[n + 1] or words[n] < goal]
    print(*(wrong or ['right']))
    print('done', flush=True)
";

fn start(folder: &Path) -> Job {
    python::rest_after(folder, TRAFFIC).unwrap_or_else(|why| panic!("{why}"))
}

fn is_right(job: &Job) {
    assert_eq!(job.report(), ["right"]);
}

#[test]
fn stopped_again_and_again() {
    needs_root!();
    let (folder, moments) = (tempdir().unwrap(), Moments::new());
    let mut job = start(folder.path());
    let image = folder.path().join("image");
    for _ in 0..12 {
        moments.let_pass(std::time::Duration::from_millis(300), 0.0, 1.0);
        ckpt::checkpoint_and_kill(&mut job, &image, &[]);
        job = ckpt::restart(&job, &image, &[]);
        if moments.below(2) == 0 {
            is_right(&job);
        }
    }
    is_right(&job);
}

/// The same image more than once, and the job goes on after each checkpoint.
#[test]
fn running_on_and_brought_back() {
    needs_root!();
    let (folder, moments) = (tempdir().unwrap(), Moments::new());
    let mut job = start(folder.path());
    for tracker in ["live", "scan", "hash"] {
        let image = folder.path().join(format!("image-{tracker}"));
        for _ in 0..5 {
            moments.let_pass(std::time::Duration::from_millis(100), 0.0, 1.0);
            ckpt::checkpoint(job.pid(), &image, &["--tracker", tracker]);
        }
        is_right(&job);
        for _ in 0..2 {
            job.kill();
            job = ckpt::restart(&job, &image, &["--files", "rollback", "--discard-changes"]);
            is_right(&job);
        }
    }
}

#[test]
fn watched_through_crashes() {
    needs_root!();
    let (folder, moments) = (tempdir().unwrap(), Moments::new());
    let job = watched::survives_crashes(start(folder.path()), "50ms", 4, &moments, is_right);
    verify_images(&job.folder().join("images"));
}
