//! The build id of an ELF file: a note by which two copies of one build know each other, whatever their times.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::FileExt;

/// NT_GNU_BUILD_ID, owned by "GNU\0".
const NT_GNU_BUILD_ID: u32 = 3;
const PT_NOTE: u32 = 4;
/// More than any build id has; longer notes are none.
const NOTES_MAX: u64 = 64 * 1024;

/// The build id of a 64-bit ELF file. `None`: no such file, no such note, or it cannot be read through this descriptor.
pub fn of(file: impl AsFd) -> Option<Vec<u8>> {
    let fd: BorrowedFd<'_> = file.as_fd();
    let file = File::from(fd.try_clone_to_owned().ok()?);
    let mut header = [0u8; 64];
    file.read_exact_at(&mut header, 0).ok()?;
    if !header.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let (table, size, count) = (u64_at(&header, 0x20)?, u16_at(&header, 0x36)?, u16_at(&header, 0x38)?);
    (0..u64::from(count)).find_map(|n| {
        let mut segment = [0u8; 56];
        file.read_exact_at(&mut segment, table.checked_add(n * u64::from(size))?).ok()?;
        let (kind, offset, length) = (u32_at(&segment, 0)?, u64_at(&segment, 8)?, u64_at(&segment, 0x20)?);
        if kind != PT_NOTE || length > NOTES_MAX {
            return None;
        }
        let mut notes = vec![0; length as usize];
        file.read_exact_at(&mut notes, offset).ok()?;
        find_note(&notes)
    })
}

fn find_note(mut notes: &[u8]) -> Option<Vec<u8>> {
    while notes.len() >= 12 {
        let (name_len, len, kind) = (u32_at(notes, 0)? as usize, u32_at(notes, 4)? as usize, u32_at(notes, 8)?);
        let name_end = 12usize.checked_add(name_len)?;
        let start = name_end.checked_next_multiple_of(4)?;
        let end = start.checked_add(len)?;
        let (name, id) = (notes.get(12..name_end)?, notes.get(start..end)?);
        if kind == NT_GNU_BUILD_ID && name == b"GNU\0" {
            return Some(id.to_vec());
        }
        notes = notes.get(end.checked_next_multiple_of(4)?..)?;
    }
    None
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_are_walked() {
        let mut notes = Vec::new();
        for (kind, name, id) in [(1u32, &b"GNU\0"[..], &b"abcde"[..]), (3, b"GNU\0", b"\x12\x34\x56\x78")] {
            notes.extend((name.len() as u32).to_le_bytes());
            notes.extend((id.len() as u32).to_le_bytes());
            notes.extend(kind.to_le_bytes());
            notes.extend(name);
            notes.extend(id);
            notes.resize(notes.len().next_multiple_of(4), 0);
        }
        assert_eq!(find_note(&notes), Some(vec![0x12, 0x34, 0x56, 0x78]));
        assert_eq!(find_note(&notes[..20]), None);
        assert_eq!(of(File::open("/proc/self/maps").unwrap()), None);
    }
}
