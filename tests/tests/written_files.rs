//! Files that a job has written, at a restart: what has only grown is cut back, what was saved is put back, and everything else is an error that names
//! it, before anything is changed.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;
use std::time::{Instant, SystemTime};

use ckpt_tests::job::{DEADLINE, Job};
use ckpt_tests::moments::{Moments, Span};
use ckpt_tests::scratch_disk::ScratchDisk;
use ckpt_tests::{ckpt, needs_root, or_skip, process, python};
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;
use tempfile::{TempDir, tempdir};

/// A job that was checkpointed while it had files open, went on, and was killed.
struct Killed {
    folder: TempDir,
    job: Job,
}

/// `script` opens the files and defines `report`, which is called after the checkpoint.
fn killed(script: &str, more: &[&str]) -> Killed {
    let folder = tempdir().unwrap();
    let mut job = python::rest_after(folder.path(), script).unwrap();
    ckpt::checkpoint(job.pid(), &folder.path().join("image"), more);
    // What it says is no part of the test.
    let out = File::options().write(true).open(folder.path().join("out")).unwrap();
    let before = out.metadata().unwrap();
    job.report();
    job.kill();
    out.set_len(before.len()).and_then(|()| out.set_modified(before.modified().unwrap())).unwrap();
    Killed { folder, job }
}

impl Killed {
    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn restart(&self, more: &[&str]) -> Job {
        ckpt::restart(&self.job, &self.path("image"), more)
    }

    /// The restart fails, and says `words` of the file `name`, in one line for each of `names`. No process is left, and no file was changed.
    fn fails(&self, files: &str, names: &[(&str, &str)]) {
        let before = contents(self.folder.path());
        let said = ckpt::try_restart(&self.path("image"), &["--detach", "--files", files]).failure();
        for (name, words) in names {
            let path = self.path(name);
            let names_it = |line: &&str| line.contains(&format!("the file {} ", path.display()));
            let line = said.lines().find(names_it).unwrap_or_else(|| panic!("{name} is not named: {said}"));
            assert!(line.contains(words), "not {words:?}: {line}");
        }
        assert_eq!(said.lines().count(), names.len(), "{said}");
        assert_eq!(process::status(self.job.pid(), "State"), None, "a process is left");
        assert_eq!(contents(self.folder.path()), before);
    }
}

/// Names and contents of all files but those of the harness.
fn contents(folder: &Path) -> Vec<(PathBuf, Vec<u8>, SystemTime)> {
    let of_test = |path: &PathBuf| path.is_file() && !path.ends_with("out") && !path.ends_with("pidfile");
    let paths = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).filter(of_test);
    let mut all: Vec<_> =
        paths.map(|path| (path.clone(), fs::read(&path).unwrap(), fs::metadata(&path).unwrap().modified().unwrap())).collect();
    all.sort();
    all
}

fn write(name: &str, mode: &str, size: &str) -> String {
    format!("f = open('{name}', '{mode}', buffering=0); f.write(b'begin' + b'x' * {size})\n")
}

fn report(what: &str) -> String {
    format!("def report():\n    {what}\n    print('done', flush=True)\n")
}

#[test]
fn it_can_be_cut_back_again_and_again() {
    needs_root!();
    let killed = killed(&(write("log", "ab", "10") + &report("f.write(b'more')")), &[]);
    let (log, image) = (killed.path("log"), killed.path("image"));
    let mut job = killed.restart(&["--files", "rollback"]);
    assert_eq!(fs::read(&log).unwrap(), b"beginxxxxxxxxxx");
    assert_eq!(fs::read(killed.path("log.ckpt-kept-1")).unwrap(), b"more");
    let modified = |path: &Path| fs::metadata(path).unwrap().modified().unwrap();
    assert!(modified(&log) < modified(&image), "it has not the time of the checkpoint");
    job.kill();
    // It is as it was, also in the eyes of the strictest, and nothing more is kept.
    let mut job = killed.restart(&["--files", "fail"]);
    job.report();
    assert_eq!(fs::read(&log).unwrap(), b"beginxxxxxxxxxxmore");
    job.kill();
    ckpt::restart(&killed.job, &image, &["--files", "rollback", "--discard-changes"]).kill();
    assert_eq!(fs::read(&log).unwrap(), b"beginxxxxxxxxxx");
    assert!(!killed.path("log.ckpt-kept-2").exists(), "it was to be discarded");
}

