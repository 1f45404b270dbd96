//! What a file held, as one hash: by it a file that only grew is told from one that was written to in other places, too.
//!
//! Taken while the job is stopped, so it must be cheap. Of a small file all is hashed. Of a larger one a part: its beginning, its end, and a
//! block at each power of two in between. Those places do not move as the file grows, so the next cut finds them in the page cache.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::Xxh3;

/// Files of up to so many bytes are hashed whole.
pub const WHOLE: u64 = 1 << 20;
/// Bytes that are hashed at the beginning and at the end of a larger file.
const EDGE: u64 = 64 << 10;
/// Bytes that are hashed at each power of two in between.
const SAMPLE: u64 = 4 << 10;

/// See the module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Evidence {
    /// XXH3 with 128 bits, little endian, of the parts that [`parts`] names, one after the other.
    #[serde(with = "serde_bytes")]
    hash: [u8; 16],
}

impl Evidence {
    /// Of the first `size` bytes.
    ///
    /// Errors: the file cannot be read, or is shorter.
    pub fn take(file: &File, size: u64) -> io::Result<Evidence> {
        let mut hash = Xxh3::new();
        let mut buffer = vec![0; size.clamp(1, EDGE) as usize];
        for (start, end) in parts(size) {
            let mut at = start;
            while at < end {
                let some = &mut buffer[..(end - at).min(EDGE) as usize];
                file.read_exact_at(some, at)?;
                hash.update(some);
                at += some.len() as u64;
            }
        }
        Ok(Evidence { hash: hash.digest128().to_le_bytes() })
    }

    /// Does the file still begin with `size` bytes of which the same is true?
    pub fn holds(&self, file: &File, size: u64) -> io::Result<bool> {
        match Evidence::take(file, size) {
            Ok(now) => Ok(now == *self),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Is every byte of a file of `size` bytes hashed?
pub fn is_whole(size: u64) -> bool {
    size <= WHOLE
}

/// First byte, and one past the last, of each part that is hashed.
fn parts(size: u64) -> Vec<(u64, u64)> {
    if is_whole(size) {
        return vec![(0, size)];
    }
    let powers = (EDGE.ilog2()..u64::BITS).map(|power| 1 << power).take_while(|at| at + SAMPLE <= size - EDGE);
    let samples = powers.map(|at: u64| (at, at + SAMPLE));
    std::iter::once((0, EDGE)).chain(samples).chain([(size - EDGE, size)]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(size: u64) -> File {
        let file = tempfile::tempfile().unwrap();
        let bytes: Vec<u8> = (0..size).map(|n| (n % 251) as u8).collect();
        file.write_all_at(&bytes, 0).unwrap();
        file
    }

    #[test]
    fn growth_is_not_seen_and_every_other_change_of_a_small_file_is() {
        let file = file(5000);
        let evidence = Evidence::take(&file, 5000).unwrap();
        file.write_all_at(b"more", 5000).unwrap();
        assert!(evidence.holds(&file, 5000).unwrap());
        for at in [0, 2500, 4999] {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ 1], at).unwrap();
            assert!(!evidence.holds(&file, 5000).unwrap(), "byte {at}");
            file.write_all_at(&byte, at).unwrap();
        }
        file.set_len(4999).unwrap();
        assert!(!evidence.holds(&file, 5000).unwrap());
    }

    #[test]
    fn a_large_file_is_looked_at_in_few_places() {
        let size = WHOLE + 12345;
        let file = file(size);
        let evidence = Evidence::take(&file, size).unwrap();
        for at in [0, EDGE - 1, EDGE, 1 << 17, (1 << 19) + SAMPLE - 1, size - 1] {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).unwrap();
            file.write_all_at(&[byte[0] ^ 1], at).unwrap();
            assert!(!evidence.holds(&file, size).unwrap(), "byte {at}");
            file.write_all_at(&byte, at).unwrap();
        }
        let read: u64 = parts(1 << 40).iter().map(|(start, end)| end - start).sum();
        assert!(read < 256 << 10, "{read}");
        for size in [0, 1, WHOLE, WHOLE + 1, 1 << 40, u64::MAX] {
            assert!(parts(size).windows(2).all(|pair| pair[0].1 <= pair[1].0), "the parts of {size} bytes overlap");
            assert!(parts(size).iter().all(|(start, end)| start <= end && *end <= size));
        }
    }
}
