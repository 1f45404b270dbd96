//! The small types that carry meaning through every layer: who, where, which object, which image.

use std::fmt;
use std::ops::Range;

use serde::{Deserialize, Serialize};

/// Bytes in a page. Images record it, and a reader refuses one that was made with another.
pub const PAGE_SIZE: u64 = 4096;

/// A process (thread group) id, as the pid namespace of the caller sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Pid(pub i32);

/// A thread id, as the pid namespace of the caller sees it. The leader's equals the process id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Tid(pub i32);

impl Pid {
    /// The thread that leads this process.
    pub fn leader(self) -> Tid {
        Tid(self.0)
    }
}

impl fmt::Display for Pid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Tid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A virtual address in another process.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Addr(pub u64);

impl Addr {
    /// The address `bytes` further up.
    pub fn offset(self, bytes: u64) -> Addr {
        Addr(self.0.wrapping_add(bytes))
    }

    /// The number of the page that holds this address.
    pub fn page(self) -> u64 {
        self.0 / PAGE_SIZE
    }
}

impl fmt::Debug for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

/// A run of pages `start..start + count`, in page numbers of its owner: address / page size for a memory, offset / page size for
/// the contents of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PageRange {
    /// First page number.
    pub start: u64,
    /// Number of pages.
    pub count: u64,
}

impl PageRange {
    /// One past the last page number.
    pub fn end(self) -> u64 {
        self.start + self.count
    }

    /// Bytes covered.
    pub fn bytes(self) -> u64 {
        self.count * PAGE_SIZE
    }

    /// Address (or offset) of the first byte.
    pub fn addr(self) -> Addr {
        Addr(self.start * PAGE_SIZE)
    }
}

impl PageRange {
    /// The page numbers themselves.
    pub fn numbers(self) -> Range<u64> {
        self.start..self.end()
    }
}

impl From<Range<u64>> for PageRange {
    fn from(numbers: Range<u64>) -> PageRange {
        PageRange { start: numbers.start, count: numbers.end.saturating_sub(numbers.start) }
    }
}

/// What two ranges have in common: an empty one, if that is nothing.
pub fn common(a: &Range<u64>, b: &Range<u64>) -> Range<u64> {
    a.start.max(b.start)..a.end.min(b.end)
}

/// What two sequences of ranges, each in order and without overlaps, cover together: in order, and those that touch as one.
pub fn union(a: impl Iterator<Item = Range<u64>>, b: impl Iterator<Item = Range<u64>>) -> Vec<Range<u64>> {
    let (mut a, mut b) = (a.peekable(), b.peekable());
    let mut all: Vec<Range<u64>> = Vec::new();
    loop {
        let next = match (a.peek(), b.peek()) {
            (Some(one), Some(other)) if other.start < one.start => b.next(),
            (Some(_), _) => a.next(),
            (None, _) => b.next(),
        };
        let Some(next) = next else { return all };
        match all.last_mut() {
            Some(last) if next.start <= last.end => last.end = last.end.max(next.end),
            _ => all.push(next),
        }
    }
}

/// The number of an object in an image: 1, 2, 3, ... in order of appearance (SEED S15). 0 is no object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ObjRef(pub u32);

impl fmt::Display for ObjRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

/// The identity of an image: 128 random bits, shown as 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageId(pub u128);

impl fmt::Display for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::str::FromStr for ImageId {
    type Err = std::num::ParseIntError;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        u128::from_str_radix(s, 16).map(ImageId)
    }
}

impl Serialize for ImageId {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ImageId {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}