#[test]
fn a_file_that_grew_and_was_overwritten() {
    needs_root!();
    let grow = report("os.pwrite(f.fileno(), b'BEGIN', 0); f.seek(0, 2); f.write(b'more')");
    killed(&(write("data", "w+b", "10") + &grow), &[])
        .fails("rollback", &[("data", "had 15 bytes at the checkpoint and has 19 now, and what it had was written to as well")]);
}

/// Of a large file only parts are compared, so one that was open for more than appending is not taken for one that only grew.
#[test]
fn a_large_file_that_grew() {
    needs_root!();
    let grow = "f.seek(0, 2); f.write(b'more')";
    let elsewhere = "os.pwrite(f.fileno(), b'X', 777777); ";
    let random = write("data", "w+b", "3000000") + "f.seek(0)\n" + &report(&format!("{elsewhere}{grow}"));
    killed(&random, &[]).fails("rollback", &[("data", "may have been written to anywhere")]);
    // At its end it counts as one that is only appended to.
    let log = write("data", "wb", "3000000") + &report("f.write(b'more')");
    let appended = killed(&log, &[]);
    appended.restart(&["--files", "rollback"]).kill();
    assert_eq!(fs::metadata(appended.path("data")).unwrap().len(), 3_000_005);
    for at in [0, 1 << 20, 3_000_004] {
        let file = File::options().write(true).open(appended.path("data")).unwrap();
        file.write_all_at(b"more", 3_000_005).unwrap();
        let byte = fs::read(appended.path("data")).unwrap()[at];
        file.write_all_at(b"?", at as u64).unwrap();
        appended.fails("rollback", &[("data", "what it had was written to as well")]);
        file.write_all_at(&[byte], at as u64).unwrap();
    }
}

#[test]
fn a_mapped_file_is_open_for_more_than_appending() {
    needs_root!();
    let map = "
import mmap
f = open('data', 'w+b', buffering=0); f.write(b'x' * 3000000)
m = mmap.mmap(f.fileno(), 3000000)
";
    let killed = killed(&format!("{map}{}", report("m[777777:777778] = b'X'; f.write(b'more')")), &[]);
    killed.fails("rollback", &[("data", "may have been written to anywhere")]);
}

#[test]
fn files_that_are_gone_or_others() {
    needs_root!();
    let open = "files = [open(name, 'w+b', buffering=0) for name in 'abcdef']\nfor f in files: f.write(b'12345678')\n";
    let change = "
    os.unlink('a')
    os.rename('b', 'moved')
    os.truncate('c', 4)
    os.rename('d', 'aside'); open('d', 'wb').write(b'123456789')
    os.pwrite(files[4].fileno(), b'X', 3)
    files[5].write(b'9')";
    let killed = killed(
        &(open.to_owned() + "f = open('g', 'w'); f = open('g')\n" + &report(&format!("open('g', 'w').write('g'){change}"))),
        &[],
    );
    let mut differ = vec![
        ("a", "; bring it back to its place; of checkpoints with --save-files it is made again"),
        ("b", "was deleted or renamed after the checkpoint"),
        ("c", "had 8 bytes at the checkpoint and has 4 now; --files keep takes it as it is"),
        ("d", "had 8 bytes at the checkpoint and has 9 now, and is another file of that name"),
        ("e", "was written to after the checkpoint (its size is still 8 bytes)"),
        ("g", "had 0 bytes at the checkpoint and has 1 now"),
    ];
    killed.fails("rollback", &differ);
    differ.push((
        "f",
        "had 8 bytes at the checkpoint and has 9 now; --files rollback cuts it back, --files keep takes it as it is",
    ));
    killed.fails("fail", &differ);
    killed.fails("keep", &differ[..2]);
}

