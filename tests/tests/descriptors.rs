//! What `ckpt restart` does about descriptors that led outside, and files that are not as they were; and its pid file (docs/cli.md).

use std::fs::{self, File};
use std::io::Read;
use std::process::Stdio;

use ckpt_tests::ckpt;
use ckpt_tests::job::Job;
use ckpt_tests::{needs_root, process, python};
use tempfile::{TempDir, tempdir};

/// A job whose descriptor 9 is a pipe that the test has the other end of; asked to, it writes a line there.
fn with_a_pipe_outside() -> (TempDir, Job, std::io::PipeReader) {
    let folder = tempdir().unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    let script = "
os.dup2(2, 9)
os.dup2(os.open('/dev/null', os.O_WRONLY), 2)
def report():
    os.write(9, b'written to nine\\n')
    print('done', flush=True)
";
    let mut command = python::command(&format!("{script}{}", python::REST));
    let out = File::create(folder.path().join("out")).unwrap();
    command.current_dir(folder.path()).stdin(Stdio::null()).stdout(out).stderr(writer);
    let job = Job::spawn(folder.path(), &mut command);
    drop(command);
    job.wait_for_line("ready");
    (folder, job, reader)
}

#[test]
fn a_descriptor_that_led_outside() {
    needs_root!();
    let (folder, mut job, mut reader) = with_a_pipe_outside();
    job.report();
    let mut line = [0; 16];
    reader.read_exact(&mut line).unwrap();
    assert_eq!(&line, b"written to nine\n");
    let image = folder.path().join("image");
    // Its output has grown by "done" before the checkpoint, and does not after it.
    ckpt::checkpoint_and_kill(&mut job, &image, &[]);

    let said = ckpt::try_restart(&image, &[]).failure();
    assert!(said.contains("descriptor 9 ") && said.contains("--inherit-fd 9="), "{said}");
    assert_eq!(process::status(job.pid(), "State"), None, "a process is left");
    // No such descriptor of ckpt, and one that is of another kind.
    let said = ckpt::try_restart(&image, &["--inherit-fd", "9=77"]).failure();
    assert!(said.contains("--inherit-fd 9=77") && said.contains("Bad file descriptor"), "{said}");
    assert_eq!(process::status(job.pid(), "State"), None, "a process is left");

    let new = folder.path().join("new");
    let mut restart = ckpt::command(["restart", "--detach", "--inherit-fd", "9=2"]);
    let status = restart.arg(&image).stdout(Stdio::null()).stderr(File::create(&new).unwrap()).status().unwrap();
    assert!(status.success(), "{}", fs::read_to_string(&new).unwrap());
    let job = Job::adopt(job.pid(), folder.path());
    job.report();
    assert_eq!(fs::read_to_string(&new).unwrap(), "written to nine\n");
    assert_eq!(process::descriptors(job.pid())[&9], new.to_str().unwrap());
}

/// A job that appends a line to `log` whenever it is asked to, checkpointed before the second line and killed after it.
fn whose_log_has_grown() -> (TempDir, Job) {
    let folder = tempdir().unwrap();
    let script = "
log = open('log', 'a')
count = 0
def report():
    global count
    count += 1
    log.write(f'line {count}\\n')
    log.flush()
";
    let job = python::rest_after(folder.path(), script).unwrap();
    append(&job, "line 1\n");
    ckpt::checkpoint(job.pid(), &folder.path().join("image"), &[]);
    append(&job, "line 1\nline 2\n");
    let mut job = job;
    job.kill();
    (folder, job)
}

