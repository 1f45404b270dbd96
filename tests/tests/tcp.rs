//! TCP connections within the tree: every byte in its place after a restart, in every state that a connection can be in.

use std::process::{Command, Stdio};

use ckpt_tests::passing::{HELPERS, is_the_same, start};
use ckpt_tests::{ckpt, needs_root, or_skip, process, python};
use tempfile::tempdir;

/// What each end has received and sent, small amounts and large ones, and that it goes on.
#[test]
fn both_directions() {
    needs_root!();
    let told = is_the_same(
        "
server = socket.create_server(('127.0.0.1', 0))
pairs = []
for there, back in [(b'', b''), (b'there', b''), (b'', b'back'), (b'x' * 100000, b'y' * 10), (bytes(range(256)) * 4000, b'z' * 300000)]:
    client = socket.create_connection(server.getsockname())
    accepted, _ = server.accept()
    client.sendall(there); accepted.sendall(back)
    pairs.append((client, accepted))
names = [(one.getsockname(), one.getpeername()) for pair in pairs for one in pair]
def read(fro, least):
    data = b''
    while len(data) < least: data += fro.recv(1 << 20)
    return bytes_of(data)
def report():
    print(names == [(one.getsockname(), one.getpeername()) for pair in pairs for one in pair])
    for client, accepted in pairs:
        client.send(b'more'); accepted.send(b'much more')
        client.shutdown(socket.SHUT_WR); accepted.shutdown(socket.SHUT_WR)
        for one in accepted, client:
            data = b''
            while piece := one.recv(1 << 20): data += piece
            print(bytes_of(data))
    another = socket.create_connection(server.getsockname())
    accepted, _ = server.accept()
    another.send(b'new')
    print(accepted.recv(10))
    print('done', flush=True)
",
    );
    assert_eq!(told.len(), 12, "{told:#?}");
    assert_eq!(told[0], "True");
}

/// For scripts: connections of several families, and what is read from one until it has no more for now.
const HELP: &str = "
def connected(server):
    client = socket.create_connection(server.getsockname()[:2])
    return client, server.accept()[0]
def rest(one):
    one.setblocking(False)
    data = b''
    while True:
        try: piece = one.recv(1 << 20)
        except BlockingIOError: return bytes_of(data), 'more may come'
        except OSError as error: return bytes_of(data), errno.errorcode[error.errno]
        if not piece: return bytes_of(data), 'end'
        data += piece
def written(one):
    try: return one.send(b'x')
    except OSError as error: return errno.errorcode[error.errno]
def settled(one, *events):
    poll = select.poll()
    poll.register(one, *events)
    assert poll.poll(10000)
";

/// Halves that are shut down, by this end, by the other, and by both; what was sent before that is read first.
#[test]
fn halves_that_are_shut_down() {
    needs_root!();
    let told = is_the_same(&format!(
        "{HELP}
server = socket.create_server(('127.0.0.1', 0))
pairs = [connected(server) for _ in range(8)]
for n, (a, b) in enumerate(pairs):
    a.send(b'to b' * 10); b.send(b'to a')
    if n & 1: a.shutdown(socket.SHUT_WR); settled(b, select.POLLRDHUP)
    if n & 2: b.shutdown(socket.SHUT_RD)
    if n & 4 and not n & 1: b.shutdown(socket.SHUT_WR); settled(a, select.POLLRDHUP)
def report():
    for a, b in pairs:
        print(written(a), written(b), rest(a), rest(b), written(a), written(b))
    print('done', flush=True)
"
    ));
    assert!(told[1].contains("EPIPE") && told[1].contains("'end'"), "{told:#?}");
}

