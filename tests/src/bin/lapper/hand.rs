//! The ways to write a page.

use std::fs::{self, File, OpenOptions};
use std::io::{self, PipeReader, PipeWriter, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;

use ckpt_tests::sys::memory::{PAGE, Region};
use ckpt_tests::sys::uring::{self, Buffer};
use ckpt_tests::sys::writes;

use crate::plan::{BLOCKS, Held, Way};
use crate::writer::Writer;

/// The name of the file in the working directory.
const FILE: &str = "blocks";

/// What a thread writes with.
#[derive(Debug)]
pub struct Hand {
    pipe: (PipeReader, PipeWriter),
    blocks: Option<File>,
    writer: Option<Writer>,
    bytes: Box<[u8; PAGE]>,
}

impl Hand {
    /// With the file of [`open_blocks`] and another process, if they are needed.
    pub fn new(blocks: Option<File>, writer: Option<Writer>) -> io::Result<Hand> {
        Ok(Hand { pipe: io::pipe()?, blocks, writer, bytes: Box::new([0; PAGE]) })
    }

    /// Has the page hold what it must.
    pub fn write(&mut self, page: Region, way: Way, held: Held) -> io::Result<()> {
        held.put(&mut self.bytes);
        if let (Way::Outside, Some(writer)) = (way, &mut self.writer) {
            return writer.write(page, &self.bytes);
        }
        match (way, held, &self.blocks) {
            (Way::Direct, Held::Block(block), Some(file)) => writes::pread_into(page, file.as_fd(), block * PAGE),
            (Way::Read, ..) => {
                // A pipe has room for several pages.
                self.pipe.1.write_all(&self.bytes[..])?;
                writes::read_into(page, self.pipe.0.as_fd())
            }
            (Way::Uring, ..) => {
                self.pipe.1.write_all(&self.bytes[..])?;
                let buffer = if self.bytes[0].is_multiple_of(2) { Buffer::Registered } else { Buffer::Address };
                uring::read_into(page, self.pipe.0.as_fd(), buffer)
            }
            (Way::Writev, ..) => writes::write_into(std::process::id() as i32, page, &self.bytes[..]),
            _ => {
                page.put(&self.bytes[..]);
                Ok(())
            }
        }
    }

    /// Compares every byte of the page.
    pub fn check(&mut self, page: Region, held: Held) -> Result<(), String> {
        held.put(&mut self.bytes);
        let found = page.bytes();
        if *found == self.bytes[..] {
            return Ok(());
        }
        let differs = (0..PAGE).filter(|&n| found[n] != self.bytes[n]);
        let (first, count) = (differs.clone().next().unwrap_or_default(), differs.count());
        let blank = if found.iter().all(|byte| *byte == 0) { "; it is all zeros" } else { "" };
        Err(format!(
            "at {:#x} (offset {first:#x}) {:#04x} was expected and {:#04x} found, {count} bytes differ{blank}; expected: {held:?}",
            page.start + first,
            self.bytes[first],
            found[first]
        ))
    }
}

/// Makes the file of `direct` and opens it. The error says why this cannot be had here.
pub fn open_blocks() -> io::Result<File> {
    let mut all = vec![0; BLOCKS * PAGE];
    for (n, block) in all.as_chunks_mut::<PAGE>().0.iter_mut().enumerate() {
        Held::Block(n).put(block);
    }
    fs::write(FILE, all)?;
    let file = OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(FILE)?;
    // Some file systems only refuse to read.
    let page = Region::anonymous(PAGE)?;
    writes::pread_into(page, file.as_fd(), 0)?;
    page.unmap()?;
    Ok(file)
}
