//! Anonymous pipes: both ends in the cut, with what waits between them; an end that nobody holds any more; or an end whose other end
//! is outside of the cut, which is then taken from whoever runs the restart.

use std::fs::OpenOptions;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;

use nix::fcntl::OFlag;
use nix::poll::PollFlags;
use nix::unistd::pipe2;
use serde::{Deserialize, Serialize};

use super::collector::ObjectKey;
use super::external::{self, ExternalRecord};
use super::file::{Descriptor, FileKind, OpenFile};
use super::holders::{self, Holder, Holders};
use super::pipe_queue::{self, PipeQueue};
use super::{Collector, Restorer};
use crate::error::{Doing, Error, Result};
use crate::ids::ObjRef;
use crate::image::model::Section;
use crate::sys::queue;

/// See the module.
#[derive(Debug)]
pub struct Pipe;

/// One opening of a pipe. Which end it is, its access mode tells.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PipeRecord {
    /// Of the pipe with this number, an object of kind "pipe-queue".
    Inside(ObjRef),
    /// Of a pipe whose other end is outside of the cut.
    Outside(ExternalRecord),
}

/// The kind of the pipe itself, which its openings share.
const QUEUE: &str = "pipe-queue";

/// The two ends as pipe2 made them, until an opening takes them over.
struct Made {
    reader: Option<OwnedFd>,
    writer: Option<OwnedFd>,
    /// To open the pipe again through. Never used to read or write.
    keeper: OwnedFd,
}

/// Is the end at the other side of `d` neither in the cut nor gone?
pub(super) fn leads_outside(d: &Descriptor<'_>, holders: &[Holder]) -> Result<bool> {
    let (reads, writes) = (holders.iter().any(|h| h.reads()), holders.iter().any(|h| h.writes()));
    if reads && writes {
        return Ok(false);
    }
    let state = queue::poll_now(d.own).doing(|| format!("cannot poll descriptor {} of pid {}", d.fd, d.pid))?;
    // A pipe without writers is at its end (POLLHUP); one without readers is broken (POLLERR).
    Ok(if reads { !state.contains(PollFlags::POLLHUP) } else { !state.contains(PollFlags::POLLERR) })
}

/// What waits in the pipe behind `holders`. Without readers in the cut there are none at all, and what waits reaches nobody.
pub(super) fn peek(d: &Descriptor<'_>, holders: &[Holder]) -> Result<PipeQueue> {
    let Some(reader) = holders.iter().find(|h| h.reads()) else {
        let capacity = pipe_queue::capacity(d.own)?;
        return Ok(PipeQueue { capacity, parts: Vec::new() });
    };
    let packets = holders.iter().any(|h| h.writes() && h.flags & libc::O_DIRECT != 0);
    PipeQueue::peek(reader.duplicate()?.as_fd(), packets)
}

impl FileKind for Pipe {
    const KIND: &'static str = "pipe";
    type Record = PipeRecord;

    fn matches(d: &Descriptor<'_>) -> bool {
        d.link.as_bytes().starts_with(b"pipe:[") && d.info.flags & libc::O_PATH == 0
    }

    fn collect(cx: &mut Collector<'_>, d: &Descriptor<'_>) -> Result<PipeRecord> {
        let all = Holders::of(cx)?;
        let holders = all.get(d.stat.st_dev, d.stat.st_ino);
        if leads_outside(d, holders)? {
            return Ok(PipeRecord::Outside(holders::outside(cx, d, "pipe")?));
        }
        let key = ObjectKey::Inode(QUEUE, d.stat.st_dev, d.stat.st_ino);
        Ok(PipeRecord::Inside(cx.intern(key, |_, _| Ok(Section::encode(QUEUE, &peek(d, holders)?)?))?))
    }

    fn restore(cx: &mut Restorer<'_>, common: &OpenFile, record: &PipeRecord) -> Result<OwnedFd> {
        let pipe = match record {
            PipeRecord::Inside(pipe) => *pipe,
            PipeRecord::Outside(record) => return external::restore(cx, common, record),
        };
        let made = cx.shared(pipe, |cx| make(&cx.record(pipe, QUEUE)?))?;
        // Whoever opens /proc/PID/fd/N gets O_LARGEFILE, pipe2 does not set it: the first openings are those of pipe2.
        let original = match common.flags & (libc::O_ACCMODE | O_LARGEFILE) {
            libc::O_RDONLY => made.reader.take(),
            libc::O_WRONLY => made.writer.take(),
            _ => None,
        };
        match original {
            Some(fd) => Ok(fd),
            None => reopen(&made.keeper, common),
        }
    }
}

/// The kernel's value; libc's is 0, because programs for 64 bits need not ask for it.
pub(super) const O_LARGEFILE: i32 = 0o100_000;

fn make(queue: &PipeQueue) -> Result<Made> {
    let (reader, writer) = pipe2(OFlag::O_CLOEXEC).doing(|| "cannot make a pipe")?;
    queue.fill(writer.as_fd())?;
    let keeper = reader.try_clone().doing(|| "cannot duplicate a pipe")?;
    Ok(Made { reader: Some(reader), writer: Some(writer), keeper })
}

