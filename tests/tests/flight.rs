//! Descriptors in flight over unix sockets: sent, not received yet, and received after a restart as if nothing had been.

use ckpt_tests::moments::Moments;
use ckpt_tests::passing::{is_the_same, start};
use ckpt_tests::watched::{self, Watch};
use ckpt_tests::{ckpt, needs_root};

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

/// Who has sent a datagram is told to its receiver, who may answer.
#[test]
fn datagrams_of_senders_that_have_names() {
    needs_root!();
    let told = is_the_same(
        "
names = ['server', '\\0ckpt-server-%d' % os.getpid()]
servers, senders = [[socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(n)] for n in (2, 4)]
for server, name in zip(servers, names): server.bind(name)
senders[0].bind('sender')
senders[1].bind('')
senders[2].bind('\\0ckpt-sender-%d' % os.getpid())
senders[2].connect('sender')
for name in names:
    for n in (0, 1, 3, 2, 2, 0): senders[n].sendto(b'of %d' % n, name)
    r = piped(b'in a datagram')
    senders[1].sendmsg([b'with'], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, r.to_bytes(4, 'little'))], 0, name)
    os.close(r)
names = [sender.getsockname() for sender in senders[:3]]
def report():
    for server in servers:
        for _ in range(7):
            data, fds, _, address = socket.recv_fds(server, 100, 10)
            print(data, [os.read(fd, 100) for fd in fds], names.index(address) if address else None)
            if data in (b'of 0', b'with'): server.sendto(b'answer to ' + data, address)
    for sender in senders[:2]: print([sender.recv(100) for _ in range(4 if sender is senders[0] else 2)])
    print('done', flush=True)
",
    );
    assert_eq!(told.len(), 16);
    assert!(told[0] == "b'of 0' [] 0" && told[2] == "b'of 3' [] None", "{told:#?}");
    assert_eq!(told[15], "[b'answer to with', b'answer to with']");
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

/// Handles on processes and their files, which can be had only once the processes are there.
#[test]
fn processes_travel() {
    needs_root!();
    let told = is_the_same(
        "
pid = os.fork()
if pid == 0:
    while True: signal.pause()
a, b = socket.socketpair()
kept = os.pidfd_open(pid)
send(a, b'kept', [kept])
sent(a, b'child', os.pidfd_open(pid))
sent(a, b'itself, does not wait', os.pidfd_open(os.getpid(), os.O_NONBLOCK))
twice = os.open('/proc/%d/status' % pid, os.O_RDONLY)
os.read(twice, 5)
send(a, b'one', [twice]); sent(a, b'again', twice)
sent(a, b'memory', os.open('/proc/self/maps', os.O_RDONLY))
def report():
    for n in range(3):
        data, (fd,) = receive(b, 21 if n == 2 else 5 if n else 4)
        info = dict(line.split(':', 1) for line in open('/proc/self/fdinfo/%d' % fd).read().splitlines())
        print(data, {os.getpid(): 'itself', pid: 'child'}[int(info['Pid'])], bool(int(info['flags'], 8) & os.O_NONBLOCK))
        signal.pidfd_send_signal(fd, 0)
    _, (one,) = receive(b, 3)
    _, (again,) = receive(b, 5)
    print(os.read(one, 8), os.read(again, 2), os.readlink('/proc/self/fd/%d' % one) == '/proc/%d/status' % pid)
    _, (maps,) = receive(b)
    print(b'python' in os.read(maps, 1 << 16))
    signal.pidfd_send_signal(kept, 9)
    print(os.waitpid(pid, 0)[1])
    print('done', flush=True)
",
    );
    assert_eq!(told[0], "b'kept' child False");
    assert_eq!(told.last().unwrap(), "9");
}

/// Pseudoterminals of which one side or both are in flight, and what waits in them; and what watches files.
#[test]
fn terminals_and_watches_travel() {
    needs_root!();
    let told = is_the_same(
        "
import pty, termios, tty
a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
def pair():
    m, s = pty.openpty()
    tty.setraw(s)
    os.write(m, b'to the slave'); os.write(s, b'to the master')
    return m, s, os.readlink('/proc/self/fd/%d' % s)
first, second, third = pair(), pair(), pair()
sent(a, b'master', first[0])
sent(a, b'slave', second[1])
sent(a, b'both', third[0], third[1])
libc = ctypes.CDLL(None)
watch = libc.inotify_init1(os.O_NONBLOCK)
os.mkdir('watched')
wd = libc.inotify_add_watch(watch, b'watched', 0x100)
sent(a, b'watch', watch)
def show(m, s, name):
    print(os.read(m, 100), os.read(s, 100), os.readlink('/proc/self/fd/%d' % s) == name, bool(termios.tcgetattr(s)[3] & termios.ECHO))
    os.write(m, b'more')
    print(os.read(s, 100))
def report():
    show(receive(b)[1][0], first[1], first[2])
    show(second[0], receive(b)[1][0], second[2])
    show(*receive(b)[1], third[2])
    watch, = receive(b)[1]
    open('watched/new', 'w').close()
    number, mask = struct.unpack_from('iI', os.read(watch, 4096))
    print(number == wd, hex(mask))
    os.unlink('watched/new')
    print('done', flush=True)
",
    );
    assert_eq!(told[0], "b'to the master' b'to the slave' True False");
    assert_eq!(told.last().unwrap(), "True 0x100");
}

