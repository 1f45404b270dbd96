//! Where fields are in the structs of the running kernel, from its own type information (BTF, Documentation/bpf/btf.rst).
//!
//! Only names, structs and unions are understood, which is what it takes to find `task_struct.se.exec_start`. It checks every length
//! and index before it believes it, so that a damaged file is an error and never a panic.

use std::fs;
use std::io;
use std::ops::Range;

/// The type information of the running kernel.
const KERNEL: &str = "/sys/kernel/btf/vmlinux";

const MAGIC: u16 = 0xeb9f;
/// Bytes of a type before what depends on its kind: name, info, size or type.
const TYPE_BYTES: usize = 12;
/// Bytes of a struct's member: name, type, offset.
const MEMBER_BYTES: usize = 12;
/// How many typedefs, qualifiers or unnamed structs may stand within one another; the kernel has less than ten.
const DEPTH: usize = 32;

const KIND_STRUCT: u32 = 4;
const KIND_UNION: u32 = 5;

/// Type information that could not be used.
#[derive(Debug, thiserror::Error)]
pub enum BtfError {
    /// The file cannot be read; most often the kernel was built without it (CONFIG_DEBUG_INFO_BTF).
    #[error("cannot read the kernel's type information from {KERNEL}: {0}")]
    Unreadable(#[source] io::Error),
    /// It is not what the format says.
    #[error("the kernel's type information is damaged: {0}")]
    Damaged(&'static str),
    /// No struct or field of that name.
    #[error("the kernel has no {0}")]
    Absent(String),
}

/// See the module.
#[derive(Debug)]
pub struct Btf {
    data: Vec<u8>,
    strings: Range<usize>,
    /// Where in `data` each type starts; type ids count from 1.
    types: Vec<usize>,
}

/// A field of a struct.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Member {
    /// The id of its type.
    type_id: u32,
    /// Bits from the start of the struct.
    bits: u32,
}

impl Btf {
    /// That of the running kernel: some MiB, read and indexed in some ten milliseconds.
    pub fn of_kernel() -> Result<Btf, BtfError> {
        Btf::parse(fs::read(KERNEL).map_err(BtfError::Unreadable)?)
    }

    /// Indexes the types in `data`, in the byte order of this machine.
    pub fn parse(data: Vec<u8>) -> Result<Btf, BtfError> {
        if half(&data, 0)? != MAGIC {
            return Err(BtfError::Damaged("it does not start with its magic number"));
        }
        let header = word(&data, 4)? as usize;
        let types = section(&data, header, 8)?;
        let strings = section(&data, header, 16)?;
        let mut btf = Btf { data, strings, types: Vec::new() };
        let mut at = types.start;
        while at < types.end {
            let info = word(&btf.data, at + 4)?;
            btf.types.push(at);
            at += TYPE_BYTES + extra_bytes(info)?;
        }
        Ok(btf)
    }

    /// The size of a struct in bytes.
    pub fn size_of(&self, of: &str) -> Result<u32, BtfError> {
        word(&self.data, self.find(of)? + 8)
    }

    /// The offset in bytes of a field, given as a path: `("task_struct", "se.exec_start")`. Unnamed structs and unions on the way
    /// need no mention.
    pub fn offset_of(&self, of: &str, path: &str) -> Result<u32, BtfError> {
        let absent = || BtfError::Absent(format!("field {path} in struct {of}"));
        let mut at = self.find(of)?;
        let mut bits = 0u32;
        let mut names = path.split('.').peekable();
        while let Some(name) = names.next() {
            let member = self.member(at, name, DEPTH)?.ok_or_else(absent)?;
            bits = bits.checked_add(member.bits).ok_or(BtfError::Damaged("an offset is too large"))?;
            if names.peek().is_some() {
                at = self.aggregate(member.type_id)?.ok_or_else(absent)?;
            }
        }
        if !bits.is_multiple_of(8) {
            return Err(BtfError::Absent(format!("whole bytes in field {path} of struct {of}")));
        }
        Ok(bits / 8)
    }

    /// Where the struct of that name starts.
    fn find(&self, name: &str) -> Result<usize, BtfError> {
        for &at in &self.types {
            if self.is_aggregate(at)? && self.name(at)? == name.as_bytes() {
                return Ok(at);
            }
        }
        Err(BtfError::Absent(format!("struct {name}")))
    }

