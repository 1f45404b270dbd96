//! `xz -T2` in the middle of compressing a file: what it writes decompresses to the same bytes.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::process::Command;

use ckpt_tests::job::Job;
use ckpt_tests::moments::Moments;
use ckpt_tests::story;

/// 100 MB, compressible to about a half.
fn make_input(path: &Path) {
    let numbers = Moments::with_seed(11);
    let mut out = BufWriter::new(File::create(path).expect("no input file"));
    for _ in 0..100_000_000 / 32 {
        write!(out, "{:016x}{:016x}", numbers.bits(), 7).expect("cannot write the input");
    }
    out.flush().expect("cannot write the input");
}

#[test]
fn compresses_to_the_same() {
    let folder = tempfile::tempdir().expect("no temporary folder");
    let input = folder.path().join("input");
    make_input(&input);
    let start = |folder: &Path| Job::start(folder, Command::new("xz").args(["-T2", "-0", "--stdout"]).arg(&input));
    story::survives(start, |job| {
        let compressed = job.folder().join("out");
        let same = Command::new("sh").arg("-c").arg("xz -dc \"$0\" | cmp - \"$1\"").arg(&compressed).arg(&input).status();
        (same.expect("cannot decompress").success(), compressed.metadata().expect("no output").len())
    });
}
