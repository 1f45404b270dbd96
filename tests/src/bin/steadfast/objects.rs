//! Kernel objects and memory of one thread: filled before it spins, checked after it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use ckpt_tests::chain;
use ckpt_tests::sys::memory::{PAGE, Region};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::memfd::{MFdFlags, memfd_create};

/// Pages of each mapping.
const PAGES: usize = 64;
/// Bytes that are in the pipe while the thread spins.
const IN_PIPE: usize = 512;

/// See the module.
pub struct Objects {
    event: EventFd,
    reader: std::io::PipeReader,
    writer: std::io::PipeWriter,
    epoll: Epoll,
    anonymous: Region,
    private: Region,
    shared: Region,
    file: File,
    /// What each page of the mappings holds.
    seeds: Vec<u64>,
}

impl Objects {
    /// Makes them; with `fileless` no file that has a name.
    pub fn new(fileless: bool) -> std::io::Result<Objects> {
        let event = EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        let (reader, writer) = std::io::pipe()?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&event, EpollEvent::new(EpollFlags::EPOLLIN, 0x1111))?;
        epoll.add(&reader, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, 0x2222))?;
        let file = if fileless { memfd_create(c"mapped", MFdFlags::MFD_CLOEXEC)?.into() } else { file_here()? };
        file.set_len((PAGES * PAGE) as u64)?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let map = |flags| Region::map(PAGES * PAGE, protection, flags, Some((file.as_fd(), 0)));
        let (private, shared) = (map(libc::MAP_PRIVATE)?, map(libc::MAP_SHARED)?);
        let anonymous = Region::anonymous(PAGES * PAGE)?;
        let objects = Objects { event, reader, writer, epoll, anonymous, private, shared, file, seeds: vec![0; PAGES] };
        for page in 0..PAGES {
            objects.fill(page);
        }
        Ok(objects)
    }

    fn fill(&self, page: usize) {
        let seed = self.seeds[page];
        self.anonymous.page(page).fill(seed);
        self.private.page(page).fill(seed.wrapping_add(1));
        self.shared.page(page).fill(seed.wrapping_add(2));
    }

    fn check(&self, page: usize) -> Result<(), String> {
        let seed = self.seeds[page];
        let about = |what: &str, result: Result<(), String>| result.map_err(|why| format!("{what} memory: {why}"));
        about("anonymous", self.anonymous.page(page).check(seed))?;
        about("private file", self.private.page(page).check(seed.wrapping_add(1)))?;
        about("shared file", self.shared.page(page).check(seed.wrapping_add(2)))
    }

    /// Puts what `value` says into all of them.
    pub fn put(&mut self, value: u64) -> std::io::Result<()> {
        let page = value as usize % PAGES;
        self.seeds[page] = value;
        self.fill(page);
        self.event.write(value >> 1)?;
        self.writer.write_all(&bytes(value))
    }

    /// Finds and takes what [`Objects::put`] has put there.
    pub fn take(&mut self, value: u64) -> Result<(), String> {
        self.check_epoll()?;
        let count = self.event.read().map_err(|e| format!("eventfd: {e}"))?;
        if count != value >> 1 {
            return Err(format!("the eventfd holds {count:#x} instead of {:#x}", value >> 1));
        }
        let mut found = [0; IN_PIPE];
        self.reader.read_exact(&mut found).map_err(|e| format!("pipe: {e}"))?;
        if found != bytes(value) {
            return Err("the pipe holds something else".into());
        }
        // This page, and one that was written long ago.
        self.check(value as usize % PAGES)?;
        self.check((value >> 8) as usize % PAGES)
    }

    fn check_epoll(&self) -> Result<(), String> {
        let mut events = [EpollEvent::empty(); 3];
        let n = loop {
            match self.epoll.wait(&mut events, EpollTimeout::ZERO) {
                Err(nix::errno::Errno::EINTR) => {}
                other => break other.map_err(|e| format!("epoll: {e}"))?,
            }
        };
        let mut data: Vec<u64> = events[..n].iter().map(EpollEvent::data).collect();
        data.sort_unstable();
        if data == [0x1111, 0x2222] { Ok(()) } else { Err(format!("epoll tells of {data:x?} instead of both")) }
    }

    /// All of the memory, and the file behind the shared mapping.
    pub fn check_all(&self) -> Result<(), String> {
        (0..PAGES).try_for_each(|page| self.check(page))?;
        let mut in_file = vec![0; PAGE];
        for page in 0..PAGES {
            self.file.read_exact_at(&mut in_file, (page * PAGE) as u64).map_err(|e| format!("the mapped file: {e}"))?;
            let word = u64::from_le_bytes(in_file[8..16].try_into().unwrap_or_default());
            if word != chain::step(self.seeds[page].wrapping_add(2), 1) {
                return Err(format!("page {page} of the mapped file does not hold what was written to memory"));
            }
        }
        Ok(())
    }
}

fn bytes(value: u64) -> [u8; IN_PIPE] {
    let mut bytes = [0; IN_PIPE];
    for (n, word) in bytes.chunks_mut(8).enumerate() {
        word.copy_from_slice(&chain::step(value, n as u64).to_le_bytes());
    }
    bytes
}

/// A file in the working directory, which keeps its name.
fn file_here() -> std::io::Result<File> {
    let name = format!("mapped-{}", nix::unistd::gettid());
    File::options().read(true).write(true).create(true).truncate(true).open(name)
}
