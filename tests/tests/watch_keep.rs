//! `ckpt watch --keep N`: older points are merged into a whole image while the watch goes on. Every point that is left is brought back and
//! verifies itself, whenever ckpt was killed, and whatever the disk did.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ckpt_tests::ckpt;
use ckpt_tests::job::Job;
use ckpt_tests::laps;
use ckpt_tests::moments::Moments;
use ckpt_tests::scratch_disk::ScratchDisk;
use ckpt_tests::watched::{self, Watch};
use ckpt_tests::{needs_root, or_skip, process, program};
use serde_json::Value;
use tempfile::{TempDir, tempdir};

fn start(words: &str) -> (TempDir, Job) {
    let folder = tempdir().unwrap();
    let job = laps::start(folder.path(), program!("lapper"), words);
    (folder, job)
}

/// The images of a folder, by `ckpt info DIR --json`.
fn points(dir: &Path) -> Vec<Value> {
    let info = ckpt::run(ckpt::command(["info", "--json"]).arg(dir)).success().json();
    info["images"].as_array().unwrap().clone()
}

fn numbers(points: &[Value]) -> Vec<u64> {
    points.iter().map(|point| point["number"].as_u64().unwrap()).collect()
}

/// Brings back and verifies every point, the newest first; the job is dead before and afterwards. Its output, which going back cuts, is in the
/// end what it was.
fn every_point_is_good(job: &mut Job, dir: &Path) {
    let out = job.folder().join("out");
    let (written, modified) = (fs::read(&out).unwrap(), fs::metadata(&out).unwrap().modified().unwrap());
    for number in numbers(&points(dir)).iter().rev() {
        *job = ckpt::restart(job, dir, &["--at", &number.to_string()]);
        laps::verify(job);
        job.kill();
        let file = OpenOptions::new().write(true).truncate(true).open(&out).unwrap();
        file.write_all_at(&written, 0).and_then(|()| file.set_modified(modified)).unwrap();
    }
}

