//! eventfd(2): a counter.

use std::os::fd::OwnedFd;

use nix::sys::eventfd::{EfdFlags, EventFd};
use serde::{Deserialize, Serialize};

use super::file::{Descriptor, FileKind, OpenFile};
use super::{Collector, Restorer};
use crate::error::{Doing, Error, Result};

/// See the module.
#[derive(Debug)]
pub struct Eventfd;

/// The state of an eventfd.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EventfdRecord {
    /// The counter.
    pub count: u64,
    /// EFD_SEMAPHORE: a read takes 1, not all.
    pub semaphore: bool,
}

impl FileKind for Eventfd {
    const KIND: &'static str = "eventfd";
    type Record = EventfdRecord;

    fn matches(d: &Descriptor<'_>) -> bool {
        d.link == "anon_inode:[eventfd]"
    }

    fn collect(_cx: &mut Collector<'_>, d: &Descriptor<'_>) -> Result<EventfdRecord> {
        let count = d.info.get("eventfd-count").and_then(|hex| u64::from_str_radix(hex, 16).ok());
        let count =
            count.ok_or_else(|| Error::Unexpected(format!("no count in the fdinfo of eventfd {} of pid {}", d.fd, d.pid)))?;
        let semaphore = d.info.get("eventfd-semaphore");
        if semaphore.is_none() {
            tracing::warn!(
                "this kernel (older than 6.5) does not tell whether eventfd {} of pid {} is a semaphore; it is saved as a plain counter",
                d.fd,
                d.pid
            );
        }
        Ok(EventfdRecord { count, semaphore: semaphore == Some("1") })
    }

    fn restore(_cx: &mut Restorer<'_>, _common: &OpenFile, record: &EventfdRecord) -> Result<OwnedFd> {
        let doing = || format!("cannot make an eventfd with the count {}", record.count);
        let mut flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
        flags.set(EfdFlags::EFD_SEMAPHORE, record.semaphore);
        let eventfd = EventFd::from_value_and_flags(0, flags).doing(doing)?;
        eventfd.write(record.count).doing(doing)?;
        Ok(eventfd.into())
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use nix::errno::Errno;
    use nix::unistd::{read, write};

    use super::super::fd_trial::{again, flags};
    use super::*;

    #[test]
    fn counts_come_back() {
        for count in [0, 1, 7, u64::from(u32::MAX) + 5, u64::MAX - 1] {
            for semaphore in [false, true] {
                let mut kind = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
                kind.set(EfdFlags::EFD_SEMAPHORE, semaphore);
                let old = EventFd::from_value_and_flags(0, kind).unwrap();
                old.write(count).unwrap();
                let [new] = again([old.as_fd()]);
                assert_eq!(flags(&new), flags(&old));
                let mut value = [0; 8];
                let expected = match (count, semaphore) {
                    (0, _) => Err(Errno::EAGAIN),
                    (_, true) => Ok(1),
                    (n, false) => Ok(n),
                };
                assert_eq!(read(&new, &mut value).map(|_| u64::from_ne_bytes(value)), expected);
            }
        }
    }

    #[test]
    fn a_count_that_no_program_can_reach_is_an_error() {
        let options = super::super::restorer::RestoreOptions::default();
        let mut cx = Restorer::new(&options, Vec::new());
        let record = EventfdRecord { count: u64::MAX, semaphore: false };
        assert!(Eventfd::restore(&mut cx, &OpenFile::default(), &record).is_err());
    }

    #[test]
    fn flags_differ_per_description() {
        let old = EventFd::from_value_and_flags(3, EfdFlags::EFD_CLOEXEC).unwrap();
        let [new] = again([old.as_fd()]);
        assert_eq!(flags(&new), flags(&old), "blocking stays blocking");
        write(&new, &4u64.to_ne_bytes()).unwrap();
        let mut value = [0; 8];
        read(&new, &mut value).unwrap();
        assert_eq!(u64::from_ne_bytes(value), 7);
    }
}
