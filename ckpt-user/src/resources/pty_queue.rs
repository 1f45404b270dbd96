//! What waits in a pseudoterminal in either direction: read where the kernel keeps it, and put into a new one.
//!
//! Whoever reads from a terminal takes away what he reads, and a checkpoint must not; so ckpt has an eBPF program look. Without it a
//! pseudoterminal is saved only if the kernel says that nothing waits.

use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::PollFlags;
use nix::unistd::{read, write};
use serde::{Deserialize, Serialize};

use crate::error::{Doing, Error, Result};
use crate::sys::queue;
use crate::sys::tty::{self, Termios2};
use crate::track::ebpf::{PtyState, Side};

/// Everything that waits.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PtyQueues {
    /// What the slave can read, in pieces.
    pub input: Vec<Piece>,
    /// What was typed after that, and was not looked at yet.
    #[serde(with = "serde_bytes")]
    pub typed: Vec<u8>,
    /// What the master can read.
    #[serde(with = "serde_bytes")]
    pub output: Vec<u8>,
    /// What the slave writes waits.
    pub stopped: Option<Stopped>,
}

/// Bytes of one line, or of the beginning of one; or, where no lines are made, just bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Piece {
    /// All of them, with what ends it.
    #[serde(with = "serde_bytes")]
    pub data: Vec<u8>,
    /// The last one ends a line. (NUL: an end of file was typed.)
    pub ended: bool,
}

/// Why output waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stopped {
    /// VSTOP was typed.
    Typed,
    /// tcflow(3) was called.
    Called,
}

impl PtyQueues {
    /// From what the kernel holds.
    pub fn of(state: &PtyState) -> PtyQueues {
        let PtyState { master, slave } = state;
        let stopped = match (slave.stopped, slave.stopped_by_call) {
            (false, _) => None,
            (true, false) => Some(Stopped::Typed),
            (true, true) => Some(Stopped::Called),
        };
        let output = [&master.queue[..], &master.behind].concat();
        PtyQueues { input: pieces(slave), typed: slave.behind.clone(), output, stopped }
    }

    /// Puts everything into a new pseudoterminal, and gives it its settings. Both ends are left non-blocking.
    pub fn fill(&self, master: BorrowedFd<'_>, slave: BorrowedFd<'_>, settings: &Termios2) -> Result<()> {
        for end in [master, slave] {
            fcntl(end, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).doing(|| "cannot set the flags of a pseudoterminal")?;
        }
        let filler = Filler { master, slave, plain: plain(settings), until: Instant::now() + DEADLINE };
        // Once, while nothing waits: whatever waits when this changes becomes one line.
        filler.set(&filler.plain)?;
        for piece in &self.input {
            if makes_lines(settings) { filler.type_line(piece)? } else { filler.type_bytes(&piece.data)? }
        }
        filler.set(&filler.plain)?;
        filler.write(slave, &self.output)?;
        filler.set(settings)?;
        filler.write(master, &self.typed)?;
        match self.stopped {
            None => Ok(()),
            Some(Stopped::Typed)
                if settings.input & libc::IXON != 0 && settings.characters[libc::VSTOP] != 0 && self.typed.is_empty() =>
            {
                filler.write(master, &[settings.characters[libc::VSTOP]])?;
                filler.wait("output does not stop", |ready| Ok(!ready.contains(PollFlags::POLLOUT)))
            }
            Some(_) => tty::suspend_output(slave).doing(|| "cannot suspend the output of a pseudoterminal"),
        }
    }
}

/// Is input made into lines? (ICANON; with EXTPROC whoever holds the master makes them.)
fn makes_lines(settings: &Termios2) -> bool {
    settings.local & (libc::ICANON | libc::EXTPROC) == libc::ICANON
}

/// Settings under which everything is taken as it is.
fn plain(settings: &Termios2) -> Termios2 {
    let local = settings.local & (libc::ICANON | libc::EXTPROC);
    Termios2 { input: 0, output: 0, local, characters: [0; 19], ..*settings }
}

/// How long it may take until everything is in.
const DEADLINE: Duration = Duration::from_secs(10);

/// Cuts what the slave can read after each end of a line.
fn pieces(slave: &Side) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut piece = Piece::default();
    for (&byte, &ends) in slave.queue.iter().zip(&slave.ends) {
        piece.data.push(byte);
        if ends {
            piece.ended = true;
            pieces.push(std::mem::take(&mut piece));
        }
    }
    if !piece.data.is_empty() {
        pieces.push(piece);
    }
    pieces
}

struct Filler<'a> {
    master: BorrowedFd<'a>,
    slave: BorrowedFd<'a>,
    plain: Termios2,
    until: Instant,
}

