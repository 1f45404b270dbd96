//! The folder that images are written to: in memory, so that no disk is measured. And one for the jobs.

use std::path::Path;

use anyhow::{Context, Result};
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use tempfile::TempDir;

/// Folders that are removed in the end.
#[derive(Debug)]
pub struct Scratch {
    folder: TempDir,
    jobs: TempDir,
    on_tmpfs: bool,
}

impl Scratch {
    /// A folder with room for `bytes`: on /dev/shm if that is a tmpfs with so much room, else wherever temporary files go.
    pub fn with_room_for(bytes: u64) -> Result<Scratch> {
        let shm = Path::new("/dev/shm");
        let parent = if room_on_tmpfs(shm).is_some_and(|room| room >= bytes) { shm.to_owned() } else { std::env::temp_dir() };
        let on_tmpfs = room_on_tmpfs(&parent).is_some();
        let make = |parent: &Path| {
            let folder = tempfile::Builder::new().prefix("ckpt-bench-").tempdir_in(parent);
            folder.with_context(|| format!("cannot make a folder in {}", parent.display()))
        };
        Ok(Scratch { folder: make(&parent)?, jobs: make(&std::env::temp_dir())?, on_tmpfs })
    }

    /// Where the images go.
    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Where jobs have their outputs and other files. A file of theirs on /dev/shm would be shared memory, which is saved while they stand still.
    pub fn jobs(&self) -> &Path {
        self.jobs.path()
    }

    /// What a reader of the report must know of it.
    pub fn describe(&self) -> String {
        if self.on_tmpfs {
            "images and copies on tmpfs".to_owned()
        } else {
            "images and copies NOT on tmpfs, for lack of room on /dev/shm: the figures include a disk".to_owned()
        }
    }
}

/// Bytes of room, if this is a tmpfs.
fn room_on_tmpfs(path: &Path) -> Option<u64> {
    let found = statfs(path).ok().filter(|found| found.filesystem_type() == TMPFS_MAGIC)?;
    Some(found.blocks_available() * found.block_size() as u64)
}
