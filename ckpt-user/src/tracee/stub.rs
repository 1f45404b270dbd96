//! The few instructions that make system calls inside another task and then put everything back *by themselves*.
//!
//! Nobody has to be there at the end: after its system call the stub restores the signal mask, the flags and every register from
//! its own read-only data and jumps to where the task was. A tracer that is killed in the middle leaves a task that ends the call
//! and goes on. For the next call of a batch, the living tracer just sets the registers back to the start of the stub. It uses no
//! stack (the task may stand on a tiny one) and writes no memory but, for a run of calls, the list of these.
//!
//! Layout of a planted stub: [`Saved`], then the code, both in memory that the task can execute and read.

use bytemuck::{Pod, Zeroable};

use crate::sys::ptrace::{KernelSigset, Regs};

/// What the stub puts back. The code below reads it at fixed offsets.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Saved {
    magic: [u8; 16],
    /// Where ckpt maps memory of its own in the task, and how many bytes (0: not yet): for whoever cleans up after a killed one.
    workspace: Workspace,
    sigmask: u64,
    rip: u64,
    rax: u64,
    rbx: u64,
    rcx: u64,
    rdx: u64,
    rsi: u64,
    rdi: u64,
    rbp: u64,
    rsp: u64,
    r8: u64,
    r9: u64,
    r10: u64,
    r11: u64,
    r12: u64,
    r13: u64,
    r14: u64,
    r15: u64,
    /// SF, ZF, AF, PF and CF, as sahf takes them.
    flags_low: u8,
    /// 1 when OF is set: adding 0x7f to it then overflows.
    overflow: u8,
    /// 1 when DF is set.
    direction: u8,
    reserved: [u8; 13],
}

const _: () = assert!(size_of::<Saved>() == 192);

/// Memory of ckpt's own in a task.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct Workspace {
    /// Its address.
    pub addr: u64,
    /// Its bytes. 0: there is none.
    pub len: u64,
}

/// Where in a [`Saved`] the workspace is noted.
pub const WORKSPACE_AT: u64 = std::mem::offset_of!(Saved, workspace) as u64;

/// By which a stub left behind by a killed ckpt is known again. Another layout of [`Saved`] needs another one.
const MAGIC: [u8; 16] = *b"ckpt remote call";

core::arch::global_asm!(
    ".pushsection .rodata.ckpt_stub, \"a\", @progbits",
    ".balign 16",
    ".global ckpt_stub_start",
    ".global ckpt_stub_end",
    ".global ckpt_stub_run",
    ".global ckpt_stub_called",
    ".global ckpt_stub_once",
    ".global ckpt_stub_once_called",
    ".hidden ckpt_stub_start",
    ".hidden ckpt_stub_run",
    ".hidden ckpt_stub_called",
    ".hidden ckpt_stub_once",
    ".hidden ckpt_stub_once_called",
    ".hidden ckpt_stub_end",
    // The registers hold the number and the arguments of the call. The Saved struct ends where the code starts.
    "ckpt_stub_start:",
    "syscall",
    "3:",
    // rt_sigprocmask(SIG_SETMASK, &saved.sigmask, NULL, 8)
    "mov eax, 14",
    "mov edi, 2",
    "lea rsi, [rip + ckpt_stub_start - 160]",
    "xor edx, edx",
    "mov r10d, 8",
    "syscall",
    "mov rbx, [rip + ckpt_stub_start - 136]",
    "mov rcx, [rip + ckpt_stub_start - 128]",
    "mov rdx, [rip + ckpt_stub_start - 120]",
    "mov rsi, [rip + ckpt_stub_start - 112]",
    "mov rdi, [rip + ckpt_stub_start - 104]",
    "mov rbp, [rip + ckpt_stub_start - 96]",
    "mov rsp, [rip + ckpt_stub_start - 88]",
    "mov r8, [rip + ckpt_stub_start - 80]",
    "mov r9, [rip + ckpt_stub_start - 72]",
    "mov r10, [rip + ckpt_stub_start - 64]",
    "mov r11, [rip + ckpt_stub_start - 56]",
    "mov r12, [rip + ckpt_stub_start - 48]",
    "mov r13, [rip + ckpt_stub_start - 40]",
    "mov r14, [rip + ckpt_stub_start - 32]",
    "mov r15, [rip + ckpt_stub_start - 24]",
    "cld",
    "cmp byte ptr [rip + ckpt_stub_start - 14], 0",
    "je 4f",
    "std",
    "4: mov al, [rip + ckpt_stub_start - 15]",
    "add al, 0x7f",
    "mov ah, [rip + ckpt_stub_start - 16]",
    "sahf",
    "mov rax, [rip + ckpt_stub_start - 144]",
    "jmp qword ptr [rip + ckpt_stub_start - 152]",
    // Another way in, for a run of calls: rbx points to the first PlannedCall, rbp to the end of the last.
    "ckpt_stub_run:",
    "mov rax, [rbx]",
    "mov rdi, [rbx + 8]",
    "mov rsi, [rbx + 16]",
    "mov rdx, [rbx + 24]",
    "mov r10, [rbx + 32]",
    "mov r8, [rbx + 40]",
    "mov r9, [rbx + 48]",
    "syscall",
    "ckpt_stub_called:",
    "mov r11, [rbx + 56]",
    "mov [r11], rax",
    "add rbx, 64",
    "cmp rbx, rbp",
    "jb ckpt_stub_run",
    "jmp 3b",
    // And one for a single call that ends in a signal: its number and arguments are in their registers, those of tgkill in rbx, r12 and r13. What it
    // returns is in rbp.
    "ckpt_stub_once:",
    "syscall",
    "mov rbp, rax",
    "mov edi, ebx",
    "mov esi, r12d",
    "mov edx, r13d",
    "mov eax, 234",
    "syscall",
    "ckpt_stub_once_called:",
    "jmp 3b",
    "ckpt_stub_end:",
    ".popsection",
);