/// A file that was only touched holds what it held.
#[test]
fn a_file_with_another_time() {
    needs_root!();
    let killed = killed(&(write("data", "w+b", "10") + &report("os.utime('data', (1, 1))")), &[]);
    killed.restart(&["--files", "fail"]);
}

/// Everything else has succeeded when files are changed. They are changed again if the rest fails after all.
#[test]
fn nobody_would_find_the_job() {
    needs_root!();
    let killed = killed(&(write("log", "ab", "10") + &report("f.write(b'more')")), &[]);
    let before = contents(killed.folder.path());
    let nowhere = killed.path("nowhere/pid");
    let more = ["--detach", "--files", "rollback", "--pidfile", nowhere.to_str().unwrap()];
    let said = ckpt::try_restart(&killed.path("image"), &more).failure();
    assert!(said.contains("nowhere/pid"), "{said}");
    Job::adopt(killed.job.pid(), killed.folder.path()).is_killed();
    assert_eq!(contents(killed.folder.path()), before);
}

/// Files are as they were if one of them cannot be changed.
#[test]
fn a_restart_that_fails_late_changes_no_file() {
    needs_root!();
    let disks = ScratchDisk::new(1 << 20).and_then(|one| Ok([one, ScratchDisk::new(1 << 20)?]));
    let mut disks = or_skip!(disks);
    // Files are changed in the order of their file systems.
    disks.sort_by_key(|disk| fs::metadata(disk.path()).unwrap().dev());
    let [log, full] = disks.each_ref().map(|disk| disk.path().join("file"));
    let open = format!("f = open({log:?}, 'ab', buffering=0); f.write(b'x'); g = open({full:?}, 'ab', buffering=0)\n");
    let killed = killed(&(open + &report("f.write(b'more'); g.write(b'y' * 900000)")), &[]);
    let before = disks.each_ref().map(|disk| contents(disk.path()));
    // No room for what is cut off of the second, when the first was cut back.
    let said = ckpt::try_restart(&killed.path("image"), &["--detach", "--files", "rollback"]).failure();
    assert!(said.contains(&format!("cannot cut {} back to 0 bytes: No space left on device", full.display())), "{said}");
    Job::adopt(killed.job.pid(), killed.folder.path()).is_killed();
    assert_eq!(disks.each_ref().map(|disk| contents(disk.path())), before);
}

/// A job with several files, whatever became of them.
const SEVERAL: &str = "
files = {}
for name in 'abcdef':
    f = files[name] = open(name, 'w+b', buffering=0)
    f.write(name.encode() * 100000)
    os.chmod(name, 0o640)
    f.seek(1000)
r = open(files['a'].fileno(), 'rb', buffering=0, closefd=False)
os.mkdir('folder')
f = files['g'] = open('folder/g', 'w+b', buffering=0)
f.write(b'g' * 7)
def report():
    if 'changed' not in globals(): change()
    else: print({name: (len(b := f.read(-1) if f.seek(0) == 0 else b''), b[:1], b[-1:]) for name, f in files.items()})
    print('done', flush=True)
def change():
    globals()['changed'] = True
    os.unlink('a')
    os.rename('b', 'moved')
    os.truncate('c', 4)
    os.rename('d', 'aside'); open('d', 'wb').write(b'another')
    os.pwrite(files['e'].fileno(), b'X', 70000); os.chmod('e', 0o600); os.chown('e', 7, 7)
    open('e-journal', 'w').write('newer')
    os.unlink('folder/g'); os.rmdir('folder')
";

