//! What waits in a pipe or FIFO: copied out without taking anything away (tee(2)), and put into a new one.
//!
//! A pipe in packet mode (O_DIRECT) keeps the boundaries of its writes, and one whose mode was changed can hold both sorts. Which
//! bytes belong together shows only in what a short read takes away, so that is tried on a copy.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, SpliceFFlags, fcntl, tee};
use nix::unistd::{pipe2, read, write};
use serde::{Deserialize, Serialize};

use crate::error::{Doing, Error, Result};
use crate::sys::queue;

/// Everything that waits in a pipe, and how much it can hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PipeQueue {
    /// F_GETPIPE_SZ, bytes.
    pub capacity: u32,
    /// In order of writing.
    pub parts: Vec<Part>,
}

/// Bytes that a pipe holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// One write in packet mode, to be read as one; else a stretch of the byte stream.
    #[serde(default)]
    pub packet: bool,
    /// The bytes.
    #[serde(with = "serde_bytes")]
    pub data: Vec<u8>,
}

/// PIPE_BUF: a packet is never longer.
const PACKET_MAX: usize = 4096;

impl PipeQueue {
    /// Copies what waits behind `reader`, an end that can be read from. `packets`: some writer is in packet mode now.
    pub fn peek(reader: BorrowedFd<'_>, packets: bool) -> Result<PipeQueue> {
        let doing = || "cannot look into a pipe".to_owned();
        let capacity = capacity(reader)?;
        let waiting = queue::readable(reader).doing(doing)?;
        if waiting == 0 {
            return Ok(PipeQueue { capacity, parts: Vec::new() });
        }
        let copy = copy(reader, capacity, waiting).doing(doing)?;
        let parts = split(copy, capacity, packets).doing(doing)?;
        Ok(PipeQueue { capacity, parts })
    }

    /// Bytes in all.
    pub fn len(&self) -> usize {
        self.parts.iter().map(|part| part.data.len()).sum()
    }

    /// Does nothing wait?
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Makes an empty pipe as large as this one was and puts everything into it. `writer` is an end that can be written to, which
    /// is left non-blocking.
    pub fn fill(&self, writer: BorrowedFd<'_>) -> Result<()> {
        if self.capacity != 0 && capacity(writer)? != self.capacity {
            let size = i32::try_from(self.capacity)
                .map_err(|_| Error::Restart(format!("a pipe cannot hold {} bytes", self.capacity)))?;
            fcntl(writer, FcntlArg::F_SETPIPE_SZ(size)).doing(|| {
                format!(
                    "cannot give a pipe its capacity of {size} bytes (/proc/sys/fs/pipe-max-size and pipe-user-pages-* limit it)"
                )
            })?;
        }
        for part in &self.parts {
            self.put(writer, part)?;
        }
        fcntl(writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).doing(|| "cannot set the flags of a pipe")?;
        Ok(())
    }

    fn put(&self, writer: BorrowedFd<'_>, part: &Part) -> Result<()> {
        let mut flags = OFlag::O_NONBLOCK;
        if part.packet {
            flags |= OFlag::O_DIRECT;
            if part.data.is_empty() || part.data.len() > PACKET_MAX {
                return Err(Error::Restart(format!("the image holds a pipe packet of {} bytes", part.data.len())));
            }
        }
        fcntl(writer, FcntlArg::F_SETFL(flags)).doing(|| "cannot set the flags of a pipe")?;
        let mut rest = &part.data[..];
        while !rest.is_empty() {
            let n = write(writer, rest)
                .doing(|| format!("cannot put {} bytes back into a pipe that holds {}", self.len(), self.capacity))?;
            rest = &rest[n..];
        }
        Ok(())
    }
}

/// F_GETPIPE_SZ, bytes.
pub fn capacity(fd: BorrowedFd<'_>) -> Result<u32> {
    let size = fcntl(fd, FcntlArg::F_GETPIPE_SZ).doing(|| "cannot ask a pipe for its capacity")?;
    Ok(size as u32)
}

/// The read end of a pipe of ours that shares the pages of everything that waits behind `reader`: `waiting` bytes.
fn copy(reader: impl AsFd, capacity: u32, waiting: usize) -> io::Result<OwnedFd> {
    let (ours, inlet) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?;
    if fcntl(&inlet, FcntlArg::F_GETPIPE_SZ)? < capacity as i32 {
        fcntl(&inlet, FcntlArg::F_SETPIPE_SZ(capacity as i32))?;
    }
    let n = tee(reader, &inlet, waiting, SpliceFFlags::SPLICE_F_NONBLOCK)?;
    if n != waiting {
        return Err(io::Error::other(format!("it was read from meanwhile: {n} bytes instead of {waiting}")));
    }
    Ok(ours)
}