unsafe extern "C" {
    static ckpt_stub_start: u8;
    static ckpt_stub_run: u8;
    static ckpt_stub_called: u8;
    static ckpt_stub_once: u8;
    static ckpt_stub_once_called: u8;
    static ckpt_stub_end: u8;
}

/// One call of a run, in the workspace.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct PlannedCall {
    /// Its number.
    pub nr: i64,
    /// What is passed.
    pub args: [u64; 6],
    /// Where what it returns is written: it can be what a later call is passed.
    pub result: u64,
}

const _: () = assert!(size_of::<PlannedCall>() == 64);

fn from_start(at: *const u8) -> u64 {
    (at.addr() - (&raw const ckpt_stub_start).addr()) as u64
}

/// Where in the code a run of calls begins, and where it is after each call.
pub fn run_and_called() -> (u64, u64) {
    (from_start(&raw const ckpt_stub_run), from_start(&raw const ckpt_stub_called))
}

/// Where in the code a single call that ends in a signal begins, and where it is after the signal.
pub fn once_and_called() -> (u64, u64) {
    (from_start(&raw const ckpt_stub_once), from_start(&raw const ckpt_stub_once_called))
}

/// The code, position independent.
pub fn code() -> &'static [u8] {
    let start = &raw const ckpt_stub_start;
    let end = &raw const ckpt_stub_end;
    // SAFETY: both symbols lie in the same read-only section, `end` after `start`, and nothing changes it.
    unsafe { std::slice::from_raw_parts(start, end.offset_from_unsigned(start)) }
}

/// Stubs are planted at multiples of this.
pub const ALIGNMENT: usize = 16;

/// Bytes of a planted stub.
pub fn planted_len() -> usize {
    size_of::<Saved>() + code().len()
}

/// The last stub that begins in `bytes`, which are those from a multiple of [`ALIGNMENT`] on, and where in them.
pub fn find(bytes: &[u8]) -> Option<(usize, Saved)> {
    let starts = (0..bytes.len()).step_by(ALIGNMENT).rev();
    let mut whole = starts.filter_map(|at| Some((at, bytes[at..].get(..size_of::<Saved>())?)));
    let (at, saved) = whole.find(|(_, saved)| saved.starts_with(&MAGIC))?;
    Some((at, bytemuck::pod_read_unaligned(saved)))
}

/// ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND: "make the call again" (linux/errno.h, never seen by programs).
pub const ERESTARTSYS: i64 = -512;
/// See [`ERESTARTSYS`].
pub const ERESTARTNOINTR: i64 = -513;
/// See [`ERESTARTSYS`].
pub const ERESTARTNOHAND: i64 = -514;
/// "Make restart_syscall(2) instead": the kernel kept how long was left.
pub const ERESTART_RESTARTBLOCK: i64 = -516;

/// The registers with which a task that was frozen in `regs` goes on in user mode: what the kernel does for a system call that
/// must be made again, done by us for a task that will not pass the kernel's own way out.
pub fn resumed(regs: &Regs) -> Regs {
    let mut out = *regs;
    if (regs.orig_rax as i64) >= 0 {
        match regs.rax as i64 {
            ERESTARTSYS | ERESTARTNOINTR | ERESTARTNOHAND => {
                out.rax = regs.orig_rax;
                out.rip = regs.rip.wrapping_sub(2);
            }
            ERESTART_RESTARTBLOCK => {
                out.rax = libc::SYS_restart_syscall as u64;
                out.rip = regs.rip.wrapping_sub(2);
            }
            _ => {}
        }
    }
    out.orig_rax = u64::MAX;
    out
}

