//! Memory that a job drops, unmaps and maps anew, by pages and by whole page tables, under `ckpt watch`: an increment must know of each page that is gone,
//! though nobody looks at all pages for it.

use std::path::Path;

use ckpt_tests::job::Job;
use ckpt_tests::moments::Moments;
use ckpt_tests::tracked::missing;
use ckpt_tests::watched::{self, Watch};
use ckpt_tests::{ckpt, needs_root, program, python, skip};
use tempfile::tempdir;

/// Does these things at random, and keeps a list of what each page must hold. Asked for a report, tells whether it does.
const BEGIN: &str = "
import random
from array import array
c.mmap.restype = ctypes.c_void_p
c.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
c.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
c.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
PAGE, TABLE, TABLES, UNMAPPED, GUARDED = 4096, 512, 6, 0xffff, 0xfffe
PAGES = TABLE * TABLES
def anonymous(at, pages, flags):
    got = c.mmap(at, pages * PAGE, 3, 0x22 | flags, -1, 0)
    assert got != ctypes.c_void_p(-1).value
    return got
FILE = os.open('pages', os.O_RDWR | os.O_CREAT, 0o600)
def of_file(page): return 61000 + page
os.pwrite(FILE, b''.join(of_file(page).to_bytes(2, 'little').ljust(PAGE, b'x') for page in range(PAGES)), 0)
base = (anonymous(None, PAGES + TABLE, 0) + TABLE * PAGE - 1) // (TABLE * PAGE) * (TABLE * PAGE)
def advise(first, count, advice): return c.madvise(base + first * PAGE, count * PAGE, advice)
def renew(first, count):
    anonymous(base + first * PAGE, count, 0x10)
    advise(first, count, 15)
def renew_from_file(first, count):
    assert c.mmap(base + first * PAGE, count * PAGE, 3, 0x12, FILE, first * PAGE) != ctypes.c_void_p(-1).value
    advise(first, count, 15)
advise(0, PAGES, 15)
HAVE_GUARDS = advise(0, 1, 102) == 0
if HAVE_GUARDS: advise(0, 1, 103)
# What a page holds once it is dropped.
model, behind, random_ = array('H', [0] * PAGES), array('H', [0] * PAGES), random.Random()
def put(page, value): ctypes.c_uint16.from_address(base + page * PAGE).value = value
def get(page): return ctypes.c_uint16.from_address(base + page * PAGE).value
def step():
    if random_.random() < 0.5:
        first, count = random_.randrange(TABLES) * TABLE, random_.choice([1, 1, 2]) * TABLE
        count = min(count, PAGES - first)
    else:
        first = random_.randrange(PAGES)
        count = min(random_.choice([1, 3, 40, 700]), PAGES - first)
    whole = range(first, first + count)
    mapped = all(model[page] != UNMAPPED for page in whole)
    guarded = any(model[page] == GUARDED for page in whole)
    what = random_.choice(ACTIONS)
    if what == 'unmap':
        c.munmap(base + first * PAGE, count * PAGE)
        model[first:first + count] = array('H', [UNMAPPED]) * count
    elif what == 'file':
        renew_from_file(first, count)
        behind[first:first + count] = array('H', map(of_file, whole))
        model[first:first + count] = behind[first:first + count]
    elif what == 'renew' or not mapped:
        renew(first, count)
        behind[first:first + count] = array('H', [0]) * count
        model[first:first + count] = array('H', [0]) * count
    elif what == 'drop':
        assert advise(first, count, 4) == 0
        for page in whole:
            if model[page] != GUARDED: model[page] = behind[page]
    elif what == 'guard' and HAVE_GUARDS and count < TABLE and not any(behind[page] for page in whole):
        assert advise(first, count, 103 if guarded else 102) == 0
        for page in whole:
            if not guarded: model[page] = GUARDED
            elif model[page] == GUARDED: model[page] = 0
    else:
        value = random_.randrange(1, 60000)
        for page in whole:
            if model[page] == GUARDED or what == 'some' and random_.random() < 0.8: continue
            if what == 'read':
                get(page)
            else:
                put(page, value)
                model[page] = value
def wrong():
    return [page for page in range(PAGES) if model[page] < GUARDED and get(page) != model[page]]
def report():
    bad = wrong()
    if bad: print('pages', bad[:20], len(bad), 'are', [get(page) for page in bad[:20]], 'not', [model[page] for page in bad[:20]], flush=True)
    print('report', len(model), flush=True)
    print('done', flush=True)
";
const REST: &str = "
print('ready', flush=True)
while True:
    for _ in range(20):
        step()
        time.sleep(0.0005)
    if signal.sigtimedwait([signal.SIGUSR1, signal.SIGUSR2], 0): report()
";

/// Mappings come and go.
const ALL: &str = "
ACTIONS = ['write', 'write', 'write', 'some', 'some', 'read', 'drop', 'drop', 'renew', 'file', 'unmap', 'guard']
";
/// All of it is one mapping of a file, from the beginning to the end.
const OF_A_FILE: &str = "
ACTIONS = ['write', 'some', 'some', 'read', 'drop', 'drop']
renew_from_file(0, PAGES)
behind = array('H', map(of_file, range(PAGES)))
model = behind[:]
";

fn dropper(folder: &Path, actions: &str) -> Job {
    let script = [BEGIN, actions, REST].concat();
    python::start(folder, &mut python::command(&script)).expect("Python cannot do this here")
}

fn survives(tracker: &str) {
    for actions in [ALL, OF_A_FILE] {
        survives_doing(tracker, actions);
    }
}

fn survives_doing(tracker: &str, actions: &str) {
    if let Some(why) = missing(program!("lapper"), tracker) {
        skip!("--tracker {tracker}: {why}");
    }
    let (moments, folder) = (Moments::new(), tempdir().expect("cannot make a folder"));
    let mut job = dropper(folder.path(), actions);
    let dir = folder.path().join("images");
    for _ in 0..6 {
        let watch = Watch::start(&job, &dir, "20ms", &["--tracker", tracker]);
        watch.wait_for(6);
        watch.crash(&mut job, &moments);
        job = ckpt::restart(&job, &dir, &[]);
        python::reports(&job, 2);
    }
    watched::verify_images(&dir);
    job.kill();
}

#[test]
fn what_is_gone_is_in_no_image_by_scan() {
    needs_root!();
    survives("scan");
}

#[test]
fn what_is_gone_is_in_no_live_image() {
    needs_root!();
    survives("live");
}

#[test]
fn what_is_gone_is_in_no_image_by_hash() {
    needs_root!();
    survives("hash");
}
