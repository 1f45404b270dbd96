//! Damaged images: `ckpt info --verify` finds and names what is wrong, and `ckpt restart` refuses and leaves no process.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use ckpt_tests::image::{self, PREAMBLE, Record};
use ckpt_tests::job::Job;
use ckpt_tests::moments::Moments;
use ckpt_tests::{ckpt, needs_root, process};
use tempfile::{TempDir, tempdir};

/// A job that was checkpointed and killed, and its image.
struct Saved {
    folder: TempDir,
    job: Job,
    bytes: Vec<u8>,
    records: Vec<Record>,
}

impl Saved {
    fn new() -> Saved {
        let folder = tempdir().unwrap();
        let mut job = Job::start(folder.path(), Command::new("sleep").arg("1000"));
        process::look(job.pid());
        let image = folder.path().join("image");
        ckpt::checkpoint_and_kill(&mut job, &image, &[]);
        let bytes = image::read(&image);
        let records = image::records(&bytes);
        Saved { folder, job, bytes, records }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("image")
    }

    /// What `info --verify` says of these bytes, with all of `words`; a restart must fail, too.
    fn is_refused(&self, bytes: &[u8], words: &[&str]) {
        let damaged = self.folder.path().join("damaged");
        fs::write(&damaged, bytes).unwrap();
        let said = ckpt::run(ckpt::command(["info", "--verify"]).arg(&damaged)).failure();
        is_about(&damaged, &said, words);
        // It may fall over something earlier than the damage itself: an object that seems to be missing, say.
        let said = ckpt::try_restart(&damaged, &[]).failure();
        assert_eq!(said.lines().count(), 1, "{said}");
        assert_eq!(process::status(self.job.pid(), "State"), None, "a process is left: {said}");
    }
}

fn is_about(image: &Path, said: &str, words: &[&str]) {
    let named = said.starts_with("ckpt: ") && said.contains(image.to_str().unwrap());
    assert!(named && said.lines().count() == 1, "it must name the image, in one sentence: {said}");
    assert!(words.iter().all(|word| said.contains(word)), "no {words:?}: {said}");
}

#[test]
fn every_kind_of_record_is_there() {
    needs_root!();
    let saved = Saved::new();
    for kind in ["header", "container", "tasks", "object", "task state", "vma", "chunk", "trailer", "index"] {
        assert!(saved.records.iter().any(|record| record.kind == kind), "no {kind}");
    }
    let summary = ckpt::run(ckpt::command(["info", "--verify", "--json"]).arg(saved.path())).success().json();
    let counted: u64 = summary["records"].as_object().unwrap().values().map(|n| n.as_u64().unwrap()).sum();
    assert_eq!(counted, saved.records.len() as u64);
    ckpt::restart(&saved.job, &saved.path(), &[]);
}

/// One bit of the payload of the first and the last record of every kind.
#[test]
fn a_bit_of_a_payload() {
    needs_root!();
    let (moments, saved) = (Moments::new(), Saved::new());
    for record in image::samples(&saved.records) {
        let mut bytes = saved.bytes.clone();
        let at = record.payload.start + moments.below(record.payload.len() as u64) as usize;
        bytes[at] ^= 1 << moments.below(8);
        let place = format!("record {} (at byte {})", record.number, record.start);
        println!("{} {place}", record.kind);
        // Restarting needs no index, and does not look at it.
        if record.kind == "index" {
            let damaged = saved.folder.path().join("damaged");
            fs::write(&damaged, &bytes).unwrap();
            let said = ckpt::run(ckpt::command(["info", "--verify"]).arg(&damaged)).failure();
            is_about(&damaged, &said, &["damaged", "checksum", &place]);
        } else {
            saved.is_refused(&bytes, &["damaged", "checksum", &place]);
        }
    }
}

