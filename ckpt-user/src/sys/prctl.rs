//! What this machine lets any thread do with its processor: asked of ourselves once, so that no target need be asked in vain.

use std::sync::OnceLock;

/// PR_SPEC_L1D_FLUSH (linux/prctl.h).
const PR_SPEC_L1D_FLUSH: i32 = 2;
/// ARCH_SET_CPUID (asm/prctl.h).
pub const ARCH_SET_CPUID: i32 = 0x1012;
/// The same.
pub const ARCH_GET_UNTAG_MASK: i32 = 0x4001;
/// The same.
const ARCH_GET_XCOMP_SUPP: i32 = 0x1021;
/// The one state that is on demand so far: the tiles of AMX.
pub const TILE_DATA: u64 = 1 << 18;

/// The mitigations of which each thread has its own setting here: those of PR_SPEC_STORE_BYPASS, PR_SPEC_INDIRECT_BRANCH and
/// PR_SPEC_L1D_FLUSH that the kernel says prctl can control.
pub fn speculation_controls() -> &'static [i32] {
    static CONTROLS: OnceLock<Vec<i32>> = OnceLock::new();
    CONTROLS.get_or_init(|| {
        let all = [libc::PR_SPEC_STORE_BYPASS, libc::PR_SPEC_INDIRECT_BRANCH, PR_SPEC_L1D_FLUSH];
        let can = |which: &i32| {
            // SAFETY: only numbers are passed.
            let state = unsafe { libc::prctl(libc::PR_GET_SPECULATION_CTRL, *which, 0, 0, 0) };
            state >= 0 && state as u32 & libc::PR_SPEC_PRCTL != 0
        };
        all.into_iter().filter(can).collect()
    })
}

/// Are there states of the processor here that a process must ask for (AMX)?
pub fn has_states_on_demand() -> bool {
    static HAS: OnceLock<bool> = OnceLock::new();
    *HAS.get_or_init(|| {
        let mut supported = 0u64;
        // SAFETY: the call writes a mask of 64 bits, for which there is room.
        let asked = unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_GET_XCOMP_SUPP, &raw mut supported) };
        asked == 0 && supported & TILE_DATA != 0
    })
}

/// Can processes have tags in their addresses here (LAM)?
pub fn has_address_tags() -> bool {
    static HAS: OnceLock<bool> = OnceLock::new();
    *HAS.get_or_init(|| {
        let mut mask = 0u64;
        // SAFETY: the call writes a mask of 64 bits, for which there is room.
        unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_GET_UNTAG_MASK, &raw mut mask) == 0 }
    })
}

/// Can the CPUID instruction be made to fault here? (It then faults for no thread that has not asked for it, such as us.)
pub fn has_cpuid_faulting() -> bool {
    static HAS: OnceLock<bool> = OnceLock::new();
    // SAFETY: only numbers are passed; that CPUID works is what we have already.
    *HAS.get_or_init(|| unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_SET_CPUID, 1) == 0 })
}
