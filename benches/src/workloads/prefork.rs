//! A server of 50 workers that were forked in advance, which share nearly all of their memory: once in the image, and once after a restart.

use std::path::Path;

use anyhow::Result;
use ckpt_tests::job::Job;
use ckpt_tests::{process, python};

use super::{Bench, Outcome, Workload, saving};
use crate::figure::Figures;

/// See the module.
pub const WORKLOAD: Workload = Workload {
    name: "prefork",
    about: "python3 with 256 MiB that cannot be compressed, and 50 children: each has written 512 scattered pages since it was forked, and so \
            has the parent; memory is the sum of Pss",
    run,
};

const MEBIBYTES: u64 = 256;

const SCRIPT: &str = "
import mmap
SIZE, WORKERS = 256 << 20, 50
data = mmap.mmap(-1, SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for at in range(0, SIZE, 1 << 20): data[at:at + (1 << 20)] = os.urandom(1 << 20)
def write(n):
    for k in range(512):
        at = (n * 7919 + k * 104729) % (SIZE >> 12) << 12
        data[at:at + 8] = struct.pack('=II', n, k)
for n in range(WORKERS):
    r, w = os.pipe()
    if os.fork() == 0:
        os.close(r)
        write(n)
        os.close(w)
        while True: signal.pause()
    os.close(w)
    # It ends when the child has written.
    os.read(r, 1)
    os.close(r)
write(WORKERS)
";

const BEFORE: &str = "memory before";

fn run(bench: &Bench) -> Result<Outcome> {
    // Its memory, as much again of what each process has written, and the same once more in the image.
    let scratch = match saving::scratch(4 * MEBIBYTES)? {
        Ok(scratch) => scratch,
        Err(reason) => return Ok(Outcome::Skipped(reason)),
    };
    let (mut figures, mut notes) = (Figures::default(), vec![scratch.describe()]);
    let mut job = python::rest_after(scratch.jobs(), SCRIPT).map_err(anyhow::Error::msg)?;
    for round in 1..=bench.runs {
        eprintln!("  round {round} of {}", bench.runs);
        job = measure(bench, scratch.path(), job, &mut figures, &mut notes)?;
    }
    job.kill();
    let pairs = [("memory after the restart", BEFORE), ("memory after a live checkpoint", BEFORE), ("image", BEFORE)];
    let ratios = pairs.into_iter().filter_map(|(of, to)| figures.ratio(of, to)).collect();
    Ok(Outcome::Measured { notes, figures: figures.into_vec(), ratios })
}

fn measure(bench: &Bench, folder: &Path, job: Job, figures: &mut Figures, notes: &mut Vec<String>) -> Result<Job> {
    let image = folder.join("image");
    figures.bytes(BEFORE, process::proportional_bytes(job.pid()));
    let live = saving::checkpoint_tree(bench, &job, &image, "continue")?;
    if let Some(reason) = live["live_fallback"].as_str() {
        notes.push(format!("a checkpoint was tried live in vain: {reason}"));
    }
    figures.bytes("memory after a live checkpoint", process::proportional_bytes(job.pid()));
    let (stopped, restart, back) = saving::kill_and_restart(bench, job, &image)?;
    figures.bytes("image", image.metadata()?.len());
    for (report, pause, shared) in [
        (&live, "pause, live", "of that, finding what is shared, live"),
        (&stopped, "pause, stopped", "of that, finding what is shared, stopped"),
    ] {
        figures.time(pause, saving::time(report, "pause_us")?);
        figures.time(shared, saving::time(&report["phases"], "shared_us")?);
    }
    figures.time("restart", restart);
    figures.bytes("memory after the restart", process::proportional_bytes(back.pid()));
    Ok(back)
}
