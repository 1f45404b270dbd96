//! How freeze, total time and restart grow with the number of processes, and with that of descriptors.

use anyhow::Result;
use ckpt_tests::python;

use super::{Bench, Outcome, Workload, saving};
use crate::figure::Figures;
use crate::scratch::Scratch;

/// See the module.
pub const WORKLOAD: Workload = Workload {
    name: "trees",
    about: "trees of 1 to 200 processes of python3, which sleep; and 10 to 6000 descriptors (pipes, with 10 bytes in each) of a \
            process, and 10,000 of two",
    run,
};

/// Pause, total and restart of each.
type Names = (u32, [&'static str; 3]);

const PROCESSES: &[Names] = &[
    (1, ["pause, 1 process", "total, 1 process", "restart, 1 process"]),
    (10, ["pause, 10 processes", "total, 10 processes", "restart, 10 processes"]),
    (50, ["pause, 50 processes", "total, 50 processes", "restart, 50 processes"]),
    (200, ["pause, 200 processes", "total, 200 processes", "restart, 200 processes"]),
];
const DESCRIPTORS: &[Names] = &[
    (10, ["pause, 10 descriptors", "total, 10 descriptors", "restart, 10 descriptors"]),
    (1000, ["pause, 1000 descriptors", "total, 1000 descriptors", "restart, 1000 descriptors"]),
    (6000, ["pause, 6000 descriptors", "total, 6000 descriptors", "restart, 6000 descriptors"]),
    (10_000, ["pause, 10000 descriptors", "total, 10000 descriptors", "restart, 10000 descriptors"]),
];

fn run(bench: &Bench) -> Result<Outcome> {
    let scratch = match saving::scratch(1024)? {
        Ok(scratch) => scratch,
        Err(reason) => return Ok(Outcome::Skipped(reason)),
    };
    let mut figures = Figures::default();
    for (count, names) in PROCESSES {
        eprintln!("  {}", names[0]);
        let script = format!("for n in range({}):\n    if os.fork() == 0:\n        while True: signal.pause()\n", count - 1);
        measure(bench, &scratch, &script, names, &mut figures)?;
    }
    for (count, names) in DESCRIPTORS {
        eprintln!("  {}", names[0]);
        measure(bench, &scratch, &with_descriptors(*count), names, &mut figures)?;
    }
    let of = |names: &'static [Names], part: usize| names.windows(2).map(move |two| (two[1].1[part], two[0].1[part]));
    let pairs = (0..3).flat_map(|part| of(PROCESSES, part).chain(of(DESCRIPTORS, part)));
    let ratios = pairs.filter_map(|(more, fewer)| figures.ratio(more, fewer)).collect();
    Ok(Outcome::Measured { notes: vec![scratch.describe()], figures: figures.into_vec(), ratios })
}

/// So many descriptors, of one process or, if that could not be restarted within the usual limit, of it and its child.
fn with_descriptors(count: u32) -> String {
    let processes = count.div_ceil(6000);
    format!(
        "import resource
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
children = [os.fork() for n in range({processes} - 1)]
pipes = [os.pipe() for n in range({})]
for r, w in pipes: os.write(w, b'0123456789')
if 0 in children:
    os.kill(os.getppid(), signal.SIGUSR1)
    while True: signal.pause()
for child in children: signal.sigwait([signal.SIGUSR1])
",
        count / 2 / processes
    )
}

fn measure(bench: &Bench, scratch: &Scratch, script: &str, names: &[&'static str; 3], figures: &mut Figures) -> Result<()> {
    let mut job = python::rest_after(scratch.jobs(), script).map_err(anyhow::Error::msg)?;
    let image = scratch.path().join("image");
    for _ in 0..bench.runs {
        let (report, restart, back) = saving::kill_and_restart(bench, job, &image)?;
        figures.time(names[0], saving::time(&report, "pause_us")?);
        figures.time(names[1], saving::time(&report, "total_us")?);
        figures.time(names[2], restart);
        job = back;
    }
    job.kill();
    Ok(())
}
