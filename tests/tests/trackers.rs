//! `--tracker`: every way of finding changed pages brings the job back, is named, and is refused by name where the machine lacks it.

use std::process::Command;

use ckpt_tests::ckpt;
use ckpt_tests::job::Job;
use ckpt_tests::laps;
use ckpt_tests::moments::Moments;
use ckpt_tests::python;
use ckpt_tests::tracked::{missing, names, survives_crashes};
use ckpt_tests::watched::{self, Watch, is_increment, number};
use ckpt_tests::{each_mode, needs_root, program, skip};
use serde_json::Value;
use tempfile::{TempDir, tempdir};

fn start(words: &str) -> (TempDir, Job) {
    let folder = tempdir().unwrap();
    let job = laps::start(folder.path(), program!("lapper"), words);
    (folder, job)
}

fn by_hash(words: &str) {
    survives_crashes(program!("lapper"), "hash", words);
}

mod hash {
    use super::*;

    each_mode!(by_hash);
}

fn by_scan(words: &str) {
    survives_crashes(program!("lapper"), "scan", words);
}

mod scan {
    use super::*;

    each_mode!(by_scan);
}

const EVERYTHING: &str = "1024 threads 4 store read direct vmwritev mremap remap dontneed brk huge shared";

#[test]
fn everything_and_shared_memory_by_scan() {
    needs_root!();
    survives_crashes(program!("lapper"), "scan", EVERYTHING);
}

/// Without BPF most pages are copied before the freeze, and what was written since is read again.
#[test]
fn scan_copies_before_the_freeze() {
    needs_root!();
    if let Some(why) = missing(program!("lapper"), "scan") {
        skip!("--tracker scan: {why}");
    }
    let (folder, mut job) = start("8192 store slow");
    let dir = folder.path().join("images");
    let pid = job.pid().to_string();
    let words = ["watch", &pid, "--dir", dir.to_str().unwrap(), "--interval", "50ms", "--json", "--tracker", "scan"];
    let out = folder.path().join("watch");
    std::fs::create_dir(&out).unwrap();
    let mut command = without_bpf(&words);
    let mut watch = Job::spawn(&out, command.stdout(std::fs::File::create(out.join("out")).unwrap()));
    let lines = |output: &str| output.lines().filter(|line| line.starts_with('{') && line.ends_with('}')).count();
    let output = watch.wait_for("eight checkpoints", |output| lines(output) >= 8);
    watch.kill();
    job.kill();
    let checkpoints: Vec<Value> = output.lines().take(8).map(|line| serde_json::from_str(line).unwrap()).collect();
    let sum = |key| checkpoints.iter().map(|checkpoint| number(checkpoint, key)).sum::<u64>();
    assert!(checkpoints.iter().all(|checkpoint| checkpoint["tracker"] == "scan"), "{checkpoints:#?}");
    assert!(sum("pages_precopied") * 2 > sum("pages_written"), "{checkpoints:#?}");
    watched::verify_images(&dir);
    let job = ckpt::restart(&job, &dir, &[]);
    laps::finish(job);
}

/// An increment of few pages is not copied live: that is not worth it.
#[test]
fn live() {
    needs_root!();
    if let Some(why) = missing(program!("lapper"), "live") {
        skip!("--tracker live: {why}");
    }
    let (folder, mut job) = start("4096 store threads 2");
    let dir = folder.path().join("images");
    let watch = Watch::start(&job, &dir, "50ms", &["--tracker", "live"]);
    watch.wait_for(6);
    let checkpoints = watch.crash(&mut job, &Moments::new());
    for checkpoint in &checkpoints {
        let live = number(checkpoint, "drain_us") > 0;
        assert_eq!(checkpoint["tracker"], if live { "live" } else { "scan" }, "{checkpoint}");
    }
    assert!(names(&checkpoints).contains(&"live"), "{checkpoints:#?}");
    let job = ckpt::restart(&job, &dir, &[]);
    laps::finish(job);
}

#[test]
fn the_best_is_named() {
    needs_root!();
    let (folder, job) = start("256 slow");
    let log = folder.path().join("log");
    let watch = Watch::start(&job, &folder.path().join("images"), "50ms", &["--log", log.to_str().unwrap()]);
    watch.wait_for(3);
    let checkpoints = watch.end();
    let log = std::fs::read_to_string(log).unwrap();
    let said = log.lines().find(|line| line.contains("changed pages are found by")).expect("it is not said");
    let used = names(&checkpoints)[2].replace("live", "scan");
    assert!(said.contains(&used) && said.contains("the best that this machine has"), "{said}");
    laps::finish(job);
}

