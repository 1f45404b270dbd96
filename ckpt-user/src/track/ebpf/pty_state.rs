//! What waits in a pseudoterminal: the kernel only gives it to who takes it away. So it is read where it lies (drivers/tty/n_tty.c,
//! tty_buffer.c), from the records behind a descriptor of our own.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Mutex, PoisonError};

use super::kernel_memory::{KernelMemory, missing};
use super::{EbpfError, Result};
use crate::sys::btf::Btf;

/// One side of a pseudoterminal.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Side {
    /// How many openings it has.
    pub openings: u32,
    /// What is written to it waits: after ^S, or tcflow(3).
    pub stopped: bool,
    /// It was tcflow(3), which ^Q does not undo.
    pub stopped_by_call: bool,
    /// What can be read, or will be once a line is complete.
    pub queue: Vec<u8>,
    /// Which bytes of the queue end a line (where lines are made).
    pub ends: Vec<bool>,
    /// What has no room in the queue, and was not looked at yet.
    pub behind: Vec<u8>,
    /// Echoes that wait.
    pub echoes: usize,
}

/// Both sides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PtyState {
    /// The one of /dev/ptmx.
    pub master: Side,
    /// The one of /dev/pts/N.
    pub slave: Side,
}

/// Bytes of a queue (N_TTY_BUF_SIZE), whose counters run on without end.
const QUEUE_BYTES: u64 = 4096;

/// Offsets in bytes within the kernel's structs.
#[derive(Debug)]
struct Layout {
    private_data: u64,
    tty: u64,
    link: u64,
    count: u64,
    port: u64,
    stopped: u64,
    stopped_by_call: u64,
    disc_data: u64,
    line: u64,
    line_bytes: u64,
    read_head: u64,
    read_tail: u64,
    read_buf: u64,
    read_flags: u64,
    echo_head: u64,
    echo_tail: u64,
    first_buffer: u64,
    next: u64,
    used: u64,
    read: u64,
    data: u64,
}

impl Layout {
    fn of(btf: &Btf) -> Result<Layout> {
        let offset = |of: &str, path: &str| btf.offset_of(of, path).map(u64::from).map_err(missing);
        let (tty, queue) = (|path: &str| offset("tty_struct", path), |path: &str| offset("n_tty_data", path));
        let buffer = |path: &str| offset("tty_buffer", path);
        Ok(Layout {
            private_data: offset("file", "private_data")?,
            tty: offset("tty_file_private", "tty")?,
            link: tty("link")?,
            count: tty("count")?,
            port: tty("port")?,
            stopped: tty("flow.stopped")?,
            stopped_by_call: tty("flow.tco_stopped")?,
            disc_data: tty("disc_data")?,
            line: tty("termios.c_line")?,
            line_bytes: btf.size_of("n_tty_data").map_err(missing)?.into(),
            read_head: queue("read_head")?,
            read_tail: queue("read_tail")?,
            read_buf: queue("read_buf")?,
            read_flags: queue("read_flags")?,
            echo_head: queue("echo_head")?,
            echo_tail: queue("echo_tail")?,
            first_buffer: offset("tty_port", "buf.head")?,
            next: buffer("next")?,
            used: buffer("used")?,
            read: buffer("read")?,
            data: buffer("data")?,
        })
    }
}

/// See the module.
#[derive(Debug)]
struct PtyReader {
    memory: KernelMemory,
    layout: Layout,
}

/// Made at the first use. It takes a tenth of a second, and is the same for every cut.
static READER: Mutex<Option<PtyReader>> = Mutex::new(None);

fn with_reader<T>(work: impl FnOnce(&mut PtyReader) -> Result<T>) -> Result<T> {
    // A reader holds nothing that could be half done.
    let mut reader = READER.lock().unwrap_or_else(PoisonError::into_inner);
    if reader.is_none() {
        let btf = Btf::of_kernel().map_err(missing)?;
        *reader = Some(PtyReader { memory: KernelMemory::load(&btf)?, layout: Layout::of(&btf)? });
    }
    reader.as_mut().map_or_else(|| Err(EbpfError::unexpected(DOING, "there is no reader")), work)
}

const DOING: &str = "cannot read what waits in a pseudoterminal";

/// Has the program loaded, so that a freeze need not wait for it.
pub fn prepare_for_ptys() -> Result<()> {
    with_reader(|_| Ok(()))
}

