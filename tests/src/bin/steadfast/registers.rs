//! Registers that hold values through a loop in which no call is made: whoever stops a thread there must bring them back.

use std::arch::asm;

use ckpt_tests::chain;

/// How often the loop turns: some ten microseconds.
const TURNS: u64 = 20_000;

/// Memory that vector instructions can load from in one piece.
#[repr(C, align(64))]
#[derive(Clone)]
struct Bank<const N: usize>([u64; N]);

impl<const N: usize> Bank<N> {
    fn pattern(seed: u64) -> Box<Self> {
        Box::new(Bank(std::array::from_fn(|n| chain::step(seed, n as u64))))
    }

    fn compare(&self, found: &Self, what: &str) -> Result<(), String> {
        match (0..N).find(|&n| self.0[n] != found.0[n]) {
            None => Ok(()),
            Some(n) => Err(format!("{what} registers: word {n} is {:#x} instead of {:#x}", found.0[n], self.0[n])),
        }
    }
}

/// What this processor has, and what the thread keeps in it.
#[derive(Debug)]
pub struct Registers {
    avx: bool,
    avx512: bool,
    amx: bool,
}

impl Registers {
    /// Asks the processor.
    pub fn detect() -> Registers {
        Registers {
            avx: std::is_x86_feature_detected!("avx"),
            avx512: std::is_x86_feature_detected!("avx512f") && std::is_x86_feature_detected!("avx512bw"),
            amx: amx_is_permitted(),
        }
    }

    /// The names of the sets that are used.
    pub fn names(&self) -> String {
        let names = [("x87 sse", true), ("avx", self.avx), ("avx512", self.avx512), ("amx", self.amx)];
        names.iter().filter(|(_, there)| *there).map(|(name, _)| *name).collect::<Vec<_>>().join(" ")
    }

    /// Fills each set from `seed`, spins, and compares.
    pub fn hold(&self, seed: u64) -> Result<(), String> {
        x87_and_sse(seed)?;
        if self.avx {
            // SAFETY: the processor has AVX.
            unsafe { avx(seed) }?;
        }
        if self.avx512 {
            // SAFETY: the processor has AVX-512 F and BW.
            unsafe { avx512(seed) }?;
        }
        if self.amx {
            // SAFETY: the processor has AMX, and the kernel has permitted it.
            unsafe { amx(seed) }?;
        }
        Ok(())
    }
}

/// General registers, the x87 stack, and the control words of both units.
fn x87_and_sse(seed: u64) -> Result<(), String> {
    /// Where each value is, in words.
    const TO: usize = 4;
    const PI: usize = 8;
    const MXCSR: usize = 9;
    const X87_CONTROL: usize = 10;
    // Round up, down, or towards zero: never the default.
    let rounding = 1 + seed % 3;
    let (mxcsr, x87_control) = (0x1f80 | (rounding << 13), 0x037f | (rounding << 10));
    let mut cells = [0u64; 13];
    let pattern = Bank::<4>::pattern(seed);
    cells[..TO].copy_from_slice(&pattern.0);
    (cells[MXCSR], cells[X87_CONTROL]) = (mxcsr, x87_control);
    // SAFETY: all memory is in the array, the control words and the x87 stack are put back, and the registers are named.
    unsafe {
        asm!(
            "stmxcsr [{p} + 88]", "fnstcw [{p} + 96]", "ldmxcsr [{p} + 72]", "fldcw [{p} + 80]",
            "fldpi",
            "mov r8, [{p}]", "mov r9, [{p} + 8]", "mov r10, [{p} + 16]", "mov r11, [{p} + 24]",
            "2:", "dec rcx", "jnz 2b",
            "mov [{p} + 32], r8", "mov [{p} + 40], r9", "mov [{p} + 48], r10", "mov [{p} + 56], r11",
            "fstp qword ptr [{p} + 64]",
            "stmxcsr [{p} + 72]", "fnstcw [{p} + 80]", "ldmxcsr [{p} + 88]", "fldcw [{p} + 96]",
            p = in(reg) cells.as_mut_ptr(),
            inout("rcx") TURNS => _, out("r8") _, out("r9") _, out("r10") _, out("r11") _,
            out("st(0)") _, out("st(1)") _, out("st(2)") _, out("st(3)") _, out("st(4)") _, out("st(5)") _, out("st(6)") _, out("st(7)") _,
        );
    }
    if cells[TO..PI] != pattern.0 {
        return Err(format!("general registers: {:x?} instead of {:x?}", &cells[TO..PI], pattern.0));
    }
    let pi = f64::from_bits(cells[PI]);
    // The flags that tell of exceptions are the loop's own business.
    let control = (cells[MXCSR] & !0x3f, cells[X87_CONTROL]);
    if control != (mxcsr, x87_control) || (pi - std::f64::consts::PI).abs() > 1e-14 {
        return Err(format!("mxcsr and x87 control {control:x?} instead of {:x?}, pi {pi}", (mxcsr, x87_control)));
    }
    Ok(())
}

/// "load 0; load 1; ...; spin; store 0; ..." for 16 or 32 vector registers.
macro_rules! hold_vectors {
    ($move:literal, $kind:literal, $bytes:literal, $from:expr, $to:expr, [$($n:literal)*], [$($clobber:tt)*], $extra_load:literal, $extra_store:literal) => {
        asm!(
            $(concat!($move, " ", $kind, $n, ", [rsi + ", $n, " * ", $bytes, "]"),)*
            $extra_load,
            "2:", "dec rcx", "jnz 2b",
            $(concat!($move, " [rdi + ", $n, " * ", $bytes, "], ", $kind, $n),)*
            $extra_store,
            in("rsi") $from, in("rdi") $to, inout("rcx") TURNS => _, $($clobber)*
        )
    };
}