/// One image by itself: nothing was to be found, but its pages may have been copied while the job ran.
#[test]
fn one_shot() {
    needs_root!();
    let (folder, job) = start("4096 slow");
    let checkpoint = |tracker: &str, more: &[&str]| {
        let more: Vec<&str> = ["--tracker", tracker].iter().chain(more).copied().collect();
        ckpt::checkpoint(job.pid(), &folder.path().join(tracker), &more)["tracker"].as_str().unwrap().to_owned()
    };
    assert_eq!(checkpoint("hash", &[]), "none");
    if missing(program!("lapper"), "scan").is_none() {
        assert_eq!(checkpoint("scan", &[]), "none");
    }
    if missing(program!("lapper"), "live").is_none() {
        assert_eq!(checkpoint("live", &[]), "live");
        assert_eq!(checkpoint("auto", &[]), "live");
    }
    let parent = folder.path().join("hash");
    assert_eq!(checkpoint("auto", &["--parent", parent.to_str().unwrap()]), "hash");
    assert_eq!(checkpoint("live", &["--after", "stop"]), "none");
    job.signal(nix::sys::signal::Signal::SIGCONT);
    laps::finish(job);
}

/// `ckpt` with these words and without the rights that eBPF takes.
fn without_bpf(words: &[&str]) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--bounding-set", "-sys_admin,-bpf,-perfmon", "--inh-caps", "-sys_admin,-bpf,-perfmon", "--"]);
    command.arg(ckpt::binary()).args(words);
    command
}

#[test]
fn what_is_not_there_is_named() {
    needs_root!();
    let (folder, job) = start("4096 slow");
    let (pid, image) = (job.pid().to_string(), folder.path().join("image"));
    let words = |tracker: &'static str| ["checkpoint", &pid, "-o", image.to_str().unwrap(), "--json", "--tracker", tracker];
    let said = ckpt::run(&mut without_bpf(&words("live"))).failure();
    assert!(["--tracker live", "BPF", "--tracker auto"].iter().all(|word| said.contains(word)), "{said}");
    assert!(said.lines().count() == 1 && !image.exists(), "{said}");
    let report = ckpt::run(&mut without_bpf(&words("auto"))).success().json();
    assert_eq!(report["tracker"], "none", "{report}");

    // No command is started, and no folder is made.
    let (dir, begun) = (folder.path().join("images"), folder.path().join("begun"));
    let command = ["touch", begun.to_str().unwrap()];
    let words = ["watch", "--dir", dir.to_str().unwrap(), "--tracker", "live", "--"];
    let said = ckpt::run(&mut without_bpf(&[&words[..], &command].concat())).failure();
    assert!(said.contains("--tracker live"), "{said}");
    assert!(!dir.exists() && !begun.exists());
    laps::finish(job);
}

/// A page that is written with what it holds already is in no increment.
#[test]
fn hashes_leave_out_what_was_not_changed() {
    needs_root!();
    let (folder, mut job) = start("4096 slow");
    let dir = folder.path().join("images");
    let watch = Watch::start(&job, &dir, "20ms", &["--tracker", "hash"]);
    watch.wait_for(4);
    let checkpoints = watch.end();
    let full = number(&checkpoints[0], "pages_written");
    for increment in &checkpoints[1..] {
        assert!(is_increment(increment) && number(increment, "pages_written") * 2 < full, "{checkpoints:#?}");
        assert!(number(increment, "pages_total") >= 4096, "{increment}");
    }
    job.kill();
    laps::finish(ckpt::restart(&job, &dir, &[]));
}

/// 16 MiB, of which all pages are written again and again, with what they hold: but for one, and what else Python writes.
const THE_SAME_AGAIN: &str = "
pages = 4096
memory = bytearray(b'%04096d' % 7 * pages)
print('ready', flush=True)
lap = 0
while True:
    lap += 1
    for page in range(pages): memory[page * 4096 + 100] = 48
    memory[100] = lap % 256
    time.sleep(0.005)
";

/// What is dropped is what has not changed, also where pages are copied while they are written.
#[test]
fn what_is_written_as_it_was_is_in_no_increment() {
    needs_root!();
    for tracker in ["hash", "scan", "live"] {
        if let Some(why) = missing(program!("lapper"), tracker) {
            skip!("--tracker {tracker}: {why}");
        }
        let folder = tempdir().unwrap();
        let mut job = python::start(folder.path(), &mut python::command(THE_SAME_AGAIN)).unwrap();
        let dir = folder.path().join("images");
        let watch = Watch::start(&job, &dir, "100ms", &["--tracker", tracker]);
        watch.wait_for(5);
        let checkpoints = watch.end();
        for increment in &checkpoints[1..] {
            assert!(is_increment(increment) && number(increment, "pages_total") >= 4096, "{increment}");
            assert!(number(increment, "pages_written") < 400 && number(increment, "bytes") < 1 << 20, "{tracker}: {increment}");
        }
        job.kill();
        watched::verify_images(&dir);
        let mut job = ckpt::restart(&job, &dir, &[]);
        job.kill();
    }
}

/// Another program is executed, with the same mappings at the same addresses: what was there before is not taken for what is there now.
#[test]
fn hashes_do_not_mind_another_program() {
    needs_root!();
    for words in ["256 slow", "256 slow held"] {
        let (folder, mut job) = start(words);
        let dir = folder.path().join("images");
        let watch = Watch::start(&job, &dir, "20ms", &["--tracker", "hash"]);
        watch.wait_for(2);
        laps::succeed(&job);
        let done = watch.checkpoints().len();
        watch.wait_for(done + 3);
        watch.crash(&mut job, &Moments::new());
        job = ckpt::restart(&job, &dir, &[]);
        laps::verify(&job);
        laps::finish(job);
    }
}
