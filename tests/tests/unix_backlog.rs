//! What clients have sent over unix connections before the server has accepted them.

use std::path::Path;
use std::process::Command;

use ckpt_tests::job::Job;
use ckpt_tests::passing::{is_the_same, start};
use ckpt_tests::{ckpt, needs_root};

/// Two servers, one by path and one with an abstract name, and what tells of all that waits there.
const SERVERS: &str = "
os.chmod('.', 0o755)
stream, packets = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
path, abstract = os.path.abspath('server'), '\\0ckpt-backlog-%d' % os.getpid()
stream.bind('server'); packets.bind(abstract)
os.chmod('server', 0o777)
for server in stream, packets: server.listen(30)
names = {os.getpid(): 'the first'}
def shown(address): return str(address).replace(str(os.getpid()), 'N').replace(os.getcwd(), '').replace(abstract, 'abstract')
def client(server=stream, *messages, name=None):
    it = socket.socket(socket.AF_UNIX, server.type)
    if name: it.bind(name)
    it.connect(path if server is stream else abstract)
    for message in messages: it.send(message)
    return it
def whose(credentials):
    pid, uid, gid = struct.unpack('iII', credentials[:12])
    return names.get(pid, 'somebody'), uid, gid
def tell(server=stream):
    'Accepts one, and tells all of it.'
    it, address = server.accept()
    it.setblocking(False)
    it.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    print(shown(address), shown(it.getpeername()), shown(it.getsockname()), whose(it.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)),
          list(array.array('I', it.getsockopt(socket.SOL_SOCKET, 59, 400))))
    while True:
        try: data, with_it, flags, _ = it.recvmsg(1 << 20, 4096)
        except BlockingIOError: print('  no more yet'); break
        except OSError as error: print('  ', error); break
        print('  ', bytes_of(data), [whose(value) for _, kind, value in with_it if kind == socket.SCM_CREDENTIALS], flags)
        if not data and server is stream: break
        if not data and not with_it: break
    return it
def serve(one, accepted):
    'Both ends go on.'
    one.setblocking(True)
    accepted.setblocking(True)
    accepted.send(b'served')
    print(one.recv(100), accepted.fileno() > 0)
    one.send(b'once more')
    print(accepted.recv(100))
def nobody_else():
    for server in stream, packets:
        server.setblocking(False)
        try: print(server.accept())
        except BlockingIOError: pass
    print('done', flush=True)
";

#[test]
fn what_clients_have_sent() {
    needs_root!();
    let told = is_the_same(&format!(
        "{SERVERS}
pattern = lambda n: bytes(i * (n + 3) % 251 for i in range(n))
clients = [client(), client(stream, b'early', b' and late'), client(stream, *[pattern(n) for n in (1, 5000, 40000, 3, 70000)])]
clients.append(client(packets, b'one', b'', b'three', pattern(60000), b''))
def report():
    for server, one in zip([stream] * 3 + [packets], clients): serve(one, tell(server))
    nobody_else()
"
    ));
    assert!(told.iter().any(|line| line.contains("b'early and late' [('the first', 0, 0)]")), "{told:#?}");
    assert!(told.iter().any(|line| line.contains("(115004, '")), "{told:#?}");
    assert_eq!(told.iter().filter(|line| line.contains("b'' [('the first', 0, 0)]")).count(), 2, "{told:#?}");
}

/// As much as a socket takes, in one message and in many.
#[test]
fn full_queues() {
    needs_root!();
    let told = is_the_same(&format!(
        "{SERVERS}
def full(server, size):
    it = client(server)
    it.setblocking(False)
    try:
        while True: it.send(os.urandom(1) * size)
    except BlockingIOError: return it
clients = [full(stream, size) for size in (1, 1000, 1 << 20)] + [full(packets, 30000)]
def lengths(it):
    while True:
        try: yield len(it.recv(100000, socket.MSG_DONTWAIT))
        except BlockingIOError: return
def report():
    for server in [stream] * 3 + [packets]: print(sum(lengths(server.accept()[0])))
    nobody_else()
"
    ));
    assert!(told[..4].iter().all(|line| line.parse::<u32>().unwrap() > 100), "{told:#?}");
}

