//! /proc/PID/mountinfo: where a device is mounted.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use crate::ids::Pid;

/// The mount points, as `pid` sees them, of the file system on the device `major`:`minor`.
pub fn of_device(pid: Pid, major: u64, minor: u64) -> io::Result<Vec<PathBuf>> {
    Ok(points(&fs::read(format!("/proc/{pid}/mountinfo"))?, &format!("{major}:{minor}")))
}

/// Lines are "27 1 254:0 /root /mount\040point options ...".
fn points(mountinfo: &[u8], device: &str) -> Vec<PathBuf> {
    let lines = mountinfo.split(|&b| b == b'\n').map(|line| line.split(|&b| b == b' ').collect::<Vec<_>>());
    lines
        .filter(|words| words.get(2) == Some(&device.as_bytes()))
        .filter_map(|words| Some(PathBuf::from(OsString::from_vec(unescape(words.get(4)?)))))
        .collect()
}

/// "\040" is a blank.
fn unescape(word: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(word.len());
    let mut at = 0;
    while at < word.len() {
        let octal = word.get(at + 1..at + 4).and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()).filter(|_| word[at] == b'\\') {
            Some(byte) => {
                plain.push(byte);
                at += 4;
            }
            None => {
                plain.push(word[at]);
                at += 1;
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_understood() {
        let text = b"27 1 254:0 / / rw - ext4 /dev/vda rw\n28 27 254:0 /x /a\\040b\\134 rw\n29 27 0:5 / /dev rw\nshort 1\n";
        assert_eq!(points(text, "254:0"), [PathBuf::from("/"), PathBuf::from("/a b\\")]);
        assert_eq!(points(text, "9:9"), Vec::<PathBuf>::new());
        assert_eq!(unescape(b"\\04"), b"\\04");
    }
}
