//! What goes wrong under `ckpt watch` harms neither the job nor what was saved before: ckpt killed at any instant, a folder that is gone, a full
//! disk, a second watch, damaged images.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use ckpt_tests::ckpt;
use ckpt_tests::image;
use ckpt_tests::job::{DEADLINE, Job};
use ckpt_tests::laps;
use ckpt_tests::moments::Moments;
use ckpt_tests::scratch_disk::ScratchDisk;
use ckpt_tests::watched::{self, Watch, is_increment};
use ckpt_tests::{needs_root, or_skip, process, program};
use nix::sys::signal::Signal;
use tempfile::{TempDir, tempdir};

fn start(words: &str) -> (TempDir, Job) {
    let folder = tempdir().unwrap();
    let job = laps::start(folder.path(), program!("lapper"), words);
    (folder, job)
}

/// What is in the folder and is no image.
fn others(dir: &Path) -> Vec<String> {
    let images = watched::images(dir);
    let all = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    all.filter(|path| !images.contains(path)).map(|path| path.display().to_string()).collect()
}

fn ckpt_is_killed_at_any_instant(words: &str, more: &[&str], times: u32) {
    needs_root!();
    let moments = Moments::new();
    let (folder, mut job) = start(words);
    let dir = folder.path().join("images");
    let begin = || Watch::start(&job, &dir, "10ms", more);
    // From its start over the first checkpoint and the first increments, and the first merging if there is any. A disk may be slow once.
    let began = Instant::now();
    let watch = begin();
    watch.wait_for(8);
    watch.kill();
    let span = began.elapsed().min(Duration::from_millis(250));
    let mut made = 0;
    for n in 0..times {
        let watch = begin();
        thread::sleep(moments.part_of(span, 0.0, 1.0));
        made += watch.kill().len();
        assert!(job.is_alive(), "after {n} times it has ended: {}", job.output());
        let states = process::states(job.pid());
        assert!(!states.contains('T'), "after {n} times some threads are stopped: {states}");
        if n.is_multiple_of(10) {
            laps::verify(&job);
        }
    }
    println!("{made} checkpoints were made in {times} watches of at most {span:?}");
    laps::verify(&job);
    let watch = begin();
    watch.wait_for(6);
    watch.end();
    // What was not finished is cleaned away by the watch that comes after.
    let others = others(&dir);
    assert!(others.len() < 4, "left over: {others:?}");
    watched::verify_images(&dir);
    job.kill();
    laps::finish(ckpt::restart(&job, &dir, &[]));
}

#[test]
fn ckpt_is_killed() {
    ckpt_is_killed_at_any_instant("256 store read vmwritev dontneed", &[], 40);
}

#[test]
fn ckpt_is_killed_and_threads_go_on() {
    ckpt_is_killed_at_any_instant("512 threads 3 mremap remap dontneed shared", &[], 40);
}

#[test]
fn ckpt_is_killed_and_a_slow_job_goes_on() {
    ckpt_is_killed_at_any_instant("512 slow brk", &[], 30);
}

/// The folder is good at every instant, too: what a crash has left is brought back, again and again.
fn crashes_at_any_instant(more: &[&str]) {
    needs_root!();
    let moments = Moments::new();
    let (folder, mut job) = start("256 dontneed");
    let dir = folder.path().join("images");
    let first = Watch::start(&job, &dir, "10ms", more);
    first.wait_for(2);
    first.kill();
    let span = Duration::from_millis(150);
    for _ in 0..12 {
        let watch = Watch::start(&job, &dir, "10ms", more);
        moments.let_pass(span, 0.0, 1.0);
        watch.crash(&mut job, &moments);
        job = ckpt::restart(&job, &dir, &[]);
        laps::verify(&job);
    }
    laps::finish(job);
}

#[test]
fn a_crash_at_any_instant() {
    crashes_at_any_instant(&[]);
}

#[test]
fn two_watches_of_one_folder() {
    needs_root!();
    let (folder, job) = start("256 slow");
    let (_other_folder, other) = start("256 slow");
    let dir = folder.path().join("images");
    let mut watch = Watch::start(&job, &dir, "50ms", &[]);
    watch.wait_for(1);
    let first = watch.ckpt().pid().to_string();
    for second in [&job, &other] {
        let said = ckpt::run(&mut watched::command(second, &dir, "50ms", &[])).failure();
        assert!(said.contains(&first) && said.contains(dir.to_str().unwrap()), "it does not name the first, {first}: {said}");
    }
    // The first is not disturbed.
    let count = watch.checkpoints().len();
    watch.wait_for(count + 2);
    watch.kill();
    // A lock of one that is dead holds nobody up.
    let watch = Watch::start(&job, &dir, "50ms", &[]);
    watch.wait_for(1);
    watch.end();
    laps::finish(other);
    laps::finish(job);
}

