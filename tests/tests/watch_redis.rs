//! redis-server under `ckpt watch` while clients write to it: after every crash it holds what it held at one moment, and nothing
//! that was answered before that moment is lost.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use std::{io, thread};

use ckpt_tests::ckpt;
use ckpt_tests::job::Job;
use ckpt_tests::moments::Moments;
use ckpt_tests::needs_root;
use ckpt_tests::watched::{Watch, is_increment};
use tempfile::tempdir;

/// How often its machine fails.
const CRASHES: u64 = 3;

/// A connection that asks in one line.
struct Client(BufReader<TcpStream>);

impl Client {
    fn new(port: u16) -> Client {
        Client(BufReader::new(TcpStream::connect(("127.0.0.1", port)).expect("cannot connect to redis")))
    }

    /// The answer, or None if there is no such key.
    fn ask(&mut self, line: &str) -> io::Result<Option<String>> {
        self.0.get_mut().write_all(format!("{line}\r\n").as_bytes())?;
        let mut answer = String::new();
        if self.0.read_line(&mut answer)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let answer = answer.trim_end();
        match answer.strip_prefix('$').map(|len| len.parse::<i64>().expect("no length")) {
            None => Ok(Some(answer.to_owned())),
            Some(-1) => Ok(None),
            Some(len) => {
                let mut bytes = vec![0; len as usize + 2];
                self.0.read_exact(&mut bytes)?;
                Ok(Some(String::from_utf8_lossy(&bytes).trim_end().to_owned()))
            }
        }
    }
}

fn value(key: u64) -> String {
    format!("value-{key}-").repeat(1 + key as usize % 40)
}

/// Writes keys one after the other until the server is gone. `answered` is the first that was not.
fn write_keys(port: u16, round: u64, answered: &AtomicU64) {
    let mut client = Client::new(port);
    for key in 0.. {
        match client.ask(&format!("SET key:{round}:{key} {}", value(key))) {
            Ok(answer) => assert_eq!(answer.as_deref(), Some("+OK")),
            Err(_) => return,
        }
        answered.store(key + 1, Ordering::Relaxed);
    }
}

/// How many keys of a round it holds: all from the first on, up to one, and each with its value.
fn held_keys(client: &mut Client, round: u64, written: u64) -> u64 {
    // The last one may have been written without an answer.
    let mut get = |key| client.ask(&format!("GET key:{round}:{key}")).expect("redis does not answer");
    let count = (0..=written).take_while(|key| get(*key) == Some(value(*key))).count() as u64;
    for key in count..=written {
        assert_eq!(get(key), None, "there is a gap: key {count} of {written} is missing or wrong, and {key} is there");
    }
    count
}

fn start(folder: &Path, port: u16) -> Job {
    let mut command = Command::new("redis-server");
    command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir"]).arg(folder);
    let job = Job::start(folder, &mut command);
    job.wait_for("ready", |output| output.contains("eady to accept connections"));
    job
}

#[test]
fn a_server_that_is_written_to() {
    needs_root!();
    let (moments, folder) = (Moments::new(), tempdir().unwrap());
    let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("no free port").port();
    let mut job = start(folder.path(), port);
    let dir = folder.path().join("images");
    let mut held = Vec::new();
    for round in 0..CRASHES {
        let answered = AtomicU64::new(0);
        let mut benchmark = Command::new("redis-benchmark");
        benchmark.args([
            "-p",
            &port.to_string(),
            "-c",
            "4",
            "-n",
            "100000000",
            "-r",
            "5000",
            "-d",
            "200",
            "-t",
            "set,lpush",
            "-q",
        ]);
        let mut benchmark = benchmark.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("no redis-benchmark");
        let promised = thread::scope(|scope| {
            scope.spawn(|| write_keys(port, round, &answered));
            let watch = Watch::start(&job, &dir, "50ms", &["--tcp-close"]);
            watch.wait_for(2);
            let promised = answered.load(Ordering::Relaxed);
            // One may have begun already.
            let count = watch.checkpoints().len();
            watch.wait_for(count + 2);
            moments.let_pass(Duration::from_millis(200), 0.0, 1.0);
            let checkpoints = watch.crash(&mut job, &moments);
            assert!(checkpoints.iter().any(is_increment), "{checkpoints:#?}");
            promised
        });
        // It ends by itself when its server is gone, or soon.
        let _ = benchmark.kill();
        benchmark.wait().expect("cannot wait for redis-benchmark");
        job = ckpt::restart(&job, &dir, &[]);
        let mut client = Client::new(port);
        let count = held_keys(&mut client, round, answered.load(Ordering::Relaxed));
        assert!(count >= promised, "{count} keys are there, and {promised} were answered before the last checkpoint began");
        // What earlier rounds have left is there for ever.
        held.push(count);
        for (round, count) in held.iter().enumerate() {
            assert_eq!(held_keys(&mut client, round as u64, *count), *count, "keys of round {round}");
        }
        assert_eq!(client.ask("PING").unwrap().as_deref(), Some("+PONG"));
    }
}
