//! Files of a job under `ckpt watch --save-files`: at a restart each of them is what it was at the cut, and a checkpoint holds only what has changed
//! of them.

use std::fs;

use ckpt_tests::job::Job;
use ckpt_tests::moments::Moments;
use ckpt_tests::scratch_disk::ScratchDisk;
use ckpt_tests::watched::{self, Watch, number};
use ckpt_tests::{ckpt, needs_root, or_skip, python};
use tempfile::{TempDir, tempdir};

/// A job that does one thing for each signal, under a watch that is driven by hand: checkpoints come so often that there is one after each.
struct Driven {
    folder: TempDir,
    job: Job,
    watch: Option<Watch>,
}

impl Driven {
    fn start(script: &str, more: &[&str]) -> Driven {
        let folder = tempdir().unwrap();
        let job = python::rest_after(folder.path(), script).unwrap();
        let watch = Watch::start(&job, &folder.path().join("images"), "20ms", more);
        watch.wait_for(2);
        Driven { folder, job, watch: Some(watch) }
    }

    /// Has the job do its next thing, and returns the bytes of the largest of the checkpoints up to one that was begun afterwards.
    fn step(&self) -> u64 {
        let watch = self.watch.as_ref().unwrap();
        let before = watch.checkpoints().len();
        self.job.report();
        let during = watch.checkpoints().len();
        let all = watch.wait_for(during + 2);
        all[before..].iter().map(|checkpoint| number(checkpoint, "bytes")).max().unwrap()
    }

    /// A crash, and the restart after it.
    fn crash(&mut self) {
        self.watch.take().unwrap().crash(&mut self.job, &Moments::new());
        self.job = ckpt::restart(&self.job, &self.folder.path().join("images"), &["--discard-changes"]);
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join(name)
    }
}

const MANY: &str = "
import mmap
random = open('/dev/urandom', 'rb')
data = bytearray(random.read(BYTES))
step = 0
def report():
    global step
    step += 1
    for at in range(step % 7, len(data) >> 12, 100):
        data[at << 12:(at << 12) + 8] = random.read(8)
        change(at << 12, data[at << 12:(at << 12) + 8])
    print('done', flush=True)
";

/// Of a large file an increment holds the pages that were written, whether the job has written them by write(2) or through a mapping, and
/// whether others can see the file or not.
fn only_what_has_changed(open: &str, change: &str, verify: impl Fn(&Driven)) {
    needs_root!();
    let script = format!("{}{open}def change(at, b): {change}\n", MANY.replace("BYTES", "16 << 20"));
    let script = format!("{script}import hashlib\ndef digest(b): return hashlib.sha256(b).hexdigest()\n{CHECK}");
    let mut driven = Driven::start(&script, &["--save-files", "--codec", "raw"]);
    for _ in 0..3 {
        let bytes = driven.step();
        // 41 pages of the file, as many of the job's own copy, and what Python touches.
        assert!(bytes < 2 << 20, "an increment has {bytes} bytes");
        assert!(bytes > 2 * 41 * 4096, "an increment has only {bytes} bytes");
    }
    driven.crash();
    fs::write(driven.path("compare"), "").unwrap();
    assert!(driven.job.report().contains(&"same".to_owned()), "{}", driven.job.output());
    verify(&driven);
}

const CHECK: &str = "
changing = report
def report():
    if os.path.exists('compare'): print('same' if digest(now()) == digest(data) else 'other')
    changing()
";

#[test]
fn a_file_that_is_written() {
    let open = "f = open('file', 'w+b', buffering=0); f.write(data)\ndef now(): f.seek(0); return f.read()\n";
    only_what_has_changed(open, "os.pwrite(f.fileno(), b, at)", |driven| {
        assert_eq!(fs::metadata(driven.path("file")).unwrap().len(), 16 << 20);
    });
}

#[test]
fn a_file_that_is_mapped() {
    let open = "
f = open('file', 'w+b', buffering=0); f.write(data)
m = mmap.mmap(f.fileno(), 0)
def now(): return m[:]
";
    only_what_has_changed(open, "m[at:at+len(b)] = bytes(b)", |_| {});
}

#[test]
fn a_file_that_was_deleted() {
    let open = "
f = open('file', 'w+b', buffering=0); f.write(data)
os.unlink('file')
def now(): f.seek(0); return f.read()
";
    only_what_has_changed(open, "os.pwrite(f.fileno(), b, at)", |driven| assert!(!driven.path("file").exists()));
}

#[test]
fn a_file_in_memory() {
    let open = "
f = open(os.memfd_create('file'), 'w+b', buffering=0); f.write(data)
def now(): f.seek(0); return f.read()
";
    only_what_has_changed(open, "os.pwrite(f.fileno(), b, at)", |_| {});
}