/// Ends a watch that may have ended by itself.
fn end_of(mut watch: Watch) {
    if watch.ckpt().is_alive() {
        // It may end at this very moment.
        watch.ckpt().signal(Signal::SIGTERM);
    }
    watch.wait();
}

#[test]
fn a_full_disk() {
    needs_root!();
    let disk = or_skip!(ScratchDisk::new(24 << 20));
    let (folder, mut job) = start("1024 store");
    let dir = disk.path().join("images");
    let watch = Watch::start(&job, &dir, "20ms", &[]);
    let said = watch.wait_until_it_says(&["No space left on device"]);
    assert!(said.contains(dir.to_str().unwrap()), "it does not say where: {said}");
    laps::verify(&job);
    end_of(watch);
    laps::verify(&job);
    let images = watched::images(&dir);
    assert!(images.len() > 1, "{images:?}");
    watched::verify_images(&dir);
    // Elsewhere there is room. What was written meanwhile is not forgotten.
    let elsewhere = folder.path().join("images");
    let watch = Watch::start(&job, &elsewhere, "20ms", &[]);
    watch.wait_for(2);
    watch.end();
    job.kill();
    for dir in [&elsewhere, &dir] {
        let mut restarted = ckpt::restart(&job, dir, &[]);
        laps::verify(&restarted);
        restarted.kill();
    }
}

#[test]
fn a_folder_that_is_removed() {
    needs_root!();
    let (folder, job) = start("256 store");
    let dir = folder.path().join("images");
    let watch = Watch::start(&job, &dir, "20ms", &[]);
    watch.wait_for(2);
    let until = Instant::now() + DEADLINE;
    // An image may come into it meanwhile.
    while let Err(error) = fs::remove_dir_all(&dir) {
        assert!(Instant::now() < until, "cannot remove it: {error}");
        thread::yield_now();
    }
    let said = watch.wait_until_it_says(&[dir.to_str().unwrap()]);
    println!("{said}");
    laps::verify(&job);
    end_of(watch);
    laps::verify(&job);
    // It can be begun again.
    let watch = Watch::start(&job, &dir, "20ms", &[]);
    watch.wait_for(2);
    watch.end();
    laps::finish(job);
}

/// Also one that is killed, with all its threads, in the middle of a checkpoint.
#[test]
fn a_job_that_is_killed_at_any_instant() {
    needs_root!();
    let moments = Moments::new();
    for _ in 0..12 {
        let (folder, mut job) = start("512 slow threads 3");
        let mut watch = Watch::start(&job, &folder.path().join("images"), "1ms", &[]);
        watch.wait_for(2);
        thread::sleep(moments.part_of(Duration::from_millis(20), 0.0, 1.0));
        job.kill();
        assert!(watch.wait().success());
        let said = watch.wait_until_it_says(&["has ended"]);
        assert!(said.contains(&job.pid().to_string()), "{said}");
    }
}

/// A job that has ended ends its watch, and what it was can be had again.
#[test]
fn a_job_that_ends() {
    needs_root!();
    let (folder, mut job) = start("256 store");
    let dir = folder.path().join("images");
    let mut watch = Watch::start(&job, &dir, "20ms", &[]);
    watch.wait_for(2);
    job.signal(Signal::SIGTERM);
    job.succeed();
    watch.wait();
    job = ckpt::restart(&job, &dir, &[]);
    let mut watch = Watch::start(&job, &dir, "20ms", &[]);
    watch.wait_for(2);
    job.kill();
    watch.wait();
    laps::finish(ckpt::restart(&job, &dir, &[]));
}

/// The images of a slow job that was killed, the first full and the others increments.
fn chain(count: usize) -> (TempDir, Job, PathBuf) {
    let (folder, mut job) = start("512 slow dontneed");
    let dir = folder.path().join("images");
    let watch = Watch::start(&job, &dir, "30ms", &[]);
    watch.wait_for(count);
    let checkpoints = watch.end();
    assert!(checkpoints.iter().skip(1).all(is_increment), "{checkpoints:#?}");
    job.kill();
    (folder, job, dir)
}

