//! A small file system of its own, in memory, for tests that fill one up.

use std::path::Path;
use std::process::Command;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tempfile::TempDir;

/// A mounted tmpfs. It is unmounted when this is dropped.
#[derive(Debug)]
pub struct ScratchDisk(TempDir);

impl ScratchDisk {
    /// With room for so many bytes. Root only; the error says why it cannot be had.
    pub fn new(bytes: u64) -> Result<ScratchDisk, String> {
        let folder = tempfile::tempdir().expect("no temporary folder");
        let options = format!("size={bytes}");
        let mounted = mount(Some("tmpfs"), folder.path(), Some("tmpfs"), MsFlags::empty(), Some(options.as_str()));
        mounted.map_err(|error| format!("cannot mount a file system: {error}"))?;
        Ok(ScratchDisk(folder))
    }

    /// An XFS of 512 MiB in a file, whose files can share blocks. Root only, with mkfs.xfs; the error says why it cannot be had.
    pub fn with_shared_blocks(file: &Path) -> Result<ScratchDisk, String> {
        let folder = tempfile::tempdir().expect("no temporary folder");
        let image = std::fs::File::create(file).and_then(|image| image.set_len(512 << 20));
        image.map_err(|error| format!("cannot make a file system: {error}"))?;
        let run = |command: &mut Command| match command.output() {
            Ok(output) if output.status.success() => Ok(()),
            Ok(output) => Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim())),
            Err(error) => Err(format!("{command:?}: {error}")),
        };
        run(Command::new("mkfs.xfs").arg("-q").arg(file))?;
        run(Command::new("mount").args(["-o", "loop"]).arg(file).arg(folder.path()))?;
        Ok(ScratchDisk(folder))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for ScratchDisk {
    fn drop(&mut self) {
        if let Err(error) = umount2(self.0.path(), MntFlags::MNT_DETACH) {
            println!("cannot unmount {}: {error}", self.0.path().display());
        }
    }
}
