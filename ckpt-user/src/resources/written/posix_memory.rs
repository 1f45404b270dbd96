//! POSIX shared memory: files of the tmpfs at /dev/shm, where shm_open(3) and sem_open(3) make them.

use std::os::fd::AsFd;
use std::path::Path;

use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};

/// Is a file that was opened at `path` memory that processes share by that name?
pub fn is_memory(path: &Path, file: impl AsFd) -> bool {
    path.starts_with("/dev/shm") && fstatfs(file).is_ok_and(|fs| fs.filesystem_type() == TMPFS_MAGIC)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_at_its_place_and_in_memory() {
        let folder = Path::new("/dev/shm");
        let memory = tempfile::tempfile_in(folder).unwrap();
        let on_disk = tempfile::tempfile_in(std::env::current_exe().unwrap().parent().unwrap()).unwrap();
        assert!(is_memory(&folder.join("x"), &memory));
        assert!(!is_memory(Path::new("/tmp/x"), &memory));
        assert!(!is_memory(&folder.join("x"), &on_disk));
        assert!(!is_memory(Path::new("/dev/shmx/x"), &memory));
    }
}
