//! Waiting for several descriptors and a point in time at once.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Instant;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::runtime::{Builder, Runtime};

/// A place to wait in.
#[derive(Debug)]
pub struct Waiting(Runtime);

impl Waiting {
    /// On the calling thread.
    pub fn new() -> io::Result<Waiting> {
        Builder::new_current_thread().enable_io().enable_time().build().map(Waiting)
    }

    /// Returns when one of two descriptors is readable, or the time has come.
    pub fn for_either(&self, one: BorrowedFd<'_>, other: BorrowedFd<'_>, until: Instant) -> io::Result<()> {
        self.0.block_on(async {
            let (one, other) = (register(one)?, register(other)?);
            tokio::select! {
                ready = one.readable() => ready.map(drop),
                ready = other.readable() => ready.map(drop),
                () = tokio::time::sleep_until(until.into()) => Ok(()),
            }
        })
    }
}

fn register(fd: BorrowedFd<'_>) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor is a duplicate that nobody else knows; its new owner keeps it open for as long as it is registered.
    unsafe { AsyncFd::register_with_interest(fd.try_clone_to_owned()?, Interest::READABLE) }.map_err(io::Error::from)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::fd::AsFd;
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_comes_first_ends_it() {
        let waiting = Waiting::new().unwrap();
        let ((a, mut to_a), (b, mut to_b)) = (io::pipe().unwrap(), io::pipe().unwrap());
        let later = Instant::now() + Duration::from_secs(1000);
        to_b.write_all(b"x").unwrap();
        waiting.for_either(a.as_fd(), b.as_fd(), later).unwrap();
        to_a.write_all(b"x").unwrap();
        waiting.for_either(a.as_fd(), a.as_fd(), later).unwrap();
        let (silent, _writer) = io::pipe().unwrap();
        waiting.for_either(silent.as_fd(), silent.as_fd(), Instant::now() + Duration::from_millis(1)).unwrap();
    }
}