/// A large amount waits behind a window that is shut, and then the end of it.
#[test]
fn an_end_behind_full_queues() {
    needs_root!();
    let told = is_the_same(&format!(
        "{HELP}
import random
server = socket.create_server(('127.0.0.1', 0))
server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 20000)
pairs = [connected(server) for _ in range(3)]
data = random.Random(1).randbytes(40 << 20)
lengths, sums = [], []
for n, (a, b) in enumerate(pairs):
    a.setblocking(False)
    sent = 0
    try:
        while True: sent += a.send(data[sent:sent + 70001])
    except BlockingIOError: pass
    lengths.append(sent)
    sums.append(hashlib.md5(data[:sent]).hexdigest())
    if n == 1: a.shutdown(socket.SHUT_WR)
    if n == 2: b.shutdown(socket.SHUT_WR)
def report():
    for length, (a, b) in zip(lengths, pairs):
        digest, got = hashlib.md5(), 0
        while got < length:
            piece = b.recv(100000)
            got += len(piece)
            digest.update(piece)
        print(got == length, digest.hexdigest() == sums[pairs.index((a, b))], rest(b), rest(a), written(a), written(b))
    print('done', flush=True)
"
    ));
    assert_eq!(told.len(), 3, "{told:#?}");
}

/// Its program has closed the other end: what it had sent is there, then the end, and whoever writes is told.
#[test]
fn the_other_end_was_closed() {
    needs_root!();
    let told = is_the_same(&format!(
        "{HELP}
server = socket.create_server(('127.0.0.1', 0))
a, b = connected(server)
b.sendall(b'last words' * 1000)
b.close()
c, d = connected(server)
c.send(b'of a client')
c.close()
settled(a, select.POLLRDHUP); settled(d, select.POLLRDHUP)
def report():
    for one in a, d:
        print(rest(one), written(one))
        settled(one, select.POLLHUP)
        print(rest(one), written(one))
    print('done', flush=True)
"
    ));
    assert!(told[0].contains("'end') 1") && told[1].contains("EPIPE"), "{told:#?}");
}

/// Its program has closed it, and the kernel still has to send most of what it was given.
#[test]
fn the_other_end_was_closed_and_still_sends() {
    needs_root!();
    let told = is_the_same(&format!(
        "{HELP}
server = socket.create_server(('127.0.0.1', 0))
server6 = socket.create_server(('::1', 0), family=socket.AF_INET6)
left = []
for n, there in enumerate((server, server, server6)):
    a, b = connected(there)
    if n == 1: a, b = b, a
    b.setblocking(False)
    sent, digest = 0, hashlib.md5()
    try:
        while True:
            piece = b'%d' % sent * 5000
            count = b.send(piece)
            digest.update(piece[:count])
            sent += count
    except BlockingIOError: pass
    b.close()
    left.append((a, sent, digest.hexdigest()))
def report():
    for a, sent, expected in left:
        digest, got = hashlib.md5(), 0
        while piece := a.recv(100000): got += len(piece); digest.update(piece)
        print(got == sent, got > 1000000, digest.hexdigest() == expected)
    print('done', flush=True)
"
    ));
    assert_eq!(told, ["True True True"; 3]);
}

