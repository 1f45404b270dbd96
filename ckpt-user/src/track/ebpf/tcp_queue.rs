//! What a TCP socket has been given to send, and does not know to have arrived; and the numbers of the bytes on their way. No system call tells
//! of these without changing the socket (TCP_REPAIR would, and a ckpt that was killed in the middle would leave it so). So they are read where
//! they lie (net/ipv4/tcp.c, include/linux/skbuff.h).

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Mutex, PoisonError};

use super::kernel_memory::{KernelMemory, missing};
use super::pages::PagesInMemory;
use super::tcp_unheld::Unheld;
use super::unix_unheld;
use super::{EbpfError, Result};
use crate::sys::btf::Btf;

pub(super) const DOING: &str = "cannot read what a TCP socket sends";

/// Numbers of bytes (RFC 9293). They count on from a number drawn at random, beyond 2^32 from 0; the end of a stream counts as one byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpNumbers {
    /// Of the next byte that the program will give it.
    pub next_written: u32,
    /// Of the first byte that the other end has not acknowledged.
    pub unacknowledged: u32,
    /// Of the next byte that it will receive.
    pub next_received: u32,
    /// Of the next byte that the program will read.
    pub next_read: u32,
    /// Urgent data is on its way to the other end.
    pub is_urgent: bool,
    /// Urgent data has come from there.
    pub has_urgent: bool,
    /// The error number of which the program has not been told yet. 0: none.
    pub error: i32,
}

/// Offsets in bytes within the kernel's structs.
#[derive(Debug)]
pub(super) struct Layout {
    private_data: u64,
    sock: u64,
    next_written: u64,
    unacknowledged: u64,
    urgent: u64,
    urgent_received: u64,
    next_received: u64,
    next_read: u64,
    error: u64,
    sent: u64,
    unsent: u64,
    pub(super) received: u64,
    node: u64,
    left: u64,
    right: u64,
    next: u64,
    length: u64,
    in_pages: u64,
    head: u64,
    data: u64,
    end: u64,
    pub(super) control: u64,
    first: u64,
    last: u64,
    pages: u64,
    list: u64,
    page_list: u64,
    record_bytes: u64,
    shared_bytes: u64,
}

/// The record of a piece of a page (skb_frag_t, all of whose versions are so since Linux 5.4): the page, and two words.
const PIECE_BYTES: u64 = 16;

/// The kernel goes on sending, and what was acknowledged goes.
pub(super) const ATTEMPTS: usize = 100;
/// No socket has more.
pub(super) const BUFFERS_MAX: usize = 1 << 20;

pub(super) fn endless() -> EbpfError {
    EbpfError::unexpected(DOING, "its queue has no end")
}

impl Layout {
    fn of(btf: &Btf) -> Result<Layout> {
        let offset = |of: &str, path: &str| btf.offset_of(of, path).map(u64::from).map_err(missing);
        let (tcp, sock) = (|path: &str| offset("tcp_sock", path), |path: &str| offset("sock", path));
        let (buffer, shared) = (|path: &str| offset("sk_buff", path), |path: &str| offset("skb_shared_info", path));
        Ok(Layout {
            private_data: offset("file", "private_data")?,
            sock: offset("socket", "sk")?,
            next_written: tcp("write_seq")?,
            unacknowledged: tcp("snd_una")?,
            urgent: tcp("snd_up")?,
            urgent_received: tcp("urg_data")?,
            next_received: tcp("rcv_nxt")?,
            next_read: tcp("copied_seq")?,
            error: sock("sk_err")?,
            sent: sock("tcp_rtx_queue")?,
            unsent: sock("sk_write_queue")?,
            received: sock("sk_receive_queue")?,
            node: buffer("rbnode")?,
            left: offset("rb_node", "rb_left")?,
            right: offset("rb_node", "rb_right")?,
            next: buffer("next")?,
            length: buffer("len")?,
            in_pages: buffer("data_len")?,
            head: buffer("head")?,
            data: buffer("data")?,
            end: buffer("end")?,
            control: buffer("cb")?,
            first: offset("tcp_skb_cb", "seq")?,
            last: offset("tcp_skb_cb", "end_seq")?,
            pages: shared("nr_frags")?,
            list: shared("frags")?,
            page_list: shared("frag_list")?,
            record_bytes: btf.size_of("sk_buff").map_err(missing)?.into(),
            shared_bytes: btf.size_of("skb_shared_info").map_err(missing)?.into(),
        })
    }
}

