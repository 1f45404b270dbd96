//! FIFOs: pipes with a name. Opened again by name; made again where they were deleted.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, chown};
use std::path::{Path, PathBuf};

use nix::poll::PollFlags;
use nix::sys::stat::{Mode, SFlag};
use nix::unistd::mkfifo;
use serde::{Deserialize, Serialize};

use super::collector::ObjectKey;
use super::external::{self, ExternalRecord};
use super::file::{Descriptor, FileKind, OpenFile};
use super::holders::{self, Holder, Holders};
use super::pipe_queue::{self, PipeQueue};
use super::{Collector, Restorer, pipe};
use crate::error::{Doing, Error, Result};
use crate::ids::ObjRef;
use crate::image::model::Section;
use crate::sys::queue;

/// See the module.
#[derive(Debug)]
pub struct Fifo;

/// One opening of a FIFO.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum FifoRecord {
    /// To be opened again.
    Named(Opening),
    /// Standard input, output or error, with the other end outside of the cut.
    Outside(ExternalRecord),
}

/// How a FIFO is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opening {
    /// The FIFO, an object of kind "fifo-queue".
    pub fifo: ObjRef,
    /// A reader that has seen a writer come and go is at the end of the file; one that has not yet seen any waits.
    #[serde(default)]
    pub hung_up: bool,
}

/// A FIFO, which its openings share.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FifoQueue {
    /// The path.
    #[serde(with = "serde_bytes")]
    pub path: Vec<u8>,
    /// It had no name any more.
    pub deleted: bool,
    /// Permissions.
    pub mode: u32,
    /// Owner and group.
    pub owner: (u32, u32),
    /// Somebody in the cut can write to it.
    pub written: bool,
    /// What waited in it. Nothing, if somebody outside holds it open: it waits there still.
    pub queue: PipeQueue,
}

const QUEUE: &str = "fifo-queue";

impl FileKind for Fifo {
    const KIND: &'static str = "fifo";
    type Record = FifoRecord;

    fn matches(d: &Descriptor<'_>) -> bool {
        let fifo = SFlag::from_bits_truncate(d.stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFIFO;
        fifo && d.link.as_bytes().starts_with(b"/") && d.info.flags & libc::O_PATH == 0
    }

    fn collect(cx: &mut Collector<'_>, d: &Descriptor<'_>) -> Result<FifoRecord> {
        let all = Holders::of(cx)?;
        let holders = all.get(d.stat.st_dev, d.stat.st_ino);
        if (0..=2).contains(&d.fd) && pipe::leads_outside(d, holders)? {
            return Ok(FifoRecord::Outside(holders::outside(cx, d, "pipe")?));
        }
        let key = ObjectKey::Inode(QUEUE, d.stat.st_dev, d.stat.st_ino);
        let fifo = cx.intern(key, |_, _| Ok(Section::encode(QUEUE, &collect_queue(d, holders)?)?))?;
        let state = queue::poll_now(d.own).doing(|| format!("cannot poll descriptor {} of pid {}", d.fd, d.pid))?;
        Ok(FifoRecord::Named(Opening { fifo, hung_up: state.contains(PollFlags::POLLHUP) }))
    }

    fn restore(cx: &mut Restorer<'_>, common: &OpenFile, record: &FifoRecord) -> Result<OwnedFd> {
        let opening = match record {
            FifoRecord::Named(opening) => opening,
            FifoRecord::Outside(record) => return external::restore(cx, common, record),
        };
        let fifo: FifoQueue = cx.record(opening.fifo, QUEUE)?;
        let made = cx.shared(opening.fifo, |_| Made::new(&fifo))?;
        let waits = common.flags & libc::O_ACCMODE == libc::O_RDONLY && !opening.hung_up;
        if waits && !fifo.written && fifo.queue.is_empty() {
            // With a writer of our own there, it would see that writer go.
            return pipe::reopen(&made.name, common);
        }
        pipe::reopen(made.keeper(&fifo)?, common)
    }
}

fn collect_queue(d: &Descriptor<'_>, holders: &[Holder]) -> Result<FifoQueue> {
    let path = d.link.as_bytes();
    let deleted = d.stat.st_nlink == 0;
    let path = if deleted { path.strip_suffix(b" (deleted)").unwrap_or(path) } else { path };
    // A reader that never saw a writer looks the same as one with a writer outside; there is nothing to save in either.
    let queue = if pipe::leads_outside(d, holders)? {
        PipeQueue { capacity: pipe_queue::capacity(d.own)?, parts: Vec::new() }
    } else {
        pipe::peek(d, holders)?
    };
    Ok(FifoQueue {
        path: path.to_vec(),
        deleted,
        mode: d.stat.st_mode & 0o7777,
        owner: (d.stat.st_uid, d.stat.st_gid),
        written: holders.iter().any(Holder::writes),
        queue,
    })
}

/// A FIFO while its openings are made.
struct Made {
    /// O_PATH: neither a reader nor a writer.
    name: OwnedFd,
    /// Both: with it, openings see each other and what waits stays.
    keeper: Option<OwnedFd>,
}

impl Made {
    fn new(fifo: &FifoQueue) -> Result<Made> {
        let path = PathBuf::from(OsString::from_vec(fifo.path.clone()));
        let name = if fifo.deleted {
            let name = make(fifo, &path).and_then(|()| open_name(&path))?;
            fs::remove_file(&path).doing(|| format!("cannot remove the FIFO {}", path.display()))?;
            name
        } else {
            if !fs::exists(&path).doing(|| format!("cannot look at {}", path.display()))? {
                make(fifo, &path)?;
            }
            open_name(&path)?
        };
        Ok(Made { name, keeper: None })
    }

