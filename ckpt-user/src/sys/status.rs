//! /proc/PID/task/TID/status, as far as ckpt needs it.
//!
//! It is read of each thread while that stands still. The `procfs` crate makes a map of all of its lines first, which takes longer than the kernel takes to
//! write them.

use std::str::FromStr;

/// See the module. What a kernel does not tell is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// "Name": any bytes.
    pub name: Vec<u8>,
    /// "Umask".
    pub umask: Option<u32>,
    /// "Tgid".
    pub tgid: i32,
    /// "PPid".
    pub ppid: i32,
    /// "TracerPid": 0 if it is not traced.
    pub tracerpid: i32,
    /// "Uid": real, effective, saved, of the file system.
    pub uids: [u32; 4],
    /// "Gid": the same.
    pub gids: [u32; 4],
    /// "Groups".
    pub groups: Vec<u32>,
    /// "NStgid": its process, as the pid namespaces number it, from the one of /proc inwards.
    pub nstgid: Option<Vec<i32>>,
    /// "NSpid": the same of the thread.
    pub nspid: Option<Vec<i32>>,
    /// "VmLck" in KiB.
    pub vmlck: Option<u64>,
    /// "SigPnd": signals that wait for the thread.
    pub sigpnd: u64,
    /// "ShdPnd": signals that wait for the process.
    pub shdpnd: u64,
    /// "SigBlk".
    pub sigblk: u64,
    /// "SigIgn".
    pub sigign: u64,
    /// "SigCgt".
    pub sigcgt: u64,
    /// "CapInh".
    pub capinh: u64,
    /// "CapPrm".
    pub capprm: u64,
    /// "CapEff".
    pub capeff: u64,
    /// "CapBnd".
    pub capbnd: Option<u64>,
    /// "CapAmb".
    pub capamb: Option<u64>,
    /// "NoNewPrivs".
    pub nonewprivs: Option<u64>,
    /// "Seccomp": SECCOMP_MODE_*.
    pub seccomp: Option<u32>,
    /// "Mems_allowed_list": first and last node of each range.
    pub mems_allowed_list: Option<Vec<(u32, u32)>>,
}

impl Status {
    /// Of a stopped process: does it look as if [`crate::sys::signal::stop`] has stopped it?
    pub fn stopped_by_us(&self) -> bool {
        (self.sigpnd | self.shdpnd) & 1 << (libc::SIGSTOP - 1) != 0
    }

    /// `None`: not as proc(5) has it.
    pub fn parse(text: &[u8]) -> Option<Status> {
        let mut status = Status::default();
        let mut identities = 0;
        for line in text.split(|&byte| byte == b'\n') {
            let Some(colon) = line.iter().position(|&byte| byte == b':') else { continue };
            let value = &line[colon + 1..];
            match &line[..colon] {
                b"Name" => status.name = unescaped(value.strip_prefix(b"\t")?),
                b"Umask" => status.umask = Some(u32::from_str_radix(word(value)?, 8).ok()?),
                b"Tgid" => status.tgid = number(value)?,
                b"PPid" => status.ppid = number(value)?,
                b"TracerPid" => status.tracerpid = number(value)?,
                b"Uid" => {
                    status.uids = numbers(value)?.try_into().ok()?;
                    identities += 1;
                }
                b"Gid" => {
                    status.gids = numbers(value)?.try_into().ok()?;
                    identities += 1;
                }
                b"Groups" => status.groups = numbers(value)?,
                b"NStgid" => status.nstgid = Some(numbers(value)?),
                b"NSpid" => status.nspid = Some(numbers(value)?),
                b"VmLck" => status.vmlck = Some(word(value)?.strip_suffix(" kB")?.parse().ok()?),
                b"SigPnd" => status.sigpnd = mask(value)?,
                b"ShdPnd" => status.shdpnd = mask(value)?,
                b"SigBlk" => status.sigblk = mask(value)?,
                b"SigIgn" => status.sigign = mask(value)?,
                b"SigCgt" => status.sigcgt = mask(value)?,
                b"CapInh" => status.capinh = mask(value)?,
                b"CapPrm" => status.capprm = mask(value)?,
                b"CapEff" => {
                    status.capeff = mask(value)?;
                    identities += 1;
                }
                b"CapBnd" => status.capbnd = Some(mask(value)?),
                b"CapAmb" => status.capamb = Some(mask(value)?),
                b"NoNewPrivs" => status.nonewprivs = Some(number(value)?),
                b"Seccomp" => status.seccomp = Some(number(value)?),
                b"Mems_allowed_list" => status.mems_allowed_list = Some(ranges(word(value)?)?),
                _ => {}
            }
        }
        // Every kernel tells these; without them it is no status, or not whole.
        (identities == 3 && status.tgid > 0).then_some(status)
    }
}

