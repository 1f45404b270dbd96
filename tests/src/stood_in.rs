//! Jobs that `ckpt watch -- COMMAND` starts, and for which it stands in.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::ckpt;
use crate::job::{DEADLINE, Job, adopt_orphans};
use crate::{process, watched};

/// Starts `ckpt watch` in `folder`, where output and errors of both go to files, images to the folder `images`, and the log to `log.ckpt`.
pub fn start(folder: &Path, options: &[&str], job: &[&str]) -> Job {
    adopt_orphans();
    let mut command = ckpt::command(["watch"]);
    command.args(options).arg("--dir").arg(folder.join("images")).arg("--log").arg(folder.join("log.ckpt"));
    Job::start(folder, command.arg("--").args(job).current_dir(folder))
}

/// The job of a watch: its one child that lives. (It keeps one that has ended, to find out about Landlock.)
pub fn job_of(watch: &Job) -> Job {
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", watch.pid())).expect("cannot list its children");
    let pids: Vec<i32> =
        children.split_whitespace().map(|pid| pid.parse().expect("no pid")).filter(|&pid| process::is_alive(pid)).collect();
    let [pid] = pids[..] else { panic!("it has not one child: {children}") };
    Job::adopt(pid, watch.folder())
}

/// Nothing tells of a new file in a folder that may not be there yet, except the log of its maker: waits until there are `count` images.
pub fn wait_for_images(watch: &Job, count: usize) {
    let dir = watch.folder().join("images");
    wait(watch, || dir.is_dir() && watched::images(&dir).len() >= count);
}

/// The images from which the job was brought back so far, by their numbers, and whether a checkpoint was made after the last time.
fn restarts(watch: &Job) -> (Vec<u64>, bool) {
    let log = fs::read_to_string(watch.folder().join("log.ckpt")).unwrap_or_default();
    let (mut points, mut goes_on) = (Vec::<u64>::new(), false);
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("goes on from image ") {
            points.extend(rest.split(' ').next().and_then(|number| number.parse::<u64>().ok()));
            goes_on = false;
        } else if line.contains(" checkpoint ") && line.contains("Report {") {
            goes_on = true;
        }
    }
    (points, goes_on)
}

/// The images from which the job was brought back so far, by their numbers.
pub fn restart_points(watch: &Job) -> Vec<u64> {
    restarts(watch).0
}

/// Kills the job (`strike` does), and waits until it was brought back, at least once more, and checkpointed since.
pub fn is_brought_back(watch: &Job, strike: impl FnOnce()) {
    let before = restart_points(watch).len();
    strike();
    wait(watch, || {
        let (points, goes_on) = restarts(watch);
        points.len() > before && goes_on
    });
}

fn wait(watch: &Job, until: impl Fn() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !until() {
        assert!(watch.is_alive() && Instant::now() < deadline, "{}\n{}", watch.output(), watch.errors());
        thread::sleep(Duration::from_millis(2));
    }
}
