//! The computation of `steadfast`, so that a test knows its result for any number of steps.

/// The value that thread `thread` starts with.
pub fn start(thread: u64) -> u64 {
    mix(thread.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// The value after one more step.
pub fn step(value: u64, step: u64) -> u64 {
    mix(value ^ step.wrapping_mul(0xff51_afd7_ed55_8ccd))
}

/// What `threads` threads have computed together after `steps` steps each.
pub fn digest(threads: u64, steps: u64) -> u64 {
    (0..threads).fold(0, |sum, thread| join(sum, (0..steps).fold(start(thread), step)))
}

/// Adds the result of one more thread, in order of their numbers.
pub fn join(sum: u64, value: u64) -> u64 {
    mix(sum.rotate_left(7) ^ value)
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