/// Another opening of the pipe or FIFO that `keeper` leads to, with the access mode of `common`. Does not wait for another end.
pub(super) fn reopen(keeper: &OwnedFd, common: &OpenFile) -> Result<OwnedFd> {
    let mode = common.flags & libc::O_ACCMODE;
    if mode == libc::O_ACCMODE {
        return Err(Error::Restart(format!("the image holds {} opened neither to read nor to write", common.link)));
    }
    let mut options = OpenOptions::new();
    options.read(mode != libc::O_WRONLY).write(mode != libc::O_RDONLY).custom_flags(libc::O_NONBLOCK);
    let file = options.open(format!("/proc/self/fd/{}", keeper.as_raw_fd()));
    Ok(file.doing(|| format!("cannot open {} again", common.link))?.into())
}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;
    use nix::fcntl::{FcntlArg, fcntl};
    use nix::unistd::{read, write};

    use super::super::fd_trial::{again, collect, flags, wait_for};
    use super::super::restorer::RestoreOptions;
    use super::*;

    #[test]
    fn both_ends_with_contents() {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK).unwrap();
        fcntl(&writer, FcntlArg::F_SETPIPE_SZ(16384)).unwrap();
        write(&writer, b"before the cut").unwrap();
        let [new_reader, new_writer] = again([reader.as_fd(), writer.as_fd()]);
        write(&new_writer, b", after it").unwrap();
        let mut buf = [0; 100];
        let n = read(&new_reader, &mut buf).unwrap();
        assert_eq!(&buf[..n], b"before the cut, after it");
        assert_eq!(read(&new_reader, &mut buf), Err(Errno::EAGAIN));
        assert_eq!(fcntl(&new_reader, FcntlArg::F_GETPIPE_SZ), Ok(16384));
        assert_eq!((flags(&new_reader), flags(&new_writer)), (flags(&reader), flags(&writer)));
        let n = read(&reader, &mut buf).unwrap();
        assert_eq!(&buf[..n], b"before the cut", "the target was not changed");
        drop(new_writer);
        wait_for(&new_reader, PollFlags::POLLHUP);
        assert_eq!(read(&new_reader, &mut buf), Ok(0));
    }

    #[test]
    fn the_other_end_is_gone() {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC).unwrap();
        write(&writer, b"last words").unwrap();
        drop(writer);
        wait_for(&reader, PollFlags::POLLHUP);
        let [reader] = again([reader.as_fd()]);
        let mut buf = [0; 100];
        wait_for(&reader, PollFlags::POLLHUP);
        assert_eq!(read(&reader, &mut buf), Ok(10));
        assert_eq!(read(&reader, &mut buf), Ok(0));

        let (reader, writer) = pipe2(OFlag::O_CLOEXEC).unwrap();
        drop(reader);
        wait_for(&writer, PollFlags::POLLERR);
        let [writer] = again([writer.as_fd()]);
        wait_for(&writer, PollFlags::POLLERR);
        assert_eq!(write(&writer, b"x"), Err(Errno::EPIPE));
    }

    #[test]
    fn several_openings_of_each_end() {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC).unwrap();
        let open = |fd: &OwnedFd, read: bool, write: bool| -> OwnedFd {
            OpenOptions::new().read(read).write(write).open(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap().into()
        };
        let (both, second) = (open(&reader, true, true), open(&writer, false, true));
        let before = [&both, &second, &writer, &reader].map(flags);
        let [both, second, writer, reader] = again([both.as_fd(), second.as_fd(), writer.as_fd(), reader.as_fd()]);
        assert_eq!([&both, &second, &writer, &reader].map(flags), before);
        write(&second, b"1").unwrap();
        write(&both, b"2").unwrap();
        write(&writer, b"3").unwrap();
        let mut buf = [0; 100];
        assert_eq!(read(&both, &mut buf[..1]), Ok(1));
        assert_eq!(read(&reader, &mut buf[1..]), Ok(2));
        assert_eq!(&buf[..3], b"123");
        drop((both, second, writer));
        wait_for(&reader, PollFlags::POLLHUP);
    }

    #[test]
    fn the_other_end_is_outside() {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC).unwrap();
        let child = std::process::Command::new("sleep").arg("1000").stdin(reader).spawn();
        let mut child = child.unwrap();
        let cut = collect(&[writer.as_fd()]).unwrap();
        let error = cut.restore().unwrap_err().to_string();
        assert!(error.contains("--inherit-fd") && error.contains("pipe"), "{error}");
        let (reader, given) = pipe2(OFlag::O_CLOEXEC).unwrap();
        let inherit = [(writer.as_raw_fd(), given)].into();
        let [new] = <[OwnedFd; 1]>::try_from(cut.restore_with(&RestoreOptions { inherit, ..RestoreOptions::default() }).unwrap())
            .unwrap();
        write(&new, b"hello").unwrap();
        assert_eq!(read(&reader, &mut [0; 10]), Ok(5));
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn hostile_records_are_errors() {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC).unwrap();
        let mut cut = collect(&[reader.as_fd(), writer.as_fd()]).unwrap();
        let queue = cut.objects.iter_mut().find(|o| o.section.kind == QUEUE).unwrap();
        queue.section.kind = "something".to_owned();
        assert!(cut.restore().is_err());
        cut.objects.retain(|o| o.section.kind != "something");
        assert!(cut.restore().is_err());
    }
}
