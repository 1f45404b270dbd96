//! POSIX message queues of a job, with a name and without one.

use ckpt_tests::job::Job;
use ckpt_tests::moments::Moments;
use ckpt_tests::{ckpt, needs_root, or_skip, process, python, watched};
use tempfile::tempdir;

/// Messages go round in two queues, one of which is open twice, and has lost its name.
const SCRIPT: &str = "
name = b'/ckpt-test-%d' % os.getpid()
class Attributes(ctypes.Structure):
    _fields_ = [('flags', ctypes.c_long), ('capacity', ctypes.c_long), ('longest', ctypes.c_long), ('waiting', ctypes.c_long), ('rest', ctypes.c_long * 4)]
def opened(name, flags):
    fd = c.mq_open(name, flags | os.O_CREAT, 0o640, ctypes.byref(Attributes(0, 9, 8100, 0)))
    if fd < 0: absent('mq_open: ' + os.strerror(ctypes.get_errno()))
    return fd
kept = opened(name, os.O_RDWR)
lost, again = opened(name + b'x', os.O_WRONLY), opened(name + b'x', os.O_RDONLY | os.O_NONBLOCK)
c.mq_unlink(name + b'x')
def send(fd, message):
    if c.mq_send(fd, message[1], len(message[1]), message[0]) != 0: print('cannot send')
def receive(fd):
    buffer, priority = ctypes.create_string_buffer(9000), ctypes.c_uint()
    length = c.mq_receive(fd, buffer, 9000, ctypes.byref(priority))
    return None if length < 0 else (priority.value, buffer.raw[:length])
ring = [(9, b'first'), (9, b'second'), (5, b''), (4, bytes(range(256)) * 31), (4, b'x'), (0, b'last')]
for message in ring[::-1]: send(lost, message)
for message in ring: send(kept, message)
print('queues', kept, lost, again, flush=True)
def look():
    a = Attributes()
    c.mq_getattr(kept, ctypes.byref(a))
    s = os.fstat(kept)
    return a.capacity, a.longest, a.waiting, s.st_mode, s.st_uid
before = look()
n = 0
def report():
    global n
    if look() != before: print('not as it was', look(), before)
    now = [receive(kept) for _ in ring]
    if now != ring: print('messages', now)
    now = [receive(again) for _ in ring]
    if n == 0 and now != [ring[1], ring[0], ring[2], ring[4], ring[3], ring[5]]: print('messages', now)
    if n > 0 and now != ring: print('messages', now)
    if receive(again) is not None: print('one too many')
    for message in ring: send(kept, message), send(lost, message)
    n += 1
    print('report', n)
    print('done', flush=True)
";

fn verify(job: &Job) {
    python::reports(job, 2);
}

/// The named queue of a job, which outlives it.
struct Named(std::ffi::CString);

impl Named {
    fn of(job: &Job) -> Named {
        Named(std::ffi::CString::new(format!("/ckpt-test-{}", job.pid())).unwrap())
    }

    fn remove(&self) {
        // Gone already, maybe.
        let script = format!("import ctypes; ctypes.CDLL(None).mq_unlink({:?}.encode())", self.0.to_str().unwrap());
        let _ = std::process::Command::new(python::PYTHON).args(["-c", &script]).status().unwrap();
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        self.remove();
    }
}

#[test]
fn messages() {
    needs_root!();
    let folder = tempdir().unwrap();
    let mut job = or_skip!(python::rest_after(folder.path(), SCRIPT));
    let named = Named::of(&job);
    let image = folder.path().join("image");
    let before = process::look(job.pid());
    ckpt::checkpoint(job.pid(), &image, &[]);
    process::assert_same(&before, &process::look(job.pid()));
    std::fs::remove_file(&image).unwrap();
    ckpt::checkpoint_and_kill(&mut job, &image, &[]);
    for removed in [false, true] {
        if removed {
            named.remove();
        }
        job = ckpt::restart(&job, &image, &["--files", "rollback", "--discard-changes"]);
        process::assert_same(&before, &process::look(job.pid()));
        verify(&job);
        job.kill();
    }
}

#[test]
fn messages_under_a_watch() {
    needs_root!();
    let folder = tempdir().unwrap();
    let job = or_skip!(python::rest_after(folder.path(), SCRIPT));
    let _named = Named::of(&job);
    let job = watched::survives_crashes(job, "20ms", 3, &Moments::new(), verify);
    verify(&job);
}

#[test]
fn a_listener_is_refused() {
    needs_root!();
    let folder = tempdir().unwrap();
    // SIGEV_SIGNAL, SIGUSR2.
    let script =
        format!("{SCRIPT}\nif c.mq_notify(lost, struct.pack('QiiQQQQQQQ', 0, 12, 0, *[0] * 7)) != 0: absent('mq_notify')\n");
    let job = or_skip!(python::rest_after(folder.path(), &script));
    let _named = Named::of(&job);
    let said = ckpt::try_checkpoint(job.pid(), &folder.path().join("image"), &[]).failure();
    assert!(said.contains("the message queue /ckpt-test-") && said.contains("mq_notify"), "{said}");
}