#[test]
fn saved_files_are_put_back() {
    needs_root!();
    let killed = killed(SEVERAL, &["--save-files"]);
    let inode = |name: &str| fs::metadata(killed.path(name)).unwrap().ino();
    let (c, e, f) = (inode("c"), inode("e"), inode("f"));
    // Of a ckpt that was killed.
    fs::write(killed.path(".a.ckpt-restart-2147483647"), "unfinished").unwrap();
    for more in [&["--files", "fail"][..], &["--files", "rollback", "--discard-changes"], &[]] {
        let mut job = killed.restart(more);
        for name in ["a", "b", "c", "d", "e", "f"] {
            let metadata = fs::metadata(killed.path(name)).unwrap();
            assert_eq!(fs::read(killed.path(name)).unwrap(), name.repeat(100_000).as_bytes(), "{name}");
            assert_eq!((metadata.mode() & 0o7777, metadata.uid(), metadata.gid()), (0o640, 0, 0), "{name}");
        }
        assert_eq!(fs::read(killed.path("folder/g")).unwrap(), b"ggggggg");
        // Files that are there stay what they are.
        assert_eq!((inode("c"), inode("e"), inode("f")), (c, e, f));
        assert!(!killed.path("e-journal").exists(), "a newer journal lies beside it");
        // The job has these very files open.
        let links = fs::read_link(format!("/proc/{}/fd/{}", job.pid(), 3)).unwrap();
        assert_eq!(links, killed.path("a"));
        job.report();
        assert_eq!(fs::read(killed.path("d")).unwrap(), b"another");
        job.kill();
    }
    let kept = |name: &str| fs::read(killed.path(&format!("{name}.ckpt-kept-1"))).unwrap();
    assert_eq!((kept("c"), kept("d"), kept("e-journal")), (b"cccc".to_vec(), b"another".to_vec(), b"newer".to_vec()));
    assert_eq!(kept("e")[70000], b'X');
    assert!(!killed.path("f.ckpt-kept-1").exists(), "it was not changed");
    // Once without --discard-changes after the first time.
    assert!(killed.path("e.ckpt-kept-2").exists() && !killed.path("e.ckpt-kept-3").exists());
    let left: Vec<_> = fs::read_dir(killed.folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_str().unwrap().starts_with('.')), "{left:?}");
}

/// A restart that is killed at any instant may leave files half changed back. The same restart once more makes them whole.
#[test]
fn a_restart_that_is_killed() {
    needs_root!();
    let (moments, killed) = (Moments::new(), killed(SEVERAL, &["--save-files"]));
    let mut span = Span::of(|| killed.restart(&[]).kill());
    let mut in_time = 0;
    for _ in 0..40 {
        fs::write(killed.path("c"), "another").unwrap();
        fs::write(killed.path("e-journal"), "newer").unwrap();
        // It may be gone already.
        let _ = fs::remove_file(killed.path("a"));
        let mut command = ckpt::command(["restart", "--detach"]);
        let mut ckpt = command.arg(killed.path("image")).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        span.let_pass(&moments);
        ckpt.kill().unwrap();
        let struck = !ckpt.wait().unwrap().success();
        span.struck(struck);
        in_time += u32::from(struck);
        end_of(killed.job.pid());
    }
    println!("{in_time} of 40 were killed in time");
    let mut job = killed.restart(&["--discard-changes"]);
    for name in ["a", "b", "c", "d", "e", "f"] {
        assert_eq!(fs::read(killed.path(name)).unwrap(), name.repeat(100_000).as_bytes(), "{name}");
    }
    assert!(!killed.path("e-journal").exists());
    let left: Vec<_> = fs::read_dir(killed.folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_str().unwrap().starts_with('.')), "{left:?}");
    job.kill();
}

