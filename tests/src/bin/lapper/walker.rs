//! One thread's walk over its pages: look at each, then write it.

use std::thread;
use std::time::Duration;

use crate::hand::Hand;
use crate::heap::Heap;
use crate::plan::{Held, Plan, Way};
use crate::territory::Territory;

/// A thread's memory, and what it does to it.
#[derive(Debug)]
pub struct Walker {
    /// What its pages must hold.
    pub plan: Plan,
    /// Where they are.
    pub territory: Territory,
    /// How they are written.
    pub hand: Hand,
    /// Do they move?
    pub moves: bool,
    /// The heap, if it is this thread's.
    pub heap: Option<Heap>,
    /// The time between two pages.
    pub pause: Option<Duration>,
}

impl Walker {
    /// Writes every page for the first time, as after `lap`.
    pub fn begin(&mut self, lap: u64) -> Result<(), String> {
        for page in 0..self.plan.pages {
            self.check(page, Held::Zeros, lap)?;
            self.write(page, lap)?;
        }
        Ok(())
    }

    /// Looks at every page, and writes it. Laps count from 1.
    pub fn lap(&mut self, lap: u64) -> Result<(), String> {
        if let Some(part) = self.plan.renewed(lap) {
            for page in self.plan.pages_of(part) {
                self.check(page, self.plan.after(page, lap - 1), lap)?;
            }
            self.territory.renew(part).map_err(|error| format!("cannot map part {part} anew: {error}"))?;
        }
        // Several times in a lap, at other places in each.
        let (third, sixteenth) = (self.plan.pages.div_ceil(3), self.plan.pages.div_ceil(16));
        for (n, page) in self.plan.order(lap).enumerate() {
            if self.moves && (n + lap as usize).is_multiple_of(third) {
                self.territory.wander(n / third + lap as usize * 3).map_err(|error| format!("cannot move memory: {error}"))?;
            }
            if let Some(heap) = self.heap.as_mut().filter(|_| n.is_multiple_of(sixteenth)) {
                heap.step()?;
            }
            self.check(page, self.plan.before(page, lap), lap)?;
            self.write(page, lap)?;
            if let Some(pause) = self.pause {
                thread::sleep(pause);
            }
        }
        Ok(())
    }

    fn check(&mut self, page: usize, held: Held, lap: u64) -> Result<(), String> {
        let told = |why| format!("thread {}, lap {lap}, page {page}: {why}", self.plan.thread);
        self.hand.check(self.territory.page(page), held).map_err(told)
    }

    fn write(&mut self, page: usize, lap: u64) -> Result<(), String> {
        let dropped = self.plan.is_dropped(page, lap);
        let mut written = if dropped {
            self.territory.drop_page(page)
        } else {
            let way: Way = self.plan.way(page, lap);
            self.hand.write(self.territory.page(page), way, self.plan.after(page, lap))
        };
        if written.is_ok() && !dropped && self.plan.goes_out(page, lap) {
            written = self.territory.page_out(page);
        }
        written.map_err(|error| format!("thread {}, lap {lap}, page {page}: cannot write it: {error}", self.plan.thread))?;
        // Half of what was dropped is there again at once, though it was only read.
        if dropped && page.is_multiple_of(2) { self.check(page, Held::Zeros, lap) } else { Ok(()) }
    }
}