/// Both have said that they send nothing more, or one has broken the connection, and what came before that was not read yet.
#[test]
fn connections_that_have_ended() {
    needs_root!();
    let told = is_the_same(&format!(
        "{HELP}
server = socket.create_server(('127.0.0.1', 0))
ended = []
for n in range(8):
    a, b = connected(server)
    if n & 4: a, b = b, a
    b.send(b'unread' * 1000)
    if n & 3 == 0: a.shutdown(socket.SHUT_WR); b.close()
    if n & 3 == 1: b.shutdown(socket.SHUT_WR); settled(a, select.POLLRDHUP); a.shutdown(socket.SHUT_WR)
    if n & 3 == 2: a.send(b'not read either'); settled(b, select.POLLIN); b.close()
    if n & 3 == 3: b.shutdown(socket.SHUT_WR); settled(a, select.POLLRDHUP); a.send(b'x'); settled(b, select.POLLIN); b.close()
    settled(a, select.POLLHUP)
    ended.append((a, b, a.getsockname()))
broken = []
for n in range(2):
    a, b = connected(server)
    if n: a, b = b, a
    a.send(b'not read')
    settled(b, select.POLLIN)
    b.close()
    settled(a, select.POLLHUP)
    broken.append(a)
def report():
    for a in broken: print(rest(a), rest(a))
    for n, (a, b, name) in enumerate(ended):
        # Whoever asks for the error is not told of it again.
        if n & 4: print('error', a.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
        print(a.getsockname() == name, a.recv(1), rest(a), rest(a), written(a), rest(b) if b.fileno() >= 0 else None)
    print('done', flush=True)
"
    ));
    assert_eq!(told.len(), 14);
    assert!(told[..2].iter().all(|line| line.contains("'ECONNRESET'")), "{told:#?}");
    assert!(told.iter().any(|line| line.contains("'ECONNRESET'")), "{told:#?}");
    assert!(["error 0", "error 104", "error 32"].iter().all(|error| told.iter().any(|line| line == error)), "{told:#?}");
}

/// IPv6, IPv4 in IPv6, the machine's other addresses, and servers that listen to any.
#[test]
fn addresses() {
    needs_root!();
    let told = is_the_same(&format!(
        "{HELP}
ways = [('127.0.0.1', '127.0.0.1'), ('::1', '::1'), ('::', '127.0.0.1'), ('::', '::1'), ('', '127.3.2.1'), ('::', '::ffff:127.0.0.5')]
ways += [('', line.split('inet ')[1].split('/')[0]) for line in os.popen('ip -o -4 addr show scope global').read().splitlines()][:1]
pairs, servers = [], []
for here, there in ways:
    family = socket.AF_INET6 if ':' in here else socket.AF_INET
    server = socket.socket(family)
    if family == socket.AF_INET6: server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    server.bind((here, 0))
    server.listen()
    client = socket.socket(socket.AF_INET6 if ':' in there else socket.AF_INET)
    client.connect((there, server.getsockname()[1]))
    pairs.append((client, server.accept()[0]))
    servers.append(server)
    client.send(b'there'); pairs[-1][1].send(b'back')
def name(one): return one.getsockname(), one.getpeername()
names = [name(one) for pair in pairs for one in pair]
def report():
    print(names == [name(one) for pair in pairs for one in pair])
    for (a, b), server in zip(pairs, servers):
        print(a.recv(100), b.recv(100), written(a), written(b), a.recv(100), b.recv(100))
        client = socket.socket(a.family)
        client.connect(a.getpeername())
        print(server.accept()[0].getpeername()[1] == client.getsockname()[1])
    print('done', flush=True)
"
    ));
    assert!(told.len() >= 13 && told[0] == "True", "{told:#?}");
}

/// What programs set, also what can only be set before a socket is bound; sizes of buffers that grow by themselves go on to.
#[test]
fn options() {
    needs_root!();
    is_the_same(&format!(
        "{HELP}
server = socket.create_server(('127.0.0.1', 0))
plain = connected(server)
a, b = connected(server)
T, S = socket.IPPROTO_TCP, socket.SOL_SOCKET
a.setsockopt(T, socket.TCP_NODELAY, 1)
b.setsockopt(T, socket.TCP_CORK, 1)
for n, value in ((socket.TCP_KEEPIDLE, 77), (socket.TCP_KEEPINTVL, 7), (socket.TCP_KEEPCNT, 3), (socket.TCP_USER_TIMEOUT, 5000)): a.setsockopt(T, n, value)
a.setsockopt(T, socket.TCP_CONGESTION, b'reno')
for n, value in ((socket.SO_KEEPALIVE, 1), (socket.SO_RCVBUF, 30000), (socket.SO_SNDBUF, 50000), (socket.SO_REUSEADDR, 1), (socket.SO_MARK, 9), (socket.SO_RCVLOWAT, 5)):
    a.setsockopt(S, n, value)
b.setsockopt(S, socket.SO_LINGER, struct.pack('ii', 1, 5))
b.setsockopt(S, socket.SO_RCVTIMEO, struct.pack('qq', 3, 250000))
a.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 0x10)
b.setblocking(False)
def report():
    for one in plain + (a, b):
        own = [one.getsockopt(S, n, 16) for n in (socket.SO_KEEPALIVE, socket.SO_RCVBUF, socket.SO_SNDBUF, socket.SO_REUSEADDR, socket.SO_MARK, socket.SO_RCVLOWAT, socket.SO_LINGER, socket.SO_RCVTIMEO, 72)]
        print(own, [one.getsockopt(T, n, 16) for n in (socket.TCP_NODELAY, socket.TCP_CORK, socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT, socket.TCP_USER_TIMEOUT, socket.TCP_CONGESTION)], one.getsockopt(socket.IPPROTO_IP, socket.IP_TOS), one.getblocking())
        info = one.getsockopt(T, socket.TCP_INFO, 104)
        print(info[0], info[5] & 7, info[6])
    print('done', flush=True)
"
    ));
}

