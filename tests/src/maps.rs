//! Comparing the mappings of a process before and after.

use std::fs;

/// A mapping, as a line of /proc/PID/maps and the flags of /proc/PID/smaps tell it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mapping {
    start: u64,
    end: u64,
    attributes: String,
    /// Offset in the file, for those that have one.
    offset: Option<u64>,
    flags: String,
}

/// Flags of smaps that tell what the kernel has noticed, and not what the program asked for: soft-dirty, userfaultfd, that memory was once
/// writable, that there may be guard pages (in this mapping, or in one that it was part of).
const PASSING_FLAGS: &[&str] = &["sd", "um", "uw", "gu"];

/// The mappings of a process. Nothing is normalised but this: neighbours with the same attributes are one, and the inodes of files
/// that have no name any more (they are made anew) are left out.
pub fn read(pid: i32) -> Vec<Mapping> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps")).expect("cannot read smaps");
    let mut mappings: Vec<Mapping> = Vec::new();
    for line in text.lines() {
        if let Some(flags) = line.strip_prefix("VmFlags:") {
            let last = mappings.last_mut().expect("flags before a mapping");
            last.flags = flags.split_whitespace().filter(|flag| !PASSING_FLAGS.contains(flag)).collect::<Vec<_>>().join(" ");
        } else if let Some(mapping) = parse(line) {
            merge_last(&mut mappings);
            mappings.push(mapping);
        }
    }
    merge_last(&mut mappings);
    mappings
}

/// "7f00-7f01 rw-p 00000000 fe:00 1234   /path", or None for the other lines of smaps.
fn parse(line: &str) -> Option<Mapping> {
    let (range, rest) = line.split_once(' ')?;
    let (start, end) = range.split_once('-')?;
    let (start, end) = (u64::from_str_radix(start, 16).ok()?, u64::from_str_radix(end, 16).ok()?);
    let mut fields = rest.splitn(5, ' ');
    let (permissions, offset, device, inode) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
    let name = fields.next().unwrap_or_default().trim();
    // Memory that several processes share is a nameless file of the kernel's.
    let nameless = name.ends_with("(deleted)") || name.starts_with("/memfd:") || name.starts_with("[anon_shmem:");
    let attributes = if nameless { format!("{permissions} {name}") } else { format!("{permissions} {device} {inode} {name}") };
    let offset = (inode != "0").then(|| u64::from_str_radix(offset, 16)).transpose().ok()?;
    Some(Mapping { start, end, attributes, offset, flags: String::new() })
}

/// Joins the last mapping, which is complete, to the one before, if they are alike.
fn merge_last(mappings: &mut Vec<Mapping>) {
    let [.., before, last] = mappings.as_mut_slice() else { return };
    let continues = match (before.offset, last.offset) {
        (None, None) => true,
        (Some(a), Some(b)) => a + (before.end - before.start) == b,
        _ => false,
    };
    if before.end == last.start && continues && before.attributes == last.attributes && before.flags == last.flags {
        before.end = last.end;
        mappings.pop();
    }
}

/// Fails with what differs.
pub fn assert_same(before: &[Mapping], after: &[Mapping]) {
    let gone = before.iter().filter(|mapping| !after.contains(mapping)).map(|mapping| format!("- {}", show(mapping)));
    let new = after.iter().filter(|mapping| !before.contains(mapping)).map(|mapping| format!("+ {}", show(mapping)));
    let mut differences: Vec<String> = gone.chain(new).collect();
    differences.sort_by(|a, b| a[2..].cmp(&b[2..]));
    assert!(differences.is_empty(), "the mappings differ:\n{}", differences.join("\n"));
}

fn show(m: &Mapping) -> String {
    let offset = m.offset.map_or(String::new(), |offset| format!(" offset {offset:#x}"));
    format!("{:012x}-{:012x} {}{offset} [{}]", m.start, m.end, m.attributes, m.flags)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(line: &str) -> Mapping {
        parse(line).unwrap()
    }

    #[test]
    fn neighbours_are_one_if_they_are_alike() {
        let anonymous = |range: &str| mapping(&format!("{range} rw-p 00000000 00:00 0 "));
        let file = |range: &str, offset: &str| mapping(&format!("{range} r--p {offset} fe:00 17                  /lib/x y"));
        let mut all = Vec::new();
        for m in [
            anonymous("1000-2000"),
            anonymous("2000-3000"),
            anonymous("4000-5000"),
            file("5000-6000", "00000000"),
            file("6000-7000", "00001000"),
            file("7000-8000", "00005000"),
        ] {
            all.push(m);
            merge_last(&mut all);
        }
        let ranges: Vec<(u64, u64)> = all.iter().map(|m| (m.start, m.end)).collect();
        assert_eq!(ranges, [(0x1000, 0x3000), (0x4000, 0x5000), (0x5000, 0x7000), (0x7000, 0x8000)]);
        assert_eq!(all[2].attributes, "r--p fe:00 17 /lib/x y");
    }

    #[test]
    fn every_line_of_maps_is_understood() {
        let pid = std::process::id() as i32;
        let mappings = read(pid);
        assert!(mappings.iter().any(|m| m.attributes.ends_with("[vdso]") && m.flags.contains("ex")));
        assert_same(&mappings, &mappings.clone());
    }

    #[test]
    #[should_panic = "rw-p"]
    fn a_difference_is_told() {
        assert_same(&[mapping("1000-2000 rw-p 00000000 00:00 0 ")], &[]);
    }
}