impl Filler<'_> {
    fn set(&self, settings: &Termios2) -> Result<()> {
        tty::set_settings(self.slave, settings).doing(|| "cannot set up a pseudoterminal")
    }

    fn type_bytes(&self, bytes: &[u8]) -> Result<()> {
        let doing = || "cannot look into a pseudoterminal";
        let wanted = queue::readable(self.slave).doing(doing)? + bytes.len();
        self.write(self.master, bytes)?;
        // Settings hold for what is looked at under them, so they may change only once everything was.
        self.wait("what was typed does not arrive", |_| Ok(queue::readable(self.slave).doing(doing)? == wanted))
    }

    /// Types a line so that it is taken as it is. Its echo tells when that has happened: of a beginning of a line nothing else does.
    fn type_line(&self, piece: &Piece) -> Result<()> {
        let mut settings = self.plain;
        settings.local |= libc::ECHO | libc::IEXTEN;
        let (end, body) = match piece.data.split_last() {
            Some((&end, body)) if piece.ended => (Some(end), body),
            _ => (None, &piece.data[..]),
        };
        let [quote, end_of_file, reprint] = unused(&piece.data)?;
        settings.characters[libc::VLNEXT] = quote;
        settings.characters[libc::VEOF] = end_of_file;
        settings.characters[libc::VREPRINT] = reprint;
        settings.characters[libc::VEOL] = end.filter(|&end| end != b'\n').unwrap_or(0);
        let mut typed = Vec::with_capacity(piece.data.len() + 16);
        for &byte in body {
            if byte == b'\n' || byte != 0 && Some(byte) == end {
                typed.push(quote);
            }
            typed.push(byte);
        }
        let echo = match end {
            // Has no echo; that of VREPRINT, with nothing to print again, is the character and a new line.
            Some(0) => {
                typed.extend([end_of_file, reprint]);
                body.len() + 2
            }
            end => {
                typed.extend(end);
                piece.data.len()
            }
        };
        self.set(&settings)?;
        self.write(self.master, &typed)?;
        let mut heard = 0;
        self.wait("what was typed is not echoed", |_| {
            let mut bytes = [0; 4096];
            heard += match read(self.master, &mut bytes) {
                Ok(n) => n,
                Err(Errno::EAGAIN | Errno::EINTR) => 0,
                Err(error) => return Err(error).doing(|| "cannot read from a pseudoterminal"),
            };
            Ok(heard >= echo)
        })
    }

    /// Until it is so, as the slave or something else tells.
    fn wait(&self, otherwise: &str, mut is_so: impl FnMut(PollFlags) -> Result<bool>) -> Result<()> {
        // To be asked has the kernel look at what was typed.
        while !is_so(queue::poll_now(self.slave).doing(|| "cannot poll a pseudoterminal")?)? {
            if Instant::now() > self.until {
                return Err(Error::Unexpected(format!("cannot fill a pseudoterminal: {otherwise}")));
            }
            std::thread::yield_now();
        }
        Ok(())
    }

    fn write(&self, end: BorrowedFd<'_>, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            match write(end, bytes) {
                Ok(n) => bytes = &bytes[n..],
                Err(Errno::EAGAIN | Errno::EINTR) if Instant::now() < self.until => std::thread::yield_now(),
                Err(error) => {
                    return Err(error).doing(|| format!("cannot put {} bytes back into a pseudoterminal", bytes.len()));
                }
            }
        }
        Ok(())
    }
}

/// Characters that do not occur.
fn unused<const N: usize>(data: &[u8]) -> Result<[u8; N]> {
    let mut occurs = [false; 256];
    for &byte in data {
        occurs[usize::from(byte)] = true;
    }
    let free: Vec<u8> = (1..=u8::MAX).filter(|&byte| byte != b'\n' && !occurs[usize::from(byte)]).take(N).collect();
    free.try_into().map_err(|_| Error::Restart("a line that waits in a pseudoterminal has every character there is".into()))
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_side_that_cannot_be_read_is_an_error_at_once() {
        let pair = nix::pty::openpty(None, None).unwrap();
        let settings = tty::settings(pair.slave.as_fd()).unwrap();
        // Takes everything, and gives nothing: EBADF.
        let unreadable = OpenOptions::new().write(true).open("/dev/null").unwrap();
        let queues = PtyQueues { input: vec![Piece { data: b"line\n".to_vec(), ended: true }], ..PtyQueues::default() };
        let began = Instant::now();
        let error = queues.fill(unreadable.as_fd(), pair.slave.as_fd(), &settings).unwrap_err();
        assert!(error.to_string().contains("cannot read from a pseudoterminal"), "{error}");
        assert!(began.elapsed() < DEADLINE / 2);
    }
}
