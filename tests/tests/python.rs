//! Python programs: threads that hash, and a numpy computation (Debian's python3 and python3-numpy).

use std::process::Command;

use ckpt_tests::job::Job;
use ckpt_tests::story;

const PYTHON: &str = "/usr/bin/python3";

fn survives(script: &'static str) {
    story::survives(
        |folder| Job::start(folder, Command::new(PYTHON).env("OPENBLAS_NUM_THREADS", "1").args(["-c", script])),
        Job::output,
    );
}

#[test]
fn threads_that_hash() {
    survives(
        "
import hashlib, threading
results = [None] * 4
def work(n):
    h = b'%d' % n
    for i in range(250000):
        h = hashlib.sha256(h * 3).digest()
        if i % 50000 == 0:
            print(n, i, flush=True) if n == 0 else None
    results[n] = h.hex()
threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
for t in threads: t.start()
for t in threads: t.join()
print(results)
",
    );
}

#[test]
fn numpy() {
    survives(
        "
import numpy
rng = numpy.random.default_rng(7)
a = rng.random((400, 400))
s = 0.0
for i in range(80):
    a = a @ a
    a /= numpy.abs(a).max()
    s += float(a.sum())
    if i % 10 == 0: print(i, repr(s), flush=True)
print(repr(s), a.tobytes()[:64].hex())
",
    );
}
