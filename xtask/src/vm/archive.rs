//! The format of an initramfs: cpio's "newc" (kernel: driver-api/early-userspace/buffer-format).

use std::collections::BTreeSet;
use std::path::{Component, Path};

const FOLDER: u32 = 0o040_755;
const PROGRAM: u32 = 0o100_755;
const LINK: u32 = 0o120_777;

/// Files, with the folders that they are in.
#[derive(Debug, Default)]
pub struct Archive {
    bytes: Vec<u8>,
    folders: BTreeSet<String>,
    count: u32,
}

impl Archive {
    /// An empty folder.
    pub fn folder(&mut self, path: &str) {
        let mut at = String::new();
        for part in Path::new(path).components() {
            let Component::Normal(part) = part else { continue };
            if !at.is_empty() {
                at.push('/');
            }
            at.push_str(&part.to_string_lossy());
            if self.folders.insert(at.clone()) {
                self.entry(&at, FOLDER, &[]);
            }
        }
    }

    /// A file that may be executed.
    pub fn file(&mut self, path: &str, contents: &[u8]) {
        self.leaf(path, PROGRAM, contents);
    }

    /// A symbolic link.
    pub fn link(&mut self, path: &str, to: &str) {
        self.leaf(path, LINK, to.as_bytes());
    }

    /// The whole archive.
    pub fn finish(mut self) -> Vec<u8> {
        self.entry("TRAILER!!!", 0, &[]);
        self.bytes
    }

    fn leaf(&mut self, path: &str, mode: u32, contents: &[u8]) {
        let path = path.trim_start_matches('/');
        if let Some((folder, _)) = path.rsplit_once('/') {
            self.folder(folder);
        }
        self.entry(path, mode, contents);
    }

    fn entry(&mut self, name: &str, mode: u32, contents: &[u8]) {
        self.count += 1;
        let size = u32::try_from(contents.len()).expect("a file of 4 GiB");
        // inode, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check.
        let fields = [self.count, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name.len() as u32 + 1, 0];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(contents);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Name, mode and contents of every entry.
    fn parse(bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let (mut at, mut entries) = (0, Vec::new());
        while at < bytes.len() {
            assert_eq!(&bytes[at..at + 6], b"070701");
            let field = |n: usize| {
                let from = at + 6 + 8 * n;
                u32::from_str_radix(std::str::from_utf8(&bytes[from..from + 8]).unwrap(), 16).unwrap() as usize
            };
            let (mode, size, name_size) = (field(1) as u32, field(6), field(11));
            let name = &bytes[at + 110..at + 110 + name_size - 1];
            let start = (at + 110 + name_size).next_multiple_of(4);
            entries.push((String::from_utf8(name.to_vec()).unwrap(), mode, bytes[start..start + size].to_vec()));
            at = (start + size).next_multiple_of(4);
        }
        entries
    }

    #[test]
    fn folders_come_once_and_before_what_is_in_them() {
        let mut archive = Archive::default();
        archive.file("/a/b/one", b"12345");
        archive.link("a/b/two", "/a/b/one");
        archive.folder("/a");
        archive.file("init", b"");
        let entry = |name: &str, mode, contents: &[u8]| (name.to_owned(), mode, contents.to_vec());
        assert_eq!(
            parse(&archive.finish()),
            [
                entry("a", FOLDER, b""),
                entry("a/b", FOLDER, b""),
                entry("a/b/one", PROGRAM, b"12345"),
                entry("a/b/two", LINK, b"/a/b/one"),
                entry("init", PROGRAM, b""),
                entry("TRAILER!!!", 0, b""),
            ]
        );
    }
}
