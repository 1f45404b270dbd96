//! Files beside one that is saved and that belong to it by their names, but that nobody has open at the cut: a journal that is closed and about to be
//! removed. They are put back with the file that they belong to.

use std::fs;
use std::path::{Path, PathBuf};

use ckpt_tests::job::Job;
use ckpt_tests::moments::Moments;
use ckpt_tests::watched::{self, Watch};
use ckpt_tests::{ckpt, needs_root, python};
use tempfile::{TempDir, tempdir};

/// A database, and a journal that was written and closed, but not removed. Each report is one step of its life.
const DATABASE: &str = "
def put(name, byte, size):
    with open(name, 'wb') as f: f.write(byte * size)
db = open('db', 'w+b', buffering=0)
def change(byte):
    os.pwrite(db.fileno(), byte * 20000, 0)
change(b'1')
put('db-journal', b'1', 9000)
def report():
    step()
    print('done', flush=True)
";

/// A job, the folder that is its working directory, and the image of it.
struct Stopped {
    folder: TempDir,
    job: Job,
}

impl Stopped {
    /// The job has done what `script` says, is checkpointed, does what its `step` is, and is killed.
    fn after(script: &str) -> Stopped {
        let folder = tempdir().unwrap();
        let mut job = python::rest_after(folder.path(), &format!("{DATABASE}{script}")).unwrap();
        ckpt::checkpoint(job.pid(), &folder.path().join("image"), &["--save-files"]);
        job.report();
        job.kill();
        Stopped { folder, job }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn restart(&self, more: &[&str]) -> Job {
        ckpt::restart(&self.job, &self.path("image"), more)
    }
}

fn holds(path: &Path, byte: u8, size: usize) -> bool {
    fs::read(path).is_ok_and(|bytes| bytes == vec![byte; size])
}

/// Another transaction has another journal of the same name: with that the database would be spoilt.
#[test]
fn a_closed_journal_that_was_there() {
    needs_root!();
    let steps = [
        "os.unlink('db-journal'); change(b'2'); put('db-journal', b'2', 12000)",
        "change(b'2'); put('db-journal', b'2', 12000)",
        "change(b'2'); put('db-journal', b'2', 9000)",
    ];
    for step in steps {
        let stopped = Stopped::after(&format!("def step(): {step}\n"));
        let journal = stopped.path("db-journal");
        assert!(!holds(&journal, b'1', 9000));
        let mut job = stopped.restart(&[]);
        assert!(holds(&stopped.path("db"), b'1', 20000), "the database is not what it was");
        assert!(holds(&journal, b'1', 9000), "the journal is not what it was: {step}");
        assert_eq!(fs::read(stopped.path("db-journal.ckpt-kept-1")).unwrap()[0], b'2', "{step}");
        job.kill();
        stopped.restart(&["--files", "fail"]);
        assert!(!stopped.path("db-journal.ckpt-kept-2").exists(), "it was not changed: {step}");
    }
}

/// What was removed since is there again; what was not there is moved aside.
#[test]
fn a_closed_journal_that_is_gone() {
    needs_root!();
    let stopped = Stopped::after("def step(): os.unlink('db-journal'); change(b'2'); put('db-wal', b'2', 3)\n");
    stopped.restart(&[]);
    assert!(holds(&stopped.path("db"), b'1', 20000) && holds(&stopped.path("db-journal"), b'1', 9000));
    assert!(!stopped.path("db-wal").exists() && stopped.path("db-wal.ckpt-kept-1").exists());
}

/// Increments hold what they must of a journal that comes and goes, and is open or closed.
#[test]
fn a_journal_that_comes_and_goes() {
    needs_root!();
    let (moments, folder) = (Moments::new(), tempdir().unwrap());
    let script = "
step = lambda: None
os.unlink('db-journal')
if os.fork() == 0:
    number = 1
    while True:
        number = number % 250 + 1
        put('db-journal', bytes([number]), 9000)
        time.sleep(0.002)
        change(bytes([number]))
        os.unlink('db-journal')
";
    let (db, journal) = (folder.path().join("db"), folder.path().join("db-journal"));
    let mut job = python::rest_after(folder.path(), &format!("{DATABASE}{script}")).unwrap();
    let dir = folder.path().join("images");
    let mut there = 0;
    for _ in 0..12 {
        let watch = Watch::start(&job, &dir, "20ms", &["--save-files"]);
        watch.wait_for(3);
        watch.crash(&mut job, &moments);
        job = ckpt::restart(&job, &dir, &["--frozen", "--discard-changes"]);
        let (byte, held) = (fs::read(&db).unwrap()[0], fs::read(&journal).unwrap_or_default());
        assert!(holds(&db, byte, 20000), "the database is of several instants");
        assert!(held.is_empty() || held.len() == 9000, "{} bytes", held.len());
        let fits = |next: &u8| *next == byte || *next == byte % 250 + 1;
        assert!(held.iter().all(fits), "the journal is of {}, the database of {byte}", held[0]);
        there += u32::from(!held.is_empty());
        ckpt::run(&mut ckpt::command(["thaw", &job.pid().to_string()])).success();
    }
    println!("{there} of 12 cuts had a journal");
    watched::verify_images(&dir);
    job.kill();
}

/// What only has such a name is left alone, whatever becomes of it. A journal is saved however large it is.
#[test]
fn what_lies_beside_and_is_no_journal() {
    needs_root!();
    let stopped =
        Stopped::after("put('db.py', b'1', 1000)\ndef step(): change(b'2'); put('db.py', b'2', 3); put('db-2', b'2', 3)\n");
    let image = fs::metadata(stopped.path("image")).unwrap().len();
    stopped.restart(&[]);
    assert!(holds(&stopped.path("db"), b'1', 20000));
    assert!(holds(&stopped.path("db.py"), b'2', 3) && holds(&stopped.path("db-2"), b'2', 3));

    let stopped = Stopped::after("put('db-wal', os.urandom(4096), 5120)\ndef step(): put('db-wal', b'2', 3)\n");
    assert!(fs::metadata(stopped.path("image")).unwrap().len() > image, "the journal is not in it");
    stopped.restart(&[]);
    assert_eq!(fs::metadata(stopped.path("db-wal")).unwrap().len(), 20 << 20);
}

/// With `--files keep` no old journal comes to a newer database, and with the database it does.
#[test]
fn a_database_that_is_kept() {
    needs_root!();
    let stopped = Stopped::after("def step(): os.unlink('db-journal'); change(b'2')\n");
    stopped.restart(&["--files", "keep"]).kill();
    assert!(holds(&stopped.path("db"), b'2', 20000) && !stopped.path("db-journal").exists());
    fs::remove_file(stopped.path("db")).unwrap();
    stopped.restart(&["--files", "keep"]);
    assert!(holds(&stopped.path("db"), b'1', 20000) && holds(&stopped.path("db-journal"), b'1', 9000));
}

/// An image may have such a name, too.
#[test]
fn an_image_that_lies_beside() {
    needs_root!();
    let folder = tempdir().unwrap();
    let mut job = python::rest_after(folder.path(), &format!("{DATABASE}step = lambda: change(b'2')\n")).unwrap();
    let image = folder.path().join("db.ckpt");
    let first = ckpt::checkpoint(job.pid(), &image, &["--save-files"]);
    let second = ckpt::checkpoint(job.pid(), &image, &["--save-files"]);
    assert_ne!(first["image_id"], second["image_id"]);
    let newer = folder.path().join("db.newer");
    ckpt::checkpoint(job.pid(), &newer, &["--save-files"]);
    let before = [&image, &newer].map(|image| fs::read(image).unwrap());
    job.report();
    job.kill();
    ckpt::restart(&job, &image, &[]);
    assert!([&image, &newer].map(|image| fs::read(image).unwrap()) == before, "an image was changed");
}
