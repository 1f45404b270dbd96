//! A sink that tests look into.

use std::collections::BTreeMap;
use std::sync::Mutex;

use crate::error::Result;
use crate::ids::{ObjRef, PAGE_SIZE, PageRange};
use crate::pipeline::PageSink;

/// Pages by the first byte of their contents; none may come twice.
#[derive(Default)]
pub struct Pages(Mutex<BTreeMap<(u32, u64), u8>>);

impl Pages {
    pub fn into_map(self) -> BTreeMap<(u32, u64), u8> {
        self.0.into_inner().unwrap()
    }
}

impl PageSink for Pages {
    fn data(&self, owner: ObjRef, ranges: &[PageRange], bytes: &[u8]) -> Result<()> {
        let pages = ranges.iter().flat_map(|range| range.numbers());
        for (page, contents) in pages.zip(bytes.chunks(PAGE_SIZE as usize)) {
            assert!(self.0.lock().unwrap().insert((owner.0, page), contents[0]).is_none(), "page {page} comes twice");
        }
        Ok(())
    }

    fn zero(&self, owner: ObjRef, pages: PageRange) -> Result<()> {
        pages.numbers().try_for_each(|start| self.data(owner, &[PageRange { start, count: 1 }], &filled(&[0])))
    }

    fn hole(&self, _: ObjRef, _: PageRange) -> Result<()> {
        Ok(())
    }
}

/// Pages that are full of these bytes.
pub fn filled(values: &[u8]) -> Vec<u8> {
    values.iter().flat_map(|v| [*v; PAGE_SIZE as usize]).collect()
}
