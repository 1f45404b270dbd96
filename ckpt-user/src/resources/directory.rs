//! Open directories, and descriptors that only stand for a path (O_PATH).

use std::os::fd::OwnedFd;

use nix::sys::stat::SFlag;

use super::file::{Descriptor, FileKind, OpenFile};
use super::named_file::{self, NamedFile};
use super::{Collector, Restorer};
use crate::error::{Doing, Result};

/// See the module.
#[derive(Debug)]
pub struct Directory;

impl FileKind for Directory {
    const KIND: &'static str = "directory";
    type Record = NamedFile;

    fn matches(d: &Descriptor<'_>) -> bool {
        let kind = SFlag::from_bits_truncate(d.stat.st_mode) & SFlag::S_IFMT;
        kind == SFlag::S_IFDIR || d.info.flags & libc::O_PATH != 0
    }

    fn collect(cx: &mut Collector<'_>, d: &Descriptor<'_>) -> Result<NamedFile> {
        let file = NamedFile { size: 0, build_id: Vec::new(), ..NamedFile::new(d.link, d.stat, d.own) };
        if !file.is_current() {
            return cx.refuse(
                d.pid,
                format!("descriptor {} ({})", d.fd, d.link.display()),
                "stands for a path that no longer leads to it",
                "let the program close it, or give it back its name",
            );
        }
        Ok(file)
    }

    fn restore(_cx: &mut Restorer<'_>, common: &OpenFile, record: &NamedFile) -> Result<OwnedFd> {
        let path = record.path();
        named_file::open(&path, common.flags).map(Into::into).doing(|| format!("cannot open {} again", path.display()))
    }
}