/// A buffer of a queue: which bytes, and where they are.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Buffer {
    first: u32,
    last: u32,
    length: u64,
    pieces: Vec<(u64, u64)>,
}

#[derive(Debug)]
pub(super) struct Reader {
    pub(super) kernel: KernelMemory,
    pub(super) layout: Layout,
    /// For sockets that nobody has.
    pub(super) unheld: Unheld,
    /// The same for unix sockets, from their first use on.
    pub(super) unix: Option<unix_unheld::Layout>,
    memory: PagesInMemory,
}

/// Made at the first use. It takes a tenth of a second, and is the same for every cut.
static READER: Mutex<Option<Reader>> = Mutex::new(None);

pub(super) fn with_reader<T>(work: impl FnOnce(&mut Reader) -> Result<T>) -> Result<T> {
    // A reader holds nothing that could be half done.
    let mut reader = READER.lock().unwrap_or_else(PoisonError::into_inner);
    if reader.is_none() {
        let btf = Btf::of_kernel().map_err(missing)?;
        let (mut kernel, layout) = (KernelMemory::load(&btf)?, Layout::of(&btf)?);
        let memory = PagesInMemory::find(&mut kernel, &btf)?;
        *reader = Some(Reader { kernel, layout, unheld: Unheld::of(&btf)?, unix: None, memory });
    }
    reader.as_mut().map_or_else(|| Err(EbpfError::unexpected(DOING, "there is no reader")), work)
}

/// Has the program loaded, so that a freeze need not wait for it.
pub fn prepare_for_tcp() -> Result<()> {
    with_reader(|_| Ok(()))
}

/// The numbers of the TCP socket behind a descriptor of ours.
pub fn tcp_numbers(socket: BorrowedFd<'_>) -> Result<TcpNumbers> {
    with_reader(|reader| {
        let sock = reader.sock(socket)?;
        reader.numbers(sock)
    })
}

/// The same, and all bytes that the other end has not acknowledged. Nobody may write to the socket meanwhile.
pub fn tcp_unacknowledged(socket: BorrowedFd<'_>) -> Result<(TcpNumbers, Vec<u8>)> {
    with_reader(|reader| {
        let sock = reader.sock(socket)?;
        reader.all_unacknowledged(sock)
    })
}

impl Reader {
    pub(super) fn sock(&mut self, socket: BorrowedFd<'_>) -> Result<u64> {
        let file = self.kernel.open_file(socket.as_raw_fd())?;
        let socket = self.kernel.number(file + self.layout.private_data)?;
        self.kernel.number(socket + self.layout.sock)
    }

    pub(super) fn word(&mut self, address: u64) -> Result<u32> {
        Ok(self.kernel.number(address)? as u32)
    }

    pub(super) fn numbers(&mut self, sock: u64) -> Result<TcpNumbers> {
        let Layout { next_written, unacknowledged, urgent, urgent_received, next_received, next_read, error, .. } = self.layout;
        let unacknowledged = self.word(sock + unacknowledged)?;
        Ok(TcpNumbers {
            next_written: self.word(sock + next_written)?,
            unacknowledged,
            next_received: self.word(sock + next_received)?,
            next_read: self.word(sock + next_read)?,
            error: self.word(sock + error)? as i32,
            is_urgent: self.word(sock + urgent)?.wrapping_sub(unacknowledged) as i32 > 0,
            // It has 16 bits.
            has_urgent: self.word(sock + urgent_received)? as u16 != 0,
        })
    }

