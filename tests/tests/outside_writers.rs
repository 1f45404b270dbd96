//! A process outside of the tree that writes to its memory cannot be stopped. The kernel takes note of the pages as the call begins; if a cut is made between
//! that and the writing, the page tables tell of nothing, and the next cut must look at everything.

use ckpt_tests::moments::Moments;
use ckpt_tests::tracked::{missing, names};
use ckpt_tests::watched::{self, Watch, is_increment};
use ckpt_tests::{ckpt, needs_root, program, python, skip};
use tempfile::tempdir;

/// Has memory for others to write to, and writes all the time to some of the rest. Reports how much others have written.
const JOB: &str = "
import mmap
BYTES = MIB << 20
memory = mmap.mmap(-1, BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.madvise(15)
for page in range(0, BYTES, 4096): memory[page] = 1
def churn():
    page = 0
    while True:
        for page in range(1 << 20, 2 << 20, 4096): memory[page] = (memory[page] + 1) % 256
        time.sleep(0.002)
threading.Thread(target=churn, daemon=True).start()
def report():
    print('report', *(memory[page:page + 4096].count(b'W') for page in range(0, 8 * 4096, 4096)), flush=True)
    print('done', flush=True)
print('at', ctypes.addressof(ctypes.c_char.from_buffer(memory)), flush=True)
";

/// Writes eight pages into another process, and is held in the middle of that call: what it writes from is not there, until it is asked for a report.
const WRITER: &str = "
import fcntl, mmap
class Piece(ctypes.Structure): _fields_ = [('base', ctypes.c_void_p), ('len', ctypes.c_size_t)]
SIZE = 8 * 4096
source = mmap.mmap(-1, SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
address = ctypes.addressof(ctypes.c_char.from_buffer(source))
faults = call('userfaultfd', 323, os.O_CLOEXEC)
fcntl.ioctl(faults, 0xc018aa3f, struct.pack('QQQ', 0xaa, 0, 0))
fcntl.ioctl(faults, 0xc020aa00, struct.pack('QQQQ', address, SIZE, 1, 0))
local, remote = Piece(address, SIZE), Piece(ADDRESS, SIZE)
wrote = []
writer = threading.Thread(target=lambda: wrote.append(c.syscall(311, PID, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0)))
writer.start()
os.read(faults, 32)
def report():
    contents = ctypes.create_string_buffer(b'W' * SIZE)
    fcntl.ioctl(faults, 0xc028aa03, struct.pack('QQQQq', address, ctypes.addressof(contents), SIZE, 0, 0))
    writer.join()
    print('report', *wrote, flush=True)
    print('done', flush=True)
";

const ALL_WRITTEN: [&str; 1] = ["report 4096 4096 4096 4096 4096 4096 4096 4096"];

fn is_in_the_next_image(tracker: &str, mib: u32) {
    if let Some(why) = missing(program!("lapper"), tracker) {
        skip!("--tracker {tracker}: {why}");
    }
    let folder = tempdir().unwrap();
    let mut job = python::rest_after(folder.path(), &format!("MIB = {mib}\n{JOB}")).expect("python3 can do it");
    let address: u64 = job.wait_for_line("at ")[3..].parse().expect("an address");
    let dir = folder.path().join("images");
    let watch = Watch::start(&job, &dir, "20ms", &["--tracker", tracker]);
    watch.wait_for(4);
    let outside = folder.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    let mut writer = match python::rest_after(&outside, &format!("PID, ADDRESS = {}, {address}\n{WRITER}", job.pid())) {
        Ok(writer) => writer,
        Err(why) => skip!("{why}"),
    };
    // The one that is being made, one that protects the pages again, and one that finds nothing of it.
    watch.wait_for(watch.checkpoints().len() + 3);
    assert_eq!(writer.report(), [format!("report {}", 8 * 4096)]);
    writer.kill();
    let made = watch.wait_for(watch.checkpoints().len() + 2);
    assert!(made.iter().skip(1).all(is_increment), "{made:#?}");
    assert!(names(&made).contains(&tracker), "{made:#?}");
    assert_eq!(job.report(), ALL_WRITTEN);
    watch.crash(&mut job, &Moments::new());
    let mut job = ckpt::restart(&job, &dir, &[]);
    assert_eq!(job.report(), ALL_WRITTEN);
    watched::verify_images(&dir);
    job.kill();
}

#[test]
fn late_writes_are_in_the_next_image_by_scan() {
    needs_root!();
    is_in_the_next_image("scan", 16);
}

#[test]
fn late_writes_are_in_the_next_live_image() {
    needs_root!();
    is_in_the_next_image("live", 16);
}

/// So much that the log of write faults says what need not be scanned.
#[test]
fn late_writes_are_in_the_next_live_image_of_large_memory() {
    needs_root!();
    is_in_the_next_image("live", 400);
}

#[test]
fn late_writes_are_in_the_next_image_by_soft_dirty() {
    needs_root!();
    is_in_the_next_image("soft-dirty", 16);
}
