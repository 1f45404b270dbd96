//! Pseudoterminals of which a job has both sides: what waits in them, and the terminal that controls its session.

use ckpt_tests::moments::Moments;
use ckpt_tests::{ckpt, needs_root, process, python, story, watched};
use tempfile::tempdir;

/// Keeps a few bytes waiting in each direction of two pseudoterminals, one of which makes lines, and takes and adds some at each report.
/// Numbers that are high enough are not taken by other tests between an end and a restart.
const SCRIPT: &str = "
import fcntl, pty, termios, tty
many = [pty.openpty() for _ in range(30)]
for m, s in many[:-2]: os.close(m), os.close(s)
(m, s), (rm, rs) = many[-2:]
settings = termios.tcgetattr(s)
settings[3] &= ~termios.ECHO
settings[6][termios.VEOL] = b';'
termios.tcsetattr(s, termios.TCSANOW, settings)
fcntl.ioctl(m, termios.TIOCSWINSZ, struct.pack('HHHH', 40, 100, 1, 2))
tty.setraw(rs)
fcntl.ioctl(s, termios.TIOCSCTTY, 0)
controlling = os.open('/dev/tty', os.O_RDWR)
names = os.ttyname(s), os.ttyname(rs)
n = 0
os.write(m, b'line 0\\nline 1;line ')
os.write(controlling, b'output 0')
os.write(rm, b'\\x03\\x00\\x04\\n0')
os.write(rs, b'0' * 6000)
def same(what, is_now, was):
    if is_now != was: print('not', what, is_now, was)
def all_of(fd, length):
    got = b''
    while len(got) < length: got += os.read(fd, length - len(got))
    return got
def report():
    global n
    end = b'\\n;'[n % 2:][:1]
    same('line', os.read(s, 100), b'line %d' % n + end)
    os.write(m, b'%d' % (n + 2) + end + b'line ')
    same('output', os.read(m, 100), b'output %d' % n)
    os.write(controlling, b'output %d' % (n + 1))
    same('raw', all_of(rs, 5), b'\\x03\\x00\\x04\\n%d' % (n % 10))
    same('raw output', all_of(rm, 6000), b'%d' % (n % 10) * 6000)
    n += 1
    os.write(rm, b'\\x03\\x00\\x04\\n%d' % (n % 10))
    os.write(rs, b'%d' % (n % 10) * 6000)
    same('names', (os.ttyname(s), os.ttyname(rs)), names)
    same('foreground', (os.tcgetpgrp(s), os.tcgetpgrp(controlling)), (os.getpgrp(), os.getpgrp()))
    same('settings', termios.tcgetattr(s), settings)
    same('window', fcntl.ioctl(s, termios.TIOCGWINSZ, bytes(8)), struct.pack('HHHH', 40, 100, 1, 2))
    os.close(os.open('/dev/tty', os.O_RDWR))
    print('report', n)
    print('done', flush=True)
";

/// Two dozens of them, half of which a child has: the numbers of each are all over, and their files are in no order.
const MANY: &str = "
import random, tty
pairs = [os.openpty() for _ in range(84)]
for m, s in pairs[:60]: os.close(m), os.close(s)
pairs = pairs[60:]
for m, s in pairs: tty.setraw(s)
random.seed(5)
random.shuffle(pairs)
r, w = os.pipe()
child = os.fork()
mine = pairs[::2] if child else pairs[1::2]
for m, s in (pairs[1::2] if child else pairs[::2]): os.close(m), os.close(s)
names = [os.ttyname(s) for m, s in mine]
def all_of(fd, length):
    got = b''
    while len(got) < length: got += os.read(fd, length - len(got))
    return got
def wrong():
    if [os.ttyname(s) for m, s in mine] != names: return 'other names'
    for n, (m, s) in enumerate(mine):
        os.write(s, b'up %4d' % n)
        os.write(m, b'down %4d' % n)
        if all_of(m, 7) != b'up %4d' % n or all_of(s, 9) != b'down %4d' % n: return 'number %d' % n
    return 'nothing'
if not child:
    while True:
        signal.sigwait([signal.SIGUSR1])
        os.write(w, wrong().encode())
n = 0
def report():
    global n
    os.kill(child, signal.SIGUSR1)
    told = [wrong(), os.read(r, 100).decode()]
    if told != ['nothing'] * 2: print('wrong:', told)
    print('report', n)
    print('done', flush=True)
    n += 1
";

fn verify(job: &ckpt_tests::job::Job) {
    python::reports(job, 3);
}

#[test]
fn what_waits_and_what_controls() {
    needs_root!();
    let folder = tempdir().unwrap();
    let mut job = python::rest_after(folder.path(), SCRIPT).unwrap();
    let image = folder.path().join("image");
    // Nothing is taken away by a checkpoint.
    ckpt::checkpoint(job.pid(), &image, &[]);
    verify(&job);
    std::fs::remove_file(&image).unwrap();
    let before = process::look(job.pid());
    ckpt::checkpoint_and_kill(&mut job, &image, &[]);
    job = ckpt::restart(&job, &image, &[]);
    process::assert_same(&before, &process::look(job.pid()));
    verify(&job);
}

#[test]
fn under_a_watch() {
    needs_root!();
    let folder = tempdir().unwrap();
    let job = python::rest_after(folder.path(), SCRIPT).unwrap();
    let job = watched::survives_crashes(job, "20ms", 3, &Moments::new(), verify);
    verify(&job);
}

#[test]
fn many_in_any_order() {
    needs_root!();
    let folder = tempdir().unwrap();
    let job = python::rest_after(folder.path(), MANY).unwrap();
    story::stays_as_it_was(job, &folder.path().join("image"), |job| python::reports(job, 1));
}
