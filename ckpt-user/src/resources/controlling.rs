//! Controlling terminals of sessions whose pseudoterminal is in the cut. A leader takes its terminal before its descriptors are placed, through one
//! that it has inherited from ckpt; who stands in the foreground is said once all groups of the session exist.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use super::pipe::O_LARGEFILE;
use super::pty_pair::{self, PairRecord};
use super::{Restorer, pty};
use crate::error::{Doing, Error, Result};
use crate::ids::ObjRef;
use crate::sys::tty;
use crate::tracee::batch::Batch;
use crate::tracee::remote::RemoteTask;

/// Gives a leader of a session the terminal that it had, if that is in the image. It must have been made when all open files were.
pub fn acquire(cx: &mut Restorer<'_>, leader: &mut RemoteTask<'_>) -> Result<()> {
    for (objref, pair) in of_session(cx, leader)? {
        let slave = inherited(cx, objref)?;
        let doing = format!("cannot make /dev/pts/{} the controlling terminal of pid {}", pair.number, leader.pid());
        leader.call(&doing, libc::SYS_ioctl, [slave.into(), libc::TIOCSCTTY.into(), 0u64.into()])?;
    }
    Ok(())
}

/// Puts the process group in the foreground that was there. The group must exist; the descriptors of the leader must not be placed yet.
pub fn set_foreground(cx: &mut Restorer<'_>, leader: &mut RemoteTask<'_>) -> Result<()> {
    for (objref, pair) in of_session(cx, leader)? {
        let Some(group) = pair.foreground else { continue };
        let slave = inherited(cx, objref)?;
        let mut batch = Batch::new();
        let slot = batch.value(&group.0);
        let call = batch.call(libc::SYS_ioctl, [slave.into(), libc::TIOCSPGRP.into(), slot.into()]);
        let answer = leader.run(batch)?.ret(call);
        answer.doing(|| format!("cannot put process group {group} in the foreground of /dev/pts/{}", pair.number))?;
    }
    Ok(())
}

fn of_session(cx: &Restorer<'_>, leader: &RemoteTask<'_>) -> Result<Vec<(ObjRef, PairRecord)>> {
    let mut pairs = cx.all::<PairRecord>(pty_pair::KIND)?;
    pairs.retain(|(_, pair)| pair.session == Some(leader.pid()));
    if pairs.len() > 1 {
        return Err(Error::Restart(format!("the image gives session {} {} terminals", leader.pid(), pairs.len())));
    }
    Ok(pairs)
}

/// The number of our own descriptor of the slave, which is the same in a task that has inherited it.
fn inherited(cx: &mut Restorer<'_>, pair: ObjRef) -> Result<RawFd> {
    Ok(pty::slave(pty::made(cx, pair)?)?.as_raw_fd())
}

/// Opens /dev/tty as it is for a process with this controlling terminal.
pub fn open(slave: BorrowedFd<'_>, flags: i32) -> io::Result<OwnedFd> {
    let place: OwnedFd = std::fs::File::open("/dev/null")?.into();
    tty::open_as_controlling(slave, flags & (libc::O_ACCMODE | O_LARGEFILE), place.as_fd())?;
    Ok(place)
}
