//! Which file systems hold no files but views of the kernel, whose size and times mean nothing.

use std::os::fd::AsFd;

use nix::sys::statfs::{FsType, PROC_SUPER_MAGIC, fstatfs};

/// PROC_SUPER_MAGIC, SYSFS_MAGIC, CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC, DEBUGFS_MAGIC, TRACEFS_MAGIC, SECURITYFS_MAGIC,
/// BPF_FS_MAGIC (linux/magic.h).
const PSEUDO: &[i64] = &[0x9fa0, 0x6265_6572, 0x27_e0eb, 0x6367_7270, 0x6462_6720, 0x7472_6163, 0x7363_6673, 0xcafe_4a11];

/// Is the file on a mount of proc(5)?
pub fn is_proc(fd: impl AsFd) -> bool {
    fstatfs(fd).is_ok_and(|stat| stat.filesystem_type() == PROC_SUPER_MAGIC)
}

/// Is the file on such a file system?
pub fn is_pseudo(fd: impl AsFd) -> bool {
    fstatfs(fd).is_ok_and(|stat| PSEUDO.iter().any(|&magic| stat.filesystem_type() == FsType(magic)))
}
