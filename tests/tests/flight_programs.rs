//! Programs that hand descriptors to each other all the time: what they compute is what they compute without any interruption.

use std::path::Path;

use ckpt_tests::job::Job;
use ckpt_tests::{needs_root, python, story};

/// A master makes files and connections, and passes them to workers (as servers with workers do): each of these hashes what it gets, and answers
/// through the connection. Several are always under way.
const MASTER: &str = "
import array, collections, hashlib, socket
rounds = ROUNDS
def work(mine):
    while True:
        data, with_it, flags, _ = mine.recvmsg(100, 4096)
        if not data: os._exit(0)
        source, answer = array.array('i', with_it[0][2])
        digest = hashlib.sha256(data)
        while part := os.read(source, 7777): digest.update(part)
        os.write(answer, digest.digest())
        os.close(source)
        os.close(answer)
workers = []
for n in range(3):
    a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        a.close()
        for other in workers: other.close()
        work(b)
    b.close()
    workers.append(a)
print('ready', flush=True)
total = hashlib.sha256()
under_way = collections.deque()
def settle():
    answer = under_way.popleft()
    while part := answer.recv(100): total.update(part)
    answer.close()
for n in range(rounds):
    if n % 2:
        source = os.memfd_create('source')
        os.write(source, b'%d' % n * (n % 5000))
        os.lseek(source, 0, os.SEEK_SET)
    else:
        source, w = os.pipe()
        os.write(w, b'in a pipe %d' % n * 100)
        os.close(w)
    mine, theirs = socket.socketpair()
    workers[n % 3].sendmsg([b'job %d' % n], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [source, theirs.fileno()]))])
    os.close(source)
    theirs.close()
    under_way.append(mine)
    if len(under_way) > 8: settle()
    if n % 100 == 0: print('step', n, total.hexdigest(), flush=True)
while under_way: settle()
print('done', total.hexdigest(), flush=True)
";

/// Python's own way to pass them: multiprocessing.reduction, with a connection and a pool that is given sockets and pipes.
const REDUCTION: &str = "
import hashlib, multiprocessing as mp, socket
from multiprocessing import reduction
rounds = ROUNDS
def receiver(conn, results):
    while True:
        fd = reduction.recv_handle(conn)
        text = conn.recv()
        if text is None: return
        results.send_bytes(hashlib.sha256(text.encode() + os.read(fd, 1000)).digest())
        os.close(fd)
here, there = mp.Pipe()
out, into = mp.Pipe(False)
context = mp.get_context('fork')
child = context.Process(target=receiver, args=(there, into))
child.start()
print('ready', flush=True)
total = hashlib.sha256()
def send(text, data):
    r, w = os.pipe()
    os.write(w, data)
    os.close(w)
    reduction.send_handle(here, r, child.pid)
    here.send(text)
    os.close(r)
for n in range(rounds):
    for k in range(3): send('text %d' % n, b'data %d %d' % (n, k))
    for k in range(3): total.update(out.recv_bytes())
    if n % 100 == 0: print('step', n, total.hexdigest(), flush=True)
send(None, b'')
child.join()
print('done', total.hexdigest(), flush=True)
";

fn start(folder: &Path, script: &str, rounds: u32) -> Job {
    let script = script.replace("ROUNDS", &rounds.to_string());
    python::start(folder, &mut python::command(&script)).unwrap()
}

/// Stopped, killed and restarted at random moments.
fn survives(script: &str, rounds: u32) {
    needs_root!();
    story::survives(|folder| start(folder, script, rounds), |job| (job.output(), job.errors()));
}

/// Live cuts and increments, and a crash at any moment.
fn survives_crashes(script: &str, rounds: u32) {
    needs_root!();
    story::survives_crashes(|folder| start(folder, script, rounds), "20ms", 4);
}

#[test]
fn a_master_and_its_workers() {
    survives(MASTER, 8000);
}

#[test]
fn a_master_and_its_workers_under_a_watch() {
    survives_crashes(MASTER, 100000);
}

#[test]
fn handles_of_multiprocessing() {
    survives(REDUCTION, 4000);
}

#[test]
fn handles_of_multiprocessing_under_a_watch() {
    survives_crashes(REDUCTION, 60000);
}
