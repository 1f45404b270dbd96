//! A server of 50 workers that were forked in advance: all accept from one listening socket, and each has a pipe to its parent.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Instant;

use ckpt_tests::job::{DEADLINE, Job};
use ckpt_tests::moments::Moments;
use ckpt_tests::{ckpt, needs_root, process, python, watched};
use tempfile::tempdir;

const WORKERS: usize = 50;

/// A worker answers with its number, how many it has answered, and a sum over what all have together; and tells its parent.
const SCRIPT: &str = "
import select, socket
table = bytes(range(256)) * 40000
server = socket.socket(socket.AF_UNIX)
server.bind('sock')
server.listen(100)
def serve(n, tell):
    count = 0
    poll = select.epoll()
    poll.register(server, select.EPOLLIN | select.EPOLLEXCLUSIVE)
    server.setblocking(False)
    while True:
        poll.poll()
        try: connection, _ = server.accept()
        except BlockingIOError: continue
        connection.setblocking(True)
        word = connection.recv(100)
        count += 1
        connection.sendall(b'%d %d %d %s' % (n, count, sum(table[::9999]), word))
        connection.close()
        os.write(tell, b'x')
ends = []
for n in range(50):
    r, w = os.pipe()
    if os.fork() == 0: serve(n, w)
    os.close(w)
    ends.append(r)
heard = 0
print('ready', flush=True)
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])
def report(*_):
    print(heard, flush=True)
    print('done', flush=True)
signal.signal(signal.SIGUSR1, report)
while True:
    for r in select.select(ends, [], [])[0]: heard += len(os.read(r, 100))
";

fn start(folder: &Path) -> Job {
    python::start(folder, &mut python::command(SCRIPT)).unwrap()
}

/// Which worker has answered.
fn ask(folder: &Path, word: &str) -> usize {
    let mut connection = UnixStream::connect(folder.join("sock")).unwrap();
    connection.write_all(word.as_bytes()).unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).unwrap();
    let words: Vec<&str> = answer.split(' ').collect();
    let sum: u64 = (0..256u64 * 40000).step_by(9999).map(|n| n % 256).sum();
    assert_eq!(words[2..], [&sum.to_string(), word], "{answer}");
    words[0].parse().unwrap()
}

/// The parent has heard of `count` answers.
fn has_heard(job: &Job, count: usize) {
    let until = Instant::now() + DEADLINE;
    while job.report() != [count.to_string()] {
        assert!(Instant::now() < until, "{:?} of {count} answers were heard of", job.report());
    }
}

#[test]
fn every_worker_goes_on() {
    needs_root!();
    let folder = tempdir().unwrap();
    let mut job = start(folder.path());
    let image = folder.path().join("image");
    let mut asked = 0;
    for round in 0..3 {
        for n in 0..60 {
            ask(folder.path(), &format!("word {round} {n}").replace(' ', "-"));
            asked += 1;
        }
        has_heard(&job, asked);
        ckpt::checkpoint_and_kill(&mut job, &image, &[]);
        job = ckpt::restart(&job, &image, &[]);
        assert_eq!(process::descendants(job.pid()).len(), WORKERS);
    }
    ask(folder.path(), "last");
    has_heard(&job, asked + 1);
}

#[test]
fn every_worker_goes_on_under_watch() {
    needs_root!();
    let folder = tempdir().unwrap();
    let job = start(folder.path());
    let at = folder.path().to_owned();
    let answers = |job: &Job| {
        for n in 0..20 {
            ask(&at, &format!("word{n}"));
        }
        assert_eq!(process::descendants(job.pid()).len(), WORKERS);
    };
    watched::survives_crashes(job, "100ms", 2, &Moments::new(), answers);
}