/// What waits in the pseudoterminal behind a master of ours. Nobody may read from it or write to it meanwhile.
pub fn pty_state(master: BorrowedFd<'_>) -> Result<PtyState> {
    /// What was written may still be on its way from one buffer to the next.
    const ATTEMPTS: usize = 1000;
    with_reader(|reader| {
        let mut last = reader.read(master)?;
        for _ in 0..ATTEMPTS {
            let now = reader.read(master)?;
            if now == last {
                return Ok(now);
            }
            last = now;
        }
        Err(EbpfError::unexpected(DOING, "it does not come to rest"))
    })
}

impl PtyReader {
    fn read(&mut self, master: BorrowedFd<'_>) -> Result<PtyState> {
        let file = self.memory.open_file(master.as_raw_fd())?;
        let private = self.memory.number(file + self.layout.private_data)?;
        let master = self.memory.number(private + self.layout.tty)?;
        let slave = self.memory.number(master + self.layout.link)?;
        Ok(PtyState { master: self.side(master)?, slave: self.side(slave)? })
    }

    fn side(&mut self, tty: u64) -> Result<Side> {
        let Layout { count, port, stopped, stopped_by_call, disc_data, line, line_bytes, .. } = self.layout;
        if self.memory.bytes(tty + line, 1)? != [0] {
            return Err(EbpfError::unsupported(DOING, "it has a line discipline other than N_TTY"));
        }
        let openings = self.memory.number(tty + count)? as u32;
        let stopped = self.memory.bytes(tty + stopped, 1)? != [0];
        let stopped_by_call = self.memory.bytes(tty + stopped_by_call, 1)? != [0];
        let port = self.memory.number(tty + port)?;
        let behind = self.behind(port)?;
        let discipline = self.memory.number(tty + disc_data)?;
        let mut side = Side { openings, stopped, stopped_by_call, behind, ..Side::default() };
        // None: it was hung up.
        if discipline != 0 {
            let bytes = self.memory.bytes(discipline, line_bytes as usize)?;
            self.layout.queue(&bytes, &mut side)?;
        }
        Ok(side)
    }

    /// The buffers in front of the queue.
    fn behind(&mut self, port: u64) -> Result<Vec<u8>> {
        let Layout { first_buffer, next, used, read, data, .. } = self.layout;
        /// More than can be: 64 KiB in buffers of 256 bytes.
        const BUFFERS_MAX: usize = 1024;
        let mut behind = Vec::new();
        let mut buffer = self.memory.number(port + first_buffer)?;
        for _ in 0..BUFFERS_MAX {
            if buffer == 0 {
                return Ok(behind);
            }
            let (read, used) = (self.memory.number(buffer + read)? as u32, self.memory.number(buffer + used)? as u32);
            if let Some(len) = used.checked_sub(read).filter(|len| *len > 0 && *len <= 1 << 16) {
                behind.extend(self.memory.bytes(buffer + data + u64::from(read), len as usize)?);
            }
            buffer = self.memory.number(buffer + next)?;
        }
        Err(EbpfError::unexpected(DOING, "its buffers do not end"))
    }
}

impl Layout {
    /// Takes a struct n_tty_data apart.
    fn queue(&self, bytes: &[u8], side: &mut Side) -> Result<()> {
        let short = || EbpfError::unexpected(DOING, "its queue is shorter than it should be");
        let number = |at: u64| {
            let bytes = bytes.get(at as usize..).and_then(|rest| rest.first_chunk()).ok_or_else(short)?;
            Ok::<u64, EbpfError>(u64::from_ne_bytes(*bytes))
        };
        let (head, tail) = (number(self.read_head)?, number(self.read_tail)?);
        let waiting = head.wrapping_sub(tail);
        if waiting > QUEUE_BYTES {
            return Err(EbpfError::unexpected(DOING, "its queue holds more than it can"));
        }
        for at in 0..waiting {
            let place = tail.wrapping_add(at) % QUEUE_BYTES;
            side.queue.push(*bytes.get((self.read_buf + place) as usize).ok_or_else(short)?);
            let flags = *bytes.get((self.read_flags + place / 8) as usize).ok_or_else(short)?;
            side.ends.push(flags >> (place % 8) & 1 != 0);
        }
        side.echoes = number(self.echo_head)?.wrapping_sub(number(self.echo_tail)?) as usize;
        Ok(())
    }
}
