//! nginx with two workers, which share their listening sockets: requests over TCP and over a unix socket are served after a restart as before.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use ckpt_tests::job::Job;
use ckpt_tests::moments::Moments;
use ckpt_tests::watched;
use ckpt_tests::{ckpt, needs_root, process, skip};
use tempfile::{TempDir, tempdir};

struct Nginx {
    job: Job,
    port: u16,
    folder: TempDir,
    /// What it serves as /big.
    big: Vec<u8>,
}

fn is_here() -> bool {
    Command::new("nginx").arg("-v").output().is_ok()
}

fn start(moments: &Moments) -> Nginx {
    let folder = tempdir().unwrap();
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let big: Vec<u8> = (0..100_000).flat_map(|_| moments.bits().to_ne_bytes()).collect();
    let at = folder.path().display();
    let temporary: String =
        ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"].map(|kind| format!("{kind}_temp_path {at}/{kind};")).concat();
    let configuration = format!(
        "daemon off; worker_processes 2; pid {at}/pid; user root; error_log {at}/error.log;
        events {{ worker_connections 64; }}
        http {{ access_log {at}/access.log; {temporary}
            server {{ listen 127.0.0.1:{port}; listen unix:{at}/sock; root {at}; location /pid {{ return 200 $pid; }} }} }}"
    );
    fs::write(folder.path().join("nginx.conf"), configuration).unwrap();
    fs::write(folder.path().join("big"), &big).unwrap();
    let mut command = Command::new("nginx");
    command.arg("-c").arg(folder.path().join("nginx.conf")).arg("-e").arg(folder.path().join("error.log"));
    let job = Job::start(folder.path(), &mut command);
    let nginx = Nginx { job, port, folder, big };
    while process::descendants(nginx.job.pid()).len() < 2 || TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(nginx.job.is_alive(), "nginx has ended: {}", nginx.job.errors());
        thread::yield_now();
    }
    nginx
}

/// The body of an answer, if all of it came.
fn get(mut connection: impl Read + Write, path: &str) -> Option<Vec<u8>> {
    write!(connection, "GET {path} HTTP/1.0\r\n\r\n").ok()?;
    let mut answer = Vec::new();
    connection.read_to_end(&mut answer).ok()?;
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&answer[..end]).into_owned();
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "))?.parse::<usize>().ok()?;
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    let body = answer[end + 4..].to_vec();
    (body.len() == length).then_some(body)
}

fn over_tcp(port: u16, path: &str) -> Option<Vec<u8>> {
    get(TcpStream::connect(("127.0.0.1", port)).ok()?, path)
}

fn over_unix(folder: &Path, path: &str) -> Option<Vec<u8>> {
    get(UnixStream::connect(folder.join("sock")).ok()?, path)
}

/// Both ways, and by both of its workers.
fn serves(nginx: &Nginx) {
    assert_eq!(over_tcp(nginx.port, "/big").as_ref(), Some(&nginx.big));
    assert_eq!(over_unix(nginx.folder.path(), "/big").as_ref(), Some(&nginx.big));
    let workers = process::descendants(nginx.job.pid());
    assert_eq!(workers.len(), 2);
    let pid = String::from_utf8(over_unix(nginx.folder.path(), "/pid").unwrap()).unwrap();
    assert!(workers.contains(&pid.parse().unwrap()), "{pid} is no worker");
}

#[test]
fn serves_as_before() {
    needs_root!();
    if !is_here() {
        skip!("nginx is not there");
    }
    let mut nginx = start(&Moments::new());
    serves(&nginx);
    let image = nginx.folder.path().join("image");
    for _ in 0..3 {
        // One whose client waits for nothing. The other end of it is gone afterwards.
        let mut idle = TcpStream::connect(("127.0.0.1", nginx.port)).unwrap();
        write!(idle, "GET /pid HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        assert!(idle.read(&mut [0; 4096]).unwrap() > 0);
        let refusal = ckpt::try_checkpoint(nginx.job.pid(), &image, &[]).failure();
        assert!(refusal.contains("--tcp-close"), "{refusal}");
        ckpt::checkpoint_and_kill(&mut nginx.job, &image, &["--tcp-close"]);
        nginx.job = ckpt::restart(&nginx.job, &image, &[]);
        serves(&nginx);
    }
    ends_well(nginx);
}

/// What it is told reaches its workers.
fn ends_well(mut nginx: Nginx) {
    nginx.job.signal(nix::sys::signal::Signal::SIGQUIT);
    nginx.job.succeed();
    assert!(!nginx.folder.path().join("pid").exists());
    let errors = fs::read_to_string(nginx.folder.path().join("error.log")).unwrap();
    assert!(!errors.contains("[alert]") && !errors.contains("[crit]"), "{errors}");
}

/// Says to the clients that it is over, also where the test fails.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Clients ask all the time, while it is checkpointed, killed and brought back: some get no answer, but none a wrong one.
#[test]
fn serves_while_its_machine_fails() {
    needs_root!();
    if !is_here() {
        skip!("nginx is not there");
    }
    let moments = Moments::new();
    let Nginx { job, port, folder, big } = start(&moments);
    let ended = AtomicBool::new(false);
    let job = thread::scope(|scope| {
        let end = Ends(&ended);
        let ask = || {
            let mut answers = 0;
            while !ended.load(Ordering::Relaxed) {
                if let Some(body) = over_tcp(port, "/big") {
                    assert!(body == big, "another answer than what is there");
                    answers += 1;
                }
            }
            answers
        };
        let clients = [scope.spawn(ask), scope.spawn(ask)];
        let answers = |_: &Job| while over_tcp(port, "/big").is_none() {};
        let job = watched::survives_crashes_with(job, "50ms", 3, &moments, &["--tcp-close"], answers);
        drop(end);
        for client in clients {
            assert!(client.join().unwrap() > 0, "a client had no answer at all");
        }
        job
    });
    let nginx = Nginx { job, port, folder, big };
    serves(&nginx);
    ends_well(nginx);
}