/// Every bit of the frames of those records, and of the preamble.
#[test]
fn a_bit_of_a_frame() {
    needs_root!();
    let (moments, saved) = (Moments::new(), Saved::new());
    let starts = image::samples(&saved.records).into_iter().filter(|record| record.kind != "index").map(|record| record.start);
    for start in starts {
        // Type, flags, length, checksum.
        for field in [0..4, 4..8, 8..16, 16..24] {
            let at = start + field.start + moments.below(field.len() as u64) as usize;
            let mut bytes = saved.bytes.clone();
            bytes[at] ^= 1 << moments.below(8);
            println!("byte {at}");
            saved.is_refused(&bytes, &[]);
        }
    }
    for at in 0..PREAMBLE {
        let mut bytes = saved.bytes.clone();
        bytes[at] ^= 1 << moments.below(8);
        saved.is_refused(&bytes, &[]);
    }
}

#[test]
fn an_image_that_is_cut_off() {
    needs_root!();
    let (moments, saved) = (Moments::new(), Saved::new());
    let end = saved.records.iter().find(|record| record.kind == "trailer").unwrap().payload.end;
    let mut ends: Vec<usize> = image::samples(&saved.records).into_iter().map(|record| record.start).collect();
    ends.extend((0..20).map(|_| moments.below(end as u64) as usize));
    ends.extend([PREAMBLE, PREAMBLE + 7, end - 1]);
    for end in ends.into_iter().filter(|at| (PREAMBLE..end).contains(at)) {
        println!("cut off at byte {end}");
        saved.is_refused(&saved.bytes[..end], &["truncated", "record "]);
    }
}

/// Each is whole for itself.
#[test]
fn records_in_another_order() {
    needs_root!();
    let saved = Saved::new();
    let vmas: Vec<&Record> = saved.records.iter().filter(|record| record.kind == "vma").collect();
    let (a, b) = (vmas[0], vmas[1]);
    let (start, middle, end) = (a.start, b.start, b.payload.end);
    let exchanged = [&saved.bytes[..start], &saved.bytes[middle..end], &saved.bytes[start..middle], &saved.bytes[end..]].concat();
    assert_eq!(exchanged.len(), saved.bytes.len());
    saved.is_refused(&exchanged, &["damaged", "trailer"]);
    let without = [&saved.bytes[..start], &saved.bytes[middle..]].concat();
    saved.is_refused(&without, &["damaged", "trailer"]);
}

#[test]
fn no_image_at_all() {
    needs_root!();
    let saved = Saved::new();
    saved.is_refused(b"", &["image"]);
    saved.is_refused(b"CKPT", &["image"]);
    saved.is_refused(b"once upon a time there was a process\n", &["not an image"]);
    saved.is_refused(&[0; 4096], &["not an image"]);
    saved.is_refused(&fs::read(ckpt::binary()).unwrap()[..100_000], &["not an image"]);
}

#[test]
fn files_that_cannot_be_read() {
    let folder = tempdir().unwrap();
    let missing = folder.path().join("missing");
    let cases = [
        ("info", missing.as_path(), "No such file or directory"),
        ("restart", missing.as_path(), "No such file or directory"),
        ("info", folder.path(), "holds nothing that can be restarted"),
        ("restart", folder.path(), "holds no images"),
    ];
    for (command, path, word) in cases {
        let said = ckpt::run(ckpt::command([command]).arg(path)).failure();
        is_about(path, &said, &[word]);
    }
}

/// What comes through a pipe is refused as well, before its end is seen.
#[test]
fn a_damaged_stream() {
    needs_root!();
    let saved = Saved::new();
    let chunk = saved.records.iter().rfind(|record| record.kind == "chunk").unwrap();
    let mut flipped = saved.bytes.clone();
    flipped[chunk.payload.end - 1] ^= 1;
    for (bytes, word) in [(&flipped[..], "checksum"), (&saved.bytes[..chunk.start], "truncated")] {
        let damaged = saved.folder.path().join("damaged");
        fs::write(&damaged, bytes).unwrap();
        let mut cat = Command::new("cat");
        let mut cat = cat.arg(&damaged).stdout(std::process::Stdio::piped()).spawn().unwrap();
        let said = ckpt::run(ckpt::command(["restart", "-"]).stdin(cat.stdout.take().unwrap())).failure();
        cat.wait().unwrap();
        assert!(said.contains(word) && said.lines().count() == 1, "{said}");
        assert_eq!(process::status(saved.job.pid(), "State"), None, "a process is left: {said}");
    }
}