/// A program that does not share its port (SO_REUSEADDR), and connections that are shared by processes, sent to others, and in flight.
#[test]
fn held_in_many_ways() {
    needs_root!();
    let told = is_the_same(&format!(
        "{HELP}
server = socket.socket()
server.bind(('127.0.0.1', 0))
server.listen()
pairs = [connected(server) for _ in range(3)]
for n, (a, b) in enumerate(pairs): a.send(b'to b %d' % n); b.send(b'to a %d' % n)
x, y = socket.socketpair()
(a, b), (c, d), (e, f) = pairs
# One end in flight, and both of another.
sent(x, b'one', b.detach())
sent(x, b'both', c.detach(), d.detach())
if os.fork() == 0:
    e.close()
    signal.sigwait([signal.SIGUSR2])
    print(f.recv(100), flush=True)
    f.send(b'from a child')
    while True: signal.pause()
child = int(open('/proc/self/task/%d/children' % os.getpid()).read())
again = e.dup()
def report():
    b, = receive(y)[1]
    c, d = [socket.socket(fileno=fd) for fd in receive(y)[1]]
    b = socket.socket(fileno=b)
    for one, other in (a, b), (c, d):
        print(one.recv(100), other.recv(100), written(one), written(other), one.recv(10), other.recv(10))
    print(e.recv(100))
    os.kill(child, signal.SIGUSR2)
    print(again.recv(100), os.fstat(e.fileno()) == os.fstat(again.fileno()))
    print('done', flush=True)
"
    ));
    assert_eq!(told.len(), 5, "{told:#?}");
}

/// The job dies by SIGKILL, and comes back at once, again and again: what is left of its connections is not in the way.
#[test]
fn again_and_again() {
    needs_root!();
    let (folder, mut job) = start(&format!(
        "{HELP}
server = socket.socket()
server.bind(('127.0.0.1', 0))
server.listen()
pairs = [connected(server) for _ in range(20)]
# Of these, the server's ends are closed first when the process is killed, so it is they that are left.
idle, pairs = pairs[:5], pairs[5:]
for a, b in pairs: a.send(b'there')
pairs[0][1].send(b'never read')
def report():
    print(*{{b.recv(100) for a, b in pairs}}, {{written(a) for a, b in pairs}})
    print('done', flush=True)
"
    ));
    let image = folder.path().join("image");
    ckpt::checkpoint(job.pid(), &image, &[]);
    for n in 0..6 {
        let family = process::descendants(job.pid());
        job.kill();
        process::kill_all(&family);
        job = ckpt::restart(&job, &image, &["--files", "rollback", "--discard-changes"]);
        if n % 2 == 1 {
            assert_eq!(job.report(), ["b'there' {1}"]);
        }
    }
}

/// What there is beside bytes is refused for the moment, and nothing is changed by the look.
#[test]
fn urgent_data_is_refused() {
    needs_root!();
    let sent = "a.send(b'before')";
    let inline = "b.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)";
    let read = "b.recv(1, socket.MSG_OOB)";
    for (before, after, rest) in [(sent, "", "b'beforeafter'"), (sent, read, "b'beforeafter'"), (inline, "", "b'!after'")] {
        let (folder, job) = start(&format!(
            "{HELP}
server = socket.create_server(('127.0.0.1', 0))
a, b = connected(server)
{before}
a.send(b'!', socket.MSG_OOB)
settled(b, select.POLLPRI)
a.send(b'after')
{after}
def report():
    print(rest(b)[0])
    print('done', flush=True)
"
        ));
        let refusal = ckpt::try_checkpoint(job.pid(), &folder.path().join("image"), &[]).failure();
        assert!(refusal.contains("urgent data"), "{refusal}");
        assert_eq!(job.report(), [rest]);
    }
}

/// Runs ckpt without some rights of root, and returns what it says.
fn without(rights: &str, arguments: &[&str]) -> ckpt::Outcome {
    let mut command = Command::new("setpriv");
    command.args([format!("--bounding-set={rights}"), format!("--inh-caps={rights}"), "--".to_owned()]);
    ckpt::run(command.arg(ckpt::binary()).args(arguments).stdin(Stdio::null()))
}

