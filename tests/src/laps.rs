//! The tests' side of `lapper`: starting it, and having it verify every page that it has.

use std::path::Path;
use std::process::Command;

use nix::sys::signal::Signal;

use crate::job::Job;
use crate::skip;

/// Calls the macro `$then` with what follows, and then, each with a comma, the name and the words of `lapper` for each way in which memory is
/// written, moved, dropped and made anew. There are some whose laps take longer than the time between two checkpoints, and some with many laps in that.
#[macro_export]
macro_rules! modes {
    ($then:ident! $($more:tt)*) => {
        $crate::$then! { $($more)*
            stores "512 store",
            slow_stores "512 store slow",
            reads "512 read",
            slow_reads "512 read slow",
            direct_reads "256 direct",
            seldom_direct_reads "256 direct seldom",
            slow_direct_reads "256 direct slow",
            writes_of_others "512 vmwritev store",
            slow_writes_of_others "512 vmwritev slow",
            seldom_writes_of_others "512 vmwritev outside seldom",
            writes_of_another_process "512 outside store",
            slow_writes_of_another_process "512 outside slow",
            dropped_pages "512 dontneed",
            slowly_dropped_pages "512 dontneed slow",
            paged_out "2048 pageout mremap dontneed",
            moving_memory "512 mremap",
            slowly_moving_memory "512 mremap slow",
            memory_mapped_anew "512 remap",
            memory_slowly_mapped_anew "512 remap slow",
            a_heap "512 brk dontneed",
            a_slow_heap "512 brk slow",
            huge_pages "2048 huge",
            dropped_huge_pages "2048 huge dontneed mremap",
            reserved_huge_pages "2048 hugetlb",
            moving_reserved_huge_pages "2048 hugetlb mremap remap read store",
            shared_memory "512 shared",
            slow_shared_memory "512 shared dontneed remap slow",
            threads "512 threads 3 store read",
            slow_threads "512 threads 3 mremap remap dontneed slow",
            everything_at_once "1024 threads 4 store read direct vmwritev mremap remap dontneed brk huge",
        }
    };
}

/// A test for each mode of `lapper`, which calls `$run` with its words.
#[macro_export]
macro_rules! each_mode {
    ($run:ident) => {
        $crate::modes! { each_mode! $run: }
    };
    ($run:ident: $($name:ident $words:literal,)*) => {
        $(
            #[test]
            fn $name() {
                ckpt_tests::needs_root!();
                $run($words);
            }
        )*
    };
}

/// Pairs of names and words.
#[macro_export]
macro_rules! mode_list {
    ($($name:ident $words:literal,)*) => {
        &[$((stringify!($name), $words)),*]
    };
}

/// The modes by name.
pub const MODES: &[(&str, &str)] = modes! { mode_list! };

/// Starts `program`, which is `lapper`, with these words (parted by spaces), in `folder`, and waits until its first lap. What this
/// machine does not have is noted as skipped.
pub fn start(folder: &Path, program: &str, words: &str) -> Job {
    let mut command = Command::new(program);
    let job = Job::start(folder, command.args(words.split(' ')).current_dir(folder));
    job.wait_for_line("ready");
    for why in job.output().lines().filter_map(|line| line.strip_prefix("absent ")) {
        skip::note("lapper", why);
    }
    job
}

/// The lap that it has finished last.
pub fn lap(job: &Job) -> u64 {
    numbers(&job.output(), "lap ").last().copied().unwrap_or(0)
}

/// Has it execute itself, and waits until the new program has begun.
pub fn succeed(job: &Job) {
    let begun = |output: &str| output.lines().filter(|line| *line == "ready").count();
    let before = begun(&job.output());
    job.signal(Signal::SIGUSR2);
    job.wait_for("a new program", |output| begun(output) > before);
}

/// Has it verify every page, in a lap that begins after now. No lap may be missing from its output, and none be there twice: its memory and
/// its files are of the same moment.
pub fn verify(job: &Job) {
    verify_pages(job);
    let laps = numbers(&job.output(), "lap ");
    if let Some(wrong) = laps.windows(2).find(|two| two[0] + 1 != two[1]) {
        panic!("lap {} follows on lap {}", wrong[1], wrong[0]);
    }
}

fn verify_pages(job: &Job) {
    let output = job.output();
    let begun = numbers(&output, "lap ").last().map_or(1, |lap| lap + 1);
    let mut answers = numbers(&output, "verified ").len();
    loop {
        job.signal(Signal::SIGUSR1);
        let output = job.wait_for("a verified lap", |output| numbers(output, "verified ").len() > answers);
        let verified = numbers(&output, "verified ");
        if verified.last().is_some_and(|lap| *lap > begun) {
            return;
        }
        // That was the lap in which the signal came, or a promise from before an image was made.
        answers = verified.len();
    }
}

/// The numbers in all whole lines that begin so.
fn numbers(output: &str, beginning: &str) -> Vec<u64> {
    let whole = output.rfind('\n').map_or("", |end| &output[..end]);
    whole.lines().filter_map(|line| line.strip_prefix(beginning)?.parse().ok()).collect()
}

/// Has it verify once more, and end.
pub fn finish(mut job: Job) {
    verify(&job);
    job.signal(Signal::SIGTERM);
    let output = job.succeed();
    assert_eq!(output.lines().last(), Some("good"));
}
