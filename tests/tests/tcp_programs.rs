//! Real programs that speak TCP to each other within their tree, checkpointed in the middle of it: Open MPI with its ranks, redis with its clients,
//! and a web server with its own.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use ckpt_tests::job::Job;
use ckpt_tests::moments::Moments;
use ckpt_tests::{ckpt, needs_root, or_skip, python, skip, watched};
use tempfile::tempdir;

/// Brought back from images that were taken at any moment, and from those of a watch, both killed together. `verify` says whether it goes on.
fn survives(mut job: Job, verify: impl Fn(&Job)) {
    let moments = Moments::new();
    let image = job.folder().join("image");
    verify(&job);
    for _ in 0..3 {
        moments.let_pass(Duration::from_millis(200), 0.0, 1.0);
        ckpt::checkpoint(job.pid(), &image, &[]);
        moments.let_pass(Duration::from_millis(50), 0.0, 1.0);
        ckpt::checkpoint_and_kill(&mut job, &image, &[]);
        job = ckpt::restart(&job, &image, &[]);
        verify(&job);
    }
    watched::survives_crashes(job, "100ms", 2, &moments, verify);
}

/// `mpirun` with three ranks. The error says what is missing.
fn mpi(folder: &Path, transport: &str) -> Result<Job, String> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("programs/mpi_ring.c");
    let program = folder.join("mpi_ring");
    let mut compiler = Command::new("mpicc");
    compiler.args(["-O2", "-Wall", "-Werror", "-o"]).arg(&program).arg(&source);
    let made = compiler.output().map_err(|error| format!("no compiler for MPI (mpicc): {error}"))?;
    assert!(made.status.success(), "{} does not compile: {}", source.display(), String::from_utf8_lossy(&made.stderr));
    let mut command = Command::new("mpirun");
    command.args(["--allow-run-as-root", "--oversubscribe", "-n", "3", "--mca", "btl", transport]);
    // Also on a machine that has no network.
    command.args(["--mca", "btl_tcp_if_include", "lo", "--mca", "oob_tcp_if_include", "lo"]).arg(&program);
    Ok(Job::start(folder, &mut command))
}

fn round(output: &str) -> Option<u64> {
    let whole = &output[..output.rfind('\n')?];
    whole.lines().rev().find_map(|line| line.strip_prefix("round ")?.parse().ok())
}

/// They get further, and what they have received is what was sent.
fn goes_round(job: &Job) {
    let before = round(&job.output());
    let output = job.wait_for("a later round", |output| output.contains("wrong") || round(output) > before.map(|n| n + 100));
    assert!(!output.contains("wrong"), "{output}");
}

#[test]
fn open_mpi_over_tcp() {
    needs_root!();
    let folder = tempdir().unwrap();
    survives(or_skip!(mpi(folder.path(), "tcp,self")), goes_round);
}

#[test]
fn open_mpi_in_shared_memory() {
    needs_root!();
    let folder = tempdir().unwrap();
    survives(or_skip!(mpi(folder.path(), "vader,self")), goes_round);
}

/// For scripts: `steps[N]` counts what thread N has done, `wrong` says what was not as it should be.
const STEPS: &str = "
import hashlib, random, socket, subprocess
steps, wrong = [0] * 4, []
def works(n, step):
    def work():
        try:
            while True:
                step(n)
                steps[n] += 1
        except Exception as error: wrong.append(repr(error))
    threading.Thread(target=work, daemon=True).start()
def report():
    goals = [step + 20 for step in steps]
    end = time.time() + 60
    while any(step < goal for step, goal in zip(steps, goals)) and not wrong and time.time() < end: time.sleep(0.001)
    print(*(wrong or ['right' if all(step >= goal for step, goal in zip(steps, goals)) else 'it does not go on']))
    print('done', flush=True)
";

fn is_right(job: &Job) {
    assert_eq!(job.report(), ["right"]);
}

fn starts(script: &str) -> (tempfile::TempDir, Job) {
    let folder = tempdir().unwrap();
    let job = python::rest_after(folder.path(), &format!("{STEPS}{script}")).unwrap_or_else(|why| panic!("{why}"));
    (folder, job)
}

/// Clients send hundreds of commands at once, and know all answers.
#[test]
fn redis_and_its_clients() {
    needs_root!();
    if Command::new("redis-server").arg("--version").output().is_err() {
        skip!("redis is not there");
    }
    let (_folder, job) = starts(
        "
with socket.create_server(('127.0.0.1', 0)) as free: port = free.getsockname()[1]
server = subprocess.Popen(['redis-server', '--port', str(port), '--bind', '127.0.0.1', '--save', '', '--appendonly', 'no'], stdout=subprocess.DEVNULL)
def connected():
    while True:
        try: return socket.create_connection(('127.0.0.1', port))
        except ConnectionRefusedError: time.sleep(0.01)
clients = [connected() for _ in steps]
files = [client.makefile('rb') for client in clients]
def command(*words): return b'*%d\\r\\n' % len(words) + b''.join(b'$%d\\r\\n%s\\r\\n' % (len(word), word) for word in words)
def step(n):
    values = [b'%d %d ' % (steps[n], key) * random.randrange(1, 2000) for key in range(200)]
    sender = threading.Thread(target=clients[n].sendall, args=(b''.join(
        command(b'SET', b'%d %d' % (n, key), value) + command(b'GET', b'%d %d' % (n, key)) for key, value in enumerate(values)) + command(b'INCR', b'%d' % n),))
    sender.start()
    for value in values:
        assert files[n].readline() == b'+OK\\r\\n'
        assert files[n].readline() == b'$%d\\r\\n' % len(value)
        assert files[n].read(len(value) + 2) == value + b'\\r\\n'
    assert files[n].readline() == b':%d\\r\\n' % (steps[n] + 1)
    sender.join()
for n in range(len(steps)): works(n, step)
",
    );
    survives(job, is_right);
}

/// Each request is a connection of its own, which the server closes as soon as it has answered.
#[test]
fn a_web_server_and_its_clients() {
    needs_root!();
    let (_folder, job) = starts(
        "
import http.server, urllib.request
big = random.Random(1).randbytes(3000000)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        count = int(self.path[1:])
        self.send_response(200)
        self.end_headers()
        self.wfile.write(big[:count])
    def log_message(self, *_): pass
server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
if os.fork() == 0: server.serve_forever()
address = 'http://127.0.0.1:%d/' % server.server_port
server.socket.close()
def step(n):
    count = random.randrange(len(big))
    with urllib.request.urlopen(address + str(count)) as answer: assert answer.read() == big[:count]
for n in range(len(steps)): works(n, step)
",
    );
    survives(job, is_right);
}
