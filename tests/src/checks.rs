//! Programs under test that make many things, wait, and then say of each whether it is still as it was; and the tests' side of that.

use std::fmt::Display;
use std::path::Path;
use std::process::Command;

use nix::sys::signal::{SigSet, Signal};

use crate::job::Job;
use crate::skip;

/// Looks at one thing: what is wrong with it?
type Check = Box<dyn FnMut() -> Result<(), String>>;

/// The list of a program. Every report is a line per item, "ok NAME" or "failed NAME: WHY", and "done".
#[derive(Default)]
pub struct Checks {
    checks: Vec<(String, Check)>,
}

impl std::fmt::Debug for Checks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.checks.iter().map(|(name, _)| name)).finish()
    }
}

impl Checks {
    /// An empty list. From now on the two signals that ask for reports and for the end wait until they are taken.
    pub fn new() -> Checks {
        requests().thread_block().expect("cannot block signals");
        Checks::default()
    }

    /// Adds a thing, or says "absent NAME: WHY" if it could not be made.
    pub fn add<C, E: Display>(&mut self, name: &str, made: Result<C, E>)
    where
        C: FnMut() -> Result<(), String> + 'static,
    {
        match made {
            Ok(check) => self.checks.push((name.to_owned(), Box::new(check))),
            Err(error) => println!("absent {name}: {error}"),
        }
    }

    /// Says "ready", then a report for every SIGUSR1, until SIGTERM.
    pub fn serve(mut self) {
        println!("ready");
        loop {
            match requests().wait() {
                Ok(Signal::SIGUSR1) => self.report(),
                Ok(_) => return,
                // The wait itself is no thing under test.
                Err(nix::errno::Errno::EINTR) => {}
                Err(error) => panic!("cannot wait for signals: {error}"),
            }
        }
    }

    fn report(&mut self) {
        for (name, check) in &mut self.checks {
            match check() {
                Ok(()) => println!("ok {name}"),
                Err(why) => println!("failed {name}: {why}"),
            }
        }
        println!("done");
    }
}

fn requests() -> SigSet {
    [Signal::SIGUSR1, Signal::SIGTERM].into_iter().collect()
}

/// Fails with what was found unless it is what was expected.
pub fn same<T: PartialEq + std::fmt::Debug>(what: &str, found: T, expected: T) -> Result<(), String> {
    if found == expected { Ok(()) } else { Err(format!("{what}: {found:?} instead of {expected:?}")) }
}

/// The error of a call as a sentence.
pub fn said<T, E: Display>(what: &str, result: Result<T, E>) -> Result<T, String> {
    result.map_err(|error| format!("{what}: {error}"))
}

/// Starts such a program in `folder`. Only what is in `may_be_absent` may be impossible to make; that is noted as skipped.
pub fn start(folder: &Path, program: &str, may_be_absent: &[&str]) -> Job {
    let job = Job::start(folder, Command::new(program).current_dir(folder));
    job.wait_for_line("ready");
    let output = job.output();
    for line in output.lines().filter_map(|line| line.strip_prefix("absent ")) {
        let (name, why) = line.split_once(": ").unwrap_or((line, ""));
        assert!(may_be_absent.contains(&name), "{name} could not be made: {why}");
        let program = Path::new(program).file_name().unwrap_or_default().to_string_lossy();
        skip::note(&format!("{program}::{name}"), why);
    }
    job
}

/// Has it look at all that it has. Everything must be as it was.
pub fn verify(job: &Job) {
    let report = job.report();
    let failed: Vec<&String> = report.iter().filter(|line| !line.starts_with("ok ")).collect();
    assert!(failed.is_empty(), "{} of {}: {failed:#?}", failed.len(), report.len());
    assert!(report.len() > 10, "it has looked at next to nothing: {report:?}");
}

/// Ends it.
pub fn end(mut job: Job) {
    job.signal(Signal::SIGTERM);
    job.succeed();
}