/// Has the job append a line, after which the log must be so.
fn append(job: &Job, expected: &str) {
    job.signal(nix::sys::signal::Signal::SIGUSR2);
    let log = job.folder().join("log");
    let until = std::time::Instant::now() + ckpt_tests::job::DEADLINE;
    while fs::read_to_string(&log).unwrap() != expected {
        assert!(std::time::Instant::now() < until, "the log does not become {expected:?}: {:?}", fs::read_to_string(&log));
        // Only the file tells.
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
}

#[test]
fn a_file_that_has_grown_is_an_error() {
    needs_root!();
    let (folder, job) = whose_log_has_grown();
    for more in [&[][..], &["--files", "fail"]] {
        let said = ckpt::try_restart(&folder.path().join("image"), more).failure();
        let log = folder.path().join("log");
        assert!(said.contains(log.to_str().unwrap()) && said.contains("had 7 bytes"), "{said}");
        assert!(said.contains("--files rollback cuts it back, --files keep takes it as it is"), "{said}");
        assert_eq!(fs::read_to_string(&log).unwrap(), "line 1\nline 2\n");
        assert_eq!(process::status(job.pid(), "State"), None, "a process is left");
    }
}

#[test]
fn a_file_that_has_grown_is_cut_back() {
    needs_root!();
    let (folder, job) = whose_log_has_grown();
    let job = ckpt::restart(&job, &folder.path().join("image"), &["--files", "rollback"]);
    assert_eq!(fs::read_to_string(folder.path().join("log")).unwrap(), "line 1\n");
    assert_eq!(fs::read_to_string(folder.path().join("log.ckpt-kept-1")).unwrap(), "line 2\n");
    append(&job, "line 1\nline 2\n");
}

#[test]
fn a_file_that_has_grown_is_kept() {
    needs_root!();
    let (folder, job) = whose_log_has_grown();
    let job = ckpt::restart(&job, &folder.path().join("image"), &["--files", "keep"]);
    append(&job, "line 1\nline 2\nline 2\n");
    assert!(!folder.path().join("log.ckpt-kept-1").exists());
}

/// Cut back is only what has grown.
#[test]
fn a_file_that_has_shrunk_is_an_error_that_rollback_does_not_mend() {
    needs_root!();
    let (folder, job) = whose_log_has_grown();
    fs::write(folder.path().join("log"), "line").unwrap();
    let said = ckpt::try_restart(&folder.path().join("image"), &["--files", "rollback"]).failure();
    assert!(said.contains("had 7 bytes") && said.contains("has 4 now") && !said.contains("rollback"), "{said}");
    assert_eq!(process::status(job.pid(), "State"), None, "a process is left");
    let _job = ckpt::restart(&job, &folder.path().join("image"), &["--files", "keep"]);
    assert_eq!(fs::read_to_string(folder.path().join("log")).unwrap(), "line");
}

/// If another file is in the way of the restart, nothing is cut back.
#[test]
fn nothing_is_cut_back_by_a_restart_that_fails() {
    needs_root!();
    let folder = tempdir().unwrap();
    fs::write(folder.path().join("other"), "other").unwrap();
    let mut job = python::rest_after(folder.path(), "a = open('log', 'a')\nb = open('other')").unwrap();
    let image = folder.path().join("image");
    ckpt::checkpoint_and_kill(&mut job, &image, &[]);
    fs::write(folder.path().join("log"), "has grown").unwrap();
    fs::write(folder.path().join("other"), "another").unwrap();
    let said = ckpt::try_restart(&image, &["--files", "rollback"]).failure();
    assert!(said.contains("other had 5 bytes"), "{said}");
    assert_eq!(fs::read_to_string(folder.path().join("log")).unwrap(), "has grown");
}

#[test]
fn a_pid_file() {
    needs_root!();
    let folder = tempdir().unwrap();
    let mut job = python::rest_after(folder.path(), "").unwrap();
    let (image, pidfile) = (folder.path().join("image"), folder.path().join("pid"));
    ckpt::checkpoint_and_kill(&mut job, &image, &[]);
    // Nobody would find a job whose pid is not written.
    let nowhere = folder.path().join("nowhere/pid");
    let said = ckpt::try_restart(&image, &["--detach", "--pidfile", nowhere.to_str().unwrap()]).failure();
    assert!(said.contains(nowhere.to_str().unwrap()) && said.contains("No such file or directory"), "{said}");
    let mut killed = Job::adopt(job.pid(), folder.path());
    killed.is_killed();

    fs::write(&pidfile, "an older and longer content").unwrap();
    ckpt::try_restart(&image, &["--detach", "--pidfile", pidfile.to_str().unwrap()]).success();
    let job = Job::adopt(job.pid(), folder.path());
    assert_eq!(fs::read_to_string(&pidfile).unwrap(), format!("{}\n", job.pid()));
}

/// Descriptors that ckpt was started with and that nobody asked for are not the job's.
#[test]
fn nothing_leaks_into_the_job() {
    needs_root!();
    let folder = tempdir().unwrap();
    let mut job = python::rest_after(folder.path(), "").unwrap();
    let image = folder.path().join("image");
    let before = process::descriptors(job.pid());
    ckpt::checkpoint_and_kill(&mut job, &image, &[]);
    let mut restart = std::process::Command::new("sh");
    restart.args(["-c", "exec \"$0\" restart --detach \"$1\" 7</dev/zero 8>/dev/null"]).arg(ckpt::binary()).arg(&image);
    ckpt::run(&mut restart).success();
    let job = Job::adopt(job.pid(), folder.path());
    assert_eq!(process::descriptors(job.pid()), before);
}