impl Saved {
    /// What must be put back for a task that was frozen in `regs` with `sigmask`. `workspace`: what ckpt maps in it.
    pub fn new(regs: &Regs, sigmask: KernelSigset, workspace: Workspace) -> Saved {
        let r = resumed(regs);
        Saved {
            magic: MAGIC,
            workspace,
            sigmask,
            rip: r.rip,
            rax: r.rax,
            rbx: r.rbx,
            rcx: r.rcx,
            rdx: r.rdx,
            rsi: r.rsi,
            rdi: r.rdi,
            rbp: r.rbp,
            rsp: r.rsp,
            r8: r.r8,
            r9: r.r9,
            r10: r.r10,
            r11: r.r11,
            r12: r.r12,
            r13: r.r13,
            r14: r.r14,
            r15: r.r15,
            flags_low: r.eflags as u8,
            overflow: u8::from(r.eflags & OVERFLOW != 0),
            direction: u8::from(r.eflags & DIRECTION != 0),
            reserved: [0; 13],
        }
    }

    /// What ckpt has mapped in the task, if it got so far.
    pub fn workspace(&self) -> Workspace {
        self.workspace
    }

    /// The signal mask that it puts back.
    pub fn sigmask(&self) -> KernelSigset {
        self.sigmask
    }

    /// The registers of a task that was found inside the stub, `inside`, as they will be when it has left it.
    pub fn outside(&self, inside: &Regs) -> Regs {
        let mut flags = inside.eflags & !(LOW | OVERFLOW | DIRECTION) | u64::from(self.flags_low);
        flags |= if self.overflow != 0 { OVERFLOW } else { 0 };
        flags |= if self.direction != 0 { DIRECTION } else { 0 };
        Regs {
            rip: self.rip,
            rax: self.rax,
            rbx: self.rbx,
            rcx: self.rcx,
            rdx: self.rdx,
            rsi: self.rsi,
            rdi: self.rdi,
            rbp: self.rbp,
            rsp: self.rsp,
            r8: self.r8,
            r9: self.r9,
            r10: self.r10,
            r11: self.r11,
            r12: self.r12,
            r13: self.r13,
            r14: self.r14,
            r15: self.r15,
            eflags: flags,
            orig_rax: u64::MAX,
            ..*inside
        }
    }
}

/// Bits of RFLAGS: those of sahf and the fixed one among them, OF, DF.
const LOW: u64 = 0xff & !0x28;
const OVERFLOW: u64 = 0x800;
const DIRECTION: u64 = 0x400;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_stub_puts_back_is_what_was_saved() {
        // SAFETY: all bytes zero are a valid value of this struct of integers.
        let mut regs: Regs = unsafe { std::mem::zeroed() };
        (regs.rip, regs.rsp, regs.r15, regs.rax, regs.fs_base) = (0x1000, 0x2000, 15, 7, 0x3000);
        (regs.eflags, regs.orig_rax) = (0xec6, u64::MAX);
        let mut inside = regs;
        (inside.rip, inside.rsp, inside.r15, inside.rax, inside.eflags, inside.orig_rax) = (1, 2, 3, 4, 0x202, 5);
        assert_eq!(Saved::new(&regs, 0, Workspace::default()).outside(&inside), regs);
    }
    #[test]
    fn a_stub_is_found_from_any_place_in_its_code() {
        // SAFETY: all bytes zero are a valid value of this struct of integers.
        let mut regs: Regs = unsafe { std::mem::zeroed() };
        regs.rip = 0x4711;
        let mut bytes = vec![0; 2 * ALIGNMENT];
        bytes.extend_from_slice(bytemuck::bytes_of(&Saved::new(&regs, 0, Workspace { addr: 7, len: 8 })));
        bytes.extend_from_slice(code());
        for inside in 2 * ALIGNMENT + size_of::<Saved>()..bytes.len() {
            let (at, found) = find(&bytes[..inside]).unwrap();
            assert_eq!((at, found.outside(&regs).rip, found.workspace()), (2 * ALIGNMENT, 0x4711, Workspace { addr: 7, len: 8 }));
        }
        assert!(find(&bytes[3 * ALIGNMENT..]).is_none(), "its beginning is missing");
    }
}