#[target_feature(enable = "avx")]
fn avx(seed: u64) -> Result<(), String> {
    let from = Bank::<64>::pattern(seed);
    let mut to = from.clone();
    to.0.fill(0);
    // SAFETY: the banks have room for 16 registers of 32 bytes, and the registers are named.
    unsafe {
        hold_vectors!(
            "vmovdqa", "ymm", "32", from.0.as_ptr(), to.0.as_mut_ptr(),
            [0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15],
            [out("ymm0") _, out("ymm1") _, out("ymm2") _, out("ymm3") _, out("ymm4") _, out("ymm5") _, out("ymm6") _, out("ymm7") _,
             out("ymm8") _, out("ymm9") _, out("ymm10") _, out("ymm11") _, out("ymm12") _, out("ymm13") _, out("ymm14") _, out("ymm15") _],
            "", ""
        );
    }
    from.compare(&to, "AVX")
}

#[target_feature(enable = "avx512f,avx512bw")]
fn avx512(seed: u64) -> Result<(), String> {
    // 32 registers of 64 bytes, and seven masks.
    let from = Bank::<264>::pattern(seed);
    let mut to = from.clone();
    to.0[..263].fill(0);
    // SAFETY: the banks have room for all of it, and the registers are named.
    unsafe {
        hold_vectors!(
            "vmovdqa64", "zmm", "64", from.0.as_ptr(), to.0.as_mut_ptr(),
            [0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31],
            [out("zmm0") _, out("zmm1") _, out("zmm2") _, out("zmm3") _, out("zmm4") _, out("zmm5") _, out("zmm6") _, out("zmm7") _,
             out("zmm8") _, out("zmm9") _, out("zmm10") _, out("zmm11") _, out("zmm12") _, out("zmm13") _, out("zmm14") _, out("zmm15") _,
             out("zmm16") _, out("zmm17") _, out("zmm18") _, out("zmm19") _, out("zmm20") _, out("zmm21") _, out("zmm22") _, out("zmm23") _,
             out("zmm24") _, out("zmm25") _, out("zmm26") _, out("zmm27") _, out("zmm28") _, out("zmm29") _, out("zmm30") _, out("zmm31") _,
             out("k1") _, out("k2") _, out("k3") _, out("k4") _, out("k5") _, out("k6") _, out("k7") _],
            "kmovq k1, [rsi + 2048]\nkmovq k2, [rsi + 2056]\nkmovq k3, [rsi + 2064]\nkmovq k4, [rsi + 2072]\nkmovq k5, [rsi + 2080]\nkmovq k6, [rsi + 2088]\nkmovq k7, [rsi + 2096]",
            "kmovq [rdi + 2048], k1\nkmovq [rdi + 2056], k2\nkmovq [rdi + 2064], k3\nkmovq [rdi + 2072], k4\nkmovq [rdi + 2080], k5\nkmovq [rdi + 2088], k6\nkmovq [rdi + 2096], k7"
        );
    }
    from.compare(&to, "AVX-512")
}

/// Tiles of 16 rows of 64 bytes; the processor has eight, of which four are used.
///
/// # Safety
/// Only where [`amx_is_permitted`].
unsafe fn amx(seed: u64) -> Result<(), String> {
    let from = Bank::<512>::pattern(seed);
    let mut to = from.clone();
    to.0.fill(0);
    let mut shapes = Bank([0u64; 8]);
    // Palette 1; 64 bytes a row and 16 rows for tiles 0 to 3.
    shapes.0[0] = 1;
    (shapes.0[2], shapes.0[6]) = (0x0040_0040_0040_0040, 0x1010_1010);
    // SAFETY: the banks have room for four tiles of 1 KiB, and the tiles are released.
    unsafe {
        asm!(
            "ldtilecfg [{shapes}]",
            "tileloadd tmm0, [rsi + rdx]", "add rsi, 1024", "tileloadd tmm1, [rsi + rdx]", "add rsi, 1024",
            "tileloadd tmm2, [rsi + rdx]", "add rsi, 1024", "tileloadd tmm3, [rsi + rdx]",
            "2:", "dec rcx", "jnz 2b",
            "tilestored [rdi + rdx], tmm0", "add rdi, 1024", "tilestored [rdi + rdx], tmm1", "add rdi, 1024",
            "tilestored [rdi + rdx], tmm2", "add rdi, 1024", "tilestored [rdi + rdx], tmm3",
            "tilerelease",
            shapes = in(reg) shapes.0.as_ptr(), inout("rcx") TURNS => _, in("rdx") 64u64,
            inout("rsi") from.0.as_ptr() => _, inout("rdi") to.0.as_mut_ptr() => _,
        );
    }
    from.compare(&to, "AMX")
}

/// Asks the kernel for the use of tiles: arch_prctl(ARCH_REQ_XCOMP_PERM, XTILEDATA). It refuses where there are none.
fn amx_is_permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: i32 = 0x1023;
    const XTILEDATA: i32 = 18;
    ckpt_tests::sys::raw::call(libc::SYS_arch_prctl, &[ARCH_REQ_XCOMP_PERM.into(), XTILEDATA.into()]).is_ok()
}
