//! redis-server with data: after a restart every key is read back over a new connection. An established connection is refused,
//! unless `--tcp-close`.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;

use ckpt_tests::ckpt;
use ckpt_tests::job::Job;

const KEYS: u32 = 5000;

struct Redis {
    job: Job,
    port: u16,
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").and_then(|l| l.local_addr()).expect("no free port").port()
}

fn value(key: u32) -> String {
    format!("value {key} ").repeat(1 + key as usize % 50)
}

fn start(folder: &Path) -> Redis {
    let port = free_port();
    let mut command = Command::new("redis-server");
    command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir"]).arg(folder);
    let job = Job::start(folder, &mut command);
    job.wait_for("ready", |output| output.contains("eady to accept connections"));
    Redis { job, port }
}

/// One client connection, which speaks RESP.
struct Client(BufReader<TcpStream>);

impl Client {
    fn new(port: u16) -> Client {
        Client(BufReader::new(TcpStream::connect(("127.0.0.1", port)).expect("cannot connect to redis")))
    }

    fn ask(&mut self, words: &[&str]) -> Option<String> {
        let mut request = format!("*{}\r\n", words.len());
        for word in words {
            request.push_str(&format!("${}\r\n{word}\r\n", word.len()));
        }
        self.0.get_mut().write_all(request.as_bytes()).expect("cannot write to redis");
        let mut line = String::new();
        self.0.read_line(&mut line).expect("cannot read from redis");
        let (kind, rest) = line.trim_end().split_at(1);
        match (kind, rest.parse::<i64>()) {
            ("$", Ok(-1)) => None,
            ("$", Ok(length)) => {
                let mut bytes = vec![0; length as usize + 2];
                self.0.read_exact(&mut bytes).expect("cannot read from redis");
                bytes.truncate(length as usize);
                Some(String::from_utf8(bytes).expect("redis does not answer text"))
            }
            _ => Some(rest.to_owned()),
        }
    }
}

fn fill(redis: &Redis) {
    let mut client = Client::new(redis.port);
    for key in 0..KEYS {
        assert_eq!(client.ask(&["SET", &key.to_string(), &value(key)]).as_deref(), Some("OK"));
    }
}

fn verify(port: u16) {
    let mut client = Client::new(port);
    assert_eq!(client.ask(&["DBSIZE"]), Some(KEYS.to_string()));
    for key in 0..KEYS {
        assert_eq!(client.ask(&["GET", &key.to_string()]), Some(value(key)), "key {key} differs");
    }
    assert_eq!(client.ask(&["SET", "new", "one"]).as_deref(), Some("OK"), "it takes no new data");
}

/// Waits until redis has noticed that no client is left.
fn wait_until_alone(redis: &Redis) {
    let lonely = || {
        let tcp = std::fs::read_to_string(format!("/proc/{}/net/tcp", redis.job.pid())).expect("no /proc/net/tcp");
        let local = format!(":{:04X} ", redis.port);
        // The third field is the remote address, the fourth the state: 01 is established, 08 closed by the other side.
        !tcp.lines().any(|line| line.contains(&local) && matches!(line.split_whitespace().nth(3), Some("01" | "08")))
    };
    let began = std::time::Instant::now();
    while !lonely() {
        assert!(began.elapsed().as_secs() < 20, "redis does not close its connections");
        std::thread::yield_now();
    }
}

#[test]
fn keeps_every_key() {
    let folder = tempfile::tempdir().expect("no temporary folder");
    let mut redis = start(folder.path());
    fill(&redis);
    for _ in 0..3 {
        wait_until_alone(&redis);
        let image = folder.path().join("image");
        ckpt::checkpoint_and_kill(&mut redis.job, &image, &[]);
        redis.job = ckpt::restart(&redis.job, &image, &[]);
        verify(redis.port);
        Client::new(redis.port).ask(&["DEL", "new"]);
    }
}

#[test]
fn an_established_connection_is_refused_or_closed() {
    let folder = tempfile::tempdir().expect("no temporary folder");
    let mut redis = start(folder.path());
    fill(&redis);
    let mut client = Client::new(redis.port);
    assert_eq!(client.ask(&["PING"]).as_deref(), Some("PONG"));
    let image = folder.path().join("image");
    let refusal = ckpt::try_checkpoint(redis.job.pid(), &image, &[]).failure();
    assert!(refusal.contains("--tcp-close"), "the refusal does not say what to do: {refusal}");
    assert!(!image.exists(), "a refused checkpoint has left an image");
    assert_eq!(client.ask(&["PING"]).as_deref(), Some("PONG"), "a refused checkpoint has disturbed the connection");
    ckpt::checkpoint_and_kill(&mut redis.job, &image, &["--tcp-close"]);
    redis.job = ckpt::restart(&redis.job, &image, &[]);
    verify(redis.port);
}
