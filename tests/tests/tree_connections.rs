//! What processes of a tree have between them and not in them: connections that a server has not accepted yet, and what one process has another's
//! epoll watch.

use std::process::Stdio;
use std::time::Duration;

use ckpt_tests::job::{Job, adopt_orphans};
use ckpt_tests::{ckpt, needs_root, python};
use tempfile::tempdir;

/// Brought back twice, and asked for a report then.
fn reports(script: &str, expected: &[&str]) {
    let folder = tempdir().unwrap();
    let mut job = python::rest_after(folder.path(), script).unwrap();
    let image = folder.path().join("image");
    for _ in 0..2 {
        ckpt::checkpoint_and_kill(&mut job, &image, &[]);
        job = ckpt::restart(&job, &image, &[]);
    }
    assert_eq!(job.report(), expected);
}

/// Clients of two servers, one with a path that the server counts from its directory, and one with an abstract name, connect one after the other.
const WAITING: &str = "
import socket
servers = [socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)]
names = ['server', '\\0ckpt-test-%d' % os.getpid()]
for server, name in zip(servers, names):
    server.bind(name)
    server.listen(20)
def client(server, n):
    r, w = os.pipe()
    pid = os.fork()
    if pid == 0:
        mine = socket.socket(socket.AF_UNIX, server.type)
        for s in servers: s.close()
        mine.connect(server_name)
        os.write(w, b'x')
        signal.sigwait([signal.SIGUSR2])
        mine.send(b'client %d' % n)
        while True: signal.pause()
    os.read(r, 1)
    pids.append(pid)
pids = []
for n in range(6):
    server_name = names[n % 2]
    client(servers[n % 2], n)
";

#[test]
fn connections_that_wait_to_be_accepted() {
    needs_root!();
    let script = format!(
        "{WAITING}
def report():
    for pid in pids: os.kill(pid, signal.SIGUSR2)
    for n in range(6):
        accepted, _ = servers[n % 2].accept()
        print(accepted.recv(100), flush=True)
    for server in servers:
        server.setblocking(False)
        try: print(server.accept())
        except BlockingIOError: pass
    print('done', flush=True)
"
    );
    reports(&script, &["b'client 0'", "b'client 1'", "b'client 2'", "b'client 3'", "b'client 4'", "b'client 5'"]);
}

#[test]
fn an_epoll_of_several_processes() {
    needs_root!();
    let script = "
import select
watch = select.epoll()
def child(n):
    # It has the shared instance watch a pipe that nobody else has.
    ready, say = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(ready)
        r, w = os.pipe()
        spare = os.dup(r)
        watch.register(r, select.EPOLLIN)
        if n % 2:
            # Under a number that is another file's now.
            os.dup2(w, r)
        os.write(say, b'x')
        signal.sigwait([signal.SIGUSR2])
        os.write(w, b'x')
        while True: signal.pause()
    os.close(say)
    os.read(ready, 1)
    os.close(ready)
    return pid
pids = [child(n) for n in range(4)]
def report():
    print(len(watch.poll(0)), flush=True)
    for n, pid in enumerate(pids):
        os.kill(pid, signal.SIGUSR2)
        while len(watch.poll()) < n + 1: pass
    print(len(watch.poll()), flush=True)
    print('done', flush=True)
";
    reports(script, &["0", "4"]);
}

/// Half of the time a message waits in a connection that was not accepted, which cannot be saved for the descriptor that it carries.
#[test]
fn a_quieter_moment_is_waited_for() {
    needs_root!();
    let folder = tempdir().unwrap();
    let script = "
import socket
server = socket.socket(socket.AF_UNIX)
server.bind('server')
server.listen(5)
def work():
    while True:
        client = socket.socket(socket.AF_UNIX)
        client.connect('server')
        socket.send_fds(client, [b'early'], [0])
        time.sleep(0.02)
        accepted, _ = server.accept()
        for fd in socket.recv_fds(accepted, 100, 1)[1]: os.close(fd)
        accepted.close()
        client.close()
        time.sleep(0.02)
threading.Thread(target=work, daemon=True).start()
";
    let job = python::rest_after(folder.path(), script).unwrap();
    for _ in 0..15 {
        ckpt::checkpoint(job.pid(), &folder.path().join("image"), &[]);
    }
}

/// Servers whose socket files are gone, one with its folder and the one above: as Python's multiprocessing leaves them at its end.
const GONE: &str = "
import socket
os.makedirs('over/under')
names = [os.path.abspath('over/under/server'), os.path.abspath('alone')]
servers = [socket.socket(socket.AF_UNIX) for _ in names]
for server, name in zip(servers, names):
    server.bind(name)
    server.listen(3)
    os.unlink(name)
os.removedirs('over/under')
def report():
    print(*[server.getsockname() == name for server, name in zip(servers, names)], os.path.exists('over'), os.path.exists('alone'))
    print('done', flush=True)
";

#[test]
fn a_socket_whose_folder_is_gone() {
    needs_root!();
    reports(GONE, &["True True False False"]);
}

/// A process that was killed has its pid until somebody has collected its status, and a connection tells that pid (SO_PEERCRED).
#[test]
fn a_client_that_is_not_buried_yet() {
    needs_root!();
    adopt_orphans();
    let folder = tempdir().unwrap();
    let script = "
import socket
server = socket.socket(socket.AF_UNIX)
server.bind('server')
server.listen()
client = os.fork()
if client == 0:
    server.close()
    mine = socket.socket(socket.AF_UNIX)
    mine.connect('server')
    while True: mine.send(mine.recv(100))
accepted, _ = server.accept()
def report():
    accepted.send(b'hello')
    pid = struct.unpack('iii', accepted.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0]
    print(accepted.recv(100), pid == client, flush=True)
    print('done', flush=True)
";
    // In the session of the test, as what a shell starts is in the shell's.
    let out = std::fs::File::create(folder.path().join("out")).unwrap();
    let mut command = python::command(&format!("{script}{}", python::REST));
    let started = command.current_dir(folder.path()).stdin(Stdio::null()).stdout(out).spawn();
    let mut job = Job::adopt(started.map(|child| child.id()).unwrap() as i32, folder.path());
    job.wait_for_line("ready");
    let image = folder.path().join("image");
    ckpt::checkpoint(job.pid(), &image, &["--after", "kill"]);
    job.is_killed();
    let restarted = std::thread::scope(|threads| {
        threads.spawn(|| {
            // The restart has come to the sockets by then, if it does not wait.
            std::thread::sleep(Duration::from_millis(500));
            ckpt::bury_family(job.pid(), &image);
        });
        ckpt::restart(&job, &image, &[])
    });
    assert_eq!(restarted.report(), ["b'hello' True"]);
}
