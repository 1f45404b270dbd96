//! The descriptors of ckpt that a restarted job gets in the place of those that led outside.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd, RawFd};

use ckpt::ids::Pid;
use ckpt::sys::pidfd;
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::{SFlag, fstat};

use super::Failure;

/// A duplicate of our descriptor with this number.
pub fn duplicate(fd: RawFd) -> io::Result<OwnedFd> {
    pidfd::get_fd(own()?.as_fd(), fd)
}

fn own() -> io::Result<OwnedFd> {
    pidfd::open(Pid(std::process::id() as i32))
}

/// Our standard descriptors, unless they are closed.
pub fn standard() -> Result<HashMap<RawFd, OwnedFd>, Failure> {
    let mut found = HashMap::new();
    for fd in 0..=2 {
        match duplicate(fd) {
            Ok(copy) => drop(found.insert(fd, copy)),
            Err(error) if error.raw_os_error() == Some(libc::EBADF) => {}
            Err(error) => return Err(Failure::file(format!("cannot duplicate descriptor {fd}"), error)),
        }
    }
    Ok(found)
}

/// Has whatever is written to our standard output and error go to their ends, if they are files: a job that was brought back has opened them anew,
/// and our place in them is no longer its.
pub fn write_at_end() -> Result<(), Failure> {
    let (out, err) = (io::stdout(), io::stderr());
    for fd in [out.as_fd(), err.as_fd()] {
        let appended = fstat(fd).and_then(|stat| match SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits()) {
            SFlag::S_IFREG => {
                let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
                fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_APPEND)).map(drop)
            }
            _ => Ok(()),
        });
        match appended {
            // It is closed.
            Ok(()) | Err(Errno::EBADF) => {}
            Err(error) => return Err(Failure::file("cannot append to standard output and error", error)),
        }
    }
    Ok(())
}

/// The descriptors beyond the standard ones that we were started with: ours are all closed on exec.
pub fn ambient() -> Result<HashMap<RawFd, OwnedFd>, Failure> {
    let failed = |error| Failure::file("cannot list the descriptors of ckpt", error);
    let own = own().map_err(failed)?;
    let mut found = HashMap::new();
    for entry in std::fs::read_dir("/proc/self/fd").map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let Some(fd) = name.to_str().and_then(|n| n.parse::<RawFd>().ok()).filter(|&fd| fd > 2) else { continue };
        // EBADF: the listing itself, closed by now.
        if let Ok(copy) = pidfd::get_fd(own.as_fd(), fd)
            && !ckpt::sys::fcntl::closes_on_exec(fd).unwrap_or(true)
        {
            found.insert(fd, copy);
        }
    }
    Ok(found)
}
