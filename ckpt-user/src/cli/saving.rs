//! How a process is saved: what `ckpt checkpoint` and `ckpt watch` can be told alike.

use std::time::Duration;

use ckpt::checkpoint::{After, Options, Tracker};
use ckpt::image::Codec;
use ckpt::resources::collector::CollectOptions;
use ckpt::track::Kind;

/// See the module.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Saving {
    /// How the pages are compressed
    #[arg(long, value_enum, default_value = "lz4", value_name = "CODEC")]
    codec: CodecName,
    /// Save established TCP connections as closed ones, instead of refusing
    #[arg(long)]
    tcp_close: bool,
    /// Save the contents of the regular files that the process has open for writing, too
    #[arg(long)]
    save_files: bool,
    /// How changed pages are found, and whether pages are copied while the process runs
    #[arg(long, value_enum, default_value = "auto", value_name = "TRACKER")]
    tracker: Kind,
    /// How long to wait for all threads to stop; after that the process runs on, and the checkpoint has failed
    #[arg(long, value_parser = humantime::parse_duration, default_value = "10s", value_name = "DURATION")]
    freeze_timeout: Duration,
}

/// The codecs by the names of the command line.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum CodecName {
    /// LZ4: faster than most disks
    Lz4,
    /// Not at all
    Raw,
}

impl Saving {
    /// How changes are to be found, if this machine can do it.
    pub fn tracker(self) -> ckpt::Result<Tracker> {
        Tracker::choose(self.tracker)
    }

    /// The same for the library.
    pub fn options(self, after: After) -> Options {
        let codec = match self.codec {
            CodecName::Lz4 => Codec::Lz4,
            CodecName::Raw => Codec::Raw,
        };
        let collect = CollectOptions { tcp_close: self.tcp_close, save_files: self.save_files, ..CollectOptions::default() };
        Options { after, codec, freeze_timeout: self.freeze_timeout, collect }
    }
}
