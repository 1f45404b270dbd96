//! /proc/PID/mountinfo: where a device is mounted.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::ids::Pid;

/// The mount points, as `pid` sees them, of the file system on the device `major`:`minor`.
pub fn of_device(pid: Pid, major: u64, minor: u64) -> io::Result<Vec<PathBuf>> {
    Ok(points(&fs::read(format!("/proc/{pid}/mountinfo"))?, &format!("{major}:{minor}")))
}

/// The same with the numbers of the mounts.
pub fn with_numbers(pid: Pid, major: u64, minor: u64) -> io::Result<Vec<(u64, PathBuf)>> {
    Ok(numbered(&fs::read(format!("/proc/{pid}/mountinfo"))?, &format!("{major}:{minor}")))
}

/// Where the mount with this number is, as `pid` sees it.
pub fn point_of(pid: Pid, mount: u64) -> io::Result<Option<PathBuf>> {
    Ok(point_with(&fs::read(format!("/proc/{pid}/mountinfo"))?, mount.to_string().as_bytes()))
}

/// The number of the mount that a path is on.
pub fn number_at(path: &Path) -> io::Result<u64> {
    let file = File::options().read(true).custom_flags(libc::O_PATH).open(path)?;
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", file.as_raw_fd()))?;
    let number = info.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse().ok());
    number.ok_or_else(|| io::Error::other("no mount in the fdinfo of a file"))
}

fn point_with(mountinfo: &[u8], number: &[u8]) -> Option<PathBuf> {
    let mut lines = mountinfo.split(|&b| b == b'\n').map(|line| line.split(|&b| b == b' ').collect::<Vec<_>>());
    let found = lines.find(|words| words.first() == Some(&number))?;
    Some(PathBuf::from(OsString::from_vec(unescape(found.get(4)?))))
}

/// Lines are "27 1 254:0 /root /mount\040point options ...".
fn points(mountinfo: &[u8], device: &str) -> Vec<PathBuf> {
    numbered(mountinfo, device).into_iter().map(|(_, point)| point).collect()
}

fn numbered(mountinfo: &[u8], device: &str) -> Vec<(u64, PathBuf)> {
    let lines = mountinfo.split(|&b| b == b'\n').map(|line| line.split(|&b| b == b' ').collect::<Vec<_>>());
    let on_device = lines.filter(|words| words.get(2) == Some(&device.as_bytes()));
    let number = |word: &[u8]| std::str::from_utf8(word).ok()?.parse().ok();
    on_device
        .filter_map(|words| Some((number(words.first()?)?, PathBuf::from(OsString::from_vec(unescape(words.get(4)?))))))
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
        assert_eq!(point_with(text, b"28"), Some(PathBuf::from("/a b\\")));
        assert_eq!(point_with(text, b"2"), None);
        assert_eq!(unescape(b"\\04"), b"\\04");
    }
}
