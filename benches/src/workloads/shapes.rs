//! What makes a process slow to stop, at the same memory: many mappings, descriptors of mixed kinds, many threads.

use anyhow::Result;
use ckpt_tests::python;
use ckpt_tests::watched::Watch;

use super::cuts::Cuts;
use super::{Bench, Outcome, Workload, saving};
use crate::figure::Figures;
use crate::scratch::Scratch;

/// See the module.
pub const WORKLOAD: Workload = Workload {
    name: "shapes",
    about: "python3 with 64 MiB that writes 8 pages each millisecond, under `ckpt watch --interval 50ms`: as it is; with 1000 mappings; with 200 \
            descriptors (files, pipes, sockets, eventfds, timerfds); with 64 threads",
    run,
};

/// Of each shape.
const CUTS: usize = 200;
const MEBIBYTES: u64 = 64;

/// The memory of all of them.
const MEMORY: &str = "
import mmap, socket
SIZE = 64 << 20
data = mmap.mmap(-1, SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for at in range(0, SIZE, 1 << 20): data[at:at + (1 << 20)] = os.urandom(1 << 20)
PIECE = 64 << 10
";

/// The pieces of even numbers can be written to in all shapes.
const WRITE: &str = "
print('ready', flush=True)
n = 0
while True:
    for k in range(8):
        at = (n * 7919 * 2) % (SIZE // PIECE) * PIECE + n // 512 % 16 * 4096
        data[at:at + 4] = struct.pack('=I', n & 0xffffffff)
        n += 1
    time.sleep(0.001)
";

const PLAIN: &str = "pause, plain";

/// What a figure is called, and what makes a plain process one of that shape.
const SHAPES: &[(&str, &str)] = &[
    (PLAIN, ""),
    (
        "pause, 1000 mappings",
        "
start = ctypes.addressof(ctypes.c_char.from_buffer(data))
for n in range(1, 1000, 2):
    if c.mprotect(ctypes.c_void_p(start + n * PIECE), ctypes.c_size_t(PIECE), mmap.PROT_READ): absent('mprotect')
",
    ),
    (
        "pause, 200 descriptors",
        "
held = [open('file-%d' % n, 'w+') for n in range(40)]
pipes = [os.pipe() for n in range(20)]
pairs = [socket.socketpair() for n in range(20)]
for r, w in pipes: os.write(w, b'0123456789')
for one, other in pairs: one.send(b'0123456789')
events = [os.eventfd(n) for n in range(40)]
timers = [call('timerfd_create', 283, time.CLOCK_MONOTONIC, 0) for n in range(40)]
# Each is armed, in an hour.
for fd in timers: call('timerfd_settime', 286, fd, 0, struct.pack('=qqqq', 0, 0, 3600, 0), None)
",
    ),
    (
        "pause, 64 threads",
        "
never = threading.Event()
for n in range(63): threading.Thread(target=never.wait, daemon=True).start()
",
    ),
];

fn run(bench: &Bench) -> Result<Outcome> {
    let scratch = match saving::scratch(16 * MEBIBYTES)? {
        Ok(scratch) => scratch,
        Err(reason) => return Ok(Outcome::Skipped(reason)),
    };
    let (mut figures, mut notes) = (Figures::default(), vec![scratch.describe()]);
    for _ in 0..bench.runs {
        for (name, shape) in SHAPES {
            eprintln!("  {name}");
            let cuts = measure(&scratch, shape)?;
            cuts.add_pauses(name, &mut figures);
            notes.push(format!("{}; the cut in the middle: {}", cuts.describe(name), cuts.phases()));
        }
    }
    let ratios = SHAPES[1..].iter().filter_map(|(of, _)| figures.ratio(of, PLAIN)).collect();
    Ok(Outcome::Measured { notes, figures: figures.into_vec(), ratios })
}

fn measure(scratch: &Scratch, shape: &str) -> Result<Cuts> {
    let mut command = python::command(&format!("{MEMORY}{shape}{WRITE}"));
    let job = python::start(scratch.jobs(), &mut command).map_err(anyhow::Error::msg)?;
    let dir = scratch.path().join("images");
    let watch = Watch::start(&job, &dir, "50ms", &["--tracker", "live", "--keep", "2"]);
    watch.wait_for(CUTS + 1);
    let cuts = Cuts::of(watch.end());
    std::fs::remove_dir_all(&dir)?;
    Ok(cuts)
}