    /// The numbers of a socket, and what it has sent and does not know to have arrived.
    pub(super) fn all_unacknowledged(&mut self, sock: u64) -> Result<(TcpNumbers, Vec<u8>)> {
        let mut last = EbpfError::unexpected(DOING, "it does not come to rest");
        for _ in 0..ATTEMPTS {
            match self.unacknowledged(sock) {
                Ok(Some(found)) => return Ok(found),
                Ok(None) => {}
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// The numbers of a socket, and what its program has not read.
    pub(super) fn unread(&mut self, sock: u64) -> Result<Option<(TcpNumbers, Vec<u8>)>> {
        let head = sock + self.layout.received;
        let (before, buffers) = (self.numbers(sock)?, self.list(head)?);
        let bytes = self.bytes(&buffers, before.next_read, before.next_received)?;
        let same = self.numbers(sock)? == before && self.list(head)? == buffers;
        Ok(bytes.filter(|_| same).map(|bytes| (before, bytes)))
    }

    /// `None`: the queue has changed meanwhile.
    fn unacknowledged(&mut self, sock: u64) -> Result<Option<(TcpNumbers, Vec<u8>)>> {
        let before = self.numbers(sock)?;
        let buffers = self.buffers(sock)?;
        let Some(bytes) = self.bytes(&buffers, before.unacknowledged, before.next_written)? else { return Ok(None) };
        let now = self.numbers(sock)?;
        let same = now.unacknowledged == before.unacknowledged && self.buffers(sock)? == buffers;
        Ok(same.then_some((now, bytes)))
    }

    /// What is in the buffers of a queue, from a byte to another. `None`: they do not go on from each other, so they are not of one moment.
    fn bytes(&mut self, buffers: &[Buffer], from: u32, to: u32) -> Result<Option<Vec<u8>>> {
        let (mut next, mut bytes) = (from, Vec::new());
        for buffer in buffers {
            let ends = u64::from(buffer.last.wrapping_sub(buffer.first)).wrapping_sub(buffer.length);
            // A part of it may have been acknowledged, or received twice.
            let known = u64::from(next.wrapping_sub(buffer.first));
            if ends > 1 || known > buffer.length + ends {
                return Ok(None);
            }
            let from = bytes.len();
            for &(address, length) in &buffer.pieces {
                bytes.extend(self.kernel.bytes(address, length as usize)?);
            }
            bytes.drain(from..from + known.min(buffer.length) as usize);
            next = buffer.last;
        }
        Ok((next == to).then_some(bytes))
    }

    /// Those that were sent, in a tree, and those that were not, in a list.
    fn buffers(&mut self, sock: u64) -> Result<Vec<Buffer>> {
        /// No tree of so many is deeper.
        const DEPTH_MAX: usize = 64;
        let Layout { sent, unsent, node, left, right, .. } = self.layout;
        let (mut found, mut above) = (Vec::new(), Vec::new());
        let mut at = self.kernel.number(sock + sent)?;
        loop {
            while at != 0 {
                let record = self.record(at - node)?;
                at = field(&record, node + left)?;
                above.push(record);
                if above.len() > DEPTH_MAX {
                    return Err(endless());
                }
            }
            let Some(record) = above.pop() else { break };
            found.push(self.buffer(&record)?);
            at = field(&record, node + right)?;
            if found.len() > BUFFERS_MAX {
                return Err(endless());
            }
        }
        found.extend(self.list(sock + unsent)?);
        Ok(found)
    }

    /// A list of buffers.
    fn list(&mut self, head: u64) -> Result<Vec<Buffer>> {
        self.records(head)?.iter().map(|record| self.buffer(record)).collect()
    }

    /// The struct sk_buff of each buffer of a list.
    pub(super) fn records(&mut self, head: u64) -> Result<Vec<Vec<u8>>> {
        let mut found = Vec::new();
        let mut at = self.kernel.number(head + self.layout.next)?;
        while at != head {
            let record = self.record(at)?;
            at = field(&record, self.layout.next)?;
            found.push(record);
            if found.len() > BUFFERS_MAX {
                return Err(endless());
            }
        }
        Ok(found)
    }

    /// All that is in a buffer.
    pub(super) fn contents(&mut self, record: &[u8]) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        for (address, length) in self.buffer(record)?.pieces {
            bytes.extend(self.kernel.bytes(address, length as usize)?);
        }
        Ok(bytes)
    }

    /// A struct sk_buff.
    fn record(&mut self, at: u64) -> Result<Vec<u8>> {
        self.kernel.bytes(at, self.layout.record_bytes as usize)
    }

    fn buffer(&mut self, record: &[u8]) -> Result<Buffer> {
        let Layout { length, in_pages, head, data, end, control, first, last, pages, list, page_list, .. } = self.layout;
        let unsupported = |what: &str| Err(EbpfError::unsupported(DOING, what));
        let word = |at: u64| Ok::<u32, EbpfError>(field(record, at)? as u32);
        let (length, in_pages) = (word(length)?, word(in_pages)?);
        let mut pieces = Vec::new();
        let Some(plain) = length.checked_sub(in_pages) else { return unsupported("a buffer is longer than it is") };
        if plain > 0 {
            pieces.push((field(record, data)?, plain.into()));
        }
        if in_pages > 0 {
            let shared = field(record, head)? + u64::from(word(end)?);
            let shared = self.kernel.bytes(shared, self.layout.shared_bytes as usize)?;
            let count = usize::from(shared.get(pages as usize).copied().unwrap_or(0));
            if field(&shared, page_list)? != 0 {
                return unsupported("a buffer consists of others");
            }
            for n in 0..count as u64 {
                let record = list + n * PIECE_BYTES;
                let (page, piece) = (field(&shared, record)?, field(&shared, record + 8)?);
                pieces.push((self.memory.address_of(page)? + (piece >> 32), piece & u64::from(u32::MAX)));
            }
        }
        if pieces.iter().map(|(_, length)| length).sum::<u64>() != u64::from(length) {
            return unsupported("a buffer is not as long as its parts");
        }
        let (first, last) = (word(control + first)?, word(control + last)?);
        Ok(Buffer { first, last, length: length.into(), pieces })
    }
}

/// 64 bits of a record; the first half of them is what a field of 32 bits holds.
pub(super) fn field(record: &[u8], at: u64) -> Result<u64> {
    let bytes = record.get(at as usize..).and_then(|rest| rest.first_chunk());
    bytes
        .map(|bytes| u64::from_ne_bytes(*bytes))
        .ok_or_else(|| EbpfError::unexpected(DOING, "a record is shorter than it should be"))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::AsFd;

    use super::*;

    /// More than the other end has room for, written in odd pieces; then a part of it is read, and more goes out.
    #[test]
    fn all_that_has_not_arrived() {
        if !nix::unistd::geteuid().is_root() {
            return crate::skip::note("all_that_has_not_arrived", "not root");
        }
        let server = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(server.local_addr().unwrap()).unwrap();
        let (mut accepted, _) = server.accept().unwrap();
        client.set_nonblocking(true).unwrap();
        let (mut given, mut counter) = (Vec::new(), 0u32);
        loop {
            let piece: Vec<u8> = (0..1 + counter % 5000).flat_map(|n| (n ^ counter << 9).to_ne_bytes()).collect();
            match client.write(&piece) {
                Ok(written) => given.extend(&piece[..written]),
                Err(_) => break,
            }
            counter += 1;
        }
        let mut taken = 0;
        for _ in 0..20 {
            let (numbers, rest) = tcp_unacknowledged(client.as_fd()).unwrap();
            let there = tcp_numbers(accepted.as_fd()).unwrap();
            assert_eq!(numbers.next_written.wrapping_sub(numbers.unacknowledged) as usize, rest.len());
            assert!(rest.len() > 100_000 && given.ends_with(&rest), "{} of {}", rest.len(), given.len());
            let arrived = given.len() - numbers.next_written.wrapping_sub(there.next_received) as usize;
            assert_eq!(there.next_received.wrapping_sub(there.next_read) as usize, arrived - taken);
            let mut part = vec![0; 7001];
            accepted.read_exact(&mut part).unwrap();
            assert_eq!(part, given[taken..taken + part.len()]);
            taken += part.len();
        }
    }
}
