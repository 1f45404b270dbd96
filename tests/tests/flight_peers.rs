//! Who has sent a message, and who is at the other end of a unix socket, as the program is told after a restart.

use ckpt_tests::needs_root;
use ckpt_tests::passing::is_the_same;

/// A client that gave up root waits to be accepted.
#[test]
fn the_user_of_a_client_that_waits() {
    needs_root!();
    let told = is_the_same(
        "
os.chmod('.', 0o755)
server = socket.socket(socket.AF_UNIX)
server.bind('server')
os.chmod('server', 0o777)
server.listen()
ready, say = os.pipe()
pid = os.fork()
if pid == 0:
    os.setgroups([7, 8])
    os.setresgid(4322, 4322, 4322)
    os.setresuid(4321, 4321, 4321)
    client = socket.socket(socket.AF_UNIX)
    client.connect('server')
    os.write(say, b'x')
    while True: signal.pause()
os.read(ready, 1)
def report():
    it, _ = server.accept()
    peer, uid, gid = struct.unpack('iII', it.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    print(peer == pid, uid, gid, list(array.array('I', it.getsockopt(socket.SOL_SOCKET, 59, 400))))
    print('done', flush=True)
",
    );
    assert_eq!(told, ["True 4321 4322 [7, 8]"]);
}

/// Whom messages name as their sender: one that lives, one that has ended, and another user.
#[test]
fn credentials_travel() {
    needs_root!();
    let told = is_the_same(
        "
def pair(kind, ask):
    x, y = socket.socketpair(socket.AF_UNIX, kind)
    if ask: y.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    return x, y
pairs = [pair(kind, True) for kind in (socket.SOCK_STREAM, socket.SOCK_SEQPACKET, socket.SOCK_DGRAM)]
server = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
server.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
server.bind('server')
client = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
client.connect('server')
names = {os.getpid(): 'parent'}
def child(name, uid, stays):
    say, said = os.pipe()
    pid = os.fork()
    if pid == 0:
        if uid: os.setresgid(uid + 1, uid + 1, uid + 1); os.setresuid(uid, uid, uid)
        for x, y in pairs + [(client, server)]:
            x.send(b'from ' + name.encode())
            sent(x, b'with', piped(b'of ' + name.encode()))
        if not stays: os._exit(0)
        os.write(said, b'x')
        while True: signal.pause()
    if stays: os.read(say, 1)
    else: os.waitpid(pid, 0)
    names[pid] = name
for x, y in pairs + [(client, server)]: x.send(b'first')
child('one that has ended', 0, False)
child('another user', 1234, False)
child('one that lives', 5678, True)
for x, y in pairs: x.send(b'last')
def tell(fro):
    while True:
        try: data, with_it, flags, _ = fro.recvmsg(1 << 20, 4096, socket.MSG_DONTWAIT)
        except BlockingIOError: return
        for level, kind, value in with_it:
            if kind == socket.SCM_RIGHTS: data += b', ' + os.read(*array.array('i', value), 100)
            else: pid, uid, gid = struct.unpack('iII', value)
        print(data, names.get(pid), uid, gid)
def report():
    for x, y in pairs + [(client, server)]: tell(y)
    pairs[0][0].send(b'again')
    tell(pairs[0][1])
    print('done', flush=True)
",
    );
    assert!(told.contains(&"b'from another userwith, of another user' another user 1234 1235".to_owned()), "{told:#?}");
    assert_eq!(told.iter().filter(|line| line.contains("one that lives 5678 5679")).count(), 7, "{told:#?}");
    assert!(!told.iter().any(|line| line.contains("None")), "{told:#?}");
}

/// Whom sockets take their peers for, and the names of both.
#[test]
fn peers_are_who_they_were() {
    needs_root!();
    let told = is_the_same(
        "
def peer(s): return struct.unpack('iII', s.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
def groups(s): return list(array.array('I', s.getsockopt(socket.SOL_SOCKET, 59, 400)))
names = {os.getpid(): 'parent'}
abstract = '\\0ckpt-flight-%d' % os.getpid()
os.mkdir('sub')
os.chmod('.', 0o755)
ways = [('sub/relative', socket.SOCK_STREAM), (os.path.abspath('absolute'), socket.SOCK_SEQPACKET), (abstract, socket.SOCK_STREAM)]
accepted = []
servers = []
for name, kind in ways:
    server = socket.socket(socket.AF_UNIX, kind)
    server.bind(name)
    server.listen(10)
    if name != abstract: os.chmod(name, 0o777)
    servers.append(server)
def child(uid, stays):
    a, b = socket.socketpair()
    pid = os.fork()
    if pid == 0:
        if uid:
            os.setgroups([uid + 2, uid + 3])
            os.setresgid(uid + 1, uid + 1, uid + 1)
            os.setresuid(uid, uid, uid)
        mine = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        for name, kind in ways:
            client = socket.socket(socket.AF_UNIX, kind)
            client.connect(name)
            send(b, b'x', [client.fileno()])
        send(b, b'x', [mine[0].fileno()])
        send(b, b'x', [mine[1].fileno()])
        if not stays: os._exit(0)
        while True: signal.pause()
    names[pid] = 'child %d' % uid
    got = [socket.socket(fileno=receive_now(a)) for _ in range(5)]
    for server, client in zip(servers, got):
        accepted.append((server.accept()[0], client))
    accepted.append((got[3], got[4]))
    if not stays: os.waitpid(pid, 0)
def receive_now(s):
    return socket.recv_fds(s, 1, 1)[1][0]
child(0, True)
child(1234, True)
child(4321, False)
accepted.append(socket.socketpair())
servers[1].close()
os.unlink(ways[1][0])
def describe(s):
    pid, uid, gid = peer(s)
    ends = [str(name).replace(os.getcwd(), 'HERE').replace(str(os.getpid()), 'PID') for name in (s.getsockname(), s.getpeername())]
    return names.get(pid, pid), uid, gid, groups(s), ends
def report():
    for x, y in accepted:
        for s in x, y: print(*map(str, describe(s)))
        x.send(b'alive')
        print(y.recv(10))
    # Who connects from now on.
    for server in servers[0], servers[2]:
        client = socket.socket(socket.AF_UNIX)
        client.connect(server.getsockname())
        print(*map(str, describe(client)), *map(str, describe(server.accept()[0])))
    print('done', flush=True)
"
    );
    let told: Vec<&str> = told.iter().map(String::as_str).collect();
    assert!(told.iter().any(|line| line.starts_with("child 4321 4321 4322 [4323, 4324] ")), "{told:#?}");
}

/// A client that had a name of its own before it was connected, and what was accepted, which has the server's: whichever was made first.
#[test]
fn a_bound_client() {
    needs_root!();
    let told = is_the_same(
        "
ends = []
for name, own, first in ('server', 'client', True), ('server 2', 'client 2', False), ('\\0server %d' % os.getpid(), 'client 3', True):
    client = socket.socket(socket.AF_UNIX) if first else None
    server = socket.socket(socket.AF_UNIX)
    server.bind(name)
    server.listen()
    client = client or socket.socket(socket.AF_UNIX)
    client.bind(own)
    client.connect(name)
    ends.append((client, server.accept()[0]))
def shown(name): return str(name).replace(str(os.getpid()), 'PID')
def report():
    for client, accepted in ends:
        for s in client, accepted: print(shown(s.getsockname()), shown(s.getpeername()))
        client.send(b'alive')
        print(accepted.recv(10))
    print('done', flush=True)
",
    );
    assert!(told.iter().any(|line| line == "client 2 server 2"), "{told:#?}");
}

/// A server that gave up root after it began to listen, and one that did so before: who connects sees the user of that moment.
#[test]
fn a_server_that_gave_up_root() {
    needs_root!();
    let told = is_the_same(
        "
def peer(s): return struct.unpack('iII', s.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
os.chmod('.', 0o777)
servers = [socket.socket(socket.AF_UNIX) for _ in range(2)]
servers[0].bind('first')
servers[0].listen()
os.setgroups([77, 78])
os.setresgid(4322, 4322, 4322)
os.setresuid(4321, 4321, 4321)
servers[1].bind('second')
servers[1].listen()
def report():
    client = socket.socket(socket.AF_UNIX)
    client.connect('second')
    pid, uid, gid = peer(client)
    print(pid == os.getpid(), uid, gid)
    print(peer(servers[0])[1:], peer(servers[1])[1:])
    print('done', flush=True)
",
    );
    assert_eq!(told, ["True 4321 4322", "(0, 0) (4321, 4322)"]);
}

/// What was sent before the program asked for credentials has none, whoever sends it again.
#[test]
fn messages_from_before_it_asked() {
    needs_root!();
    let told = is_the_same(
        "
pairs = [socket.socketpair(socket.AF_UNIX, kind) for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM)]
server = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
server.bind('server')
client = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
client.connect('server')
pairs.append((client, server))
for a, b in pairs:
    sent(a, b'before', piped(b'of nobody'))
    b.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    sent(a, b'after', piped(b'of somebody'))
def report():
    for a, b in pairs:
        for _ in range(2):
            data, with_it, _, _ = b.recvmsg(100, 4096)
            [sender] = [value for _, kind, value in with_it if kind == socket.SCM_CREDENTIALS]
            pid, uid, gid = struct.unpack('iII', sender)
            print(data, pid == os.getpid(), pid == 0, uid, gid)
    print('done', flush=True)
",
    );
    assert_eq!(told[..2], ["b'before' False True 65534 65534", "b'after' True False 0 0"]);
}