    fn keeper(&mut self, fifo: &FifoQueue) -> Result<&OwnedFd> {
        if self.keeper.is_none() {
            let path = format!("/proc/self/fd/{}", self.name.as_raw_fd());
            let doing = || format!("cannot open the FIFO {}", String::from_utf8_lossy(&fifo.path));
            let file = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(path).doing(doing)?;
            // Whoever else has it open has what waits in it, too.
            if queue::readable(file.as_fd()).doing(doing)? == 0 {
                fifo.queue.fill(file.as_fd())?;
            }
            self.keeper = Some(file.into());
        }
        self.keeper.as_ref().ok_or_else(|| Error::Unexpected("a FIFO is not open".into()))
    }
}

fn make(fifo: &FifoQueue, path: &Path) -> Result<()> {
    let doing = || format!("cannot make the FIFO {} again", path.display());
    mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR).doing(doing)?;
    match chown(path, Some(fifo.owner.0), Some(fifo.owner.1)) {
        // Without the right to give it away it stays the caller's.
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {}
        other => other.doing(doing)?,
    }
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(fifo.mode & 0o7777)).doing(doing)
}

fn open_name(path: &Path) -> Result<OwnedFd> {
    let doing = || format!("cannot open the FIFO {} again", path.display());
    let file = OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(path).doing(doing)?;
    if !file.metadata().doing(doing)?.file_type().is_fifo() {
        return Err(Error::Restart(format!("{} was a FIFO at the checkpoint and is something else now", path.display())));
    }
    Ok(file.into())
}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;
    use nix::unistd::{read, write};

    use super::super::fd_trial::{again, collect, flags, wait_for};
    use super::*;

    struct Place {
        folder: tempfile::TempDir,
    }

    impl Place {
        fn new() -> Place {
            let folder = tempfile::tempdir().unwrap();
            mkfifo(&folder.path().join("fifo"), Mode::S_IRUSR | Mode::S_IWUSR | Mode::S_IRGRP).unwrap();
            Place { folder }
        }

        fn path(&self) -> PathBuf {
            self.folder.path().join("fifo")
        }

        fn open(&self, read: bool, write: bool) -> OwnedFd {
            let mut options = OpenOptions::new();
            options.read(read).write(write).custom_flags(libc::O_NONBLOCK).open(self.path()).unwrap().into()
        }
    }

    #[test]
    fn it_comes_back_by_name() {
        let place = Place::new();
        let reader = place.open(true, false);
        let writer = place.open(false, true);
        write(&writer, b"waiting").unwrap();
        let before = (flags(&reader), flags(&writer));
        let cut = collect(&[reader.as_fd(), writer.as_fd()]).unwrap();
        drop((reader, writer));
        for gone in [false, true] {
            if gone {
                fs::remove_file(place.path()).unwrap();
            }
            let [reader, writer] = <[OwnedFd; 2]>::try_from(cut.restore().unwrap()).unwrap();
            assert_eq!((flags(&reader), flags(&writer)), before);
            let mode = fs::metadata(place.path()).unwrap().permissions();
            assert_eq!(std::os::unix::fs::PermissionsExt::mode(&mode) & 0o777, 0o640);
            let mut buf = [0; 100];
            assert_eq!(read(&reader, &mut buf), Ok(7));
            write(place.open(false, true), b"by name").unwrap();
            assert_eq!(read(&reader, &mut buf), Ok(7));
            assert_eq!(&buf[..7], b"by name");
            drop(writer);
            wait_for(&reader, PollFlags::POLLHUP);
        }
        fs::remove_file(place.path()).unwrap();
        fs::write(place.path(), "").unwrap();
        assert!(cut.restore().unwrap_err().to_string().contains("something else"));
    }

    #[test]
    fn deleted_and_opened_both_ways() {
        let place = Place::new();
        let both = place.open(true, true);
        write(&both, b"abc").unwrap();
        fs::remove_file(place.path()).unwrap();
        let [again] = again([both.as_fd()]);
        assert!(!place.path().exists());
        let name = fs::read_link(format!("/proc/self/fd/{}", again.as_raw_fd())).unwrap();
        assert_eq!(name.to_str().unwrap(), format!("{} (deleted)", place.path().display()));
        assert_eq!(read(&again, &mut [0; 10]), Ok(3));
        assert_eq!(read(&again, &mut [0; 10]), Err(Errno::EAGAIN));
    }

    #[test]
    fn a_reader_that_waits_for_its_first_writer() {
        let place = Place::new();
        let reader = place.open(true, false);
        let [again] = again([reader.as_fd()]);
        assert!(!queue::poll_now(again.as_fd()).unwrap().contains(PollFlags::POLLHUP));
        drop(place.open(false, true));
        wait_for(&again, PollFlags::POLLHUP);
        wait_for(&reader, PollFlags::POLLHUP);
        let [hung_up] = super::super::fd_trial::again([reader.as_fd()]);
        wait_for(&hung_up, PollFlags::POLLHUP);
    }
}
