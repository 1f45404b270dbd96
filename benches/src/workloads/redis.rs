//! What a watch costs a server that others ask without a rest: redis-server under redis-benchmark.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ckpt_tests::job::Job;
use ckpt_tests::watched::Watch;

use super::cuts::Cuts;
use super::{Bench, Outcome, Workload, saving};
use crate::figure::{Figures, Unit};
use crate::scratch::Scratch;

/// See the module.
pub const WORKLOAD: Workload = Workload {
    name: "redis",
    about: "redis-server with 1 GiB of data (or less, if memory is short) under redis-benchmark (SET, then GET, of random keys, values of 1000 \
            bytes; 8 clients, each of which asks one thing at a time, or 16), on its own and under `ckpt watch --tcp-close`",
    run,
};

/// Data, and keys that make as much of it.
const SIZES: &[(u64, u64)] = &[(1024, 800_000), (512, 400_000), (256, 200_000)];
/// How many things a client asks at a time, and so many of each kind in a run.
const ASKED: [(u64, u64); 2] = [(1, 300_000), (16, 1_500_000)];
const ALONE: &str = "not watched";
const INTERVALS: [&str; 2] = ["100ms", "10ms"];

fn run(bench: &Bench) -> Result<Outcome> {
    for program in ["redis-server", "redis-benchmark"] {
        if Command::new(program).arg("--version").output().is_err() {
            return Ok(Outcome::Skipped(format!("{program} is not there (Debian's package is redis)")));
        }
    }
    let mut why = String::new();
    for &(mebibytes, keys) in SIZES {
        // Ten seconds of increments are there until they are merged.
        match saving::scratch_for(mebibytes * 3 / 2, 6 * mebibytes)? {
            Ok(scratch) => {
                let mut notes = vec![scratch.describe(), format!("{mebibytes} MiB of data")];
                let figures = measure(bench, &scratch, keys, &mut notes)?;
                let kinds = ASKED.iter().flat_map(|&(at_once, _)| ["SET", "GET"].map(|kind| named(kind, at_once)));
                let pairs = kinds
                    .flat_map(|kind| INTERVALS.map(|interval| (throughput(&kind, &watched(interval)), throughput(&kind, ALONE))));
                let ratios = pairs.filter_map(|(of, to)| figures.ratio(&of, &to)).collect();
                return Ok(Outcome::Measured { notes, figures: figures.into_vec(), ratios });
            }
            Err(reason) => why = reason,
        }
    }
    Ok(Outcome::Skipped(why))
}

fn named(kind: &str, at_once: u64) -> String {
    format!("{kind}, {at_once} at a time")
}

fn throughput(kind: &str, how: &str) -> String {
    format!("{kind}, {how}")
}

fn watched(interval: &str) -> String {
    format!("--interval {interval}")
}

fn measure(bench: &Bench, scratch: &Scratch, keys: u64, notes: &mut Vec<String>) -> Result<Figures> {
    let port = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).context("no free port")?.port();
    let folder = |name: &str| -> Result<_> {
        let folder = scratch.jobs().join(name);
        std::fs::create_dir(&folder)?;
        Ok(folder)
    };
    let server = folder("server")?;
    let mut command = Command::new("redis-server");
    command.args(["--port", &port.to_string(), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir"]).arg(&server);
    let server = Job::start(&server, &mut command);
    server.wait_for("ready", |output| output.contains("eady to accept connections"));
    let clients = Clients { folder: folder("clients")?, port, keys };
    eprintln!("  filling it");
    // At random, so 19 of 20 keys are there then.
    clients.ask("set", 3 * keys, 16)?;
    let mut figures = Figures::default();
    for round in 1..=bench.runs {
        eprintln!("  round {round} of {}", bench.runs);
        clients.measure(ALONE, &mut figures)?;
        for interval in INTERVALS {
            let how = watched(interval);
            let dir = scratch.path().join("images");
            let watch = Watch::start(&server, &dir, interval, &["--tcp-close", "--keep", "1"]);
            let before = watch.wait_for(1).len();
            let began = Instant::now();
            clients.measure(&how, &mut figures)?;
            let (time, count) = (began.elapsed(), watch.checkpoints().len() - before);
            figures.rate(&format!("cuts, {how}"), Unit::Cuts, count as f64 / time.as_secs_f64());
            let cuts = Cuts::of(watch.end());
            cuts.add_pauses(&format!("pause, {how}"), &mut figures);
            notes.push(format!(
                "{}, {:.2} % written between two; the cut in the middle: {}",
                cuts.describe(&how),
                cuts.percent_written(),
                cuts.phases()
            ));
            std::fs::remove_dir_all(&dir)?;
        }
    }
    Ok(figures)
}

/// Those who ask.
struct Clients {
    folder: PathBuf,
    port: u16,
    keys: u64,
}

/// A line of `redis-benchmark --csv`.
struct Answered {
    kind: String,
    in_a_second: f64,
    p99_ms: f64,
    longest_ms: f64,
}

impl Clients {
    fn measure(&self, how: &str, figures: &mut Figures) -> Result<()> {
        for (at_once, requests) in ASKED {
            self.measure_at(at_once, requests, how, figures)?;
        }
        Ok(())
    }

    fn measure_at(&self, at_once: u64, requests: u64, how: &str, figures: &mut Figures) -> Result<()> {
        for answered in self.ask("set,get", requests, at_once)? {
            let Answered { kind, in_a_second, p99_ms, longest_ms } = answered;
            let kind = named(&kind, at_once);
            figures.rate(&throughput(&kind, how), Unit::Requests, in_a_second);
            figures.time(&format!("latency of {kind}, p99, {how}"), Duration::from_secs_f64(p99_ms / 1e3));
            figures.time(&format!("latency of {kind}, longest, {how}"), Duration::from_secs_f64(longest_ms / 1e3));
        }
        Ok(())
    }

    /// It goes on for ever when its server is gone, so it is a job, which has a deadline.
    fn ask(&self, tests: &str, requests: u64, at_once: u64) -> Result<Vec<Answered>> {
        let mut command = Command::new("redis-benchmark");
        command.args(["-p", &self.port.to_string(), "-c", "8", "-P", &at_once.to_string(), "-d", "1000", "-t", tests, "--csv"]);
        command.args(["-r", &self.keys.to_string(), "-n", &requests.to_string()]);
        let output = Job::start(&self.folder, &mut command).succeed();
        let answered: Vec<Answered> = output.lines().filter_map(parse).collect();
        ensure!(answered.len() == tests.split(',').count(), "redis-benchmark said '{output}'");
        Ok(answered)
    }
}

/// The first line is a heading: it has no numbers.
fn parse(line: &str) -> Option<Answered> {
    // "test","rps","avg_latency_ms","min_latency_ms","p50_latency_ms","p95_latency_ms","p99_latency_ms","max_latency_ms"
    let words: Vec<&str> = line.split(',').map(|word| word.trim_matches('"')).collect();
    let number = |n: usize| words.get(n)?.parse().ok();
    Some(Answered { kind: words[0].to_owned(), in_a_second: number(1)?, p99_ms: number(6)?, longest_ms: number(7)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_redis_benchmark() {
        let answered = parse(r#""SET","401606.44","0.305","0.080","0.295","0.471","0.559","0.815""#).unwrap();
        assert_eq!((answered.kind.as_str(), answered.in_a_second), ("SET", 401606.44));
        assert_eq!((answered.p99_ms, answered.longest_ms), (0.559, 0.815));
        assert!(parse(r#""test","rps","avg_latency_ms""#).is_none());
    }
}
