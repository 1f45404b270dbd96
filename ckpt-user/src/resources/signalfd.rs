//! signalfd(2): which signals it takes. What it would read are the pending signals of whoever reads, so there is no more to it.

use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

use super::file::{Descriptor, FileKind, OpenFile};
use super::{Collector, Restorer};
use crate::error::{Doing, Error, Result};
use crate::sys::signalfd;

/// See the module.
#[derive(Debug)]
pub struct Signalfd;

/// The state of a signalfd.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SignalfdRecord {
    /// Bit 0 is signal 1.
    pub mask: u64,
}

impl FileKind for Signalfd {
    const KIND: &'static str = "signalfd";
    type Record = SignalfdRecord;

    fn matches(d: &Descriptor<'_>) -> bool {
        d.link == "anon_inode:[signalfd]"
    }

    fn collect(_cx: &mut Collector<'_>, d: &Descriptor<'_>) -> Result<SignalfdRecord> {
        let mask = d.info.get("sigmask").and_then(|hex| u64::from_str_radix(hex, 16).ok());
        let mask =
            mask.ok_or_else(|| Error::Unexpected(format!("no mask in the fdinfo of signalfd {} of pid {}", d.fd, d.pid)))?;
        Ok(SignalfdRecord { mask })
    }

    fn restore(_cx: &mut Restorer<'_>, _common: &OpenFile, record: &SignalfdRecord) -> Result<OwnedFd> {
        signalfd::create(record.mask).doing(|| "cannot make a signalfd")
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::super::fd_trial::{again, collect};
    use super::*;

    #[test]
    fn the_mask_comes_back() {
        for mask in [0, 1, 1 << 9, (1 << 33) | (1 << 63) | 6] {
            let old = signalfd::create(mask).unwrap();
            let [new] = again([old.as_fd()]);
            let of = |fd: &OwnedFd| collect(&[fd.as_fd()]).unwrap().record::<SignalfdRecord>(0);
            assert_eq!(of(&new), of(&old));
            assert_eq!(of(&new).mask, mask & !((1 << 8) | (1 << 18)), "but SIGKILL and SIGSTOP, which nobody can take");
        }
    }
}
