//! A batch of system calls for another task to make, with the memory that their pointers point into, and the answers.

use bytemuck::AnyBitPattern;
use nix::errno::Errno;

/// A piece of the batch's memory: passed to a call as a pointer, read back from the answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    pub(super) at: usize,
    pub(super) len: usize,
}

/// Which call of the batch.
#[derive(Clone, Copy, Debug)]
pub struct CallId(usize);

/// An argument of a system call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arg {
    /// A number, or an address that is already valid in the task.
    Num(u64),
    /// A pointer to a piece of the batch's memory.
    Ptr(Slot),
}

impl From<u64> for Arg {
    fn from(n: u64) -> Arg {
        Arg::Num(n)
    }
}

impl From<i64> for Arg {
    fn from(n: i64) -> Arg {
        Arg::Num(n as u64)
    }
}

impl From<i32> for Arg {
    fn from(n: i32) -> Arg {
        Arg::Num(n as i64 as u64)
    }
}

impl From<u32> for Arg {
    fn from(n: u32) -> Arg {
        Arg::Num(n.into())
    }
}

impl From<usize> for Arg {
    fn from(n: usize) -> Arg {
        Arg::Num(n as u64)
    }
}

impl From<crate::ids::Addr> for Arg {
    fn from(a: crate::ids::Addr) -> Arg {
        Arg::Num(a.0)
    }
}

impl From<Slot> for Arg {
    fn from(slot: Slot) -> Arg {
        Arg::Ptr(slot)
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Call {
    pub(super) nr: i64,
    pub(super) args: [Arg; 6],
}

/// See the module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    pub(super) calls: Vec<Call>,
    pub(super) data: Vec<u8>,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Batch {
        Batch::default()
    }

    /// Has nothing been asked?
    pub fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    /// Memory that holds `bytes`, for a call to read (or to read and change).
    pub fn bytes(&mut self, bytes: &[u8]) -> Slot {
        let at = self.data.len();
        self.data.extend_from_slice(bytes);
        self.data.resize(self.data.len().next_multiple_of(16), 0);
        Slot { at, len: bytes.len() }
    }

    /// Memory that holds `value`.
    pub fn value<T: bytemuck::NoUninit>(&mut self, value: &T) -> Slot {
        self.bytes(bytemuck::bytes_of(value))
    }

    /// Memory that holds `text` and a NUL.
    pub fn c_string(&mut self, text: &[u8]) -> Slot {
        let mut bytes = text.to_vec();
        bytes.push(0);
        self.bytes(&bytes)
    }

    /// `len` zeroed bytes for a call to write to.
    pub fn room(&mut self, len: usize) -> Slot {
        self.bytes(&vec![0; len])
    }

    /// Adds a system call. They are made in the order they were added, each whatever the ones before it returned.
    pub fn call<const N: usize>(&mut self, nr: libc::c_long, args: [Arg; N]) -> CallId {
        const { assert!(N <= 6) };
        let mut all = [Arg::Num(0); 6];
        all[..N].copy_from_slice(&args);
        self.calls.push(Call { nr, args: all });
        CallId(self.calls.len() - 1)
    }
}

/// What the calls of a batch returned, and what they left in its memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Answers {
    pub(super) returned: Vec<i64>,
    pub(super) data: Vec<u8>,
}

impl Answers {
    /// What a call returned.
    pub fn ret(&self, id: CallId) -> Result<u64, Errno> {
        let value = self.returned[id.0];
        if (-4095..0).contains(&value) { Err(Errno::from_raw(-value as i32)) } else { Ok(value as u64) }
    }

    /// What a piece of memory holds after all the calls.
    pub fn bytes(&self, slot: Slot) -> &[u8] {
        &self.data[slot.at..slot.at + slot.len]
    }

    /// The same, as a value of `T`, which must be as long as the slot.
    pub fn value<T: AnyBitPattern>(&self, slot: Slot) -> T {
        bytemuck::pod_read_unaligned(self.bytes(slot))
    }
}
