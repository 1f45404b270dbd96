//! What a checkpoint costs the job, from which `--interval auto` follows.

use std::collections::VecDeque;
use std::time::Duration;

use crate::checkpoint::Report;

/// The mean of so many of the last checkpoints counts: one alone may have been lucky, or met a busy machine.
const LAST: usize = 8;

/// The costs of the last checkpoints of one kind: whole images, until there are increments.
#[derive(Debug, Default)]
pub struct Costs {
    last: VecDeque<Duration>,
    increments: bool,
}

impl Costs {
    /// A checkpoint was made.
    pub fn add(&mut self, report: &Report) {
        let cost = cost(report.pause_us, report.preserving_us, report.threads);
        self.take(cost, report.parent_id.is_some());
    }

    fn take(&mut self, cost: Duration, is_increment: bool) {
        // A whole image is the exception from then on, and says nothing of what is to come.
        if self.increments && !is_increment {
            return;
        }
        if is_increment && !self.increments {
            self.last.clear();
            self.increments = true;
        }
        self.last.truncate(LAST - 1);
        self.last.push_front(cost);
    }

    /// What the next one will cost, as far as one can tell.
    pub fn expected(&self) -> Option<Duration> {
        let sum: Duration = self.last.iter().sum();
        u32::try_from(self.last.len()).ok().filter(|n| *n > 0).map(|n| sum / n)
    }
}

/// The time by which a checkpoint delays the job: in the pause, which has in it what the job was held back later, all threads stand still; while its pages
/// are saved before they change, one of them at a time.
fn cost(pause_us: u64, preserving_us: u64, threads: usize) -> Duration {
    Duration::from_micros(pause_us + preserving_us / (threads as u64).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    #[test]
    fn the_time_that_pages_take_to_save_is_shared_by_the_threads() {
        assert_eq!(cost(2000, 3000, 1), MS(5));
        assert_eq!(cost(2000, 3000, 3), MS(3));
        assert_eq!(cost(2000, 0, 0), MS(2));
    }

    #[test]
    fn the_last_increments_count() {
        let mut costs = Costs::default();
        assert_eq!(costs.expected(), None);
        costs.take(MS(900), false);
        assert_eq!(costs.expected(), Some(MS(900)));
        costs.take(MS(10), true);
        assert_eq!(costs.expected(), Some(MS(10)), "the whole image is no measure of increments");
        costs.take(MS(30), true);
        assert_eq!(costs.expected(), Some(MS(20)));
        costs.take(MS(900), false);
        assert_eq!(costs.expected(), Some(MS(20)));
        (0..LAST).for_each(|_| costs.take(MS(50), true));
        assert_eq!(costs.expected(), Some(MS(50)), "what is long ago does not count");
    }

    #[test]
    fn one_that_is_far_off_moves_it_by_its_share() {
        let mut costs = Costs::default();
        (0..20).for_each(|_| costs.take(MS(8), true));
        costs.take(MS(88), true);
        assert_eq!(costs.expected(), Some(MS(18)));
    }
}
