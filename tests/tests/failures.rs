//! A failed checkpoint leaves the process running and no file under the image's name; a failed restart leaves no process. What went wrong
//! is told, and names the file or process.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use ckpt_tests::ckpt;
use ckpt_tests::job::Job;
use ckpt_tests::moments::Moments;
use ckpt_tests::scratch_disk::ScratchDisk;
use ckpt_tests::{maps, needs_root, or_skip, process, python};
use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tempfile::{TempDir, tempdir};

/// 32 MiB that cannot be compressed.
const RANDOM: &str = "b = os.urandom(32 << 20)";

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// The checkpoint must fail, saying all of `words` in one line, and the process be as it was.
fn checkpoint_fails(job: &Job, image: &Path, words: &[&str]) {
    let (mappings, look) = (maps::read(job.pid()), process::look(job.pid()));
    let said = ckpt::try_checkpoint(job.pid(), image, &["--after", "kill"]).failure();
    assert!(words.iter().all(|word| said.contains(word)) && said.lines().count() == 1, "no {words:?}: {said}");
    maps::assert_same(&mappings, &maps::read(job.pid()));
    process::assert_same(&look, &process::look(job.pid()));
}

#[test]
fn a_full_disk() {
    needs_root!();
    let folder = tempdir().unwrap();
    let job = python::rest_after(folder.path(), RANDOM).unwrap();
    // The disk is full in the middle of the pages, at their beginning, and from the start.
    for room in [16 << 20, 1 << 20, 4096] {
        let disk = or_skip!(ScratchDisk::new(room));
        let image = disk.path().join("image");
        checkpoint_fails(&job, &image, &[image.to_str().unwrap(), "No space left on device"]);
        assert_eq!(names(disk.path()), Vec::<String>::new());
    }
    // It is none the worse for it.
    ckpt::checkpoint(job.pid(), &folder.path().join("image"), &[]);
}

/// An older image survives a failure to replace it.
#[test]
fn a_full_disk_with_an_image_on_it() {
    needs_root!();
    let (folder, sleepers) = (tempdir().unwrap(), tempdir().unwrap());
    let disk = or_skip!(ScratchDisk::new(24 << 20));
    let image = disk.path().join("image");
    let mut sleeper = Job::start(sleepers.path(), Command::new("sleep").arg("1000"));
    ckpt::checkpoint_and_kill(&mut sleeper, &image, &[]);
    let job = python::rest_after(folder.path(), RANDOM).unwrap();
    checkpoint_fails(&job, &image, &["image", "No space left on device"]);
    assert_eq!(names(disk.path()), ["image"]);
    assert!(ckpt::restart(&sleeper, &image, &[]).is_alive());
}

#[test]
fn places_where_no_image_can_be() {
    needs_root!();
    let folder = tempdir().unwrap();
    let job = python::rest_after(folder.path(), "").unwrap();
    fs::create_dir(folder.path().join("directory")).unwrap();
    let before = names(folder.path());
    for (place, words) in [
        ("nowhere/image", ["nowhere", "No such file or directory"]),
        ("directory", ["directory", "Is a directory"]),
        ("err/image", ["err", "Not a directory"]),
    ] {
        checkpoint_fails(&job, &folder.path().join(place), &words);
    }
    assert_eq!(names(folder.path()), before);
    assert_eq!(names(&folder.path().join("directory")), Vec::<String>::new());
}

/// Who has the old file open, or another name of it, keeps it; the new one is there in one step, for its owner only.
#[test]
fn an_image_takes_the_place_of_a_file() {
    needs_root!();
    let folder = tempdir().unwrap();
    let mut job = python::rest_after(folder.path(), "").unwrap();
    let (image, other) = (folder.path().join("image"), folder.path().join("other"));
    fs::write(&image, "what was there").unwrap();
    fs::set_permissions(&image, fs::Permissions::from_mode(0o644)).unwrap();
    fs::hard_link(&image, &other).unwrap();
    ckpt::checkpoint_and_kill(&mut job, &image, &[]);
    assert_eq!(fs::read_to_string(&other).unwrap(), "what was there");
    assert_eq!(image.metadata().unwrap().mode() & 0o7777, 0o600);
    assert_eq!(names(folder.path()), ["err", "image", "other", "out"]);
    ckpt::restart(&job, &image, &[]);
}

