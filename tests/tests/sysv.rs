//! System V IPC of a job: shared memory that is attached in every way, under the same ids.

use ckpt_tests::job::Job;
use ckpt_tests::moments::Moments;
use ckpt_tests::{ckpt, maps, needs_root, python, watched};
use tempfile::tempdir;

/// Segments with a key and without, removed and not, attached whole, read-only, twice, and in part. The numbers in them tell what they hold.
const SEGMENTS: &str = "
c.shmat.restype = ctypes.c_void_p
c.shmat.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_int]
c.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
def get(key, size): return call('shmget', 29, key, size, 0o1640)
def attach(id, flags=0): return c.shmat(id, None, flags)
class Stat(ctypes.Structure):
    _fields_ = [('key', ctypes.c_int), ('uid', ctypes.c_uint), ('gid', ctypes.c_uint), ('cuid', ctypes.c_uint), ('cgid', ctypes.c_uint),
        ('mode', ctypes.c_uint), ('seq', ctypes.c_ushort), ('more', ctypes.c_ulong * 2), ('size', ctypes.c_size_t), ('times', ctypes.c_long * 3),
        ('pids', ctypes.c_int * 2), ('attached', ctypes.c_ulong), ('rest', ctypes.c_ulong * 2)]
def stat(id):
    s = Stat()
    call('shmctl', 31, id, 2, ctypes.byref(s))
    return s.key, s.uid, s.gid, oct(s.mode), s.size, s.attached
key = 0x0c000000 | os.getpid()
kept, removed = get(key, 200000), get(0, 5 << 20)
c.shmctl(removed, 11, None)
whole, again, seen = attach(kept), attach(kept), attach(kept, 0o10000)
part = attach(removed)
c.shmctl(removed, 0, None)
c.munmap(part, 1 << 20)
c.munmap(part + (3 << 20), 1 << 20)
word = lambda at: ctypes.c_uint64.from_address(at)
print('ids', kept, removed, flush=True)
n = 0
before = stat(kept), stat(removed)
def report():
    global n
    for at in range(0, 200000, 8192):
        if (word(whole + at).value, word(again + at).value, word(seen + at).value) != (n, n, n): print('kept differs at', at)
        word(again + at).value = n + 1
    for at in [*range(1 << 20, 3 << 20, 65536), *range(4 << 20, 5 << 20, 65536)]:
        if word(part + at).value != n: print('removed differs at', at)
        word(part + at).value = n + 1
    if (stat(kept), stat(removed)) != before: print('not as it was:', stat(kept), stat(removed), before)
    n += 1
    print('report', n)
    print('done', flush=True)
";

fn verify(job: &Job) {
    python::reports(job, 2);
}

/// Removes what the job leaves behind when it is killed.
struct Segment(String);

impl Segment {
    fn of(job: &Job) -> Segment {
        Segment(job.wait_for_line("ids ").split(' ').nth(1).unwrap().to_owned())
    }

    fn remove(&self) -> bool {
        std::process::Command::new("ipcrm").args(["-m", &self.0]).status().unwrap().success()
    }
}

impl Drop for Segment {
    fn drop(&mut self) {
        self.remove();
    }
}

#[test]
fn segments() {
    needs_root!();
    let folder = tempdir().unwrap();
    let mut job = python::rest_after(folder.path(), SEGMENTS).unwrap();
    let segment = Segment::of(&job);
    verify(&job);
    let image = folder.path().join("image");
    let mappings = maps::read(job.pid());
    ckpt::checkpoint_and_kill(&mut job, &image, &[]);
    // It is still there, with other contents meanwhile or not, and not there.
    for removed in [false, true] {
        if removed {
            assert!(segment.remove());
        }
        job = ckpt::restart(&job, &image, &["--files", "rollback", "--discard-changes"]);
        maps::assert_same(&mappings, &maps::read(job.pid()));
        verify(&job);
        job.kill();
    }
}

#[test]
fn segments_under_a_watch() {
    needs_root!();
    let folder = tempdir().unwrap();
    let job = python::rest_after(folder.path(), SEGMENTS).unwrap();
    let _segment = Segment::of(&job);
    let job = watched::survives_crashes(job, "20ms", 3, &Moments::new(), verify);
    verify(&job);
}

/// Another segment with the key: nothing of it is touched.
#[test]
fn a_key_that_is_taken() {
    needs_root!();
    let folder = tempdir().unwrap();
    let mut job = python::rest_after(folder.path(), SEGMENTS).unwrap();
    let segment = Segment::of(&job);
    let image = folder.path().join("image");
    ckpt::checkpoint_and_kill(&mut job, &image, &[]);
    assert!(segment.remove());
    let other_folder = tempdir().unwrap();
    let script = format!("print('ids', call('shmget', 29, 0x0c000000 | {}, 100, 0o1600))", job.pid());
    let other = python::rest_after(other_folder.path(), &script).unwrap();
    let other = Segment::of(&other);
    let said = ckpt::try_restart(&image, &[]).failure();
    assert!(said.contains("another segment has its key") && said.contains("ipcrm -M 0xc"), "{said}");
    assert!(other.remove());
}

