//! When a job that was killed is brought back, and from which points: not for ever, and not from a point at which it has died twice.

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

/// The time over which restarts are counted.
const WINDOW: Duration = Duration::from_secs(3600);
/// After so many deaths without a checkpoint in between a point is given up.
const DEATHS: u32 = 2;

/// See the module.
#[derive(Debug)]
pub struct Restarts {
    limit: NonZeroUsize,
    recent: VecDeque<Instant>,
    last: Option<Last>,
}

/// The last restart.
#[derive(Clone, Copy, Debug)]
struct Last {
    point: u64,
    /// The newest image that there was. Once there is a newer one, the job has got on.
    newest: u64,
    deaths: u32,
}

impl Restarts {
    /// At most `limit` restarts in an hour.
    pub fn new(limit: NonZeroUsize) -> Restarts {
        Restarts { limit, recent: VecDeque::new(), last: None }
    }

    /// The job has died. `made`: the numbers of its images. The answer: of which of these the newest whole one is to be taken; `None`: it was
    /// brought back too often already.
    pub fn next(&mut self, now: Instant, made: &RangeInclusive<u64>) -> Option<RangeInclusive<u64>> {
        self.recent.retain(|&then| now.saturating_duration_since(then) < WINDOW);
        if self.recent.len() >= self.limit.get() {
            return None;
        }
        self.recent.push_back(now);
        let upto = match &mut self.last {
            Some(last) if last.newest == *made.end() => {
                last.deaths += 1;
                if last.deaths < DEATHS { last.point } else { last.point.saturating_sub(1) }
            }
            _ => *made.end(),
        };
        Some(*made.start()..=upto)
    }

    /// That point was taken.
    pub fn took(&mut self, point: u64, made: &RangeInclusive<u64>) {
        let again = self.last.filter(|last| (last.point, last.newest) == (point, *made.end()));
        self.last = Some(again.unwrap_or(Last { point, newest: *made.end(), deaths: 0 }));
    }

    /// How many restarts there were in the last hour.
    pub fn recent(&self) -> usize {
        self.recent.len()
    }

    /// How many there may be.
    pub fn limit(&self) -> usize {
        self.limit.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn restarts(limit: usize) -> Restarts {
        Restarts::new(NonZeroUsize::new(limit).unwrap())
    }

    /// Brought back from the newest of the points that are asked for.
    fn bring_back(restarts: &mut Restarts, now: Instant, made: RangeInclusive<u64>) -> Option<u64> {
        let among = restarts.next(now, &made)?;
        assert_eq!(among.start(), made.start(), "an image of somebody else's");
        restarts.took(*among.end(), &made);
        Some(*among.end())
    }

    #[test]
    fn the_limit_is_one_of_the_last_hour() {
        let (mut restarts, began) = (restarts(2), Instant::now());
        let at = |minutes: u64| began + Duration::from_secs(60 * minutes);
        assert_eq!(bring_back(&mut restarts, at(0), 1..=1), Some(1));
        assert_eq!(bring_back(&mut restarts, at(50), 1..=2), Some(2));
        assert_eq!(bring_back(&mut restarts, at(59), 1..=3), None);
        assert_eq!(bring_back(&mut restarts, at(60), 1..=3), Some(3));
        assert_eq!(bring_back(&mut restarts, at(61), 1..=4), None);
    }

    #[test]
    fn two_deaths_at_a_point_and_the_next_older_one_is_taken() {
        let (mut restarts, now) = (restarts(100), Instant::now());
        let mut points = Vec::new();
        for _ in 0..5 {
            points.extend(bring_back(&mut restarts, now, 7..=9));
        }
        // A further checkpoint.
        points.extend(bring_back(&mut restarts, now, 7..=10));
        points.extend(bring_back(&mut restarts, now, 7..=10));
        assert_eq!(points, [9, 9, 8, 8, 7, 10, 10]);
    }

    /// The newest may be damaged, and be damaged still the next time.
    #[test]
    fn deaths_are_counted_where_they_were() {
        let (mut restarts, now, made) = (restarts(100), Instant::now(), 1..=9);
        restarts.next(now, &made);
        restarts.took(6, &made);
        assert_eq!(restarts.next(now, &made), Some(1..=6));
        restarts.took(6, &made);
        assert_eq!(restarts.next(now, &made), Some(1..=5));
    }

    #[test]
    fn nothing_older_is_nothing() {
        let (mut restarts, now) = (restarts(100), Instant::now());
        bring_back(&mut restarts, now, 3..=3);
        bring_back(&mut restarts, now, 3..=3);
        assert!(restarts.next(now, &(3..=3)).is_some_and(|among| among.is_empty()));
    }
}
