//! Copying and comparing files that may have holes.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;

use rangemap::RangeSet;

use crate::sys::sparse;

/// Bytes that are compared, and copied, at once.
const PIECE: u64 = 64 << 10;

/// The ranges of the first `size` bytes in which two files differ. What lies beyond the end of the first differs, unless it is zeros.
pub fn differences(one: &File, other: &File, size: u64) -> io::Result<Vec<Range<u64>>> {
    let mut data = RangeSet::new();
    for file in [one, other] {
        let pieces = sparse::data_ranges(file.as_fd(), 0..size)?;
        data.extend(pieces.iter().map(|piece| piece.start / PIECE * PIECE..piece.end.next_multiple_of(PIECE).min(size)));
    }
    let (mut left, mut right) = ([0; PIECE as usize], [0; PIECE as usize]);
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for at in data.iter().flat_map(|range| range.clone().step_by(PIECE as usize)) {
        let end = (at + PIECE).min(size);
        let len = (end - at) as usize;
        read_or_zeros(one, &mut left[..len], at)?;
        read_or_zeros(other, &mut right[..len], at)?;
        match ranges.last_mut() {
            _ if left[..len] == right[..len] => {}
            Some(last) if last.end == at => last.end = end,
            _ => ranges.push(at..end),
        }
    }
    Ok(ranges)
}

/// What is beyond the end of a file is what it would be if it was longer.
fn read_or_zeros(file: &File, buffer: &mut [u8], at: u64) -> io::Result<()> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], at + done as u64) {
            Ok(0) => break,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            read => done += read?,
        }
    }
    buffer[done..].fill(0);
    Ok(())
}

pub fn copy_ranges(from: &File, to: &File, ranges: &[Range<u64>]) -> io::Result<()> {
    let mut buffer = vec![0; PIECE as usize];
    for range in ranges {
        for at in range.clone().step_by(PIECE as usize) {
            let some = &mut buffer[..(range.end - at).min(PIECE) as usize];
            from.read_exact_at(some, at)?;
            to.write_all_at(some, at)?;
        }
    }
    Ok(())
}

/// Copies what a file holds from the byte `start` on to the end of another, which is at the byte `at`. Holes stay holes.
pub fn copy_from(mut from: &File, start: u64, mut to: &File, at: u64) -> io::Result<()> {
    let size = from.metadata()?.len();
    to.set_len(at + size.saturating_sub(start))?;
    for range in sparse::data_ranges(from.as_fd(), start..size)? {
        from.seek(SeekFrom::Start(range.start))?;
        to.seek(SeekFrom::Start(at + range.start - start))?;
        io::copy(&mut from.take(range.end - range.start), &mut to)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    /// Mebibytes and what is there.
    fn file(size: u64, data: &[(u64, u8)]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(size << 20).unwrap();
        data.iter().for_each(|&(at, byte)| file.write_all_at(&[byte; 100], at << 20).unwrap());
        file
    }

    #[test]
    fn files_are_compared_where_they_hold_data() {
        let one = file(1 << 20, &[(0, 1), (7, 2), (1 << 19, 3), (9, 0)]);
        let other = file(1 << 20, &[(0, 1), (7, 9), (8, 4)]);
        let pieces = |mebibytes: &[u64]| mebibytes.iter().map(|at| at << 20..(at << 20) + PIECE).collect::<Vec<_>>();
        assert_eq!(differences(&one, &other, 1 << 40).unwrap(), pieces(&[7, 8, 1 << 19]));
        assert!(differences(&one, &one, 1 << 40).unwrap().is_empty());
        // Beyond the end of one the other has only zeros, and then more.
        let (short, long) = (file(0, &[]), file(3, &[(1, 0), (2, 5)]));
        assert_eq!(differences(&short, &long, 3 << 20).unwrap(), pieces(&[2]));
        assert_eq!(differences(&long, &long, 100).unwrap(), []);
    }

    #[test]
    fn holes_stay_holes() {
        let (from, to) = (file(1 << 20, &[(3, 1), (1 << 18, 2)]), file(0, &[]));
        to.write_all_at(b"before", 0).unwrap();
        copy_from(&from, (3 << 20) + 50, &to, 6).unwrap();
        assert_eq!(to.metadata().unwrap().len(), (1 << 40) - (3 << 20) - 44);
        let mut bytes = [9; 60];
        to.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!((&bytes[..6], &bytes[6..56], &bytes[56..]), (&b"before"[..], &[1; 50][..], &[0; 4][..]));
        to.read_exact_at(&mut bytes, (1 << 38) - (3 << 20) - 44).unwrap();
        assert_eq!(bytes, [2; 60]);
        assert!(to.metadata().unwrap().blocks() < 1000, "the holes were filled");
    }
}
