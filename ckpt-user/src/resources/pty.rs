//! Pseudoterminals: masters (/dev/ptmx), slaves (/dev/pts/N) and /dev/tty. Those whose master is outside of the cut, as that of a job in
//! a user's terminal, are taken from whoever runs the restart.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::external::{self, ExternalRecord};
use super::file::{Descriptor, FileKind, OpenFile};
use super::pipe::O_LARGEFILE;
use super::pty_pair::{self, Made, PairRecord};
use super::terminals::{self, Part, PtyId, Terminals};
use super::{Collector, Restorer, controlling, holders};
use crate::error::{Doing, Error, Result};
use crate::ids::ObjRef;
use crate::sys::tty;

/// See the module.
#[derive(Debug)]
pub struct Pty;

/// An opening of a pseudoterminal.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PtyRecord {
    /// Of its master.
    Master(Opening),
    /// Of its slave.
    Slave(Opening),
    /// Of its slave, as /dev/tty.
    Controlling(Opening),
    /// A slave whose master is gone.
    HungUp,
    /// Its master is outside of the cut.
    Outside(ExternalRecord),
}

/// See [`PtyRecord`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Opening {
    /// The pseudoterminal, an object of kind "pty-pair".
    pub pair: ObjRef,
    /// TIOCEXCL was called through it, or another opening of the same side.
    #[serde(default)]
    pub exclusive: bool,
}

impl FileKind for Pty {
    const KIND: &'static str = "pty";
    type Record = PtyRecord;

    fn matches(d: &Descriptor<'_>) -> bool {
        Part::of(d.stat).is_some() && d.info.flags & libc::O_PATH == 0
    }

    fn collect(cx: &mut Collector<'_>, d: &Descriptor<'_>) -> Result<PtyRecord> {
        let doing = || format!("cannot look at descriptor {} ({}) of pid {}", d.fd, d.link.display(), d.pid);
        let exclusive = match tty::is_exclusive(d.own) {
            Ok(exclusive) => exclusive,
            Err(error) if error.raw_os_error() == Some(libc::EIO) => return Ok(PtyRecord::HungUp),
            Err(error) => return Err(error).doing(doing),
        };
        let terminals = Terminals::of(cx)?;
        let id = id(d).doing(doing)?;
        let Some((id, holder)) = id.and_then(|id| Some((id, terminals.master(id)?))) else {
            return Ok(PtyRecord::Outside(holders::outside(cx, d, "terminal")?));
        };
        let opening = Opening { pair: pty_pair::collect(cx, d, id, holder)?, exclusive };
        Ok(match Part::of(d.stat) {
            Some(Part::Master) => PtyRecord::Master(opening),
            Some(Part::Controlling) => PtyRecord::Controlling(opening),
            _ => PtyRecord::Slave(opening),
        })
    }

    fn restore(cx: &mut Restorer<'_>, common: &OpenFile, record: &PtyRecord) -> Result<OwnedFd> {
        let doing = || format!("cannot open {} again", common.link);
        let (PtyRecord::Master(Opening { pair, .. })
        | PtyRecord::Slave(Opening { pair, .. })
        | PtyRecord::Controlling(Opening { pair, .. })) = record
        else {
            return match record {
                PtyRecord::Outside(record) => external::restore(cx, common, record),
                _ => hung_up().doing(doing),
            };
        };
        let made = made(cx, *pair)?;
        match record {
            PtyRecord::Master(_) => made.master.try_clone().doing(doing),
            PtyRecord::Controlling(_) => controlling::open(slave(made)?, common.flags).doing(doing),
            // Not to wait for a carrier that never comes.
            _ => tty::open_slave(made.master.as_fd(), common.flags & (libc::O_ACCMODE | O_LARGEFILE) | libc::O_NONBLOCK)
                .doing(doing),
        }
    }

    fn finish(cx: &mut Restorer<'_>, fd: BorrowedFd<'_>, record: &PtyRecord) -> Result<()> {
        let (PtyRecord::Master(opening) | PtyRecord::Slave(opening) | PtyRecord::Controlling(opening)) = record else {
            return Ok(());
        };
        if opening.exclusive {
            tty::set_exclusive(fd).doing(|| "cannot make a terminal exclusive")?;
        }
        if matches!(record, PtyRecord::Master(_)) {
            cx.record::<PairRecord>(opening.pair, pty_pair::KIND)?.lock(fd)?;
        }
        Ok(())
    }
}

/// The pseudoterminal, made the first time that it is asked for.
pub fn made<'a>(cx: &'a mut Restorer<'_>, pair: ObjRef) -> Result<&'a mut Made> {
    cx.shared(pair, |cx| {
        if !cx.masters.is_told() {
            let all = cx.all::<PairRecord>(pty_pair::KIND)?;
            cx.masters.tell(all.into_iter().map(|(_, pair)| pair.number));
        }
        cx.record::<PairRecord>(pair, pty_pair::KIND)?.make(&mut cx.masters)
    })
}

/// Our own opening of its slave.
pub fn slave(made: &Made) -> Result<BorrowedFd<'_>> {
    let slave = made.slave.as_ref().map(AsFd::as_fd);
    slave.ok_or_else(|| Error::Restart("the image opens a pseudoterminal that was never opened".into()))
}

/// `None`: another kind of terminal.
fn id(d: &Descriptor<'_>) -> std::io::Result<Option<PtyId>> {
    Ok(match Part::of(d.stat) {
        Some(Part::Master) => Some((terminals::file_system_of(Path::new(d.link), d.stat.st_dev)?, tty::number(d.own)?)),
        Some(Part::Slave(number)) => Some((d.stat.st_dev, number)),
        Some(Part::Controlling) => {
            let (major, minor) = tty::device(d.own)?;
            let Some(Part::Slave(number)) = Part::of_device(major, minor) else { return Ok(None) };
            Some((terminals::file_system_of(Path::new(d.link), d.stat.st_dev)?, number))
        }
        None => None,
    })
}

/// A slave whose master is gone. Its number does not matter: it has no name any more.
fn hung_up() -> std::io::Result<OwnedFd> {
    let options = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    let master = nix::pty::posix_openpt(nix::fcntl::OFlag::from_bits_retain(options))?;
    tty::set_locked(master.as_fd(), false)?;
    tty::open_slave(master.as_fd(), libc::O_RDWR)
}