/// What ckpt may not do is said before anything is done. What has arrived takes no special right to be saved; what is on its way takes eBPF, and a restart
/// CAP_NET_ADMIN.
#[test]
fn rights_that_it_takes() {
    needs_root!();
    let script = |bytes: u32| {
        format!(
            "{HELP}
server = socket.create_server(('127.0.0.1', 0))
a, b = connected(server)
a.setblocking(False)
sent = 0
try:
    while sent < {bytes}: sent += a.send(b'x' * min(100000, {bytes} - sent))
except BlockingIOError: pass
# All that arrives has by then, and was acknowledged.
if {bytes} < 1000: b.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
def report():
    print(rest(b))
    print('done', flush=True)
"
        )
    };
    const NO_EBPF: &str = "-sys_admin,-bpf,-perfmon";
    let (folder, mut job) = start(&script(100));
    let image = folder.path().join("image");
    let (pid, path) = (job.pid().to_string(), image.to_str().unwrap());
    without(NO_EBPF, &["checkpoint", &pid, "-o", path]).success();
    let told = process::look(job.pid());
    job.kill();
    let refusal = without("-net_admin", &["restart", path, "--detach"]).failure();
    assert!(refusal.contains("CAP_NET_ADMIN") && refusal.contains("TCP connection from 127.0.0.1:"), "{refusal}");
    let mut job = ckpt::restart(&job, &image, &[]);
    process::assert_same(&told, &process::look(job.pid()));
    assert!(job.report()[0].starts_with("((100, '"), "not all came back");
    job.kill();

    let (folder, job) = start(&script(u32::MAX));
    let image = folder.path().join("image");
    let refusal = without(NO_EBPF, &["checkpoint", &job.pid().to_string(), "-o", image.to_str().unwrap()]).failure();
    assert!(refusal.contains("bytes on their way") && refusal.contains("eBPF"), "{refusal}");
    ckpt::checkpoint(job.pid(), &image, &[]);
}

/// Clients that have connected, in their order: with nothing sent, with some, with more than there is room for, at the end of what they send, and gone.
#[test]
fn connections_that_wait_to_be_accepted() {
    needs_root!();
    let told = is_the_same(&format!(
        "{HELP}
servers = [socket.create_server(('127.0.0.1', 0)), socket.create_server(('::1', 0), family=socket.AF_INET6), socket.create_server(('', 0))]
big = bytes(range(256)) * 40000
clients = []
def client(server, data, how=None):
    to = server.getsockname()
    one = socket.create_connection(('127.0.0.1' if to[0] == '0.0.0.0' else to[0], to[1]))
    one.settimeout(0.5)
    sent = 0
    try:
        while sent < len(data): sent += one.send(data[sent:])
    except TimeoutError: pass
    if how == 'end': one.shutdown(socket.SHUT_WR)
    if how == 'close': one.close()
    clients.append((None if how == 'close' else one, server, sent))
for n, server in enumerate(servers):
    client(server, b'')
    client(server, b'early %d' % n)
    client(server, b'the end of it', 'end')
    client(server, b'of somebody who is gone', 'close')
    client(server, b'', 'close')
    if n == 0: client(server, big)
    client(server, b'last')
port = 0
for host in '127.0.0.1', '127.0.0.2':
    one = socket.socket()
    one.bind((host, port))
    port = one.getsockname()[1]
    one.connect(('127.0.0.1', servers[2].getsockname()[1]))
    one.send(b'by one port, from ' + host.encode())
    one.close()
    clients.append((None, servers[2], 27))
def report():
    for one, server, sent in clients:
        accepted, address = server.accept()
        data = b''
        while len(data) < sent: data += accepted.recv(1 << 20)
        print(bytes_of(data), sent, one and address == one.getsockname(), rest(accepted), accepted.getsockname()[1] == server.getsockname()[1])
        accepted.setblocking(True)
        if one:
            accepted.send(b'served')
            print(one.recv(100), one.getpeername() == accepted.getsockname())
            if sent and sent < 10:
                one.send(b'more')
                print(accepted.recv(100))
    print('done', flush=True)
"
    ));
    assert!(told.len() > 30 && told[0].contains("more may come"), "{told:#?}");
}

