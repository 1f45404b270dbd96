//! Size and times of a file, where they tell that nothing was written to it.

use std::os::fd::AsFd;

use nix::sys::stat::FileStat;
use nix::sys::statfs::{FsType, fstatfs};

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    size: i64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// File systems that give a file a new time for every write, also through a mapping that was not written through before: those of
/// EXT4_SUPER_MAGIC, XFS_SUPER_MAGIC, BTRFS_SUPER_MAGIC and F2FS_SUPER_MAGIC (linux/magic.h). Others (tmpfs, network) do not always.
const TRUSTED: &[i64] = &[0xef53, 0x5846_5342, 0x9123_683e, 0xf2f5_2010];

/// No clock of a file system is coarser, in seconds.
const COARSEST: i64 = 2;

impl Stamp {
    /// The stamp of a file that nobody has mapped to write to it, at the time `now` (seconds since the epoch). `None`: it would tell nothing,
    /// because of the file system, or because a write in this very moment might leave the times as they are.
    pub fn of(file: impl AsFd, stat: &FileStat, now: i64) -> Option<Stamp> {
        let trusted = fstatfs(file).is_ok_and(|fs| TRUSTED.iter().any(|&magic| fs.filesystem_type() == FsType(magic)));
        let last = stat.st_mtime.max(stat.st_ctime);
        (trusted && last.checked_add(COARSEST).is_some_and(|settled| settled < now)).then_some(Stamp {
            size: stat.st_size,
            modified: (stat.st_mtime, stat.st_mtime_nsec),
            changed: (stat.st_ctime, stat.st_ctime_nsec),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use nix::sys::stat::fstat;

    use super::*;

    #[test]
    fn only_old_times_of_some_file_systems_tell_something() {
        // What is built lies on a disk, most often.
        let file = tempfile::tempfile_in(std::env::current_exe().unwrap().parent().unwrap()).unwrap();
        let stat = fstat(&file).unwrap();
        let at = |seconds: i64| Stamp::of(&file, &stat, stat.st_ctime + seconds);
        let on_disk = fstatfs(&file).unwrap().filesystem_type() == FsType(0xef53);
        assert_eq!((at(0), at(COARSEST), at(-100)), (None, None, None));
        assert_eq!(at(COARSEST + 1).is_some(), on_disk);
        assert_eq!(at(COARSEST + 1), at(COARSEST + 2));
        let memory = File::from(nix::sys::memfd::memfd_create(c"memory", nix::sys::memfd::MFdFlags::empty()).unwrap());
        assert_eq!(Stamp::of(&memory, &fstat(&memory).unwrap(), i64::MAX), None);
    }
}
