//! Devices without a state: null, zero, full, random, urandom.

use std::os::fd::OwnedFd;

use nix::sys::stat::{SFlag, major, minor};
use serde::{Deserialize, Serialize};

use super::file::{Descriptor, FileKind, OpenFile};
use super::{Collector, Restorer, named_file};
use crate::error::{Doing, Error, Result};

/// See the module.
#[derive(Debug)]
pub struct Device;

/// Which device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceRecord {
    /// Major and minor number.
    pub number: (u64, u64),
    /// Its path.
    #[serde(with = "serde_bytes")]
    pub path: Vec<u8>,
}

/// The memory devices (Documentation/admin-guide/devices.txt, major 1) that hold no state.
const STATELESS: &[(u64, u64)] = &[(1, 3), (1, 5), (1, 7), (1, 8), (1, 9)];

impl FileKind for Device {
    const KIND: &'static str = "device";
    type Record = DeviceRecord;

    fn matches(d: &Descriptor<'_>) -> bool {
        let character = SFlag::from_bits_truncate(d.stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFCHR;
        character && STATELESS.contains(&(major(d.stat.st_rdev), minor(d.stat.st_rdev)))
    }

    fn collect(_cx: &mut Collector<'_>, d: &Descriptor<'_>) -> Result<DeviceRecord> {
        let path = std::os::unix::ffi::OsStrExt::as_bytes(d.link.as_os_str()).to_vec();
        Ok(DeviceRecord { number: (major(d.stat.st_rdev), minor(d.stat.st_rdev)), path })
    }

    fn restore(_cx: &mut Restorer<'_>, common: &OpenFile, record: &DeviceRecord) -> Result<OwnedFd> {
        let path =
            std::path::PathBuf::from(<std::ffi::OsString as std::os::unix::ffi::OsStringExt>::from_vec(record.path.clone()));
        let file = named_file::open(&path, common.flags).doing(|| format!("cannot open {} again", path.display()))?;
        let stat = nix::sys::stat::fstat(&file).doing(|| format!("cannot look at {}", path.display()))?;
        if (major(stat.st_rdev), minor(stat.st_rdev)) != record.number {
            return Err(Error::Restart(format!("{} is another device here", path.display())));
        }
        Ok(file.into())
    }
}