/// A process that is killed in the middle of it: that is told, whatever it has led to.
#[test]
fn a_process_that_ends_meanwhile() {
    needs_root!();
    let (moments, folder) = (Moments::new(), tempdir().unwrap());
    let image = folder.path().join("image");
    let threads = "
b = os.urandom(8 << 20)
for n in range(20): threading.Thread(target=lambda: time.sleep(1000), daemon=True).start()
";
    let mut told = 0;
    for round in 0..60 {
        let mut job = python::rest_after(folder.path(), threads).unwrap();
        let pid = job.pid();
        let outcome = std::thread::scope(|scope| {
            let checkpoint = scope.spawn(|| ckpt::try_checkpoint(pid, &image, &[]));
            moments.let_pass(Duration::from_millis(60), 0.0, 1.0);
            job.kill();
            checkpoint.join().unwrap()
        });
        if outcome.status.success() {
            fs::remove_file(&image).unwrap();
            continue;
        }
        let before_it_began = [
            format!("ckpt: cannot checkpoint pid {pid}: there is no such process\n"),
            format!(
                "ckpt: cannot checkpoint pid {pid}: the process has ended and waits for its parent to collect its status; name a running process\n"
            ),
        ];
        // Warnings have lines of their own.
        let said: String = outcome.failure().split_inclusive('\n').filter(|line| line.starts_with("ckpt: ")).collect();
        let meanwhile = said == format!("ckpt: pid {pid} ended while ckpt worked on it\n");
        assert!(meanwhile || before_it_began.contains(&said), "round {round}: {said}");
        assert_eq!(names(folder.path()), ["err", "out"], "round {round}: {said}");
        told += u32::from(meanwhile);
    }
    assert!(told > 5, "it was hit in the middle only {told} times");
}

#[test]
fn a_pid_in_use() {
    needs_root!();
    let folder = tempdir().unwrap();
    let job = python::rest_after(folder.path(), "").unwrap();
    let image = folder.path().join("image");
    ckpt::checkpoint(job.pid(), &image, &[]);
    let (mappings, look) = (maps::read(job.pid()), process::look(job.pid()));
    for more in [&["--detach"][..], &[]] {
        let said = ckpt::try_restart(&image, more).failure();
        assert_eq!(said, format!("ckpt: cannot restart: pid {} is in use (by 'python3'); end that process first\n", job.pid()));
        maps::assert_same(&mappings, &maps::read(job.pid()));
        process::assert_same(&look, &process::look(job.pid()));
    }
}

/// The id of a second thread was taken by another process meanwhile.
#[test]
fn a_thread_id_in_use() {
    needs_root!();
    let (folder, others) = (tempdir().unwrap(), tempdir().unwrap());
    let script = "threading.Thread(target=lambda: time.sleep(1000), daemon=True).start()";
    let mut job = python::rest_after(folder.path(), script).unwrap();
    let tid = process::tids(job.pid())[1];
    let image = folder.path().join("image");
    ckpt::checkpoint_and_kill(&mut job, &image, &[]);
    // clone3(2) with set_tid.
    let taker = format!(
        "
tid = (ctypes.c_int * 1)({tid})
arguments = struct.pack('11Q', 0, 0, 0, 0, signal.SIGCHLD, 0, 0, 0, ctypes.addressof(tid), 1, 0)
if call('clone3', 435, arguments, len(arguments)) == 0:
    prctl(1, signal.SIGKILL)
    while True: signal.pause()
"
    );
    let taker: Job = or_skip!(python::rest_after(others.path(), &taker));
    let said = ckpt::try_restart(&image, &["--detach"]).failure();
    assert_eq!(said, format!("ckpt: cannot restart: thread id {tid} is in use; end the process that has it first\n"));
    nothing_is_left(job.pid(), &said);
    let look = process::look(tid);
    nothing_is_left(job.pid(), &ckpt::try_restart(&image, &[]).failure());
    process::assert_same(&look, &process::look(tid));
    // What descends from it ends with it.
    drop(taker);
    ckpt::restart(&job, &image, &[]);
}

