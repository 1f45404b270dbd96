//! Files of /proc (but for those of processes), /sys and their like: opened again by name, whatever their size and times say.

use std::os::fd::OwnedFd;

use super::file::{Descriptor, FileKind, OpenFile};
use super::named_file::NamedFile;
use super::{Collector, Restorer, file_system, regular};
use crate::error::{Doing, Result};

/// See the module.
#[derive(Debug)]
pub struct View;

impl FileKind for View {
    const KIND: &'static str = "view";
    type Record = NamedFile;

    fn matches(d: &Descriptor<'_>) -> bool {
        regular::is_regular(d) && file_system::is_pseudo(d.own)
    }

    fn collect(_cx: &mut Collector<'_>, d: &Descriptor<'_>) -> Result<NamedFile> {
        Ok(NamedFile::new(d.link, d.stat, d.own))
    }

    fn restore(_cx: &mut Restorer<'_>, common: &OpenFile, record: &NamedFile) -> Result<OwnedFd> {
        let path = record.path();
        let opened = super::named_file::open(&path, common.flags);
        opened.map(Into::into).doing(|| format!("cannot open {} again", path.display()))
    }
}
