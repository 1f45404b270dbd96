//! Cuts of a memory so large that the scan in the pause passes over the most of it, because the log of write faults has nothing of that. What was written past
//! the page fault is found out afterwards, and the cut is taken again.

use std::path::Path;

use ckpt_tests::job::Job;
use ckpt_tests::moments::Moments;
use ckpt_tests::tracked::missing;
use ckpt_tests::watched::{self, Watch, number};
use ckpt_tests::{ckpt, needs_root, program, python, skip};
use serde_json::Value;
use tempfile::tempdir;

/// Keeps a list of what each page must hold, and changes pages in ways that are given by name. A child of it does the same with memory that it shares with it
/// in the beginning, if that is wanted. Asked for a report, tells whether all is right.
const CHANGER: &str = "
import random, mmap
from array import array
WAYS, FAMILY = 'these ways'.split(), 'this family' == 'True'
c.mmap.restype = ctypes.c_void_p
c.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
c.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
PAGE, PAGES = 4096, 80000
base = c.mmap(None, PAGES * PAGE, 3, 0x22, -1, 0)
assert base != ctypes.c_void_p(-1).value
c.madvise(base, PAGES * PAGE, 15)
model = array('Q', range(1, PAGES + 1))
for page in range(PAGES): ctypes.c_uint64.from_address(base + page * PAGE).value = page + 1
class Piece(ctypes.Structure): _fields_ = [('base', ctypes.c_void_p), ('len', ctypes.c_size_t)]
word = ctypes.c_uint64()
local, remote = Piece(ctypes.addressof(word), 8), Piece(0, 8)
block = mmap.mmap(-1, PAGE)
try:
    blocks = os.open('blocks', os.O_RDWR | os.O_CREAT | os.O_DIRECT)
    os.unlink('blocks')
except OSError:
    blocks = None
    WAYS = [way for way in WAYS if way != 'direct']
def change(way):
    page, value = random.randrange(PAGES), random.randrange(1, 1 << 60)
    at = base + page * PAGE
    if way == 'store':
        ctypes.c_uint64.from_address(at).value = value
    elif way == 'read':
        os.write(writer, value.to_bytes(8, 'little'))
        c.read(reader, ctypes.c_void_p(at), 8)
    elif way in ('drop', 'renew'):
        assert c.madvise(at, PAGE, 4) == 0
        if way == 'drop': value = 0
        else: ctypes.c_uint64.from_address(at).value = value
    elif way == 'vmwritev':
        word.value, remote.base = value, at
        assert c.syscall(311, os.getpid(), ctypes.byref(local), 1, ctypes.byref(remote), 1, ctypes.c_long(0)) == 8
    elif way == 'direct':
        block[:8] = value.to_bytes(8, 'little')
        os.pwrite(blocks, block, 0)
        assert c.pread(blocks, ctypes.c_void_p(at), PAGE, 0) == PAGE
    elif way == 'advise':
        assert c.syscall(440, own, ctypes.byref(Piece(at, PAGE)), 1, 4, 0) == PAGE
        value = 0
    model[page] = value
def wrong():
    get = lambda page: ctypes.c_uint64.from_address(base + page * PAGE).value
    return [(page, get(page), model[page]) for page in range(PAGES) if get(page) != model[page]]
def tell(who):
    bad = wrong()
    if bad: print(who, 'has wrong pages:', len(bad), bad[:10], flush=True)
def report():
    tell('the parent')
    print('report', len(model), flush=True)
    print('done', flush=True)
own = None
def go_on(each):
    global own, reader, writer
    reader, writer = os.pipe()
    own = os.pidfd_open(os.getpid()) if 'advise' in WAYS else None
    while True:
        for _ in range(2): change(random.choice(WAYS))
        time.sleep(0.001)
        each()
parent = os.getpid()
if FAMILY and os.fork() == 0:
    random.seed()
    laps = 0
    def now_and_then():
        global laps
        laps += 1
        if laps % 200 == 0: tell('the child')
        if os.getppid() != parent: os._exit(0)
    go_on(now_and_then)
