//! Descriptors and credentials in flight over unix sockets: sent, not received yet, and received after a restart as if nothing had been.

use ckpt_tests::job::Job;
use ckpt_tests::{ckpt, needs_root, python};
use tempfile::tempdir;

/// For all: `send(socket, bytes, descriptors)`, and `drain(socket)`, which tells of every message: its bytes and what the descriptors are.
const HELPERS: &str = "
import array, errno, hashlib, select, socket
def send(to, data, fds=()):
    to.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', fds))] if fds else [])
def bytes_of(data):
    return data if len(data) < 20 else (len(data), hashlib.md5(data).hexdigest())
def receive(fro, size=1 << 20):
    data, with_it, flags, _ = fro.recvmsg(size, 4096, socket.MSG_DONTWAIT)
    fds = array.array('i')
    for level, kind, value in with_it:
        if kind == socket.SCM_RIGHTS: fds.frombytes(value)
    assert not flags & socket.MSG_CTRUNC
    return data, list(fds)
def what(fd):
    'What it is, and what can be read from it.'
    link = os.readlink('/proc/self/fd/%d' % fd).split('[')[0].split('/')[-1]
    try:
        os.set_blocking(fd, False)
        read = bytes_of(os.read(fd, 100))
    except OSError as error:
        read = errno.errorcode[error.errno]
    return link, read
def drain(fro, size=1 << 20, look=what):
    while True:
        try: data, fds = receive(fro, size)
        except BlockingIOError: return
        if size > 1 or fds: print(bytes_of(data), [look(fd) for fd in fds], flush=True)
        if not data and not fds: return
def piped(data):
    'The reading end of a pipe with this in it.'
    r, w = os.pipe()
    os.write(w, data)
    os.close(w)
    return r
def sent(to, data, *fds):
    'Sends descriptors that are nowhere else afterwards.'
    send(to, data, fds)
    for fd in fds: os.close(fd)
";

fn start(script: &str) -> (tempfile::TempDir, Job) {
    let folder = tempdir().unwrap();
    let job = python::rest_after(folder.path(), &format!("{HELPERS}{script}")).unwrap();
    (folder, job)
}

/// What the program reports without any interruption is what it reports after a checkpoint that lets it run on, and what it reports when it
/// was brought back, from an image of one that was brought back.
fn is_the_same(script: &str) -> Vec<String> {
    let (_folder, plain) = start(script);
    let expected = plain.report();
    assert!(expected.len() > 1 || expected.first().is_some_and(|line| !line.contains("Error")), "{expected:?}");
    let (folder, mut job) = start(script);
    let image = folder.path().join("image");
    ckpt::checkpoint(job.pid(), &image, &[]);
    for _ in 0..2 {
        ckpt::checkpoint_and_kill(&mut job, &image, &[]);
        job = ckpt::restart(&job, &image, &[]);
    }
    assert_eq!(job.report(), expected);
    let (folder, mut job) = start(script);
    let image = folder.path().join("image");
    ckpt::checkpoint(job.pid(), &image, &[]);
    assert_eq!(job.report(), expected, "the checkpoint has changed the target");
    job.kill();
    expected
}

#[test]
fn one_descriptor_waits_in_a_stream() {
    needs_root!();
    let told = is_the_same(
        "
a, b = socket.socketpair()
r = piped(b'in the pipe')
socket.send_fds(a, [b'take'], [r])
os.close(r)
def report():
    data, fds, _, _ = socket.recv_fds(b, 100, 10)
    print(data, len(fds), os.read(fds[0], 100), os.read(fds[0], 100), flush=True)
    print('done', flush=True)
",
    );
    assert_eq!(told, ["b'take' 1 b'in the pipe' b''"]);
}

/// Which bytes descriptors come with, and where a look at the stream ends.
#[test]
fn messages_keep_their_boundaries_and_descriptors() {
    needs_root!();
    let told = is_the_same(
        "
kinds = [socket.SOCK_STREAM, socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM]
pairs = [socket.socketpair(socket.AF_UNIX, kind) for kind in kinds]
for a, b in pairs:
    for back, (x, y) in enumerate([(a, b), (b, a)]):
        send(x, b'plain' * 100)
        send(x, b'another')
        sent(x, b'two', piped(b'first'), piped(b'second'))
        sent(x, b'L' * 5000, piped(b'long'))
        sent(x, b'1', *[piped(b'%d' % n) for n in range(5)])
        sent(x, b'2', piped(b'short'))
        send(x, b'between')
        sent(x, b'3', piped(b'last'))
        if back: sent(x, b'B' * 30000, piped(b'big'))
        else: send(x, b'tail')
    a.shutdown(socket.SHUT_WR)
def report():
    for n, (a, b) in enumerate(pairs):
        # The first pair is read byte by byte, so it shows which byte the descriptors came with.
        drain(b, 1 if n == 0 else 1 << 20)
        if n == 0: print(b.recv(1) if b.type == socket.SOCK_STREAM else None)
        drain(a, 1 if n == 0 else 1 << 20)
        print('next', flush=True)
    print('done', flush=True)
",
    );
    assert!(told.iter().filter(|line| line.contains("'short'")).count() == 8, "{told:#?}");
}

