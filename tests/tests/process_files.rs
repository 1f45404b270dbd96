//! Descriptors of /proc/PID, of /proc and of /sys: they look into the processes of the restarted tree, those that they looked into before.

use std::collections::BTreeMap;

use ckpt_tests::job::Job;
use ckpt_tests::moments::Moments;
use ckpt_tests::{ckpt, needs_root, or_skip, process, python, watched};
use tempfile::tempdir;

/// A parent, a child, and a grandchild that has inherited the child's files; a thread. Each tells what it reads, where its files are open.
const SCRIPT: &str = "
import select
RD, DIR = os.O_RDONLY, os.O_RDONLY | os.O_DIRECTORY
def identity(fd):
    # Of stat: pid, name, parent, group.
    text = os.pread(fd, 4096, 0).decode()
    return text[:text.index('(')] + ' '.join(text[text.rindex(')') + 1:].split()[1:3])
def field(fd, key):
    return [line for line in os.pread(fd, 8192, 0).decode().splitlines() if line.startswith(key)]
def entries(fd):
    return sorted(os.listdir(fd))
def told(asked, tell):
    def serve():
        while True:
            os.read(asked[0], 1)
            os.write(tell[1], repr(look()).encode())
    return serve
def ask(asked, tell):
    os.write(asked[1], b'x')
    return eval(os.read(tell[0], 60000))

to_child, from_child, to_grandchild, from_grandchild = os.pipe(), os.pipe(), os.pipe(), os.pipe()
thread_id = []
def rest():
    open('/proc/thread-self/comm', 'w').write('resting')
    thread_id.append(threading.get_native_id())
    while True: time.sleep(1000)
threading.Thread(target=rest, daemon=True).start()
while not thread_id: time.sleep(0.001)

child = os.fork()
if child == 0:
    own = os.open('/proc/self/stat', RD)
    shared = os.open('/proc/self/status', RD)
    folder = os.open('/proc/self/task', DIR)
    memory = os.open('/proc/self/mem', os.O_RDWR)
    mark = ctypes.create_string_buffer(b'of the child', 64)
    r, w = os.pipe()
    grandchild = os.fork()
    if grandchild == 0:
        mark.value = b'of the grandchild'
        os.write(w, b'x')
        look = lambda: (identity(own), os.read(shared, 5), os.lseek(shared, 0, 1), entries(folder), os.pread(memory, 12, ctypes.addressof(mark)))
        told(to_grandchild, from_grandchild)()
    os.read(r, 1)
    def look():
        before = os.lseek(shared, 0, 1)
        theirs = ask(to_grandchild, from_grandchild)
        # One offset for both.
        after = os.lseek(shared, 0, 1)
        os.lseek(shared, before, 0)
        return identity(own), before, theirs, after, os.fstat(memory).st_size
    os.lseek(shared, 6, 0)
    told(to_child, from_child)()

files = {
    'child': os.open(f'/proc/{child}/stat', RD),
    'thread': os.open(f'/proc/self/task/{thread_id[0]}/comm', os.O_RDWR),
    'by its own number': os.open(f'/proc/{thread_id[0]}/comm', RD),
    'own folder': os.open('/proc/self', DIR),
    'descriptors': os.open('/proc/self/fd', DIR | os.O_CLOEXEC),
    'program': os.open('/proc/self/exe', os.O_PATH | os.O_NOFOLLOW),
    'maps': os.open('/proc/self/maps', RD | os.O_NONBLOCK),
    'environment': os.open('/proc/self/environ', RD),
    'mounts': os.open('/proc/self/mountinfo', RD),
    'net': os.open('/proc/self/net/dev', RD),
    'machine': os.open('/proc/stat', RD),
    'all': os.open('/proc', DIR),
    'kernel': os.open('/sys/kernel/mm/transparent_hugepage/enabled', RD),
    'kernel folder': os.open('/sys/kernel/mm', DIR),
}
files['twice'] = os.dup(files['child'])
os.lseek(files['child'], 3, 0)
os.lseek(files['maps'], 7, 0)
watch = select.epoll()
watch.register(files['mounts'], select.EPOLLPRI)
def watched():
    # Number and events. (What it reports depends on what others mount meanwhile.)
    text = open(f'/proc/self/fdinfo/{watch.fileno()}').read()
    return [line.split()[:4] for line in text.splitlines() if line.startswith('tfd')]
def look():
    f = files
    offsets = {name: (os.lseek(fd, 0, 1), os.get_inheritable(fd)) for name, fd in f.items() if name != 'program'}
    start = os.pread(f['maps'], 12, 0)
    return (
        identity(f['child']), identity(f['twice']), offsets, ask(to_child, from_child),
        os.pread(f['thread'], 99, 0), os.pread(f['by its own number'], 99, 0),
        entries(f['own folder']),
        [fd for fd in f.values() if str(fd) in entries(f['descriptors'])],
        os.readlink('', dir_fd=f['program']), start, os.pread(f['environment'], 200, 0),
        field(f['mounts'], '')[:1], os.pread(f['net'], 30, 0), os.pread(f['machine'], 3, 0),
        str(os.getpid()) in entries(f['all']), os.pread(f['kernel'], 99, 0), entries(f['kernel folder']),
        watched(),
    )
look()
first = look()
n = 0
def report():
    global n
    now = look()
    for a, b in zip(first, now):
        if a != b: print('not as it was:', b, 'instead of', a)
    n += 1
    print('report', n)
    print('done', flush=True)
";

/// What a look tells, which must not depend on who looks; and no descriptor leads to what has kept its place.
fn verify(job: &Job) {
    python::reports(job, 2);
}

/// The kernel says of files below /proc/PID/net that they are deleted, from the next time on that somebody looks there.
fn look_at(pid: i32) -> BTreeMap<String, String> {
    let mut look = process::look(pid);
    look.retain(|_, what| !what.ends_with("/net/dev") && what != "(deleted)");
    look
}

#[test]
fn they_look_into_the_same_processes() {
    needs_root!();
    let folder = tempdir().unwrap();
    let mut job = or_skip!(python::rest_after(folder.path(), SCRIPT));
    verify(&job);
    let image = folder.path().join("image");
    let family = process::descendants(job.pid());
    let root = job.pid();
    let look = || family.iter().chain([&root]).map(|&pid| look_at(pid)).collect::<Vec<_>>();
    let before = look();
    ckpt::checkpoint(job.pid(), &image, &[]);
    for (before, after) in before.iter().zip(&look()) {
        process::assert_same(before, after);
    }
    verify(&job);
    std::fs::remove_file(&image).unwrap();
    let before = look();
    ckpt::checkpoint_and_kill(&mut job, &image, &[]);
    let restarted = ckpt::restart(&job, &image, &[]);
    for (before, after) in before.iter().zip(&look()) {
        process::assert_same(before, after);
    }
    verify(&restarted);
}

#[test]
fn under_a_watch() {
    needs_root!();
    let folder = tempdir().unwrap();
    let job = or_skip!(python::rest_after(folder.path(), SCRIPT));
    let job = watched::survives_crashes(job, "20ms", 3, &Moments::new(), verify);
    verify(&job);
}
