//! Regular files that have a name.

use std::os::fd::OwnedFd;

use nix::sys::stat::SFlag;

use super::file::{Descriptor, FileKind, OpenFile};
use super::named_file::NamedFile;
use super::{Collector, Restorer, file_system};
use crate::error::Result;

/// See the module.
#[derive(Debug)]
pub struct Regular;

impl FileKind for Regular {
    const KIND: &'static str = "regular";
    type Record = NamedFile;

    fn matches(d: &Descriptor<'_>) -> bool {
        is_regular(d) && d.stat.st_nlink > 0
    }

    fn collect(cx: &mut Collector<'_>, d: &Descriptor<'_>) -> Result<NamedFile> {
        let mut file = NamedFile::new(d.link, d.stat, d.own);
        if !file_system::is_pseudo(d.own) && !file.is_current() && !file.find_name_beside() {
            return cx.refuse(
                d.pid,
                format!("the file {}", d.link.display()),
                "has lost this name (another file has it now, or none), but has others, so ckpt cannot tell how to open it again",
                "give it back its name, or remove the others",
            );
        }
        if d.info.flags & libc::O_ACCMODE != libc::O_RDONLY {
            cx.written.note(d, &file)?;
        } else {
            cx.written.note_reader(d);
        }
        Ok(file)
    }

    fn restore(cx: &mut Restorer<'_>, common: &OpenFile, record: &NamedFile) -> Result<OwnedFd> {
        record.open(cx, common.flags)
    }
}

/// A regular file, opened for more than its path.
pub fn is_regular(d: &Descriptor<'_>) -> bool {
    SFlag::from_bits_truncate(d.stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFREG && d.info.flags & libc::O_PATH == 0
}
