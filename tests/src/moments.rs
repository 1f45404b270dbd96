//! Random moments and data that can be had again: the seed is printed, and CKPT_TEST_SEED sets it.

use std::cell::Cell;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const SEED: &str = "CKPT_TEST_SEED";

/// A source of random numbers (splitmix64).
#[derive(Debug)]
pub struct Moments(Cell<u64>);

impl Moments {
    /// With the seed of the environment, or a new one, which is printed (the test runner shows it when the test fails).
    pub fn new() -> Moments {
        let given = std::env::var(SEED).ok().map(|text| text.parse().expect("CKPT_TEST_SEED is not a number"));
        let seed = given.unwrap_or_else(|| {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock stands before 1970");
            now.as_nanos() as u64 ^ (u64::from(std::process::id()) << 32)
        });
        println!("{SEED}={seed}");
        Moments::with_seed(seed)
    }

    /// Always the same sequence.
    pub fn with_seed(seed: u64) -> Moments {
        Moments(Cell::new(seed))
    }

    /// 64 random bits.
    pub fn bits(&self) -> u64 {
        self.0.set(self.0.get().wrapping_add(0x9e37_79b9_7f4a_7c15));
        let mut z = self.0.get();
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`.
    pub fn below(&self, limit: u64) -> u64 {
        self.bits() % limit.max(1)
    }

    /// A part of `whole`, from `low` to `high` (0.0 to 1.0).
    pub fn part_of(&self, whole: Duration, low: f64, high: f64) -> Duration {
        let fraction = (self.bits() >> 11) as f64 / (1u64 << 53) as f64;
        whole.mul_f64(low + (high - low) * fraction)
    }

    /// Lets a random part of `whole` pass: there is no event to wait for, any moment is meant.
    pub fn let_pass(&self, whole: Duration, low: f64, high: f64) {
        let pause = self.part_of(whole, low, high);
        println!("a moment after {:.3} ms", pause.as_secs_f64() * 1e3);
        thread::sleep(pause);
    }
}

/// How long something takes that is to be struck at any instant of it: learnt by striking, as a machine's load changes.
#[derive(Clone, Copy, Debug)]
pub struct Span(Duration);

impl Span {
    /// Begins with how long `work` takes.
    pub fn of(work: impl FnOnce()) -> Span {
        let began = Instant::now();
        work();
        Span(began.elapsed())
    }

    /// Lets a random part of it pass.
    pub fn let_pass(&self, moments: &Moments) {
        thread::sleep(moments.part_of(self.0, 0.0, 1.0));
    }

    /// Was the last strike in time? Half of those at its very end should be.
    pub fn struck(&mut self, in_time: bool) {
        self.0 = self.0.mul_f64(if in_time { 1.02 } else { 0.9 });
    }
}

impl Default for Moments {
    fn default() -> Moments {
        Moments::new()
    }
}