/// The kernel shows it only once.
#[test]
fn an_empty_message_with_descriptors() {
    needs_root!();
    let (folder, mut job) = start(
        "
a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
send(a, b'before')
sent(a, b'', piped(b'with nothing'))
send(a, b'after')
def report():
    drain(b)
    print('done', flush=True)
",
    );
    let image = folder.path().join("image");
    ckpt::checkpoint_and_kill(&mut job, &image, &[]);
    let job = ckpt::restart(&job, &image, &[]);
    ckpt::checkpoint(job.pid(), &image, &[]);
    let refusal = ckpt::try_checkpoint(job.pid(), &image, &[]).failure();
    assert!(refusal.contains("does not show all of them"), "{refusal}");
    assert_eq!(job.report(), ["b'before' []", "b'' [('pipe:', b'with nothing')]", "b'after' []"]);
}

#[test]
fn files_of_many_kinds_travel() {
    needs_root!();
    let told = is_the_same(
        "
a, b = socket.socketpair()
with open('named', 'w') as f: f.write('named contents')
with open('gone', 'w') as f: f.write('deleted contents')
named = os.open('named', os.O_RDONLY)
os.lseek(named, 6, os.SEEK_SET)
gone = os.open('gone', os.O_RDWR)
os.unlink('gone')
memfd = os.memfd_create('memory')
os.write(memfd, b'memory contents')
os.lseek(memfd, 7, os.SEEK_SET)
counter = os.eventfd(5)
tcp = socket.socket()
tcp.bind(('127.0.0.1', 0))
tcp.listen()
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
os.mkdir('folder')
sent(a, b'files', named, gone, memfd, counter, os.open('folder', os.O_RDONLY), os.open('/dev/null', os.O_RDWR))
sent(a, b'sockets', tcp.detach(), udp.detach())
def report():
    drain(b)
    print('done', flush=True)
",
    );
    assert!(told[0].contains("contents"), "{told:?}");
}

/// An open file in flight is the one that the process has, and the one of another message: they share the offset.
#[test]
fn shared_descriptions_stay_shared() {
    needs_root!();
    let told = is_the_same(
        "
a, b = socket.socketpair()
with open('named', 'w') as f: f.write('0123456789')
kept = os.open('named', os.O_RDONLY)
alone = os.open('named', os.O_RDONLY)
for n in range(3): send(a, b'message %d' % n, [kept, alone, kept, 1])
os.close(alone)
def report():
    received = [receive(b)[1] for _ in range(3)]
    for fds in received: print([os.read(fd, 1) for fd in fds[:3]])
    print(os.read(kept, 10), os.read(received[0][1], 10), [os.fstat(fds[3]) == os.fstat(1) for fds in received])
    print('done', flush=True)
",
    );
    assert_eq!(told[3], "b'6789' b'3456789' [True, True, True]");
}

