//! What each page must hold at each step: a function of its number and the lap, so that nothing about it has to be remembered.

use std::ops::Range;

use ckpt_tests::chain;
use ckpt_tests::sys::memory::PAGE;

/// Parts of the memory that move, and are mapped anew, as wholes.
pub const PARTS: usize = 4;
/// Blocks of the file that `direct` reads from.
pub const BLOCKS: usize = 256;

/// With `seldom`, one of so many pages is written otherwise than by stores.
const SELDOM: u64 = 1024;

/// A way to write a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Stores of the processor.
    Store,
    /// read(2) from a pipe.
    Read,
    /// pread(2) from a file opened with O_DIRECT.
    Direct,
    /// process_vm_writev(2).
    Writev,
    /// process_vm_writev(2) of a child.
    Outside,
    /// io_uring(7), with a ring for each page: a process that has one cannot be checkpointed.
    Uring,
}

/// The contents of a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// Nothing was written since it was mapped or dropped.
    Zeros,
    /// Words that follow from this number.
    Pattern(u64),
    /// A block of the file of `direct`.
    Block(usize),
}

impl Held {
    /// All of its bytes.
    pub fn put(self, bytes: &mut [u8; PAGE]) {
        let seed = match self {
            Held::Zeros => return bytes.fill(0),
            Held::Pattern(seed) => seed,
            Held::Block(block) => !(block as u64),
        };
        for (n, word) in bytes.chunks_exact_mut(8).enumerate() {
            word.copy_from_slice(&chain::step(seed, n as u64).to_le_bytes());
        }
    }
}

/// The plan of one thread.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Its number.
    pub thread: u64,
    /// Its pages, a multiple of [`PARTS`].
    pub pages: usize,
    /// How they are written.
    pub ways: Vec<Way>,
    /// Are most pages written by stores, whatever the ways are?
    pub seldom: bool,
    /// Are some pages dropped instead?
    pub drops: bool,
    /// Do some go to the swap space after they were written?
    pub pages_out: bool,
    /// Is a part mapped anew at the beginning of every lap?
    pub renews: bool,
}

impl Plan {
    /// How `page` is written in `lap`.
    pub fn way(&self, page: usize, lap: u64) -> Way {
        let number = self.mixed(page, lap);
        if self.seldom && !(number >> 32).is_multiple_of(SELDOM) {
            return Way::Store;
        }
        self.ways[(number % self.ways.len() as u64) as usize]
    }

    /// Is `page` dropped in `lap`, instead of being written?
    pub fn is_dropped(&self, page: usize, lap: u64) -> bool {
        self.drops && lap > 0 && (page as u64 + lap).is_multiple_of(5)
    }

    /// Does `page` go to the swap space after it was written in `lap`?
    pub fn goes_out(&self, page: usize, lap: u64) -> bool {
        self.pages_out && (page as u64 + lap).is_multiple_of(3)
    }

    /// The part that is mapped anew at the beginning of `lap`.
    pub fn renewed(&self, lap: u64) -> Option<usize> {
        self.renews.then_some((lap % PARTS as u64) as usize)
    }

    /// The part in which `page` is.
    pub fn part(&self, page: usize) -> usize {
        page / (self.pages / PARTS)
    }

    /// The pages of a part.
    pub fn pages_of(&self, part: usize) -> Range<usize> {
        let pages = self.pages / PARTS;
        part * pages..(part + 1) * pages
    }

    /// What `page` holds until its turn in `lap` comes.
    pub fn before(&self, page: usize, lap: u64) -> Held {
        if self.renewed(lap) == Some(self.part(page)) { Held::Zeros } else { self.after(page, lap - 1) }
    }

    /// What `page` holds after its turn in `lap`.
    pub fn after(&self, page: usize, lap: u64) -> Held {
        if self.is_dropped(page, lap) {
            Held::Zeros
        } else if self.way(page, lap) == Way::Direct {
            // Never twice the same.
            Held::Block((page.wrapping_mul(7) + lap as usize) % BLOCKS)
        } else {
            Held::Pattern(self.mixed(page, lap))
        }
    }

    /// All pages, each once, in the scattered order of `lap`.
    pub fn order(&self, lap: u64) -> impl Iterator<Item = usize> + use<> {
        // A linear congruential generator with the full period of the next power of two.
        let (pages, period) = (self.pages, self.pages.next_power_of_two());
        let (factor, step) = (0x5851_f42d_4c95_7f2d_usize, self.mixed(0, lap) as usize | 1);
        let next = move |at: &usize| Some(at.wrapping_mul(factor).wrapping_add(step) % period);
        std::iter::successors(Some(step % period), next).take(period).filter(move |page| *page < pages)
    }

    fn mixed(&self, page: usize, lap: u64) -> u64 {
        chain::step(chain::start(self.thread << 32 | page as u64), lap)
    }
}
