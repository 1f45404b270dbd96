//! Files that the job writes. A job goes on after a checkpoint, so at a restart they are newer than its memory; a log must not hold lines
//! twice, a database must not be half from the future.
//!
//! At a cut every regular file that the job could write to, through a descriptor or a shared mapping, is recorded ([`collect`]), and, if that is
//! wanted, its contents go into the page streams, and with them what lies beside it and belongs to it ([`closed`]). At a restart all files are compared with what was recorded ([`restore`]) before any of them
//! is changed; the changes themselves ([`rollback`]) are made last of all, when the process is complete and only has to be let go, and they
//! are undone if that fails.

mod applied;
mod closed;
mod collect;
mod copy;
mod evidence;
mod judge;
mod posix_memory;
mod restore;
mod rollback;
mod siblings;
mod stamp;

pub use applied::{Applied, Worth};
pub use collect::{Written, collect};
pub use restore::prepare;
pub use rollback::Rollback;
pub use stamp::Stamp;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::named_file::NamedFile;
use evidence::Evidence;

/// The kind of the object.
pub const KIND: &str = "written-file";

/// What is recorded of a file that the job could write to. It is one object, however many openings and mappings there are.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct WrittenFile {
    /// Name, size, time, identity.
    pub file: NamedFile,
    /// Every opening for writing stood at its end, or appends, and no mapping can write to it: what the job went on to write through them came
    /// after what was there.
    pub appended: bool,
    /// What it held, if its contents are not saved and it could be read.
    pub evidence: Option<Evidence>,
    /// Are its contents in the page streams, as pages of this object?
    pub saved: Saved,
    /// If they are: the names of the files beside it that belong to it.
    pub siblings: Vec<ByteBuf>,
    /// The path of the file that it belongs to, if nobody had it open and it was only recorded because it lay beside that one; else nothing.
    #[serde(with = "serde_bytes")]
    pub of: Vec<u8>,
}

impl WrittenFile {
    /// The file that it was recorded for, if that is another one.
    fn of(&self) -> Option<&Path> {
        (!self.of.is_empty()).then(|| Path::new(OsStr::from_bytes(&self.of)))
    }
}

/// Are the contents of a file saved, and why?
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Saved {
    /// They are not.
    #[default]
    No,
    /// It is mapped to be written and small: a part of the job's memory.
    Mapped,
    /// The user asked for it (`--save-files`).
    Asked,
    /// It is POSIX shared memory (shm_open(3), sem_open(3)): not a file but memory that has a name. It comes back as it was, whatever has become of
    /// it.
    Memory,
}