/// The kernel writes two bytes of a name in another way: the newline and the backslash.
fn unescaped(name: &[u8]) -> Vec<u8> {
    let mut bytes = name.iter().copied();
    let mut out = Vec::with_capacity(name.len());
    while let Some(byte) = bytes.next() {
        out.push(match byte {
            b'\\' => match bytes.next() {
                Some(b'n') => b'\n',
                other => other.unwrap_or(b'\\'),
            },
            other => other,
        });
    }
    out
}

fn word(value: &[u8]) -> Option<&str> {
    std::str::from_utf8(value).ok().map(str::trim)
}

fn number<T: FromStr>(value: &[u8]) -> Option<T> {
    word(value)?.parse().ok()
}

fn numbers<T: FromStr>(value: &[u8]) -> Option<Vec<T>> {
    word(value)?.split_ascii_whitespace().map(|number| number.parse().ok()).collect()
}

fn mask(value: &[u8]) -> Option<u64> {
    u64::from_str_radix(word(value)?, 16).ok()
}

/// "0-3,8".
fn ranges(list: &str) -> Option<Vec<(u32, u32)>> {
    let range = |part: &str| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        Some((first.parse().ok()?, last.parse().ok()?))
    };
    list.split(',').filter(|part| !part.is_empty()).map(range).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_writes_is_understood_as_others_understand_it() {
        let ours = Status::parse(&std::fs::read("/proc/thread-self/status").unwrap()).unwrap();
        let theirs = procfs::process::Process::myself().unwrap().status().unwrap();
        assert_eq!(ours.uids, [theirs.ruid, theirs.euid, theirs.suid, theirs.fuid]);
        assert_eq!(ours.gids, [theirs.rgid, theirs.egid, theirs.sgid, theirs.fgid]);
        assert_eq!((ours.tgid, ours.ppid, ours.tracerpid), (theirs.tgid, theirs.ppid, theirs.tracerpid));
        assert_eq!((ours.capinh, ours.capprm, ours.capeff), (theirs.capinh, theirs.capprm, theirs.capeff));
        assert_eq!((ours.capbnd, ours.capamb), (theirs.capbnd, theirs.capamb));
        assert_eq!((ours.sigcgt, ours.sigign, ours.shdpnd), (theirs.sigcgt, theirs.sigign, theirs.shdpnd));
        assert_eq!((ours.umask, ours.seccomp, ours.nonewprivs), (theirs.umask, theirs.seccomp, theirs.nonewprivs));
        assert_eq!((ours.mems_allowed_list, ours.vmlck), (theirs.mems_allowed_list, theirs.vmlck));
        assert_eq!(ours.nstgid, theirs.nstgid);
    }

    #[test]
    fn names_hold_any_bytes() {
        let text = |name: &[u8]| {
            let rest = b"\nTgid:\t7\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nCapEff:\t00000000000000ff\nSigPnd:\t0000000000000100\n";
            [b"Name:\t", name, rest].concat()
        };
        let name = |written: &[u8]| Status::parse(&text(written)).unwrap().name;
        assert_eq!(name(b"plain"), b"plain");
        assert_eq!(name(b" a\\nb\\\\n: \xff "), b" a\nb\\n: \xff ");
        let status = Status::parse(&text(b"x")).unwrap();
        assert_eq!((status.tgid, status.uids, status.gids, status.sigpnd), (7, [1, 2, 3, 4], [5, 6, 7, 8], 0x100));
        assert_eq!((status.capeff, status.seccomp, status.groups), (0xff, None, vec![]));
    }

    #[test]
    fn what_is_no_status_is_none() {
        let whole = b"Name:\tx\nTgid:\t7\nUid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nCapEff:\t0f\n";
        assert!(Status::parse(whole).is_some());
        for end in [0, 8, 16, 30, 45] {
            assert_eq!(Status::parse(&whole[..end]), None, "{end}");
        }
        assert_eq!(Status::parse(b"Name:\tx\nTgid:\t7\nUid:\t1\t2\t3\nGid:\t5\t6\t7\t8\nCapEff:\t0f\n"), None);
    }
}
