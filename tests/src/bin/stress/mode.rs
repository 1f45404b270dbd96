//! Ways in which a job writes: those of the tests, with more threads and more memory.

use ckpt_tests::laps::MODES;

/// Modes that are none of the tests', and their words. Many cuts of the first are refused. Of the second some are live, though all is in it. The last two have
/// so much memory, and so little of it is written in a moment, that the scan in the pause passes over the most.
const MORE: &[(&str, &str)] = &[
    ("rings", "512 uring seldom threads 2"),
    ("everything_seldom", "1024 threads 4 store read direct vmwritev outside uring remap dontneed brk huge seldom"),
    ("large", "18000 threads 8 slow store read"),
    ("large_past_the_log", "18000 threads 8 slow store read direct vmwritev outside seldom"),
];

/// See the module.
#[derive(Debug)]
pub struct Mode {
    /// Its name among the tests.
    pub name: String,
    /// What `lapper` is told.
    pub words: String,
    /// Pages of the job, in all threads.
    pub pages: u64,
}

/// The modes with these names, or all but those of the tests that pause between pages.
pub fn chosen(names: &[String], threads: usize, scale: usize) -> Result<Vec<Mode>, String> {
    let all = || MODES.iter().chain(MORE);
    if let Some(unknown) = names.iter().find(|name| all().all(|mode| mode.0 != *name)) {
        let known: Vec<&str> = all().map(|mode| mode.0).collect();
        return Err(format!("there is no mode {unknown}; there are: {}", known.join(", ")));
    }
    let wanted = |mode: &&(&str, &str)| match names {
        [] => MORE.contains(mode) || !mode.1.split(' ').any(|word| word == "slow"),
        _ => names.iter().any(|name| name == mode.0),
    };
    Ok(all().filter(wanted).map(|&(name, words)| larger(name, words, threads, scale)).collect())
}

fn larger(name: &str, words: &str, threads: usize, scale: usize) -> Mode {
    let (pages, ways) = words.split_once(' ').unwrap_or((words, ""));
    let pages = pages.parse::<usize>().map_or(0, |pages| pages * scale);
    let more = if ways.contains("threads") { String::new() } else { format!(" threads {threads}") };
    Mode { name: name.to_owned(), words: format!("{pages} {ways}{more}"), pages: pages as u64 }
}
