//! Where the diagnostics of the library go: warnings to standard error (CKPT_LOG chooses otherwise), and everything to the file of
//! `--log` (SEED S8).

use std::env;
use std::fs::File;
use std::io::{self, IsTerminal};
use std::path::Path;
use std::sync::Mutex;

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::{EnvFilter, FilterExt, Targets, filter_fn};
use tracing_subscriber::layer::{Layer, SubscriberExt};
use tracing_subscriber::util::SubscriberInitExt;

use super::Failure;

/// The target of messages that stand on standard error already.
pub const REPORTED: &str = "ckpt::reported";

/// Starts logging.
pub fn start(file: Option<&Path>) -> Result<(), Failure> {
    let chosen = env::var("CKPT_LOG").unwrap_or_else(|_| "warn".to_owned());
    let filter = EnvFilter::try_new(&chosen).map_err(|error| Failure::Usage(format!("CKPT_LOG={chosen}: {error}")))?;
    let to_terminal = tracing_subscriber::fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .without_time()
        .with_target(false)
        .with_filter(filter.and(filter_fn(|metadata| metadata.target() != REPORTED)));
    let to_file = match file {
        None => None,
        Some(path) => {
            let file = File::options().create(true).append(true).open(path);
            let file = file.map_err(|error| Failure::file(format!("cannot open the log {}", path.display()), error))?;
            let everything = Targets::new().with_target("ckpt", LevelFilter::DEBUG);
            Some(tracing_subscriber::fmt::layer().with_writer(Mutex::new(file)).with_ansi(false).with_filter(everything))
        }
    };
    tracing_subscriber::registry().with(to_terminal).with(to_file).init();
    Ok(())
}