/// A set of semaphores some of whose operations are undone at the end of the job, and a queue whose messages go round.
const OTHERS: &str = "
c.semctl.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_void_p]
key = 0x0d000000 | os.getpid()
sems, queue = call('semget', 64, key, 4, 0o1620), call('msgget', 68, key, 0o1660)
def values():
    array = (ctypes.c_ushort * 4)()
    if c.semctl(sems, 0, 13, ctypes.addressof(array)) != 0: print('no values')
    return list(array)
def op(number, by, flags): call('semop', 65, sems, struct.pack('Hhh', number, by, flags), 1)
for number, value in enumerate([5, 0, 32767, 1]): call('semctl', 66, sems, number, 16, value)
op(0, -2, 0o10000)
op(1, 3, 0o10000)
op(1, -3, 0)
op(2, -4, 0o10000)
op(2, 4, 0)
c.msgsnd.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_int]
def send(kind, text):
    if c.msgsnd(queue, struct.pack('q', kind) + text, len(text), 0o4000) != 0: print('cannot send')
def receive(kind=0):
    buffer = ctypes.create_string_buffer(9000)
    length = c.msgrcv(queue, buffer, 8000, ctypes.c_long(kind), 0o4000)
    return None if length < 0 else (struct.unpack('q', buffer.raw[:8])[0], buffer.raw[8:8 + length])
ring = [(7, b''), (1, b'hello'), (2, b'x' * 4000), (1, bytes(range(256)))]
for message in ring: send(*message)
print('ids', sems, queue, flush=True)
n = 0
def report():
    global n
    if values() != [3, 0, 32767, 1 + n % 2]: print('values', values())
    op(3, 1 - n % 2 * 2, 0)
    now = [receive() for _ in ring]
    if now != ring: print('messages', now)
    if receive() is not None: print('one too many')
    ring.append(ring.pop(0))
    for message in ring: send(*message)
    n += 1
    print('report', n)
    print('done', flush=True)
";

/// What the job leaves behind: semaphores and a queue.
struct Others(String, String);

impl Others {
    fn of(job: &Job) -> Others {
        let line = job.wait_for_line("ids ");
        let mut ids = line.split(' ').skip(1).map(str::to_owned);
        Others(ids.next().unwrap(), ids.next().unwrap())
    }

    fn remove(&self) {
        // Gone already, maybe.
        let _ = std::process::Command::new("ipcrm").args(["-s", &self.0, "-q", &self.1]).status().unwrap();
    }

    /// Of each semaphore.
    fn values(&self) -> Vec<u64> {
        let script = format!(
            "import ctypes; c = ctypes.CDLL(None); a = (ctypes.c_ushort * 4)(); c.semctl({}, 0, 13, a); print(*a)",
            self.0
        );
        let output = std::process::Command::new(python::PYTHON).args(["-c", &script]).output().unwrap();
        String::from_utf8(output.stdout).unwrap().split_whitespace().map(|value| value.parse().unwrap()).collect()
    }
}

impl Drop for Others {
    fn drop(&mut self) {
        self.remove();
    }
}

#[test]
fn semaphores_and_messages() {
    needs_root!();
    let folder = tempdir().unwrap();
    let mut job = python::rest_after(folder.path(), OTHERS).unwrap();
    let others = Others::of(&job);
    let image = folder.path().join("image");
    ckpt::checkpoint(job.pid(), &image, &[]);
    verify(&job);
    std::fs::remove_file(&image).unwrap();
    ckpt::checkpoint_and_kill(&mut job, &image, &[]);
    for removed in [false, true] {
        if removed {
            others.remove();
        }
        job = ckpt::restart(&job, &image, &["--files", "rollback", "--discard-changes"]);
        verify(&job);
        job.kill();
        // What the job did with SEM_UNDO is undone at its end: 2 are given back, 3 (of which it has none) and 4 (of which there is no room) not.
        assert_eq!(others.values(), [5, 0, 32767, 1]);
    }
}

#[test]
fn semaphores_and_messages_under_a_watch() {
    needs_root!();
    let folder = tempdir().unwrap();
    let job = python::rest_after(folder.path(), OTHERS).unwrap();
    let _others = Others::of(&job);
    let job = watched::survives_crashes(job, "20ms", 3, &Moments::new(), verify);
    verify(&job);
}
