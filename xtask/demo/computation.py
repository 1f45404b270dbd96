"""A computation of several seconds whose result depends on every step: four threads, each with 16 MiB of its own, hash it over and
over, and write each hash to the place in it that the hash itself names. One lost or doubled step, one wrong byte, gives another
result."""

import hashlib
import os
import sys
import threading

THREADS = 4
SIZE = 16 << 20
ROUNDS = int(sys.argv[1])

done = [0] * THREADS
results = [b""] * THREADS
progress = threading.Condition()


def work(n):
    block = bytearray(hashlib.shake_256(b"thread %d" % n).digest(SIZE))
    for _ in range(ROUNDS):
        digest = hashlib.sha512(block).digest()
        at = int.from_bytes(digest[:8], "little") % (SIZE - len(digest))
        block[at:at + len(digest)] = digest
        with progress:
            done[n] += 1
            progress.notify()
    results[n] = hashlib.sha512(block).digest()


threads = [threading.Thread(target=work, args=(n,), name=f"hash-{n}") for n in range(THREADS)]
for thread in threads:
    thread.start()
for percent in range(10, 101, 10):
    with progress:
        progress.wait_for(lambda: sum(done) * 100 >= percent * THREADS * ROUNDS)
    print(f"pid {os.getpid()}: {percent} %", flush=True)
for thread in threads:
    thread.join()
print("result", hashlib.sha256(b"".join(results)).hexdigest(), flush=True)
