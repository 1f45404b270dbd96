//! Locks on files, and leases.

use std::fs::{self, File};
use std::os::fd::{AsRawFd, IntoRawFd};

use ckpt_tests::checks::{Checks, said, same};
use ckpt_tests::sys::raw::{Arg, call};

use super::{Made, boxed};

/// Makes them.
pub fn add(checks: &mut Checks) {
    checks.add("posix-lock", posix());
    checks.add("open-file-lock", of_open_file());
    checks.add("flock", flock(libc::LOCK_EX, true));
    checks.add("flock-shared", flock(libc::LOCK_SH, false));
    checks.add("lease", lease());
}

fn open(name: &str) -> std::io::Result<File> {
    File::options().read(true).write(true).create(true).truncate(false).open(name)
}

fn range(kind: i32, start: i64, length: i64) -> libc::flock {
    // SAFETY: all bytes zero are a valid struct flock.
    let mut lock: libc::flock = unsafe { std::mem::zeroed() };
    (lock.l_type, lock.l_start, lock.l_len) = (kind as i16, start, length);
    lock
}

fn set(file: &File, command: i32, mut lock: libc::flock) -> std::io::Result<i64> {
    call(libc::SYS_fcntl, &[file.as_raw_fd().into(), command.into(), Arg::to(&mut lock)])
}

/// What another opening finds in its way: type, first byte, length, owner (-1: an open file).
fn in_the_way(other: &File, start: i64, length: i64) -> Result<(i16, i64, i64, i32), String> {
    let mut lock = range(libc::F_WRLCK, start, length);
    let arguments = [other.as_raw_fd().into(), libc::F_OFD_GETLK.into(), Arg::to(&mut lock)];
    said("F_OFD_GETLK", call(libc::SYS_fcntl, &arguments))?;
    Ok((lock.l_type, lock.l_start, lock.l_len, lock.l_pid))
}

/// Two ranges of one file that belong to the process. Closing any descriptor of the file would lose them, so none is.
fn posix() -> Made {
    let file = open("posix-lock")?;
    let other = open("posix-lock")?;
    set(&file, libc::F_SETLK, range(libc::F_WRLCK, 10, 20))?;
    set(&file, libc::F_SETLK, range(libc::F_RDLCK, 100, 0))?;
    let pid = std::process::id() as i32;
    boxed(move || {
        same("the first", in_the_way(&other, 0, 50)?, (libc::F_WRLCK as i16, 10, 20, pid))?;
        same("the second", in_the_way(&other, 90, 50)?, (libc::F_RDLCK as i16, 100, 0, pid))?;
        same("between", in_the_way(&other, 30, 70)?.0, libc::F_UNLCK as i16)?;
        same("the file is open", file.as_raw_fd() >= 0, true)
    })
}

fn of_open_file() -> Made {
    let file = open("open-file-lock")?;
    let other = open("open-file-lock")?;
    set(&file, libc::F_OFD_SETLK, range(libc::F_WRLCK, 5, 7))?;
    boxed(move || {
        same("the lock", in_the_way(&other, 0, 100)?, (libc::F_WRLCK as i16, 5, 7, -1))?;
        same("its own lock", in_the_way(&file, 0, 100)?.0, libc::F_UNLCK as i16)
    })
}

fn flock(kind: i32, excludes_readers: bool) -> Made {
    let name = format!("flock-{kind}");
    let (file, other) = (open(&name)?, open(&name)?);
    call(libc::SYS_flock, &[file.as_raw_fd().into(), kind.into()])?;
    boxed(move || {
        let attempt = |how: i32| call(libc::SYS_flock, &[other.as_raw_fd().into(), (how | libc::LOCK_NB).into()]).is_err();
        same("a writer is kept out", attempt(libc::LOCK_EX), true)?;
        same("a reader is kept out", attempt(libc::LOCK_SH), excludes_readers)?;
        said("unlock", call(libc::SYS_flock, &[other.as_raw_fd().into(), libc::LOCK_UN.into()]))?;
        same("the file is open", file.as_raw_fd() >= 0, true)
    })
}

fn lease() -> Made {
    fs::write("lease", "x")?;
    let file = File::open("lease")?.into_raw_fd();
    call(libc::SYS_fcntl, &[file.into(), libc::F_SETLEASE.into(), libc::F_RDLCK.into()])?;
    let kind = move || call(libc::SYS_fcntl, &[file.into(), libc::F_GETLEASE.into(), 0.into()]);
    boxed(move || same("lease", said("F_GETLEASE", kind())?, i64::from(libc::F_RDLCK)))
}
