//! Sockets that share a port (SO_REUSEPORT). Whoever connects comes to one of them, which the kernel chooses, or a program that was given to it.

use std::cell::RefCell;
use std::collections::HashMap;
use std::os::fd::BorrowedFd;
use std::rc::Rc;

use nix::sys::stat::fstat;

use super::Collector;
use super::file::Descriptor;
use super::socket;
use crate::error::{Doing, Result};
use crate::sys::socket as raw;
use crate::track::ebpf::has_chooser;

/// Refuses a socket if a program chooses among those that share its port: nobody is told that program.
pub fn check(cx: &Collector<'_>, d: &Descriptor<'_>) -> Result<()> {
    if raw::int_option(d.own, libc::SOL_SOCKET, libc::SO_REUSEPORT).doing(|| socket::looking(d))? == 0 {
        return Ok(());
    }
    match has_chooser(d.own) {
        Ok(false) => Ok(()),
        Ok(true) => cx.refuse(
            d.pid,
            socket::name(d),
            "shares its port with others, among which a program chooses (SO_ATTACH_REUSEPORT_CBPF or _EBPF) that nobody is told",
            "have the program detach it (SO_DETACH_REUSEPORT_BPF), or let the kernel choose",
        ),
        Err(error) => {
            tracing::info!("whether a program chooses among the sockets that share a port cannot be seen without eBPF: {error}");
            Ok(())
        }
    }
}

/// The sockets of a restart that listen, by what they share: in the order in which they have begun to, which is that in which the kernel numbers them.
#[derive(Clone, Debug, Default)]
pub struct Groups(Rc<RefCell<HashMap<Shared, Vec<u64>>>>);

/// Address and device.
type Shared = (Vec<u8>, i32);

/// What the socket shares, and its inode.
fn look(fd: BorrowedFd<'_>) -> Result<(Shared, u64)> {
    let doing = || "cannot look at a socket that listens";
    let device = raw::int_option(fd, libc::SOL_SOCKET, libc::SO_BINDTOIFINDEX).doing(doing)?;
    Ok(((raw::local_address(fd).doing(doing)?, device), fstat(fd).doing(doing)?.st_ino))
}

impl Groups {
    /// Notes one that has begun to listen.
    pub fn add(&self, fd: BorrowedFd<'_>) -> Result<()> {
        let (shared, inode) = look(fd)?;
        self.0.borrow_mut().entry(shared).or_default().push(inode);
        Ok(())
    }

    /// Does something while whoever connects to the port of `listener` comes to it, and to none of those that share it.
    pub fn choosing(&self, listener: BorrowedFd<'_>, work: impl FnOnce() -> Result<()>) -> Result<()> {
        let (shared, inode) = look(listener)?;
        let place = match self.0.borrow().get(&shared) {
            Some(group) if group.len() > 1 => group.iter().position(|one| *one == inode),
            _ => None,
        };
        let Some(place) = place else { return work() };
        let doing = || format!("cannot choose among the sockets that share {}", socket::describe(&shared.0));
        raw::choose(listener, place as u32).doing(doing)?;
        let done = work();
        raw::choose_no_more(listener).doing(doing)?;
        done
    }
}
