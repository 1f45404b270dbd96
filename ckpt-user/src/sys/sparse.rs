//! Where a sparse file holds data: lseek(2) with SEEK_DATA and SEEK_HOLE.

use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, BorrowedFd};

fn seek(fd: BorrowedFd<'_>, at: u64, whence: i32) -> io::Result<Option<u64>> {
    // SAFETY: only numbers are passed.
    let found = unsafe { libc::lseek(fd.as_raw_fd(), at as i64, whence) };
    if found >= 0 {
        return Ok(Some(found as u64));
    }
    let error = io::Error::last_os_error();
    // ENXIO: nothing of that sort from here to the end.
    if error.raw_os_error() == Some(libc::ENXIO) { Ok(None) } else { Err(error) }
}

/// The parts of `within` that are not holes, in order, in bytes. Moves the offset of the open file: use one of your own.
pub fn data_ranges(fd: BorrowedFd<'_>, within: Range<u64>) -> io::Result<Vec<Range<u64>>> {
    let mut ranges = Vec::new();
    let mut at = within.start;
    while at < within.end {
        let Some(start) = seek(fd, at, libc::SEEK_DATA)?.filter(|&start| start < within.end) else { break };
        let end = seek(fd, start, libc::SEEK_HOLE)?.unwrap_or(within.end).min(within.end);
        ranges.push(start..end);
        at = end;
    }
    Ok(ranges)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::fs::FileExt;

    use super::*;

    #[test]
    fn holes_are_left_out() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        file.write_all_at(&[1; 4096], 65536).unwrap();
        assert_eq!(data_ranges(file.as_fd(), 0..1 << 20).unwrap(), vec![65536..69632]);
        assert_eq!(data_ranges(file.as_fd(), 66000..67000).unwrap(), vec![66000..67000]);
        assert!(data_ranges(file.as_fd(), 0..4096).unwrap().is_empty());
    }
}