/// Two listeners of one port, and six clients that wait: each comes to the one at which it has waited, however the kernel would choose.
#[test]
fn clients_of_listeners_that_share_a_port() {
    needs_root!();
    let told = is_the_same(&format!(
        "{HELP}
def listener(port):
    it = socket.socket()
    it.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    it.bind(('127.0.0.1', port))
    it.listen(20)
    return it
servers = [listener(0)]
port = servers[0].getsockname()[1]
# The first ones find it alone, and come to others of the group otherwise.
clients = [socket.create_connection(('127.0.0.1', port)) for n in range(6)]
servers += [listener(port) for n in range(3)]
clients += [socket.create_connection(('127.0.0.1', port)) for n in range(20)]
for n, client in enumerate(clients): client.send(b'%d' % n)
# tcpi_unacked tells how many wait.
waited = [struct.unpack_from('I', server.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104), 24)[0] for server in servers]
def report():
    counts = []
    for server in servers:
        server.setblocking(False)
        counts.append([])
        while True:
            try: counts[-1].append(server.accept()[0].recv(10))
            except BlockingIOError: break
    print(counts[0][:6], [len(count) for count in counts] == waited, sorted(int(n) for count in counts for n in count) == list(range(26)))
    # The kernel chooses again.
    more = [socket.create_connection(('127.0.0.1', port)) for n in range(20)]
    reached = 0
    for server in servers:
        try: server.accept(); reached += 1
        except BlockingIOError: pass
    print(reached > 1)
    print('done', flush=True)
"
    ));
    assert_eq!(told, ["[b'0', b'1', b'2', b'3', b'4', b'5'] True True", "True"]);
}

/// Whom the next client reaches is for a program to say that nobody is told.
#[test]
fn a_program_that_chooses() {
    needs_root!();
    for kind in ["STREAM", "DGRAM"] {
        let (folder, job) = start(&format!(
            "{HELP}
group = []
for n in range(2):
    it = socket.socket(type=socket.SOCK_{kind})
    it.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    it.bind(('127.0.0.1', group[0].getsockname()[1] if group else 0))
    if it.type == socket.SOCK_STREAM: it.listen()
    group.append(it)
code = ctypes.create_string_buffer(struct.pack('HBBI', 6, 0, 0, 1))
program = struct.pack('HxxxxxxP', 1, ctypes.addressof(code))
group[0].setsockopt(socket.SOL_SOCKET, 51, program)
def report():
    group[0].setsockopt(socket.SOL_SOCKET, 68, 0)
    print('done', flush=True)
"
        ));
        let image = folder.path().join("image");
        let refusal = ckpt::try_checkpoint(job.pid(), &image, &[]).failure();
        assert!(refusal.contains("shares its port with others, among which a program chooses"), "{refusal}");
        job.report();
        ckpt::checkpoint(job.pid(), &image, &[]);
    }
}

/// Keys (TCP_MD5SIG) of a connection, whose segments are signed, and of a socket that listens, whose connections would be.
#[test]
fn keys_that_nobody_can_save() {
    needs_root!();
    let keys = format!(
        "{HELPERS}{HELP}
def give_key(to):
    key = struct.pack('HH4s120xBBHI80s', socket.AF_INET, 0, socket.inet_aton('127.0.0.1'), 0, 0, 6, 0, b'secret')
    try: to.setsockopt(socket.IPPROTO_TCP, 14, key)
    except OSError as error: absent('TCP_MD5SIG: %s' % error)
server = socket.create_server(('127.0.0.1', 0))
give_key(server)
"
    );
    let connected = "
client = socket.socket()
give_key(client)
client.connect(server.getsockname())
accepted, _ = server.accept()
server.close()
";
    for (more, why) in [("", "has keys by which the segments of its connections are signed"), (connected, "with signed segments")]
    {
        let folder = tempdir().unwrap();
        let job = or_skip!(python::rest_after(folder.path(), &format!("{keys}{more}")));
        let refusal = ckpt::try_checkpoint(job.pid(), &folder.path().join("image"), &[]).failure();
        assert!(refusal.contains(why), "{refusal}");
    }
}
