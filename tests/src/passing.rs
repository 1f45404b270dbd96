//! Small Python programs that pass descriptors and credentials to each other.

use tempfile::tempdir;

use crate::job::Job;
use crate::{ckpt, python};

/// For all: `send(socket, bytes, descriptors)`, and `drain(socket)`, which tells of every message: its bytes and what the descriptors are.
pub const HELPERS: &str = "
import array, errno, hashlib, select, socket
def send(to, data, fds=()):
    to.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', fds))] if fds else [])
def bytes_of(data):
    return data if len(data) < 20 else (len(data), hashlib.md5(data).hexdigest())
def receive(fro, size=1 << 20):
    data, with_it, flags, _ = fro.recvmsg(size, 4096, socket.MSG_DONTWAIT)
    fds = array.array('i')
    for level, kind, value in with_it:
        if kind == socket.SCM_RIGHTS: fds.frombytes(value)
    assert not flags & socket.MSG_CTRUNC
    return data, list(fds)
def what(fd):
    'What it is, and what can be read from it.'
    link = os.readlink('/proc/self/fd/%d' % fd).split('[')[0].split('/')[-1]
    try:
        os.set_blocking(fd, False)
        read = bytes_of(os.read(fd, 100))
    except OSError as error:
        read = errno.errorcode[error.errno]
    return link, read
def drain(fro, size=1 << 20, look=what):
    while True:
        try: data, fds = receive(fro, size)
        except BlockingIOError: return
        if size > 1 or fds: print(bytes_of(data), [look(fd) for fd in fds], flush=True)
        if not data and not fds: return
def piped(data):
    'The reading end of a pipe with this in it.'
    r, w = os.pipe()
    os.write(w, data)
    os.close(w)
    return r
def sent(to, data, *fds):
    'Sends descriptors that are nowhere else afterwards.'
    send(to, data, fds)
    for fd in fds: os.close(fd)
";

/// A program that has done what `script` says after the helpers, and rests, in a folder of its own.
pub fn start(script: &str) -> (tempfile::TempDir, Job) {
    let folder = tempdir().expect("no temporary folder");
    let job = python::rest_after(folder.path(), &format!("{HELPERS}{script}")).unwrap_or_else(|why| panic!("{why}"));
    (folder, job)
}

/// What the program reports without any interruption is what it reports after a checkpoint that lets it run on, and what it reports when it
/// was brought back, from an image of one that was brought back.
pub fn is_the_same(script: &str) -> Vec<String> {
    let (_folder, plain) = start(script);
    let expected = plain.report();
    assert!(expected.len() > 1 || expected.first().is_some_and(|line| !line.contains("Error")), "{expected:?}");
    let (folder, mut job) = start(script);
    let image = folder.path().join("image");
    ckpt::checkpoint(job.pid(), &image, &[]);
    for _ in 0..2 {
        ckpt::checkpoint_and_kill(&mut job, &image, &[]);
        job = ckpt::restart(&job, &image, &[]);
    }
    assert_eq!(job.report(), expected);
    let (folder, mut job) = start(script);
    let image = folder.path().join("image");
    ckpt::checkpoint(job.pid(), &image, &[]);
    assert_eq!(job.report(), expected, "the checkpoint has changed the target");
    job.kill();
    expected
}