/// The folder is brought back as it was before the damage, and the damaged image is named.
fn is_brought_back(job: &Job, dir: &Path, damaged: &Path) {
    let pidfile = job.folder().join("pidfile");
    let mut command = ckpt::command(["restart", "--detach", "--pidfile"]);
    let said = ckpt::run(command.arg(&pidfile).arg(dir)).success().stderr;
    let name = damaged.file_name().unwrap().to_str().unwrap();
    assert!(said.contains(name), "{name} is not named: {said}");
    let mut job = Job::adopt(job.pid(), job.folder());
    laps::verify(&job);
    job.kill();
}

fn truncate(image: &Path, to: u64) {
    OpenOptions::new().write(true).open(image).and_then(|file| file.set_len(to)).unwrap();
}

fn flip_a_bit(image: &Path, moments: &Moments) {
    // The index that may follow the trailer is not needed to restart.
    let bytes = image::read(image);
    let records = image::records(&bytes);
    let end = records.iter().find(|record| record.kind == "trailer").map(|record| record.payload.end);
    let at = moments.below(end.expect("no trailer") as u64);
    println!("{}: a bit of byte {at}", image.display());
    let file = OpenOptions::new().write(true).open(image).unwrap();
    file.write_all_at(&[bytes[at as usize] ^ (1 << moments.below(8))], at).unwrap();
}

#[test]
fn the_newest_image_is_cut_off() {
    needs_root!();
    let moments = Moments::new();
    let (_folder, job, dir) = chain(6);
    let images = watched::images(&dir);
    // One after the other, to lengths that are near the ends, and anything.
    for image in images.iter().skip(1).rev().take(4) {
        let len = fs::metadata(image).unwrap().len();
        truncate(image, [0, 1, len - 1, moments.below(len)][moments.below(4) as usize]);
        is_brought_back(&job, &dir, image);
    }
}

#[test]
fn a_bit_of_the_newest_image_is_flipped() {
    needs_root!();
    let moments = Moments::new();
    let (_folder, job, dir) = chain(6);
    for image in watched::images(&dir).iter().skip(1).rev().take(4) {
        flip_a_bit(image, &moments);
        is_brought_back(&job, &dir, image);
    }
}

/// What builds on a damaged image is of no use either.
#[test]
fn a_bit_in_the_middle_of_the_chain_is_flipped() {
    needs_root!();
    let moments = Moments::new();
    let (_folder, job, dir) = chain(6);
    let images = watched::images(&dir);
    let damaged = &images[2 + moments.below(2) as usize];
    flip_a_bit(damaged, &moments);
    is_brought_back(&job, &dir, damaged);
}

/// Without the first nothing is left; that is told, and nothing is made.
#[test]
fn the_full_image_is_damaged() {
    needs_root!();
    let (moments, (_folder, job, dir)) = (Moments::new(), chain(3));
    let full = &watched::images(&dir)[0];
    flip_a_bit(full, &moments);
    let said = ckpt::try_restart(&dir, &["--detach"]).failure();
    assert!(said.contains(full.file_name().unwrap().to_str().unwrap()), "{said}");
    assert!(!process::is_alive(job.pid()), "a process was made");
}

/// Somebody removes an image of the chain, or damages it, while the watch goes on: later increments would be worth nothing, so the next image is whole.
#[test]
fn an_image_is_lost_under_the_watch() {
    needs_root!();
    let (folder, mut job) = start("512");
    let dir = folder.path().join("images");
    // So long that none is being made just after one.
    let mut watch = Watch::start(&job, &dir, "500ms", &[]);
    for (damage, older) in [(true, 0), (false, 0), (true, 1), (false, 2)] {
        let before = watch.wait_for(watch.checkpoints().len() + 1 + older).len();
        // No further image meanwhile.
        watch.ckpt().signal(Signal::SIGSTOP);
        watch.ckpt().wait_until_stopped();
        let images = watched::images(&dir);
        let lost = &images[images.len() - 1 - older];
        if damage {
            truncate(lost, 2000)
        } else {
            fs::remove_file(lost).unwrap()
        }
        watch.ckpt().signal(Signal::SIGCONT);
        let number = lost.file_stem().unwrap().to_str().unwrap().trim_start_matches('0');
        watch.wait_until_it_says(&[&format!("image {number} ("), "not in the folder any more", "the next one is whole"]);
        watch.wait_for(before + 1);
    }
    let made = watch.kill();
    job.kill();
    assert!(made.iter().filter(|point| point["parent_id"].is_null()).count() >= 5, "{made:?}");
    let job = ckpt::restart(&job, &dir, &[]);
    laps::finish(job);
}
