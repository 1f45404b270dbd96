//! A signal that a thread can send itself without the program ever noticing: what ends a run of remote calls. Whoever traces the thread sees it; if nobody
//! traces it any more, the kernel drops it.

use super::batch::Arg;
use crate::sys::status::Status;

/// See the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quiet {
    /// The process and the thread, as the thread itself knows them.
    pub tgid: i32,
    /// See `tgid`.
    pub tid: i32,
    /// The signal.
    pub signal: i32,
}

/// Those that do nothing where no handler is set.
const SIGNALS: [i32; 3] = [libc::SIGURG, libc::SIGWINCH, libc::SIGCHLD];

impl Quiet {
    /// One that the thread with this status neither handles, nor holds back, nor has pending. `None`: it does so with all that come into question.
    pub fn of(status: &Status) -> Option<Quiet> {
        let noticed = status.sigcgt | status.sigblk | status.sigpnd | status.shdpnd;
        let signal = SIGNALS.into_iter().find(|signal| noticed & 1 << (signal - 1) == 0)?;
        Some(Quiet { tgid: *status.nstgid.as_ref()?.last()?, tid: *status.nspid.as_ref()?.last()?, signal })
    }

    /// What tgkill(2) is passed.
    pub(super) fn call(self) -> [Arg; 6] {
        [self.tgid.into(), self.tid.into(), self.signal.into(), Arg::Num(0), Arg::Num(0), Arg::Num(0)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Pid, Tid};
    use crate::sys::procfs;

    #[test]
    fn the_first_that_nobody_would_notice_is_taken() {
        let pid = std::process::id() as i32;
        let mut status = procfs::status(Pid(pid), Tid(pid)).unwrap();
        (status.sigcgt, status.sigblk, status.sigpnd, status.shdpnd) = (0, 0, 0, 0);
        let bit = |signal: i32| 1u64 << (signal - 1);
        let signal = |status: &Status| Quiet::of(status).map(|quiet| quiet.signal);
        assert_eq!(Quiet::of(&status), Some(Quiet { tgid: pid, tid: pid, signal: libc::SIGURG }));
        status.sigcgt = bit(libc::SIGURG);
        assert_eq!(signal(&status), Some(libc::SIGWINCH));
        (status.sigblk, status.shdpnd) = (bit(libc::SIGWINCH), bit(libc::SIGCHLD));
        assert_eq!(signal(&status), None);
    }
}