#[test]
fn what_is_nowhere_but_in_flight() {
    needs_root!();
    let told = is_the_same(
        "
# A pipe of which one end, and one of which both ends are in flight; and a pair of sockets likewise.
a, b = socket.socketpair()
r, w = os.pipe()
os.write(w, b'one end')
sent(a, b'reader', r)
r2, w2 = os.pipe()
os.write(w2, b'both ends')
sent(a, b'reader', r2)
sent(a, b'writer', w2)
c, d = socket.socketpair()
c.send(b'to the other')
sent(a, b'socket', d.detach())
e, f = socket.socketpair()
e.send(b'between two in flight')
sent(a, b'pair', e.detach(), f.detach())
# A socket with descriptors in its own queue, one of which is again a socket with some.
g, h = socket.socketpair()
i, j = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
sent(i, b'deepest', piped(b'the end of it'))
sent(g, b'deep', j.detach(), i.detach())
sent(a, b'nest', h.detach())
# One that is in its own queue, and two that are in each other's.
k, l = socket.socketpair()
send(k, b'itself', [l.fileno(), k.fileno()])
m, n = socket.socketpair()
o, p = socket.socketpair()
send(m, b'p', [p.fileno()])
send(o, b'n', [n.fileno()])
# A server that nobody has.
server = socket.socket(socket.AF_UNIX)
name = '\\0ckpt-flight-%d' % os.getpid()
server.bind(name)
server.listen(3)
sent(a, b'server', server.detach())
def received(fro): return [socket.socket(fileno=fd) if os.fstat(fd).st_mode & 0o170000 == 0o140000 else fd for fd in receive(fro)[1]]
def report():
    [reader] = received(b)
    os.write(w, b', and more')
    print(what(reader))
    [reader], [writer] = received(b), received(b)
    os.write(writer, b', and more')
    print(what(reader))
    [d] = received(b)
    c.send(b' end')
    print(d.recv(100))
    e, f = received(b)
    e.send(b' ends')
    print(f.recv(100))
    [h] = received(b)
    j, i = received(h)
    [deepest] = received(j)
    i.send(b'alive')
    print(what(deepest), j.recv(10))
    l2, k2 = received(l)
    l2.send(b'to k')
    print(k.recv(10), os.fstat(l2.fileno()) == os.fstat(l.fileno()), os.fstat(k2.fileno()) == os.fstat(k.fileno()))
    [p2], [n2] = received(n), received(p)
    n2.send(b'to m')
    p2.send(b'to o')
    print(m.recv(10), o.recv(10))
    [server] = received(b)
    client = socket.socket(socket.AF_UNIX)
    client.connect(name)
    client.send(b'served')
    print(server.accept()[0].recv(10))
    print('done', flush=True)
",
    );
    assert_eq!(told.last().unwrap(), "b'served'");
}

/// Ends that were closed or shut down behind what they have sent.
#[test]
fn the_sender_is_gone() {
    needs_root!();
    is_the_same(
        "
kinds = [socket.SOCK_STREAM, socket.SOCK_SEQPACKET]
ends = []
for kind in kinds:
    a, b = socket.socketpair(socket.AF_UNIX, kind)
    sent(a, b'last words', piped(b'from the dead'))
    a.close()
    c, d = socket.socketpair(socket.AF_UNIX, kind)
    sent(c, b'half', piped(b'from one that listens'))
    c.shutdown(socket.SHUT_WR)
    ends += [(b, None), (d, c)]
def report():
    for b, other in ends:
        drain(b)
        if other:
            b.send(b'back')
            print(other.recv(10))
    print('done', flush=True)
",
    );
}

/// Datagrams to a socket that has a name; one whose name is gone since.
#[test]
fn datagrams_to_a_name() {
    needs_root!();
    let told = is_the_same(
        "
servers = [socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(3)]
for server, name in zip(servers, ['stays', 'goes', '\\0ckpt-flight-%d' % os.getpid()]):
    server.bind(name)
    client = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    client.connect(name)
    client.send(b'plain')
    sent(client, b'with', piped(b'in a datagram'))
    client.send(b'last')
os.unlink('goes')
def report():
    for server in servers: drain(server)
    print(os.path.exists('stays'), os.path.exists('goes'))
    print('done', flush=True)
",
    );
    assert_eq!(told.len(), 10);
}

/// A child has sent to its parent, and has ended; another one is about to receive.
#[test]
fn between_processes() {
    needs_root!();
    let told = is_the_same(
        "
a, b = socket.socketpair()
c, d = socket.socketpair()
if os.fork() == 0:
    sent(a, b'from a child', piped(b'of a child'))
    os._exit(0)
os.wait()
r, w = os.pipe()
if os.fork() == 0:
    os.close(w)
    os.dup2(c.fileno(), 0)
    signal.sigwait([signal.SIGUSR2])
    data, fds = receive(c)
    os.write(fds[0], data + b' written by the other')
    os._exit(0)
send(d, b'what is sent is', [w])
os.close(w)
child = int(open('/proc/self/task/%d/children' % os.getpid()).read())
def report():
    drain(b)
    os.kill(child, signal.SIGUSR2)
    os.waitpid(child, 0)
    print(os.read(r, 100), os.read(r, 100))
    print('done', flush=True)
",
    );
    assert_eq!(told.last().unwrap(), "b'what is sent is written by the other' b''");
}
