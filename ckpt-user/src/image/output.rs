//! Where an image goes: a stream, which takes one record after another from one thread at a time, or a regular file, which takes many
//! at once, each at its own offset. The writer is the same for both.

use std::fmt;
use std::fs::File;
use std::io::{self, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};

/// Takes the bytes of an image.
pub(super) trait Output: fmt::Debug + Send + Sync {
    /// May several threads write at once, in any order, and does whoever reads it have offsets to look things up at? If not, what is
    /// written comes in order, without gaps, from one thread at a time.
    fn seekable(&self) -> bool;

    /// Writes all of `bytes` at `offset` from the start of the image.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;

    /// Takes away whatever was written from `offset` on. Returns whether that can be done.
    fn cut_back(&self, offset: u64) -> io::Result<bool>;

    /// The image ends at `end`; there will be no more writes.
    fn finish(&self, end: u64) -> io::Result<()>;
}

/// A pipe, a socket, a buffer in memory.
pub(super) struct StreamOutput<W>(Mutex<W>);

impl<W> fmt::Debug for StreamOutput<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StreamOutput")
    }
}

impl<W: Write + Send> StreamOutput<W> {
    pub(super) fn new(out: W) -> StreamOutput<W> {
        StreamOutput(Mutex::new(out))
    }
}

impl<W: Write + Send> Output for StreamOutput<W> {
    fn seekable(&self) -> bool {
        false
    }

    fn write_at(&self, bytes: &[u8], _offset: u64) -> io::Result<()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).write_all(bytes)
    }

    fn cut_back(&self, _offset: u64) -> io::Result<bool> {
        Ok(false)
    }

    fn finish(&self, _end: u64) -> io::Result<()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).flush()
    }
}

/// A regular file, from its present offset on.
#[derive(Debug)]
pub(super) struct FileOutput<'f> {
    file: &'f File,
    start: u64,
}

impl FileOutput<'_> {
    pub(super) fn new(mut file: &File) -> io::Result<FileOutput<'_>> {
        let start = file.stream_position()?;
        Ok(FileOutput { file, start })
    }
}

impl Output for FileOutput<'_> {
    fn seekable(&self) -> bool {
        true
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.file.write_all_at(bytes, self.start + offset)
    }

    fn cut_back(&self, offset: u64) -> io::Result<bool> {
        self.file.set_len(self.start + offset)?;
        Ok(true)
    }

    /// Leaves the file's offset after the image, as writing in order would have: a shell may append to it.
    fn finish(&self, end: u64) -> io::Result<()> {
        let mut file = self.file;
        file.seek(SeekFrom::Start(self.start + end)).map(drop)
    }
}
