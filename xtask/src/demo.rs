//! `cargo xtask demo`: the whole idea on one screen, with a real program: start, checkpoint, kill, restart, same result.

use std::io::{self, BufRead, BufReader, Lines};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result, bail, ensure};

use crate::command::{self, cargo, root, target_dir};
use crate::prerequisites;

const PYTHON: &str = "/usr/bin/python3";
/// How long the computation is: some ten seconds on two processors.
const ROUNDS: &str = "200";
/// The line after which it is checkpointed.
const INTERRUPT_AFTER: &str = "40 %";

/// See the module.
pub fn run() -> Result<()> {
    prerequisites::of_demo()?;
    keep_our_descriptors().context("cannot keep our descriptors from the computation")?;
    command::run(cargo().args(["build", "--release", "--package", "ckpt"]))?;
    let ckpt = target_dir().join("release/ckpt");
    let folder = tempfile::tempdir().context("cannot make a folder for the image")?;
    let image = folder.path().join("img");

    step("1. A computation without interruption, to know its result: four threads in Python, some ten seconds.");
    let mut undisturbed = Computation::start(Command::new(PYTHON).arg(script()).arg(ROUNDS))?;
    let expected = undisturbed.follow(|_| false)?.context("the computation ended without a result")?;
    undisturbed.end()?;

    step(&format!("2. The same once more. At {INTERRUPT_AFTER} it is checkpointed to a file and killed."));
    let mut doomed = Computation::start(Command::new(PYTHON).arg(script()).arg(ROUNDS))?;
    let pid = doomed.child.id();
    doomed.follow(|line| line.ends_with(INTERRUPT_AFTER))?;
    let pid_text = pid.to_string();
    command::run(Command::new(&ckpt).args(["checkpoint", &pid_text, "-o"]).arg(&image).args(["--after", "kill"]))?;
    // What it wrote between our last look and the checkpoint.
    let early = doomed.follow(|_| false)?;
    ensure!(early.is_none(), "the computation was faster than the checkpoint; there is nothing left to restart");
    let status = doomed.end_with_any_status()?;
    println!("The computation is gone: {status}, and pid {pid} is free.");
    ensure!(!Path::new(&format!("/proc/{pid}")).exists(), "pid {pid} still exists");

    step("3. What is in the file.");
    command::run(Command::new(&ckpt).args(["info", "--verify"]).arg(&image))?;

    step(&format!(
        "4. The restart: the same pid ({pid}), the same threads, from the very instruction at which they were stopped."
    ));
    let mut restart = Command::new(&ckpt);
    restart.arg("restart").arg(&image);
    println!("$ {}", command::line(&restart));
    let mut restarted = Computation::start(&mut restart)?;
    let found = restarted.follow(|_| false)?.context("the restarted computation ended without a result")?;
    restarted.end()?;

    step("5. Compare.");
    println!("  without interruption:             {expected}");
    println!("  checkpointed, killed, restarted:  {found}");
    ensure!(found == expected, "the results differ");
    println!("\nThe results are equal: the computation did not notice that it had been killed.");
    Ok(())
}

/// The computation shall have standard input, output and error only, whatever whoever started us has left open.
fn keep_our_descriptors() -> io::Result<()> {
    // SAFETY: only marks descriptors; none is closed here.
    match unsafe { libc::close_range(3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC as libc::c_int) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn step(text: &str) {
    println!("\n== {text}");
}

fn script() -> PathBuf {
    root().join("xtask/demo/computation.py")
}

/// A child whose output is read line by line. What it says on its standard error is passed on: given ours, it might hold open a file that
/// we write to as well, and a restart refuses files that have changed.
struct Computation {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    errors: JoinHandle<io::Result<u64>>,
}

impl Computation {
    fn start(command: &mut Command) -> Result<Computation> {
        let spawned = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = spawned.with_context(|| format!("cannot start {}", command.get_program().to_string_lossy()))?;
        let stdout = child.stdout.take().context("the child has no standard output")?;
        let mut errors = child.stderr.take().context("the child has no standard error")?;
        let errors = thread::spawn(move || io::copy(&mut errors, &mut io::stderr()));
        Ok(Computation { child, errors, lines: BufReader::new(stdout).lines() })
    }

    /// Shows what it prints until a line is `enough` or it closes its output. Returns its result, if it told it.
    fn follow(&mut self, enough: impl Fn(&str) -> bool) -> Result<Option<String>> {
        for line in &mut self.lines {
            let line = line.context("cannot read the output of the computation")?;
            println!("  | {line}");
            if let Some(result) = line.strip_prefix("result ") {
                return Ok(Some(result.to_owned()));
            }
            if enough(&line) {
                break;
            }
        }
        Ok(None)
    }

    fn end_with_any_status(mut self) -> Result<ExitStatus> {
        let status = self.child.wait().context("cannot wait for the computation")?;
        match self.errors.join() {
            Ok(copied) => copied.context("cannot pass on what the computation says").map(|_| status),
            Err(_) => bail!("the thread that passes on what the computation says has panicked"),
        }
    }

    fn end(self) -> Result<()> {
        let status = self.end_with_any_status()?;
        if !status.success() {
            bail!("it ended badly: {status}");
        }
        Ok(())
    }
}
