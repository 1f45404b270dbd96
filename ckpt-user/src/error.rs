//! What can go wrong, said so that a person can act on it: what was being done, to whom, why it failed.

use std::io;
use std::path::PathBuf;

use crate::ids::{Pid, Tid};
use crate::image::ImageError;

/// The result of everything in this library that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation failed. The message is a whole sentence for the person who ran it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The target holds something that cannot be saved; it was not changed.
    #[error(transparent)]
    Refused(#[from] Refusal),

    /// Several reasons why the target cannot be saved, found before it was touched.
    #[error("{}", join(.0))]
    RefusedAll(Vec<Refusal>),

    /// A system call of ours, or one made inside the target, failed.
    #[error("{doing}: {source}")]
    Os {
        /// What was being done, to whom: "cannot read the mappings of pid 4242".
        doing: String,
        /// The kernel's answer.
        source: io::Error,
    },

    /// The target ended, or was killed, while it was being worked on.
    #[error("pid {0} ended while ckpt worked on it")]
    Gone(Pid),

    /// Threads that did not stop in time.
    #[error(
        "thread {tid} of pid {pid} did not stop within {seconds:.1} s (its state is '{state}'); nothing was changed, try again or raise --freeze-timeout"
    )]
    FreezeTimeout {
        /// The process.
        pid: Pid,
        /// A thread that went on running.
        tid: Tid,
        /// The letter of its state in /proc/PID/stat.
        state: char,
        /// The limit.
        seconds: f64,
    },

    /// Pages changed in a way that could not be followed while they were copied: what was copied is of no use, and the cut must be taken again with
    /// the target stopped for as long as its pages are copied.
    #[error("the pages could not be copied while the process ran: {0}")]
    Void(String),

    /// Pages may have been written before the cut that the log of write faults does not tell of: what was copied is of no use, and the cut must be taken
    /// again with a look at all of the memory.
    #[error("not all that was written was seen: {0}")]
    Unseen(String),

    /// The image cannot be read, or could not be written.
    #[error(transparent)]
    Image(#[from] ImageError),

    /// A parent of the image cannot be used.
    #[error("parent {older} of the image: {source}")]
    Parent {
        /// Which: 1 is its own parent, 2 the parent of that.
        older: usize,
        /// Why.
        source: Box<Error>,
    },

    /// An image of a folder cannot be used.
    #[error("{}: {source}", path.display())]
    InFile {
        /// Where it is.
        path: std::path::PathBuf,
        /// Why.
        source: Box<Error>,
    },

    /// The image is whole, but this machine or this caller cannot bring it back.
    #[error("cannot restart: {0}")]
    Restart(String),

    /// Files that are not as they were at the checkpoint, all of them. Nothing was changed.
    #[error("{}", join(.0))]
    FilesChanged(Vec<FileChange>),

    /// Something the kernel said makes no sense to us: never guess, always stop.
    #[error("{0}")]
    Unexpected(String),
}

/// One thing that cannot be saved: "cannot checkpoint pid 4242: descriptor 7 is an io_uring instance, which the kernel cannot
/// hand out; close it first".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot checkpoint pid {pid}: {object} {reason}; {advice}")]
pub struct Refusal {
    /// The process that holds it.
    pub pid: Pid,
    /// The object, by the name a user can find it under: "descriptor 7 (socket:[123])", "the mapping at 0x7f00...".
    pub object: String,
    /// Why it cannot be saved, as the rest of a sentence: "is an io_uring instance, which the kernel cannot hand out".
    pub reason: String,
    /// What the user can do: "close it first".
    pub advice: String,
    /// It may well be over in a moment.
    pub passing: bool,
}

/// A file that is not as it was at the checkpoint: "cannot restart: the file /var/log/job had 7 bytes at the checkpoint and has 4 now;
/// --files keep takes it as it is".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot restart: the file {} {what}; {advice}", path.display())]
pub struct FileChange {
    /// The file.
    pub path: PathBuf,
    /// What has become of it, as the rest of a sentence.
    pub what: String,
    /// What the user can do.
    pub advice: String,
}

fn join<T: ToString>(reasons: &[T]) -> String {
    let lines: Vec<String> = reasons.iter().map(ToString::to_string).collect();
    lines.join("\n")
}

impl Error {
    /// An [`Error::Os`] with the message and the kernel's answer.
    pub fn os(doing: impl Into<String>, source: impl Into<io::Error>) -> Error {
        Error::Os { doing: doing.into(), source: source.into() }
    }

    /// Is it refused for reasons that may all be over in a moment?
    pub fn is_passing(&self) -> bool {
        match self {
            Error::Refused(refusal) => refusal.passing,
            Error::RefusedAll(refusals) => refusals.iter().all(|refusal| refusal.passing),
            _ => false,
        }
    }

    /// The error number behind this error, if a system call gave one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Error::Os { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }
}

/// Says what was being done when a system call failed.
pub trait Doing<T> {
    /// Wraps the error with a sentence made only when it is needed.
    fn doing<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T>;
}

impl<T, E: Into<io::Error>> Doing<T> for std::result::Result<T, E> {
    fn doing<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|e| Error::os(what(), e))
    }
}
