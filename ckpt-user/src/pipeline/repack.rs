//! Pages that come out of one image, or of several, into another.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use super::{Background, PageSink};
use crate::error::Result;
use crate::ids::{ObjRef, PAGE_SIZE, PageRange};
use crate::image::chunk::{ChunkBuffer, MAX_RUNS, Run, RunKind};
use crate::image::{Codec, ImageWriter, codec};

/// A sink that makes chunks of what it is given. The threads that give also compress and write.
///
/// The image that comes of it is a whole one: that pages of `memories` are not there need not be said.
#[derive(Debug)]
pub struct Repack<'a> {
    writer: &'a ImageWriter<'a>,
    memories: &'a HashSet<ObjRef>,
    codec: Codec,
    background: &'a Background,
    /// As many as there are threads, once all have been here.
    spare: Mutex<Vec<ChunkBuffer>>,
    /// Runs without contents, which make chunks together: an owner at a time.
    waiting: Mutex<(ObjRef, Vec<Run>)>,
}

impl<'a> Repack<'a> {
    /// Into the image that `writer` writes, where the metadata is already.
    pub fn new(
        writer: &'a ImageWriter<'a>,
        memories: &'a HashSet<ObjRef>,
        codec: Codec,
        background: &'a Background,
    ) -> Repack<'a> {
        Repack { writer, memories, codec, background, spare: Mutex::default(), waiting: Mutex::new((ObjRef(0), Vec::new())) }
    }

    /// Writes what still waits, and ends the pages of these owners.
    pub fn finish(self, owners: &[ObjRef]) -> Result<()> {
        let (owner, runs) = self.waiting.into_inner().unwrap_or_else(PoisonError::into_inner);
        write_runs(self.writer, owner, &runs)?;
        owners.iter().try_for_each(|owner| Ok(self.writer.end_owner(*owner)?))
    }

    fn without_contents(&self, owner: ObjRef, run: Run) -> Result<()> {
        self.background.go_on()?;
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.0 != owner || waiting.1.len() == MAX_RUNS {
            write_runs(self.writer, waiting.0, &waiting.1)?;
            *waiting = (owner, Vec::with_capacity(MAX_RUNS));
        }
        waiting.1.push(run);
        Ok(())
    }

    fn spare(&self) -> std::sync::MutexGuard<'_, Vec<ChunkBuffer>> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn write_runs(writer: &ImageWriter<'_>, owner: ObjRef, runs: &[Run]) -> Result<()> {
    // A chunk of no runs would end the owner.
    if runs.is_empty() {
        return Ok(());
    }
    Ok(writer.chunk(&ChunkBuffer::for_no_data().seal(owner, Codec::Raw, runs, 0))?)
}

impl PageSink for Repack<'_> {
    fn data(&self, owner: ObjRef, ranges: &[PageRange], bytes: &[u8]) -> Result<()> {
        self.background.go_on()?;
        let spare = self.spare().pop();
        let mut buffer = spare.unwrap_or_default();
        let runs: Vec<Run> = ranges.iter().map(|&pages| Run { pages, kind: RunKind::Data }).collect();
        debug_assert_eq!(bytes.len() as u64, ranges.iter().map(|range| range.count * PAGE_SIZE).sum::<u64>());
        let packed = match self.codec {
            Codec::Lz4 => codec::pack(bytes, buffer.data()),
            Codec::Raw => None,
        };
        let (codec, len) = match packed {
            Some(len) => (Codec::Lz4, len),
            None => {
                buffer.data()[..bytes.len()].copy_from_slice(bytes);
                (Codec::Raw, bytes.len())
            }
        };
        self.background.go_on()?;
        let chunk = buffer.seal(owner, codec, &runs, len);
        self.writer.chunk(&chunk)?;
        self.spare().push(chunk.into_buffer());
        Ok(())
    }

    fn zero(&self, owner: ObjRef, pages: PageRange) -> Result<()> {
        self.without_contents(owner, Run { pages, kind: RunKind::Zero })
    }

    fn hole(&self, owner: ObjRef, pages: PageRange) -> Result<()> {
        if self.memories.contains(&owner) {
            return Ok(());
        }
        self.without_contents(owner, Run { pages, kind: RunKind::Hole })
    }
}