    /// The member of the struct or union at `at`, also if it is in an unnamed one within.
    fn member(&self, at: usize, name: &str, depth: usize) -> Result<Option<Member>, BtfError> {
        let info = word(&self.data, at + 4)?;
        for i in 0..count(info) {
            let entry = at + TYPE_BYTES + i * MEMBER_BYTES;
            let type_id = word(&self.data, entry + 4)?;
            let offset = word(&self.data, entry + 8)?;
            // With the kind flag, the upper eight bits are the size of a bit field.
            let bits = if info >> 31 == 1 { offset & 0x00ff_ffff } else { offset };
            let own_name = self.name(entry)?;
            if own_name == name.as_bytes() {
                return Ok(Some(Member { type_id, bits }));
            }
            if !own_name.is_empty() || depth == 0 {
                continue;
            }
            let Some(inner) = self.aggregate(type_id)? else { continue };
            if let Some(found) = self.member(inner, name, depth - 1)? {
                let bits = bits.checked_add(found.bits).ok_or(BtfError::Damaged("an offset is too large"))?;
                return Ok(Some(Member { bits, ..found }));
            }
        }
        Ok(None)
    }

    /// Where the struct or union behind typedefs and qualifiers starts; None if there is something else behind them.
    fn aggregate(&self, mut type_id: u32) -> Result<Option<usize>, BtfError> {
        for _ in 0..DEPTH {
            // 0 is void.
            let Some(index) = (type_id as usize).checked_sub(1) else { return Ok(None) };
            let at = *self.types.get(index).ok_or(BtfError::Damaged("it refers to a type that is not there"))?;
            if self.is_aggregate(at)? {
                return Ok(Some(at));
            }
            match kind(word(&self.data, at + 4)?) {
                // typedef, volatile, const, restrict, type tag
                8..=11 | 18 => type_id = word(&self.data, at + 8)?,
                _ => return Ok(None),
            }
        }
        Err(BtfError::Damaged("a type refers to itself"))
    }

    fn is_aggregate(&self, at: usize) -> Result<bool, BtfError> {
        Ok(matches!(kind(word(&self.data, at + 4)?), KIND_STRUCT | KIND_UNION))
    }