print('ready', flush=True)
def asked():
    if signal.sigtimedwait([signal.SIGUSR1, signal.SIGUSR2], 0): report()
go_on(asked)
";

fn changer(folder: &Path, ways: &str, family: bool) -> Job {
    let script = CHANGER.replace("these ways", ways).replace("this family", if family { "True" } else { "False" });
    python::start(folder, &mut python::command(&script)).expect("Python cannot do this here")
}

/// So often that memory is protected in the pause, and so seldom that it is protected before.
const INTERVALS: [(&str, usize); 2] = [("20ms", 12), ("300ms", 5)];

/// Of a job that changes its memory in these ways, and is struck down and brought back: all checkpoints, of each interval.
fn through_crashes(ways: &str, family: bool) -> [Vec<Value>; 2] {
    INTERVALS.map(|(interval, cuts)| crashes_at(ways, family, interval, cuts))
}

fn crashes_at(ways: &str, family: bool, interval: &str, cuts: usize) -> Vec<Value> {
    let (moments, folder) = (Moments::new(), tempdir().expect("cannot make a folder"));
    let mut job = changer(folder.path(), ways, family);
    let dir = folder.path().join("images");
    let mut all = Vec::new();
    for _ in 0..3 {
        let watch = Watch::start(&job, &dir, interval, &["--tracker", "live"]);
        watch.wait_for(cuts);
        all.extend(watch.crash(&mut job, &moments));
        job = ckpt::restart(&job, &dir, &[]);
        python::reports(&job, 2);
    }
    watched::verify_images(&dir);
    job.kill();
    let passed = all.iter().filter(|checkpoint| number(checkpoint, "pages_unscanned") > 0).count();
    println!("{passed} of {} passed over the most; scanned after all: {:?}", all.len(), fallbacks(&all));
    all
}

fn fallbacks(checkpoints: &[Value]) -> Vec<&str> {
    checkpoints.iter().filter_map(|checkpoint| checkpoint["scan_fallback"].as_str()).collect()
}

fn passes_over(checkpoints: &[Value]) -> bool {
    checkpoints.iter().any(|checkpoint| number(checkpoint, "pages_unscanned") > 65536)
}

macro_rules! needs_live {
    () => {
        needs_root!();
        if let Some(why) = missing(program!("lapper"), "live") {
            skip!("--tracker live: {why}");
        }
    };
}

#[test]
fn what_the_log_has_is_enough() {
    needs_live!();
    let ways = format!("{} {} {} drop", ["store"; 400].join(" "), ["read"; 100].join(" "), ["renew"; 100].join(" "));
    for all in through_crashes(&ways, false) {
        assert!(passes_over(&all), "no cut passed anything over: {all:#?}");
        assert!(4 * fallbacks(&all).len() < all.len(), "many had to be scanned after all: {all:#?}");
    }
}

/// Shared since a fork.
#[test]
fn the_log_is_of_all_processes() {
    needs_live!();
    for all in through_crashes("store store read", true) {
        assert!(passes_over(&all), "no cut passed anything over: {all:#?}");
    }
}

/// The kernel's own writes, and pages that another process may take away, are in no log.
#[test]
fn what_the_log_lacks_is_found_out() {
    needs_live!();
    for ways in ["store vmwritev", "store direct", "store store store advise"] {
        // Where memory is protected before the freeze, that finds what was done until then.
        let [often, _seldom] = through_crashes(ways, false);
        let found = |field| {
            often.iter().any(|checkpoint| checkpoint[field].as_str().is_some_and(|why| why.contains("past the page fault")))
        };
        // What is given up while pages are copied makes a cut void before the log is of any use: if the machine is busy, each.
        let is_void = ways.contains("advise") && found("live_fallback");
        assert!(found("scan_fallback") || is_void, "nothing was found out of {ways}: {often:#?}");
    }
}
