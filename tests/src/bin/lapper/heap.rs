//! A heap that grows and shrinks by brk(2): what is grown anew holds zeros, whatever was there before.

use ckpt_tests::chain;
use ckpt_tests::sys::memory::{PAGE, Region, sbrk};

/// Bytes by which it changes.
const BLOCK: usize = 16 * PAGE;
/// Blocks at most.
const LIMIT: usize = 8;

/// The blocks above the heap of the C library.
#[derive(Debug)]
pub struct Heap {
    /// Start and seed of each. There is room for all, so that nothing is allocated meanwhile.
    blocks: Vec<(usize, u64)>,
    steps: u64,
}

impl Heap {
    /// Nothing yet.
    pub fn new() -> Heap {
        Heap { blocks: Vec::with_capacity(LIMIT), steps: 0 }
    }

    /// Grows or shrinks by a block, and verifies one.
    pub fn step(&mut self) -> Result<(), String> {
        self.steps += 1;
        let number = chain::step(self.steps, 77);
        if let Some(&block) = self.blocks.get(number as usize % LIMIT) {
            check(block)?;
        }
        let grow = self.blocks.is_empty() || self.blocks.len() < LIMIT && number & (1 << 20) != 0;
        if grow { self.grow(number) } else { self.shrink() }
    }

    fn grow(&mut self, seed: u64) -> Result<(), String> {
        // The C library may have left its end anywhere.
        let end = sbrk(0).map_err(|error| format!("sbrk: {error}"))?;
        let start = end.next_multiple_of(PAGE);
        sbrk((start - end + BLOCK) as isize).map_err(|error| format!("cannot grow the heap: {error}"))?;
        let block = Region { start, len: BLOCK };
        block.check_zero().map_err(|why| format!("the heap that has just grown: {why}"))?;
        written(start).fill(seed);
        self.blocks.push((start, seed));
        Ok(())
    }

    fn shrink(&mut self) -> Result<(), String> {
        let Some(block) = self.blocks.pop() else { return Ok(()) };
        check(block)?;
        let end = sbrk(0).map_err(|error| format!("sbrk: {error}"))?;
        if end != block.0 + BLOCK {
            return Err(format!("the heap ends at {end:#x} instead of {:#x}", block.0 + BLOCK));
        }
        sbrk(-(BLOCK as isize)).map(drop).map_err(|error| format!("cannot shrink the heap: {error}"))
    }
}

/// The last page of each block is never written.
fn written(start: usize) -> Region {
    Region { start, len: BLOCK - PAGE }
}

fn check((start, seed): (usize, u64)) -> Result<(), String> {
    let rest = Region { start: start + BLOCK - PAGE, len: PAGE };
    written(start).check(seed).and_then(|()| rest.check_zero()).map_err(|why| format!("the heap: {why}"))
}
