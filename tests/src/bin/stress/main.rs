//! `cargo xtask stress`: thousands of cuts of memory that verifies itself, written at full speed in every way that `lapper` knows. Cuts follow each other
//! as fast as they can; the job is struck down at random moments and brought back from random cuts, and after each restart every page is
//! verified. Not one may be from the wrong instant.
//!
//! What fails keeps its folder, with the images and all output, and says where that is and with which seed it was. At the end there is a table.

mod huge;
mod mode;
mod report;
mod round;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use clap::Parser;

use mode::Mode;
use report::{Row, Tally};
use round::Run;

/// Cut self-verifying jobs again and again, restart them, and verify every page
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask stress --")]
struct Args {
    /// So many cuts of each mode
    #[arg(long, default_value_t = 1000)]
    cuts: u64,
    /// Only this mode (may be given more than once); else all that write at full speed
    #[arg(long, value_name = "MODE")]
    mode: Vec<String>,
    /// How changed pages are found
    #[arg(long, default_value = "auto")]
    tracker: String,
    /// Of the random numbers; they say when a job is struck down and which cuts are restarted
    #[arg(long)]
    seed: Option<u64>,
    /// End after so long, with the cuts that there are; each mode gets its share
    #[arg(long)]
    minutes: Option<f64>,
    /// Threads of each job that has not its own number of them
    #[arg(long, default_value_t = 3)]
    threads: usize,
    /// So many times the pages that the tests give a job
    #[arg(long, default_value_t = 4)]
    scale: usize,
    /// One of so many cuts is restarted
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u64).range(1..))]
    every: u64,
    /// Where the jobs and the images are
    #[arg(long, value_name = "DIR", default_value_os_t = std::env::temp_dir())]
    folder: PathBuf,
    /// Print one JSON object instead of the table
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(why) => {
            eprintln!("stress: {why}");
            ExitCode::FAILURE
        }
    }
}

/// Has every page been right?
fn run(args: &Args) -> Result<bool, String> {
    if !nix::unistd::geteuid().is_root() {
        return Err("must be run as root: other users may not restart jobs with the pids that they had".to_owned());
    }
    let modes = mode::chosen(&args.mode, args.threads, args.scale)?;
    let clock = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_nanos() as u64);
    let seed = args.seed.unwrap_or_else(clock);
    eprintln!("--seed {seed}");
    let _pages = modes.iter().any(|mode| mode.words.contains("hugetlb")).then(huge::Reserved::pages).transpose()?;
    let began = Instant::now();
    let mut rows = Vec::new();
    for (n, mode) in modes.iter().enumerate() {
        let share = args.minutes.map(|minutes| {
            let left = Duration::from_secs_f64(minutes * 60.0).saturating_sub(began.elapsed());
            left / (modes.len() - n) as u32
        });
        rows.push(one(args, mode, seed ^ (n as u64) << 40, share)?);
    }
    let good = rows.iter().all(|row| row.failure.is_none());
    if args.json {
        println!("{}", report::json(&rows, seed));
    } else {
        print!("{}", report::table(&rows));
    }
    Ok(good)
}

/// All cuts of one mode. What fails in them is a panic, as in a test, of which the message is on standard error.
fn one(args: &Args, mode: &Mode, seed: u64, share: Option<Duration>) -> Result<Row, String> {
    let folder = tempfile::Builder::new().prefix("ckpt-stress-").tempdir_in(&args.folder);
    let folder = folder.map_err(|error| format!("cannot make a folder in {}: {error}", args.folder.display()))?;
    let began = Instant::now();
    let until = share.map(|share| began + share);
    let run = Run { mode, tracker: &args.tracker, cuts: args.cuts, every: args.every, until, folder: folder.path() };
    let mut tally = Tally::default();
    let result = catch_unwind(AssertUnwindSafe(|| run.go(seed, &mut tally)));
    let failure = result.is_err().then(|| {
        let place = folder.keep();
        let last = tally.last.display();
        eprintln!(
            "stress: mode {} failed with --seed {seed}; the last restart was of {last}; all is in {}",
            mode.name,
            place.display()
        );
        place
    });
    let row = Row { mode: mode.name.clone(), words: mode.words.clone(), seconds: began.elapsed().as_secs_f64(), tally, failure };
    eprint!("{}", report::table(std::slice::from_ref(&row)));
    Ok(row)
}