/// In the end there are exactly so many, the oldest of them merged; also an older one can be gone back to, and watched on.
#[test]
fn what_is_kept() {
    needs_root!();
    let (folder, mut job) = start("1024 slow");
    let dir = folder.path().join("images");
    let watch = Watch::start(&job, &dir, "20ms", &["--keep", "3"]);
    watch.wait_for(12);
    let made = watch.end();
    job.kill();
    let kept = points(&dir);
    let last = made.last().unwrap()["number"].as_u64().unwrap();
    assert_eq!(numbers(&kept), [last - 2, last - 1, last]);
    let kinds: Vec<&str> = kept.iter().map(|point| point["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["merged", "increment", "increment"]);
    for (point, report) in kept.iter().zip(&made[made.len() - 3..]) {
        assert_eq!(point["image_id"], report["image_id"], "a merged image keeps its id");
    }
    ckpt::run(ckpt::command(["info", "--verify"]).arg(&dir)).success();
    every_point_is_good(&mut job, &dir);

    // One that was merged away: what there is, is told.
    let said = ckpt::run(ckpt::command(["restart", "--detach", "--at", "1"]).arg(&dir)).stderr;
    assert!(said.contains(&format!("there is {} to {last}", last - 2)), "{said}");

    // By the beginning of its id. From there on there is a second future.
    let oldest = kept[0]["image_id"].as_str().unwrap();
    job = ckpt::restart(&job, &dir, &["--at", &oldest[..10]]);
    laps::verify(&job);
    let watch = Watch::start(&job, &dir, "20ms", &["--keep", "3"]);
    watch.wait_for(5);
    watch.end();
    job.kill();
    assert_eq!(points(&dir).len(), 3);
    every_point_is_good(&mut job, &dir);
}

/// One point alone: each checkpoint is merged with its child to come, or a child of it is being made at that very time.
#[test]
fn only_one_is_kept() {
    needs_root!();
    let (folder, mut job) = start("512 dontneed remap");
    let dir = folder.path().join("images");
    let watch = Watch::start(&job, &dir, "20ms", &["--keep", "1"]);
    watch.wait_for(10);
    watch.end();
    job.kill();
    let kept = points(&dir);
    assert_eq!((kept.len(), kept[0]["kind"].as_str()), (1, Some("merged")), "{kept:?}");
    every_point_is_good(&mut job, &dir);
}

/// While the watch goes on, too, there is no end of them only where nobody merges.
#[test]
fn merging_goes_on_under_the_watch() {
    needs_root!();
    let (folder, mut job) = start("256 slow");
    let dir = folder.path().join("images");
    let watch = Watch::start(&job, &dir, "20ms", &["--keep", "2"]);
    let mut count = 4;
    watch.wait_for(count);
    while dir.join("000001.ckpt").exists() {
        count += 1;
        watch.wait_for(count);
    }
    let images = watched::images(&dir).len();
    assert!(images >= 2, "{images} are left of {count}");
    watch.kill();
    job.kill();
    every_point_is_good(&mut job, &dir);
}

/// Without `--keep` nothing is removed, whatever there is.
#[test]
fn without_keep_nothing_is_removed() {
    needs_root!();
    let (folder, mut job) = start("256 slow");
    let dir = folder.path().join("images");
    for _ in 0..2 {
        let watch = Watch::start(&job, &dir, "20ms", &[]);
        watch.wait_for(3);
        watch.end();
    }
    let images = watched::images(&dir);
    assert!(images.len() >= 6 && images[0].ends_with("000001.ckpt"), "{images:?}");
    assert_eq!(images.last().unwrap(), &dir.join(format!("{:06}.ckpt", images.len())));
    let said = ckpt::run(&mut watched::command(&job, &dir, "20ms", &["--keep", "0"]));
    assert_eq!(said.status.code(), Some(2), "{}", said.stderr);
    job.kill();
}

/// ckpt is killed at any moment, also within a merge; what is left of the folder is whole, and the next watch cleans up.
#[test]
fn ckpt_is_killed_while_it_merges() {
    needs_root!();
    let moments = Moments::new();
    let (folder, mut job) = start("256 dontneed slow");
    let dir = folder.path().join("images");
    let more = ["--keep", "2"];
    for round in 0..12 {
        let watch = Watch::start(&job, &dir, "20ms", &more);
        watch.wait_for(4);
        moments.let_pass(Duration::from_millis(150), 0.0, 1.0);
        if round % 2 == 0 {
            watch.crash(&mut job, &moments);
            let all = points(&dir);
            assert!(all.iter().all(|point| point["restartable"] == true), "{all:#?}");
            every_point_is_good(&mut job, &dir);
            job = ckpt::restart(&job, &dir, &[]);
            laps::verify(&job);
        } else {
            watch.kill();
            let states = process::states(job.pid());
            assert!(!states.contains('T'), "some threads are stopped: {states}");
        }
    }
    // As a crash between two steps of a merge leaves it, on a file system without nameless files.
    fs::write(dir.join(".000001.ckpt.partial-1"), "half").unwrap();
    let watch = Watch::start(&job, &dir, "20ms", &more);
    watch.wait_for(3);
    watch.end();
    let mut names: Vec<String> =
        fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!((names.len(), names[2].as_str()), (3, "lock"), "two images and the lock: {names:?}");
    laps::verify(&job);
    job.kill();
    every_point_is_good(&mut job, &dir);
}

/// A chain that was made without `--keep`, so that the end of a watch with it has something to do.
fn chain(words: &str, count: usize) -> (TempDir, Job, PathBuf) {
    let (folder, job) = start(words);
    let dir = folder.path().join("images");
    let watch = Watch::start(&job, &dir, "20ms", &[]);
    watch.wait_for(count);
    watch.end();
    (folder, job, dir)
}

fn flip_a_bit(image: &Path) {
    let file = OpenOptions::new().read(true).write(true).open(image).unwrap();
    let at = file.metadata().unwrap().len() / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

/// An image in the middle of a merged chain is damaged, or gone: what needs it is not taken, what does not is.
#[test]
fn an_image_above_a_merged_one_is_damaged_or_gone() {
    needs_root!();
    let (folder, mut job) = start("512 slow");
    let dir = folder.path().join("images");
    let watch = Watch::start(&job, &dir, "20ms", &["--keep", "4"]);
    watch.wait_for(8);
    watch.end();
    job.kill();
    let images = watched::images(&dir);
    let [merged, one, two, newest] = images.as_slice() else { panic!("{images:?}") };
    let restart = |job: &Job| {
        let pidfile = job.folder().join("pidfile");
        let said = ckpt::run(ckpt::command(["restart", "--detach", "--pidfile"]).arg(&pidfile).arg(&dir)).success().stderr;
        let mut job = Job::adopt(job.pid(), job.folder());
        laps::verify(&job);
        job.kill();
        said
    };
    let name = |image: &Path| image.file_name().unwrap().to_str().unwrap().to_owned();
    flip_a_bit(two);
    let said = restart(&job);
    assert!(said.contains(&name(two)) && said.contains(&format!("from the older {}", one.display())), "{said}");
    fs::remove_file(one).unwrap();
    let said = restart(&job);
    assert!(said.contains(&format!("from the older {}", merged.display())), "{said}");
    flip_a_bit(merged);
    let said = ckpt::try_restart(&dir, &["--detach"]).failure();
    assert!(said.contains(&name(merged)), "{said}");
    assert!(newest.exists() && !process::is_alive(job.pid()));
}

/// What cannot be merged is told once; the job and the checkpoints go on, from a new whole image.
#[test]
fn a_damaged_image_is_not_merged() {
    needs_root!();
    let (folder, mut job) = start("512 slow");
    let dir = folder.path().join("images");
    // So many that nothing is merged yet.
    let mut watch = Watch::start(&job, &dir, "20ms", &["--keep", "30"]);
    watch.wait_for(3);
    let second = &dir.join("000002.ckpt");
    flip_a_bit(second);
    let said = watch.wait_until_it_says(&["000002.ckpt", "cannot be merged"]);
    let count = watch.checkpoints().len();
    watch.wait_for(count + 3);
    let output = watch.ckpt().output();
    assert_eq!(output.matches(said.as_str()).count(), 1, "{output}");
    watch.end();
    laps::verify(&job);
    job.kill();
    let mut job = ckpt::restart(&job, &dir, &[]);
    laps::verify(&job);
    job.kill();
}

/// There is room for increments and none for a merged image: all images stay, and when there is room they are merged.
#[test]
fn a_disk_without_room_to_merge() {
    needs_root!();
    let disk = or_skip!(ScratchDisk::new(64 << 20));
    let (folder, mut job) = start("2048 slow");
    // What ckpt says goes elsewhere.
    let dir = folder.path().join("images");
    let images_on_disk = disk.path().join("images");
    fs::create_dir(&images_on_disk).and_then(|()| symlink(&images_on_disk, &dir)).unwrap();
    let watch = Watch::start(&job, &dir, "200ms", &["--keep", "2"]);
    watch.wait_for(1);
    let whole = watched::images(&dir).iter().map(|image| fs::metadata(image).unwrap().len()).max().unwrap();
    let path = disk.path().join("ballast");
    assert!(fs::write(&path, vec![1; 96 << 20]).is_err(), "the disk is not small");
    let ballast = OpenOptions::new().write(true).open(&path).unwrap();
    ballast.set_len(ballast.metadata().unwrap().len().saturating_sub(whole * 2 / 3)).unwrap();
    watch.wait_until_it_says(&["cannot be merged", "No space left on device"]);
    laps::verify(&job);
    fs::remove_file(&path).unwrap();
    drop(ballast);
    let made = watch.checkpoints().len();
    watch.wait_for(made + 2);
    watch.end();
    job.kill();
    assert_eq!(points(&dir).len(), 2);
    every_point_is_good(&mut job, &dir);
}

/// The job ends by itself: the last merge is made all the same.
#[test]
fn the_end_of_the_job_ends_in_a_last_merge() {
    needs_root!();
    let (_folder, mut job, dir) = chain("512 slow", 5);
    let mut watch = Watch::start(&job, &dir, "20ms", &["--keep", "2"]);
    watch.wait_for(3);
    job.kill();
    watch.wait();
    let kept = points(&dir);
    assert_eq!(kept.len(), 2, "{kept:#?}");
    every_point_is_good(&mut job, &dir);
}