/// What ckpt cannot make again by itself is refused while it is in flight, by name and for the moment.
#[test]
fn what_cannot_travel_is_refused() {
    needs_root!();
    for (what, make, reason) in [
        ("anon_inode:[eventpoll]", "(lambda it: os.dup(it.fileno()))(select.epoll())", "not while it is in flight"),
        ("pidfd", "os.pidfd_open(1)", "not being checkpointed"),
        ("/pagemap", "os.open('/proc/self/pagemap', os.O_RDONLY)", "nobody knows whether the program may"),
        ("socket:[", "socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM).detach()", "cannot save"),
    ] {
        let (folder, job) = start(&format!(
            "
a, b = socket.socketpair()
sent(a, b'x', {make})
def report():
    print(len(receive(b)[1]))
    print('done', flush=True)
"
        ));
        let image = folder.path().join("image");
        let refusal = ckpt::try_checkpoint(job.pid(), &image, &[]).failure();
        assert!(refusal.contains(what) && refusal.contains(reason), "{refusal}");
        assert!(refusal.contains("in flight to descriptor"), "{refusal}");
        let checked = ckpt::run(&mut ckpt::command(["check", &job.pid().to_string()]));
        assert!(format!("{}{}", checked.stdout, checked.stderr).contains(what), "{checked:?}");
        assert_eq!(job.report(), ["1"]);
    }
}

/// Nobody has a descriptor of the server's end, so nobody can be given what was sent over the connection.
#[test]
fn descriptors_sent_before_the_connection_is_accepted() {
    needs_root!();
    let (folder, job) = start(
        "
server = socket.socket(socket.AF_UNIX)
server.bind('server')
server.listen()
client = socket.socket(socket.AF_UNIX)
client.connect('server')
sent(client, b'early', piped(b'too early'))
accepted = []
def report():
    if not accepted: accepted.append(server.accept()[0])
    else: drain(accepted[0])
    print('done', flush=True)
",
    );
    let mut job = job;
    let image = folder.path().join("image");
    let refusal = ckpt::try_checkpoint(job.pid(), &image, &[]).failure();
    assert!(refusal.contains("has not accepted yet"), "{refusal}");
    job.report();
    ckpt::checkpoint_and_kill(&mut job, &image, &[]);
    let job = ckpt::restart(&job, &image, &[]);
    assert_eq!(job.report(), ["b'early' [('pipe:', b'too early')]"]);
}

/// Under a watch, live and by increments, while descriptors come and go.
#[test]
fn descriptors_travel_under_a_watch() {
    needs_root!();
    let (folder, mut job) = start(
        "
import threading
a, b = socket.socketpair()
c, d = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
memory = bytearray(64 << 20)
taken = 0
lock = threading.Lock()
def work():
    'Ten messages are always under way.'
    global taken
    n = 0
    while True:
        with lock:
            for to in a, c: sent(to, b'%d' % n, piped(b'pipe %d' % n))
            memory[(n * 4096) % len(memory)] = n % 256
            n += 1
            if n > 10:
                for fro in b, d:
                    data, [fd] = receive(fro)
                    if data != b'%d' % taken or what(fd) != ('pipe:', b'pipe %d' % taken): print('wrong', data, taken, flush=True)
                    os.close(fd)
                taken += 1
        time.sleep(0.0005)
threading.Thread(target=work, daemon=True).start()
def report():
    with lock: print('report', 'many' if taken > 5 else taken, flush=True)
    print('done', flush=True)
",
    );
    let images = folder.path().join("images");
    let moments = Moments::new();
    for _ in 0..3 {
        let watch = Watch::start(&job, &images, "20ms", &[]);
        let made = watch.wait_for(8);
        assert!(made.iter().any(watched::is_increment), "{made:?}");
        watch.crash(&mut job, &moments);
        job = ckpt::restart(&job, &images, &[]);
        let told = job.report();
        assert!(told.len() == 1 && told[0] == "report many", "{told:?}");
        assert!(!job.output().contains("wrong"), "{}", job.output());
    }
    let image = folder.path().join("live");
    let report = ckpt::checkpoint(job.pid(), &image, &["--tracker", "live"]);
    assert_eq!(report["tracker"], "live");
}