/// A file that grows, shrinks, and has holes made in it.
#[test]
fn a_file_that_changes_its_size() {
    needs_root!();
    let script = "
import ctypes
f = open('file', 'w+b', buffering=0)
steps = iter([lambda: f.write(b'a' * 100000), lambda: f.truncate(30000), lambda: f.truncate(90001),
    lambda: call('fallocate', 285, f.fileno(), 3, ctypes.c_long(4096), ctypes.c_long(8192)), lambda: os.pwrite(f.fileno(), b'z', 50000)])
def report():
    next(steps, lambda: None)()
    print('done', flush=True)
";
    let mut driven = Driven::start(script, &["--save-files"]);
    for step in 0..5 {
        driven.step();
        let then = fs::read(driven.path("file")).unwrap();
        // Whatever happens to it now.
        driven.job.kill();
        let watch = driven.watch.take().unwrap();
        drop(watch);
        if step % 2 == 0 {
            fs::write(driven.path("file"), "garbage").unwrap();
        } else {
            fs::remove_file(driven.path("file")).unwrap();
        }
        driven.job = ckpt::restart(&driven.job, &driven.path("images"), &["--discard-changes"]);
        assert!(fs::read(driven.path("file")).unwrap() == then, "the file is another one after step {step}");
        let watch = Watch::start(&driven.job, &driven.path("images"), "20ms", &["--save-files"]);
        watch.wait_for(2);
        driven.watch = Some(watch);
    }
}

/// A page that is written through a mapping leaves no trace in the times of the file, once it was written to before.
#[test]
fn a_mapping_that_changes_no_time() {
    needs_root!();
    let script = "
import mmap
f = open('file', 'w+b', buffering=0); f.write(b'0' * 3000000)
m = mmap.mmap(f.fileno(), 0)
m[1000000:1000001] = b'1'
def report():
    m[1000000:1000001] = b'2'
    print('done', flush=True)
";
    let folder = tempdir().unwrap();
    let mut job = python::rest_after(folder.path(), script).unwrap();
    // So long that the times of the file would be believed.
    let watch = Watch::start(&job, &folder.path().join("images"), "2500ms", &["--save-files"]);
    watch.wait_for(2);
    job.report();
    let count = watch.checkpoints().len();
    watch.wait_for(count + 1);
    watch.end();
    job.kill();
    fs::remove_file(folder.path().join("file")).unwrap();
    let _job = ckpt::restart(&job, &folder.path().join("images"), &[]);
    assert_eq!(fs::read(folder.path().join("file")).unwrap()[1_000_000], b'2');
}

/// No room for the files of a job: it runs on, and what there was stays good.
#[test]
fn a_full_disk() {
    needs_root!();
    let disk = or_skip!(ScratchDisk::new(40 << 20));
    let script = "
random = open('/dev/urandom', 'rb')
f = open('file', 'w+b', buffering=0)
f.write(random.read(1 << 20))
def report():
    f.write(random.read(8 << 20))
    print('done', flush=True)
";
    let folder = tempdir().unwrap();
    let mut job = python::rest_after(folder.path(), script).unwrap();
    let dir = disk.path().join("images");
    let watch = Watch::start(&job, &dir, "20ms", &["--save-files"]);
    watch.wait_for(2);
    for _ in 0..6 {
        job.report();
    }
    let said = watch.wait_until_it_says(&["No space left on device"]);
    assert!(said.contains(dir.to_str().unwrap()), "it does not say where: {said}");
    job.report();
    assert_eq!(fs::metadata(folder.path().join("file")).unwrap().len(), 57 << 20);
    watch.kill();
    watched::verify_images(&dir);
    job.kill();
    let _job = ckpt::restart(&job, &dir, &["--discard-changes"]);
    let now = fs::metadata(folder.path().join("file")).unwrap().len();
    assert!((1 << 20..57 << 20).contains(&now), "{now}");
}

const IN_STEP: &str = "
memory = bytearray(8 << 20)
f = os.open('DISK/file', os.O_RDWR | os.O_CREAT)
turn = threading.Lock()
n = 0
def work():
    global n
    while True:
        with turn:
            n = n % 250 + 1
            for at in range(0, len(memory), 4096): memory[at] = n
            os.pwrite(f, bytes([n]) * (4 << 20), 0)
threading.Thread(target=work, daemon=True).start()
def report():
    with turn:
        contents, pages = set(os.pread(f, 8 << 20, 0)), set(memory[::4096])
        print('in step' if contents == pages == {n} else f'out of step: {n} {contents} {pages}', flush=True)
    print('done', flush=True)
";

/// Where files can share blocks, one is copied so at the cut, and the copy is read after the job goes on: which is of the moment of the cut.
#[test]
fn a_file_whose_blocks_can_be_shared() {
    needs_root!();
    let folder = tempdir().unwrap();
    let disk = or_skip!(ScratchDisk::with_shared_blocks(&folder.path().join("disk")));
    let script = IN_STEP.replace("DISK", disk.path().to_str().unwrap());
    let mut job = python::rest_after(folder.path(), &script).unwrap();
    let moments = Moments::new();
    let dir = folder.path().join("images");
    for _ in 0..4 {
        let watch = Watch::start(&job, &dir, "30ms", &["--save-files"]);
        watch.wait_for(4);
        watch.crash(&mut job, &moments);
        job = ckpt::restart(&job, &dir, &["--discard-changes"]);
        assert_eq!(job.report(), ["in step"]);
    }
    let names: Vec<_> = fs::read_dir(disk.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["file"], "a copy is left");
    job.kill();
}
