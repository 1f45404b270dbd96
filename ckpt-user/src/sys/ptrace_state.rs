//! ptrace(2) requests that tell (or set) kernel state of a stopped thread which nobody else can: pending signals, seccomp filters,
//! rseq, system call user dispatch, the rarer register sets. Every request must come from the thread that attached.

use std::io;
use std::os::raw::c_void;

use bytemuck::{Pod, Zeroable};

use super::ptrace::request;
use crate::ids::Tid;

/// Bytes in a siginfo_t.
pub const SIGINFO_BYTES: usize = 128;

/// A signal that waits, as the kernel would hand it to a handler.
pub type SigInfo = [u8; SIGINFO_BYTES];

/// How many signals one request fetches.
const SIGNALS_PER_CALL: usize = 32;

/// PTRACE_SECCOMP_GET_FILTER (linux/ptrace.h).
const SECCOMP_GET_FILTER: libc::c_uint = 0x420c;
/// PTRACE_SECCOMP_GET_METADATA (linux/ptrace.h).
const SECCOMP_GET_METADATA: libc::c_uint = 0x420d;
/// BPF_MAXINSNS (linux/bpf_common.h): no filter is longer.
pub const FILTER_MAX: usize = 4096;

/// struct sock_filter: one instruction of a seccomp filter.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct FilterInstruction {
    /// Operation.
    pub code: u16,
    /// Instructions to skip when true.
    pub jump_true: u8,
    /// Instructions to skip when false.
    pub jump_false: u8,
    /// Operand.
    pub k: u32,
}

const _: () = assert!(size_of::<FilterInstruction>() == 8);

/// struct seccomp_metadata.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Metadata {
    filter_off: u64,
    flags: u64,
}

/// struct ptrace_rseq_configuration: where a thread has registered its restartable sequences.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct RseqConfiguration {
    /// Address of its struct rseq; 0: not registered.
    pub area: u64,
    /// Bytes registered.
    pub size: u32,
    /// What must stand before each abort handler.
    pub signature: u32,
    /// Flags of the registration.
    pub flags: u32,
    reserved: u32,
}

const _: () = assert!(size_of::<RseqConfiguration>() == 24);

/// struct ptrace_sud_config: PR_SET_SYSCALL_USER_DISPATCH.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct UserDispatch {
    /// PR_SYS_DISPATCH_OFF, _ON, ...
    pub mode: u64,
    /// Address of the byte that switches it.
    pub selector: u64,
    /// Start of the code whose calls are let through.
    pub offset: u64,
    /// Its length.
    pub len: u64,
}

const _: () = assert!(size_of::<UserDispatch>() == 32);

/// The signals that wait for this thread, or (`shared`) for its whole process, in the order in which they were queued.
pub fn pending_signals(tid: Tid, shared: bool) -> io::Result<Vec<SigInfo>> {
    let mut all = Vec::new();
    loop {
        let mut some = [[0u8; SIGINFO_BYTES]; SIGNALS_PER_CALL];
        let flags = if shared { libc::PTRACE_PEEKSIGINFO_SHARED } else { 0 };
        let args = libc::ptrace_peeksiginfo_args { off: all.len() as u64, flags, nr: SIGNALS_PER_CALL as i32 };
        let n = request(libc::PTRACE_PEEKSIGINFO, tid, (&raw const args).cast_mut().cast(), some.as_mut_ptr().cast())?;
        if n == 0 {
            return Ok(all);
        }
        all.extend_from_slice(&some[..(n as usize).min(SIGNALS_PER_CALL)]);
    }
}

/// The seccomp filter that was installed as number `n` (0: the first), or `None` when there are fewer. Needs CAP_SYS_ADMIN.
pub fn seccomp_filter(tid: Tid, n: usize) -> io::Result<Option<Vec<FilterInstruction>>> {
    let mut filter = vec![FilterInstruction::default(); FILTER_MAX];
    match request(SECCOMP_GET_FILTER, tid, n as *mut c_void, filter.as_mut_ptr().cast()) {
        Ok(len) => {
            filter.truncate(len as usize);
            Ok(Some(filter))
        }
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(e) => Err(e),
    }
}

/// The SECCOMP_FILTER_FLAG_* that the kernel remembers of filter number `n`.
pub fn seccomp_flags(tid: Tid, n: usize) -> io::Result<u64> {
    let mut metadata = Metadata { filter_off: n as u64, flags: 0 };
    request(SECCOMP_GET_METADATA, tid, size_of::<Metadata>() as *mut c_void, (&raw mut metadata).cast())?;
    Ok(metadata.flags)
}

/// The rseq registration. `None`: this kernel (before 5.13, or without CONFIG_RSEQ) does not tell.
pub fn rseq_configuration(tid: Tid) -> io::Result<Option<RseqConfiguration>> {
    let mut configuration = RseqConfiguration::default();
    let size = size_of::<RseqConfiguration>() as *mut c_void;
    unless_unknown(request(libc::PTRACE_GET_RSEQ_CONFIGURATION, tid, size, (&raw mut configuration).cast()))
        .map(|known| known.map(|_| configuration))
}

/// The system call user dispatch of a thread. `None`: this kernel (before 6.4) does not tell.
pub fn user_dispatch(tid: Tid) -> io::Result<Option<UserDispatch>> {
    let mut config = UserDispatch::default();
    let size = size_of::<UserDispatch>() as *mut c_void;
    unless_unknown(request(libc::PTRACE_GET_SYSCALL_USER_DISPATCH_CONFIG, tid, size, (&raw mut config).cast()))
        .map(|known| known.map(|_| config))
}

/// Sets the system call user dispatch of a thread.
pub fn set_user_dispatch(tid: Tid, config: &UserDispatch) -> io::Result<()> {
    let size = size_of::<UserDispatch>() as *mut c_void;
    request(libc::PTRACE_SET_SYSCALL_USER_DISPATCH_CONFIG, tid, size, (&raw const *config).cast_mut().cast()).map(drop)
}

/// Is the register set `kind` (an NT_* number) in use by this thread? The kernel answers ENODEV or ENXIO for one that is not, EINVAL
/// for one that it does not know.
pub fn has_register_set(tid: Tid, kind: i32) -> io::Result<bool> {
    // Where there is more, so much of it is given.
    let mut first = 0u64;
    let mut iov = libc::iovec { iov_base: (&raw mut first).cast(), iov_len: size_of_val(&first) };
    match request(libc::PTRACE_GETREGSET, tid, kind as usize as *mut c_void, (&raw mut iov).cast()) {
        Ok(_) => Ok(true),
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENODEV | libc::ENXIO | libc::EINVAL)) => Ok(false),
        Err(e) => Err(e),
    }
}

/// A request that the kernel does not know gives EIO.
fn unless_unknown(result: io::Result<i64>) -> io::Result<Option<i64>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(e) if e.raw_os_error() == Some(libc::EIO) => Ok(None),
        Err(e) => Err(e),
    }
}
