//! `--tracker soft-dirty`: whatever way a page was written, moved, dropped or made anew, the job comes back with what it held. Where the kernel
//! has no soft-dirty bits, these tests are run in a virtual machine whose kernel has.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, Output};
use std::sync::OnceLock;

use ckpt_tests::ckpt;
use ckpt_tests::job::Job;
use ckpt_tests::laps;
use ckpt_tests::moments::Moments;
use ckpt_tests::tracked::{self, names};
use ckpt_tests::watched::{Watch, is_increment, number};
use ckpt_tests::{each_mode, needs_root, program, skip};
use nix::sys::signal::Signal;
use tempfile::{TempDir, tempdir};

const SOFT_DIRTY: [&str; 2] = ["--tracker", "soft-dirty"];

/// Why this kernel lacks the bits, if it does.
fn missing() -> Option<&'static str> {
    static MISSING: OnceLock<Option<String>> = OnceLock::new();
    MISSING.get_or_init(|| tracked::missing(program!("lapper"), "soft-dirty")).as_deref()
}

/// Returns from a test that cannot be run here. It is not skipped: `in_a_virtual_machine` runs it there, or says why not.
macro_rules! needs_bits {
    () => {
        needs_root!();
        if let Some(why) = missing() {
            println!("left to in_a_virtual_machine: {why}");
            return;
        }
    };
}

/// The tests that are no modes, and can only be run where there are such bits.
const OTHERS: [&str; 4] =
    ["a_second_watch_is_refused", "another_program_is_executed", "increments_are_small", "it_is_chosen_where_it_is_the_best"];

fn start(words: &str) -> (TempDir, Job) {
    let folder = tempdir().unwrap();
    let job = laps::start(folder.path(), program!("lapper"), words);
    (folder, job)
}

/// The modes that take most of what a kernel has to note, of which the virtual machine runs no others.
const HARD_MODES: [&str; 10] = [
    "modes::a_heap",
    "modes::direct_reads",
    "modes::dropped_huge_pages",
    "modes::everything_at_once",
    "modes::huge_pages",
    "modes::memory_mapped_anew",
    "modes::paged_out",
    "modes::slow_shared_memory",
    "modes::slow_threads",
    "modes::writes_of_others",
];

fn survives_crashes(words: &str) {
    if let Some(why) = missing() {
        skip!("{why}; in_a_virtual_machine runs the hardest modes of lapper, and `cargo xtask vm` all");
    }
    tracked::survives_crashes(program!("lapper"), "soft-dirty", words);
}

mod modes {
    use super::*;

    each_mode!(survives_crashes);
}

/// Another program is executed, with the same mappings at the same addresses, also if the old address space is still there.
#[test]
fn another_program_is_executed() {
    needs_bits!();
    for words in ["256 slow", "256 slow held"] {
        let (folder, mut job) = start(words);
        let dir = folder.path().join("images");
        let watch = Watch::start(&job, &dir, "20ms", &SOFT_DIRTY);
        watch.wait_for(3);
        laps::succeed(&job);
        watch.wait_until_it_says(&["the next image holds all of the memory", "another program was executed"]);
        let done = watch.checkpoints().len();
        watch.wait_for(done + 3);
        watch.crash(&mut job, &Moments::new());
        job = ckpt::restart(&job, &dir, &[]);
        laps::verify(&job);
        laps::finish(job);
    }
}

/// What was not written in between is in no increment.
#[test]
fn increments_are_small() {
    needs_bits!();
    let (folder, mut job) = start("8192 slow");
    let dir = folder.path().join("images");
    let watch = Watch::start(&job, &dir, "20ms", &SOFT_DIRTY);
    watch.wait_for(2);
    job.signal(Signal::SIGSTOP);
    job.wait_until_stopped();
    let done = watch.checkpoints().len();
    let checkpoints = watch.wait_for(done + 3);
    let last = &checkpoints[done + 2];
    assert!(is_increment(last) && number(last, "pages_total") >= 8192 && number(last, "pages_written") < 64, "{last}");
    watch.end();
    job.kill();
    let job = ckpt::restart(&job, &dir, &[]);
    job.signal(Signal::SIGCONT);
    laps::finish(job);
}

/// The bits are the process's, so that two that clear them would take them from each other.
#[test]
fn a_second_watch_is_refused() {
    needs_bits!();
    let (folder, job) = start("256 slow");
    let watch = Watch::start(&job, &folder.path().join("images"), "20ms", &SOFT_DIRTY);
    watch.wait_for(2);
    let second = Watch::start(&job, &folder.path().join("others"), "20ms", &SOFT_DIRTY);
    second.wait_until_it_says(&["another ckpt uses its soft-dirty bits", "--tracker hash"]);
    second.kill();
    watch.end();
    let third = Watch::start(&job, &folder.path().join("images"), "20ms", &SOFT_DIRTY);
    third.wait_for(2);
    third.end();
    laps::finish(job);
}

/// It is better than comparing all pages, and not as good as being told by PAGEMAP_SCAN.
#[test]
fn it_is_chosen_where_it_is_the_best() {
    needs_bits!();
    let (folder, job) = start("256 slow");
    let log = folder.path().join("log");
    let watch = Watch::start(&job, &folder.path().join("images"), "20ms", &["--log", log.to_str().unwrap()]);
    watch.wait_for(3);
    let checkpoints = watch.end();
    let log = std::fs::read_to_string(log).unwrap();
    if tracked::missing(program!("lapper"), "scan").is_some() {
        assert_eq!(names(&checkpoints)[2], "soft-dirty");
        assert!(
            log.contains("changed pages are not found by scan") && log.contains("changed pages are found by soft-dirty"),
            "{log}"
        );
    } else {
        assert!(!names(&checkpoints).contains(&"soft-dirty"), "{checkpoints:#?}");
    }
    laps::finish(job);
}

/// Where it is not there, it is refused by its name.
#[test]
fn what_is_missing_is_told() {
    needs_root!();
    let Some(said) = missing() else { return };
    let words = ["--tracker soft-dirty cannot be used here", "CONFIG_MEM_SOFT_DIRTY", "--tracker auto"];
    assert!(words.iter().all(|word| said.contains(word)) && said.lines().count() == 1, "{said}");
}

fn xtask(arguments: &[&OsStr]) -> Output {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["xtask", "vm"]).args(arguments).current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap());
    cargo.output().unwrap_or_else(|error| panic!("cannot run {cargo:?}: {error}"))
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// All of this file, but for modes that are not the hardest.
#[test]
fn in_a_virtual_machine() {
    needs_root!();
    let Some(why) = missing() else { return };
    let prepared = xtask(&["--prepare".as_ref()]);
    if !prepared.status.success() {
        skip!("{why}; and there is no virtual machine: {}", said(&prepared).lines().last().unwrap_or_default());
    }
    let this = std::env::current_exe().unwrap();
    let mut arguments: Vec<&OsStr> = ["--as-built", "--limit", "600", "--"].map(AsRef::as_ref).to_vec();
    arguments.push(this.as_ref());
    let tests = HARD_MODES.iter().chain(&OTHERS).copied();
    arguments.extend(["--test-threads", "2", "--exact"].into_iter().chain(tests).map(OsStr::new));
    let output = xtask(&arguments);
    let said = said(&output);
    println!("{said}");
    assert!(output.status.success(), "the tests in the virtual machine have failed ({})", output.status);
    assert!(said.contains(&format!(" {} passed", HARD_MODES.len() + OTHERS.len())), "some of the tests are not there");
    assert!(!said.contains("SKIPPED"), "the virtual machine lacks something");
}
