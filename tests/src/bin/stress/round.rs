//! A job's life: cut again and again, struck down, brought back from some of the cuts.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ckpt_tests::job::Job;
use ckpt_tests::moments::Moments;
use ckpt_tests::watched::{self, Watch};
use ckpt_tests::{ckpt, laps};

use crate::mode::Mode;
use crate::report::Tally;

/// All cuts of one mode.
#[derive(Debug)]
pub struct Run<'a> {
    pub mode: &'a Mode,
    pub tracker: &'a str,
    pub cuts: u64,
    pub every: u64,
    pub until: Option<Instant>,
    /// Everything is in here.
    pub folder: &'a Path,
}

impl Run<'_> {
    /// Panics as soon as anything is not as it must be.
    pub fn go(&self, seed: u64, tally: &mut Tally) {
        let moments = Moments::with_seed(seed);
        let mut job = laps::start(self.folder, &lapper(), &self.mode.words);
        while tally.cuts < self.cuts && self.until.is_none_or(|until| Instant::now() < until) {
            let dir = self.folder.join("images");
            // Most of the cuts are of a watch. Single ones find by hashes what has changed, and are live, too.
            if moments.below(4) == 0 {
                self.chain(&mut job, &dir, &moments, tally)
            } else {
                self.watch(&mut job, &dir, &moments, tally)
            }
            job = self.bring_back(job, &dir, &moments, tally);
            fs::remove_dir_all(&dir).expect("cannot remove the images");
        }
        laps::finish(job);
    }

    /// `ckpt watch`, as often as it can. It is struck down together with the job, at any moment.
    fn watch(&self, job: &mut Job, dir: &Path, moments: &Moments, tally: &mut Tally) {
        let interval = ["1ms", "3ms", "10ms"][moments.below(3) as usize];
        let mut more = vec!["--tracker", self.tracker];
        if moments.below(3) == 0 {
            // Older images are merged while new ones are made.
            more.extend(["--keep", "7"]);
        }
        let watch = Watch::start(job, dir, interval, &more);
        watch.wait_for(4 + moments.below(5 * self.every) as usize);
        std::thread::sleep(moments.part_of(Duration::from_millis(30), 0.0, 1.0));
        watch.crash(job, moments).iter().for_each(|checkpoint| tally.count(checkpoint));
        let said = fs::read_to_string(dir.with_extension("watch").join("out")).expect("cannot read what ckpt watch said");
        said.lines().filter(|line| line.contains(" has failed, and the job runs on: ")).for_each(|line| tally.refuse(line));
    }

    /// `ckpt checkpoint --parent`, one after the other.
    fn chain(&self, job: &mut Job, dir: &Path, moments: &Moments, tally: &mut Tally) {
        fs::create_dir_all(dir).expect("cannot make a folder");
        let mut parent: Option<PathBuf> = None;
        for n in 1..=2 + moments.below(6) {
            std::thread::sleep(moments.part_of(Duration::from_millis(10), 0.0, 1.0));
            let image = dir.join(format!("{n:06}.ckpt"));
            let mut more = vec!["--tracker", self.tracker];
            if let Some(parent) = &parent {
                more = vec!["--parent", parent.to_str().expect("a path that is no text")];
            }
            let outcome = ckpt::try_checkpoint(job.pid(), &image, &more);
            match outcome.status.success() {
                true => {
                    tally.count(&outcome.json());
                    parent = Some(image);
                }
                // It may be a thing of the moment: then the next one is made.
                false => tally.refuse(&outcome.failure()),
            }
        }
        std::thread::sleep(moments.part_of(Duration::from_millis(10), 0.0, 1.0));
        job.kill();
    }

    /// From some of the cuts, in any order, and from the last one, which goes on. After each every page is verified.
    fn bring_back(&self, mut job: Job, dir: &Path, moments: &Moments, tally: &mut Tally) -> Job {
        let out = self.folder.join("out");
        let written = fs::read(&out).expect("cannot read what the job wrote");
        let images = watched::images(dir);
        assert!(!images.is_empty(), "no cut was made: {}", self.folder.display());
        let others = (images.len() as u64 - 1).div_ceil(self.every);
        let mut picked: Vec<&PathBuf> = (0..others).map(|_| &images[moments.below(images.len() as u64) as usize]).collect();
        picked.extend(images.last());
        for (n, image) in picked.iter().enumerate() {
            // What the job wrote after another cut is no output of this one.
            fs::write(&out, &written).expect("cannot write what the job wrote");
            tally.last.clone_from(image);
            job = ckpt::restart(&job, image, &["--files", "rollback", "--discard-changes"]);
            let lap = laps::lap(&job);
            laps::verify(&job);
            tally.restarts += 1;
            // The lap in which the cut was is not counted.
            tally.pages += self.mode.pages * (laps::lap(&job) - lap).saturating_sub(1).max(1);
            if n + 1 < picked.len() {
                job.kill();
            }
        }
        job
    }
}

/// The program, which is built together with this one.
fn lapper() -> String {
    let own = std::env::current_exe().expect("this program has no path");
    own.with_file_name("lapper").to_str().expect("a path that is no text").to_owned()
}