#[test]
fn clients_that_are_at_their_end() {
    needs_root!();
    let told = is_the_same(&format!(
        "{SERVERS}
half, both = client(stream, b'all I say'), client(stream, b'goodbye')
half.shutdown(socket.SHUT_WR)
both.shutdown(socket.SHUT_RDWR)
deaf = client(stream, b'I do not listen')
deaf.shutdown(socket.SHUT_RD)
gone = [client(stream, b'farewell'), client(), client(packets, b'x', b'', b'y'), client(packets)]
gone += [client(stream, b'named', name='gone client'), client(packets, b'named', name='\\0ckpt-gone-%d' % os.getpid())]
for one in gone: one.close()
os.unlink('gone client')
def report():
    for server in [stream, stream, stream, stream, stream, packets, packets, stream, packets]: tell(server).close()
    for one in half, both, deaf:
        try: print(one.recv(10))
        except OSError as error: print(error)
        try: print(one.send(b'x'))
        except OSError as error: print(error)
    print([name for name in os.listdir('.') if 'gone' in name])
    nobody_else()
"
    ));
    assert!(told.iter().any(|line| line.contains("gone client")), "{told:#?}");
    assert!(told.iter().any(|line| line.contains("ckpt-gone-N")), "{told:#?}");
}

/// Clients that are bound, one of them by the kernel because it asks for credentials; and one that asks for them only later.
#[test]
fn clients_with_names() {
    needs_root!();
    let told = is_the_same(&format!(
        "{SERVERS}
asking = socket.socket(socket.AF_UNIX)
asking.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
asking.connect(path)
asking.send(b'asks')
later = client(stream, b'later')
later.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
clients = [client(stream, b'by path', name='client'), client(packets, b'abstract', b'', name='\\0ckpt-client-%d' % os.getpid()), asking, later]
name = asking.getsockname()
def report():
    print(len(name), asking.getsockname() == name, [shown(one.getsockname()) for one in clients[:2] + [later]], os.path.exists('client'))
    for server in stream, stream, stream, packets:
        it, address = server.accept()
        print(address == name or shown(address), it.getpeername() == address, it.recv(100, socket.MSG_DONTWAIT))
    nobody_else()
"
    ));
    assert!(told.iter().any(|line| line.contains("True True b'asks'")), "{told:#?}");
}

/// Who has connected is not always who has the socket, who has sent something may be another one, and some of them have ended.
#[test]
fn clients_of_other_processes() {
    needs_root!();
    let told = is_the_same(&format!(
        "{SERVERS}
def child(name, work, uid=0, stays=True):
    ready, say = os.pipe()
    pid = os.fork()
    if pid == 0:
        if uid:
            os.setgroups([uid + 2, uid + 3])
            os.setresgid(uid + 1, uid + 1, uid + 1)
            os.setresuid(uid, uid, uid)
        kept = work()
        if not stays: os._exit(0)
        os.write(say, b'x')
        while True: signal.pause()
    os.close(say)
    os.read(ready, 1)
    os.close(ready)
    if not stays: os.waitpid(pid, 0)
    names[pid] = name
child('a user', lambda: client(stream, b'of a user'), uid=1234)
child('a user that has ended', lambda: client(stream, b'of an ended one'), uid=4321, stays=False)
child('one that has closed', lambda: client(stream, b'of a closed one').close())
inherited = client(stream, b'first ')
child('an heir', lambda: inherited.send(b'and an heir'))
child('an heir that has ended', lambda: inherited.send(b', and another one'), uid=77, stays=False)
given = client(stream, b'given away')
child('who has it', lambda: given)
given.close()
a, b = socket.socketpair()
sent(a, b'in flight', client(stream, b'from afar').detach())
def report():
    kept = [tell() for n in range(6)]
    fd, = receive(b)[1]
    socket.socket(fileno=fd).send(b'arrived')
    nobody_else()
"
    ));
    for line in [
        "('a user', 1234, 1235) [1236, 1237]",
        "b'of a user' [('a user', 1234, 1235)]",
        "('a user that has ended', 4321, 4322) [4323, 4324]",
        "b'of an ended one' [('a user that has ended', 4321, 4322)]",
        "b'of a closed one' [('one that has closed', 0, 0)]",
        "b'and an heir' [('an heir', 0, 0)]",
        "b', and another one' [('an heir that has ended', 77, 78)]",
        "b'given away' [('the first', 0, 0)]",
        "b'from afar' [('the first', 0, 0)]",
    ] {
        assert!(told.iter().any(|told| told.contains(line)), "{line}: {told:#?}");
    }
}