/// Cuts what waits behind `rest` into packets and stretches. A read stops at the end of the first packet it meets, and takes
/// away all of a packet even if it asks for a part of it only.
fn split(rest: OwnedFd, capacity: u32, packet_mode: bool) -> io::Result<Vec<Part>> {
    let mut parts: Vec<Part> = Vec::new();
    loop {
        let waiting = queue::readable(rest.as_fd())?;
        if waiting == 0 {
            return Ok(parts);
        }
        let mut data = buffer(waiting)?;
        // What a read of so many bytes gives, and what it takes away, tried on a copy.
        let mut attempt = |asked: usize| {
            let twin = copy(&rest, capacity, waiting)?;
            let got = read(&twin, &mut data[..asked])?;
            io::Result::Ok((got, waiting - queue::readable(twin.as_fd())?))
        };
        let (run, _) = attempt(waiting)?;
        let whole = |(_, taken): (usize, usize), asked: usize| taken == asked;
        // A stretch, which may be empty, and then a packet: any read that ends inside the packet takes more than it gives.
        let (mut stretch, mut beyond) = (0, run);
        if run > 1 && whole(attempt(1)?, 1) {
            stretch = 1;
            if whole(attempt(run - 1)?, run - 1) {
                stretch = run - 1;
            }
        } else {
            beyond = 1;
        }
        while beyond - stretch > 1 {
            let middle = stretch + (beyond - stretch) / 2;
            if whole(attempt(middle)?, middle) { stretch = middle } else { beyond = middle }
        }
        // At the very end, nothing tells a packet of one byte from the last byte of a stretch but the mode of the writer.
        if run == waiting && stretch + 1 == run && !(run == 1 && packet_mode) {
            stretch = run;
        }
        read_exact(&rest, &mut data[..stretch])?;
        if stretch > 0 {
            parts.push(Part { packet: false, data: data[..stretch].to_vec() });
        }
        if run > stretch {
            read_exact(&rest, &mut data[..run - stretch])?;
            parts.push(Part { packet: true, data: data[..run - stretch].to_vec() });
        }
    }
}

fn buffer(len: usize) -> io::Result<Vec<u8>> {
    let mut data = Vec::new();
    data.try_reserve_exact(len)?;
    data.resize(len, 0);
    Ok(data)
}

fn read_exact(fd: &OwnedFd, data: &mut [u8]) -> io::Result<()> {
    let n = read(fd, data)?;
    if n == data.len() { Ok(()) } else { Err(io::Error::other(format!("{n} bytes instead of {}", data.len()))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn make(capacity: i32, writes: &[(bool, &[u8])]) -> (OwnedFd, OwnedFd) {
        let (reader, writer) = pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).unwrap();
        fcntl(&writer, FcntlArg::F_SETPIPE_SZ(capacity)).unwrap();
        for (packet, data) in writes {
            let direct = if *packet { OFlag::O_DIRECT } else { OFlag::empty() };
            fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK | direct)).unwrap();
            assert_eq!(write(&writer, data).unwrap(), data.len());
        }
        (reader, writer)
    }

    fn again(queue: &PipeQueue) -> (OwnedFd, OwnedFd) {
        let (reader, writer) = pipe2(OFlag::O_NONBLOCK | OFlag::O_CLOEXEC).unwrap();
        queue.fill(writer.as_fd()).unwrap();
        (reader, writer)
    }

    fn reads(reader: &OwnedFd) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        let mut buf = vec![0; 1 << 20];
        while let Ok(n @ 1..) = read(reader, &mut buf) {
            all.push(buf[..n].to_vec());
        }
        all
    }

    fn check(capacity: i32, writes: &[(bool, &[u8])]) {
        let (reader, _writer) = make(capacity, writes);
        let packet_mode = writes.last().is_some_and(|w| w.0);
        let queue = PipeQueue::peek(reader.as_fd(), packet_mode).unwrap();
        assert_eq!(PipeQueue::peek(reader.as_fd(), packet_mode).unwrap(), queue, "looking changes nothing");
        let (copy, _keep) = again(&queue);
        assert_eq!(queue.capacity, capacity as u32);
        assert_eq!(reads(&copy), reads(&reader), "{writes:?}");
    }

    #[test]
    fn a_stream_comes_back() {
        check(65536, &[]);
        check(4096, &[(false, b"x")]);
        let full: Vec<u8> = (0..65536u32).map(|n| n as u8).collect();
        check(65536, &[(false, &full)]);
        check(1 << 20, &[(false, &full), (false, b"more"), (false, &full)]);
        for len in [1, 2, 3, 4095, 4096, 4097] {
            check(65536, &[(false, &full[..len])]);
        }
    }

    #[test]
    fn packets_keep_their_boundaries() {
        check(65536, &[(true, b"a"), (true, b"bc"), (true, b"d"), (true, b"efg"), (true, &[7; 4096]), (true, b"h")]);
        check(65536, &[(true, b"only")]);
        check(65536, &[(true, b"1")]);
    }

    #[test]
    fn a_pipe_whose_mode_was_changed() {
        check(
            65536,
            &[(false, b"abc"), (true, b"def"), (false, b"gh"), (false, b"ij"), (true, b"k"), (true, b"lm"), (false, b"n")],
        );
        check(65536, &[(true, b"a"), (false, b"b"), (true, b"c"), (false, b"d")]);
        check(65536, &[(false, &[1; 9000]), (true, &[2; 4096]), (false, &[3; 5000]), (true, b"x")]);
    }

    #[test]
    fn hostile_records_are_errors() {
        let (_reader, writer) = pipe2(OFlag::O_CLOEXEC).unwrap();
        let part = |packet, len| Part { packet, data: vec![0; len] };
        let queue = |capacity, part| PipeQueue { capacity, parts: vec![part] };
        assert!(queue(4096, part(false, 5000)).fill(writer.as_fd()).is_err());
        assert!(queue(65536, part(true, 5000)).fill(writer.as_fd()).is_err());
        assert!(queue(65536, part(true, 0)).fill(writer.as_fd()).is_err());
        assert!(queue(u32::MAX, part(false, 1)).fill(writer.as_fd()).is_err());
    }
}