/// A job that was checkpointed and killed, and needs the file `name` in its folder to be as it was.
struct Waiting {
    folder: TempDir,
    job: Job,
    image: PathBuf,
}

impl Waiting {
    fn for_file(script: &str) -> Waiting {
        let folder = tempdir().unwrap();
        fs::write(folder.path().join("data"), "contents ".repeat(200_000)).unwrap();
        let job = python::rest_after(folder.path(), script).unwrap();
        Waiting::new(folder, job)
    }

    fn new(folder: TempDir, mut job: Job) -> Waiting {
        let image = folder.path().join("image");
        ckpt::checkpoint_and_kill(&mut job, &image, &[]);
        Waiting { folder, job, image }
    }

    /// The restart must fail with all of `words` and the file's path, and leave no process, while `change` has put something else in the
    /// place of the file. With the file back in its place it must succeed.
    fn misses(&self, name: &str, words: &[&str], change: impl FnOnce(&Path)) {
        let (file, aside) = (self.folder.path().join(name), self.folder.path().join("aside"));
        fs::rename(&file, &aside).unwrap();
        change(&file);
        for more in [&["--detach"][..], &[]] {
            let said = ckpt::try_restart(&self.image, more).failure();
            let named = said.contains(file.to_str().unwrap());
            assert!(named && words.iter().all(|word| said.contains(word)) && said.lines().count() == 1, "no {words:?}: {said}");
            nothing_is_left(self.job.pid(), &said);
        }
        if file.is_dir() {
            fs::remove_dir(&file).unwrap();
        }
        fs::rename(&aside, &file).unwrap();
        ckpt::restart(&self.job, &self.image, &[]).kill();
    }
}

/// A detached process is not ckpt's child; dead, it is collected by its parent, here the test, elsewhere init.
fn nothing_is_left(pid: i32, said: &str) {
    match waitpid(Pid::from_raw(pid), Some(WaitPidFlag::WNOHANG | WaitPidFlag::__WALL)) {
        Ok(WaitStatus::Signaled(_, Signal::SIGKILL, _)) | Err(Errno::ECHILD) => {}
        other => panic!("a process is left ({other:?}): {said}"),
    }
    assert_eq!(process::status(pid, "State"), None, "a process is left: {said}");
}

/// All that can happen to a file that must be as it was.
fn a_file_is_not_as_it_was(script: &str) {
    let waiting = Waiting::for_file(script);
    waiting.misses("data", &["No such file or directory"], |_| {});
    waiting.misses("data", &["had 1800000 bytes", "has 5 now", "--files"], |file| fs::write(file, "short").unwrap());
    waiting.misses("data", &["had 1800000 bytes", "has 2700000 now", "--files"], |file| {
        fs::write(file, "contents ".repeat(300_000)).unwrap();
    });
    waiting.misses("data", &["was written to after the checkpoint", "1800000", "--files"], |file| {
        fs::write(file, "CONTENTS ".repeat(200_000)).unwrap();
    });
    waiting.misses("data", &[], |file| fs::create_dir(file).unwrap());
}

#[test]
fn an_open_file_that_is_not_as_it_was() {
    needs_root!();
    a_file_is_not_as_it_was("f = open('data')");
}

#[test]
fn a_file_open_for_writing_that_is_not_as_it_was() {
    needs_root!();
    a_file_is_not_as_it_was("f = open('data', 'r+')");
}

#[test]
fn a_mapped_file_that_is_not_as_it_was() {
    needs_root!();
    a_file_is_not_as_it_was(
        "
import mmap
fd = os.open('data', os.O_RDWR)
m = mmap.mmap(fd, 1800000, mmap.MAP_SHARED)
os.close(fd)
",
    );
}

#[test]
fn a_privately_mapped_file_that_is_not_as_it_was() {
    needs_root!();
    a_file_is_not_as_it_was(
        "
import mmap
fd = os.open('data', os.O_RDONLY)
m = mmap.mmap(fd, 1800000, mmap.MAP_PRIVATE, mmap.PROT_READ)
os.close(fd)
",
    );
}