/// It is refused until the program has accepted it: then the connection is a pair like any other.
fn refused(script: &str, why: &str) {
    let script = format!(
        "{SERVERS}{script}
def report():
    kept.append(stream.accept()[0])
    print(take(kept[0]))
    print('done', flush=True)
kept = []
"
    );
    let (folder, mut job) = start(&script);
    let image = folder.path().join("image");
    let refusal = ckpt::try_checkpoint(job.pid(), &image, &[]).failure();
    assert!(refusal.contains("has not accepted yet") && refusal.contains(why), "{refusal}");
    assert!(!image.exists());
    assert_eq!(job.report(), ["b'xy'"]);
    ckpt::checkpoint_and_kill(&mut job, &image, &[]);
    ckpt::restart(&job, &image, &[]);
}

#[test]
fn what_cannot_be_sent_again_is_refused() {
    needs_root!();
    let files = "
one = client()
send(one, b'xy', [0])
def take(it):
    data, fds = receive(it)
    os.close(*fds)
    return data
";
    refused(files, "descriptors were sent over them (SCM_RIGHTS)");
    let urgent = "
one = client(stream, b'x')
one.send(b'y', socket.MSG_OOB)
def take(it):
    urgent = it.recv(1, socket.MSG_OOB)
    return it.recv(9) + urgent
";
    refused(urgent, "urgent data (MSG_OOB)");
}

/// Clients outside of the tree, that live; one that is gone has only left what it has sent.
#[test]
fn clients_of_other_programs() {
    needs_root!();
    let script = format!(
        "{SERVERS}
def report():
    for n in range(2):
        it, address = stream.accept()
        print(it.recv(100), it.recv(100))
        it.close()
    nobody_else()
"
    );
    let (folder, mut job) = start(&script);
    let image = folder.path().join("image");
    let connect = |more: &str| {
        let script = format!("import socket\ns = socket.socket(socket.AF_UNIX)\ns.connect('server')\ns.send(b'hello')\n{more}");
        Command::new("python3").args(["-c", &script]).current_dir(folder.path()).spawn().unwrap()
    };
    for _ in 0..2 {
        assert!(connect("").wait().unwrap().success());
    }
    let (ready, say) = std::io::pipe().unwrap();
    let mut lives = Command::new("python3")
        .args(["-c", "import socket, sys\ns = socket.socket(socket.AF_UNIX)\ns.connect('server')\nprint('x', flush=True)\nsys.stdin.read()"])
        .current_dir(folder.path())
        .stdin(std::process::Stdio::piped())
        .stdout(say)
        .spawn()
        .unwrap();
    std::io::Read::read_exact(&mut &ready, &mut [0; 1]).unwrap();
    let refusal = ckpt::try_checkpoint(job.pid(), &image, &[]).failure();
    assert!(refusal.contains("of programs that are not being checkpointed"), "{refusal}");
    drop(lives.stdin.take());
    assert!(lives.wait().unwrap().success());
    ckpt::checkpoint_and_kill(&mut job, &image, &[]);
    let job = ckpt::restart(&job, &image, &[]);
    assert_eq!(job.report()[..2], ["b'hello' b''", "b'hello' b''"]);
}

/// Without eBPF what was sent cannot be read. Who has sent nothing connects again.
#[test]
fn without_ebpf() {
    needs_root!();
    let without = |job: &Job, image: &Path| {
        let mut command = Command::new("setpriv");
        command.args(["--bounding-set", "-sys_admin,-bpf,-perfmon", "--"]).arg(ckpt::binary());
        ckpt::run(command.args(["checkpoint", &job.pid().to_string(), "-o"]).arg(image))
    };
    for (clients, why) in [
        ("client(packets, b'early')", "what was sent over them"),
        ("client(packets, b'')", "what was sent over them"),
        ("client().close()", "clients that are gone"),
    ] {
        let (folder, job) = start(&format!("{SERVERS}\none = {clients}"));
        let refusal = without(&job, &folder.path().join("image")).failure();
        assert!(refusal.contains(why) && refusal.contains("eBPF"), "{refusal}");
    }
    let (folder, mut job) = start(&format!(
        "{SERVERS}
one = client(packets)
def report():
    serve(one, packets.accept()[0])
    nobody_else()
"
    ));
    let image = folder.path().join("image");
    without(&job, &image).success();
    job.kill();
    assert_eq!(ckpt::restart(&job, &image, &[]).report(), ["b'served' True", "b'once more'"]);
}