/// Ends what a killed restart may have left, or has let go.
fn end_of(pid: i32) {
    let until = Instant::now() + DEADLINE;
    while Path::new(&format!("/proc/{pid}")).exists() {
        // Its end is only seen by its parent; which that is depends on when ckpt died.
        let _ = nix::sys::signal::kill(Pid::from_raw(pid), Signal::SIGKILL);
        let _ = waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG | WaitPidFlag::__WALL));
        assert!(Instant::now() < until, "pid {pid} does not end");
        thread::yield_now();
    }
}

#[test]
fn saved_files_are_kept_if_that_is_wanted() {
    needs_root!();
    let killed =
        killed(&(write("data", "w+b", "10") + &report("f.write(b'more'); open('data-wal', 'w').write('w')")), &["--save-files"]);
    let before = contents(killed.folder.path());
    killed.restart(&["--files", "keep"]).kill();
    assert_eq!(contents(killed.folder.path()), before);
}

/// A lease tells the job when others open its file. A checkpoint is none of these.
#[test]
fn a_file_under_a_lease() {
    needs_root!();
    let lease = "import fcntl\nfcntl.fcntl(f, 1024, 1)\n";
    let folder = tempdir().unwrap();
    let script = write("data", "w+b", "10") + lease + &report("f.write(b'more')");
    let mut job = python::rest_after(folder.path(), &script).unwrap();
    let has_lease = |job: &Job| fs::read_to_string(format!("/proc/{}/fdinfo/3", job.pid())).unwrap().contains("ACTIVE    WRITE");
    assert!(has_lease(&job));
    let image = folder.path().join("image");
    let said = ckpt::try_checkpoint(job.pid(), &image, &["--save-files"]).failure();
    assert!(said.contains("data is under a lease") && said.contains("leave out --save-files"), "{said}");
    ckpt::checkpoint(job.pid(), &image, &[]);
    assert!(has_lease(&job), "it has lost its lease");
    job.report();
    job.kill();
    // Nothing is known of what it held.
    let said = ckpt::try_restart(&image, &["--detach", "--files", "rollback"]).failure();
    assert!(said.contains("may have been written to anywhere"), "{said}");
    let job = ckpt::restart(&job, &image, &["--files", "keep"]);
    assert!(has_lease(&job), "it has not got its lease again");
}

/// What the job only reads must be as it was.
#[test]
fn an_input_is_no_file_that_the_job_writes() {
    needs_root!();
    let script = "open('input', 'w').write('input')\nf = open('input')\ng = open('output', 'w')\n";
    let killed = killed(&(script.to_owned() + &report("open('input', 'a').write('more')")), &["--save-files"]);
    for files in ["fail", "rollback"] {
        killed.fails(files, &[("input", "had 5 bytes at the checkpoint and has 9 now; --files keep takes it as it is")]);
    }
    killed.restart(&["--files", "keep"]);
}

/// The image needs no second file beside it.
#[test]
fn a_stream_holds_the_files_too() {
    needs_root!();
    let folder = tempdir().unwrap();
    let mut job = python::rest_after(folder.path(), &(write("data", "w+b", "300000") + &report("f.write(b'more')"))).unwrap();
    let data = folder.path().join("data");
    let then = fs::read(&data).unwrap();
    // It is changed while it is on its way.
    let (image, changed) = (folder.path().join("image"), b"changed");
    let mut checkpoint = ckpt::command(["checkpoint", &job.pid().to_string(), "-o", "-", "--after", "kill", "--save-files"]);
    ckpt::run_with_output(checkpoint.stdout(File::create(&image).unwrap())).success();
    job.is_killed();
    fs::write(&data, changed).unwrap();
    ckpt::run(ckpt::command(["restart", "--detach", "-"]).stdin(File::open(&image).unwrap())).success();
    let job = Job::adopt(job.pid(), folder.path());
    assert_eq!(fs::read(&data).unwrap(), then);
    job.report();
    assert_eq!(fs::read(&data).unwrap(), [&then[..], b"more"].concat());
    assert_eq!(fs::read(folder.path().join("data.ckpt-kept-1")).unwrap(), changed);
}