/// Not a failure: what a program publishes in a small file that it maps is part of its memory.
#[test]
fn a_small_file_mapped_to_be_written_is_made_again() {
    needs_root!();
    let folder = tempdir().unwrap();
    let script = "
import mmap
os.mkdir('figures')
fd = os.open('figures/1', os.O_RDWR | os.O_CREAT)
os.ftruncate(fd, 9000)
m = mmap.mmap(fd, 9000)
os.close(fd)
m[8000:8008] = b'memories'
def report():
    print(m[8000:8008].decode(), flush=True)
    m[0:3] = b'new'
";
    let mut job = python::rest_after(folder.path(), script).unwrap();
    let image = folder.path().join("image");
    ckpt::checkpoint_and_kill(&mut job, &image, &[]);
    fs::remove_dir_all(folder.path().join("figures")).unwrap();
    let job = ckpt::restart(&job, &image, &[]);
    job.signal(Signal::SIGUSR1);
    job.wait_for_line("memories");
    job.wait_for("a write into the file", |_| fs::read(folder.path().join("figures/1")).unwrap().starts_with(b"new"));
}

#[test]
fn a_program_that_was_replaced() {
    needs_root!();
    let folder = tempdir().unwrap();
    let program = folder.path().join("program");
    fs::copy("/usr/bin/sleep", &program).unwrap();
    let job = Job::start(folder.path(), Command::new(&program).arg("1000"));
    process::look(job.pid());
    let waiting = Waiting::new(folder, job);
    waiting.misses("program", &["No such file or directory"], |_| {});
    waiting.misses("program", &["bytes at the checkpoint", "--files keep"], |file| {
        fs::copy("/usr/bin/cat", file).unwrap();
    });
}

#[test]
fn a_directory_that_is_gone() {
    needs_root!();
    let folder = tempdir().unwrap();
    fs::create_dir(folder.path().join("work")).unwrap();
    let job = python::rest_after(folder.path(), "os.chdir('work')").unwrap();
    Waiting::new(folder, job).misses("work", &["No such file or directory"], |_| {});
}

#[test]
fn wrong_usage() {
    let folder = tempdir().unwrap();
    for arguments in [
        &["checkpoint"][..],
        &["checkpoint", "1"],
        &["checkpoint", "0", "-o", "image"],
        &["checkpoint", "-1", "-o", "image"],
        &["checkpoint", "me", "-o", "image"],
        &["checkpoint", "1", "-o", "image", "--after", "sleep"],
        &["checkpoint", "1", "-o", "image", "--codec", "zip"],
        &["checkpoint", "1", "-o", "image", "--freeze-timeout", "soon"],
        &["checkpoint", "1", "-o", "-", "--json"],
        &["restart"],
        &["restart", "image", "--pidfile", "pid"],
        &["restart", "image", "--inherit-fd", "five"],
        &["restart", "image", "--files", "perhaps"],
        &["info"],
        &["thaw"],
        &["check", "me"],
        &["completions", "edlin"],
        &["man", "woman"],
        &["dance"],
        &["--dance"],
    ] {
        let outcome = ckpt::run(ckpt::command(arguments).current_dir(folder.path()));
        assert_eq!(outcome.status.code(), Some(2), "{arguments:?}: {}", outcome.stderr);
        assert!(!outcome.stderr.is_empty() && outcome.stdout.is_empty(), "{arguments:?}: {}", outcome.stdout);
    }
    assert_eq!(names(folder.path()), Vec::<String>::new());
}

/// With `--after stop`, and nobody to let it run again, a signal still can.
#[test]
fn a_stopped_process_is_not_lost() {
    needs_root!();
    let folder = tempdir().unwrap();
    let job = python::rest_after(folder.path(), "").unwrap();
    ckpt::checkpoint(job.pid(), &folder.path().join("image"), &["--after", "stop"]);
    job.wait_until_stopped();
    job.signal(Signal::SIGCONT);
    job.signal(Signal::SIGTERM);
    let mut job = job;
    assert_eq!(job.wait().signal(), Some(libc::SIGTERM));
}
