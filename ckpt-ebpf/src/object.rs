//! The built programs, as committed beside their source: whoever installs ckpt needs no toolchain for eBPF.

/// The alignment that a reader of ELF headers in memory needs.
#[repr(C, align(8))]
struct Aligned<T: ?Sized>(T);

static ALIGNED: &Aligned<[u8]> = &Aligned(*include_bytes!("../prebuilt/ckpt-ebpf.o"));

/// The ELF object with all programs, maps and globals. It starts at a multiple of 8 bytes.
pub static OBJECT: &[u8] = &ALIGNED.0;