    /// The name of the type or member at `at`; both start with the offset of their name.
    fn name(&self, at: usize) -> Result<&[u8], BtfError> {
        let strings = &self.data[self.strings.clone()];
        let start = word(&self.data, at)? as usize;
        let rest = strings.get(start..).ok_or(BtfError::Damaged("a name is outside of its section"))?;
        let len = rest.iter().position(|&b| b == 0).ok_or(BtfError::Damaged("a name does not end"))?;
        Ok(&rest[..len])
    }
}

fn kind(info: u32) -> u32 {
    info >> 24 & 0x1f
}

fn count(info: u32) -> usize {
    (info & 0xffff) as usize
}

/// Bytes that follow the common part of a type.
fn extra_bytes(info: u32) -> Result<usize, BtfError> {
    Ok(match kind(info) {
        // pointer, forward, typedef, volatile, const, restrict, function, float, type tag
        2 | 7..=12 | 16 | 18 => 0,
        // integer, variable, declaration tag
        1 | 14 | 17 => 4,
        // array
        3 => 12,
        // enum, function prototype
        6 | 13 => count(info) * 8,
        // data section, 64-bit enum
        KIND_STRUCT | KIND_UNION | 15 | 19 => count(info) * MEMBER_BYTES,
        _ => return Err(BtfError::Damaged("it has a kind of type that is not known")),
    })
}

/// A section whose offset and length stand at `field` of the header; the offset counts from the header's end.
fn section(data: &[u8], header: usize, field: usize) -> Result<Range<usize>, BtfError> {
    let start = header + word(data, field)? as usize;
    let end = start + word(data, field + 4)? as usize;
    if end > data.len() {
        return Err(BtfError::Damaged("a section goes beyond its end"));
    }
    Ok(start..end)
}

fn word(data: &[u8], at: usize) -> Result<u32, BtfError> {
    bytes(data, at).map(u32::from_ne_bytes)
}

fn half(data: &[u8], at: usize) -> Result<u16, BtfError> {
    bytes(data, at).map(u16::from_ne_bytes)
}

fn bytes<const N: usize>(data: &[u8], at: usize) -> Result<[u8; N], BtfError> {
    data.get(at..).and_then(|rest| rest.first_chunk()).copied().ok_or(BtfError::Damaged("it is too short"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// struct outer { int a; union { typed b; }; unsigned c: 3, d: 5; }; typedef struct { int x; int y; } typed;
    fn sample() -> Vec<u8> {
        let strings = b"\0outer\0a\0b\0c\0x\0y\0typed\0d\0int\0";
        let name = |s: &str| {
            let needle = [b"\0", s.as_bytes(), b"\0"].concat();
            strings.windows(needle.len()).position(|w| w == needle).expect("in the list") as u32 + 1
        };
        let aggregate = |kind: u32, members: u32, flag: u32| kind << 24 | members | flag << 31;
        #[rustfmt::skip]
        let types = [
            name("int"), 1 << 24, 4, 32,                                                  // 1
            0, aggregate(KIND_STRUCT, 2, 0), 8, name("x"), 1, 0, name("y"), 1, 32,        // 2
            name("typed"), 8 << 24, 2,                                                    // 3
            0, 10 << 24, 3,                                                               // 4: const typed
            0, aggregate(KIND_UNION, 1, 0), 8, name("b"), 4, 0,                           // 5
            name("outer"), aggregate(KIND_STRUCT, 4, 1), 16,                              // 6
            name("a"), 1, 0, 0, 5, 32, name("c"), 1, 3 << 24 | 96, name("d"), 1, 5 << 24 | 99,
        ];
        let types: Vec<u8> = types.iter().flat_map(|w| w.to_ne_bytes()).collect();
        let mut data = Vec::new();
        data.extend(MAGIC.to_ne_bytes());
        data.extend([1, 0]);
        for w in [24, 0, types.len() as u32, types.len() as u32, strings.len() as u32] {
            data.extend(w.to_ne_bytes());
        }
        data.extend(types);
        data.extend(strings);
        data
    }

    #[test]
    fn fields_are_found_through_unnamed_unions_and_typedefs() {
        let btf = Btf::parse(sample()).unwrap();
        assert_eq!(btf.size_of("outer").unwrap(), 16);
        assert_eq!(btf.offset_of("outer", "a").unwrap(), 0);
        assert_eq!(btf.offset_of("outer", "b").unwrap(), 4);
        assert_eq!(btf.offset_of("outer", "b.y").unwrap(), 8);
        assert_eq!(btf.offset_of("outer", "c").unwrap(), 12);
    }

    #[test]
    fn what_is_not_there_is_named() {
        let btf = Btf::parse(sample()).unwrap();
        for (of, path, said) in [
            ("inner", "a", "the kernel has no struct inner"),
            ("outer", "z", "the kernel has no field z in struct outer"),
            ("outer", "a.b", "the kernel has no field a.b in struct outer"),
            ("outer", "d", "the kernel has no whole bytes in field d of struct outer"),
        ] {
            assert_eq!(btf.offset_of(of, path).unwrap_err().to_string(), said);
        }
    }

    #[test]
    fn damage_is_an_error_and_never_a_panic() {
        let whole = sample();
        for len in 0..whole.len() {
            // Cutting the end may leave what is asked for; only panics matter.
            if let Ok(btf) = Btf::parse(whole[..len].to_vec()) {
                drop(btf.offset_of("outer", "b.y"));
            }
        }
        for at in 0..whole.len() {
            for value in [0, 0x12, 0x7f, 0xff] {
                let mut broken = whole.clone();
                broken[at] = value;
                if let Ok(btf) = Btf::parse(broken) {
                    drop(btf.offset_of("outer", "b.y"));
                }
            }
        }
    }

    #[test]
    fn the_running_kernel_has_a_task_struct() {
        let btf = match Btf::of_kernel() {
            Ok(btf) => btf,
            Err(e) => return crate::skip::note("the_running_kernel_has_a_task_struct", &e.to_string()),
        };
        assert!(btf.size_of("task_struct").unwrap() > 1000);
        // The fields of the sched_entity follow one another.
        let se = btf.offset_of("task_struct", "se").unwrap();
        assert!(btf.offset_of("task_struct", "se.exec_start").unwrap() > se);
        assert!(btf.offset_of("restart_block", "nanosleep.expires").unwrap() >= 16);
    }
}
