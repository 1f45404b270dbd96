//! System call filters (seccomp(2)), installed again in the order in which they were.
//!
//! Installing one takes no_new_privs or CAP_SYS_ADMIN, so the kind is restored at one of two moments: before the credentials for a thread
//! that installed its filters as root and may have given up its rights since, else after everything else. Either way the filters
//! are suspended until ckpt lets go of the thread, because they would judge ckpt's own calls. Each thread gets filters of its own: where
//! threads shared them, a later SECCOMP_FILTER_FLAG_TSYNC finds that they no longer do.
//!
//! Filters that hand calls to another process for a decision are refused: the kernel does not hand out that connection.

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::task::{Subject, TaskResource};
use super::{Collector, Restorer};
use crate::error::{Doing, Error, Refusal, Result};
use crate::sys::ptrace;
use crate::sys::ptrace_state::{self, FILTER_MAX, FilterInstruction};
use crate::sys::status::Status;
use crate::tracee::batch::{Answers, Batch};
use crate::tracee::remote::RemoteTask;
use crate::tracee::spawn;

/// Of threads with no_new_privs, and strict mode.
#[derive(Debug, Clone, Copy)]
pub struct Seccomp;

/// Of threads that needed CAP_SYS_ADMIN for it.
#[derive(Debug, Clone, Copy)]
pub struct PrivilegedSeccomp;

/// What a thread may not do.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SeccompRecord {
    /// SECCOMP_MODE_STRICT: only read, write, exit and sigreturn.
    pub strict: bool,
    /// The filters, oldest first.
    pub filters: Vec<SeccompFilter>,
}

/// One filter.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SeccompFilter {
    /// SECCOMP_FILTER_FLAG_*, as far as the kernel remembers them.
    pub flags: u64,
    /// struct sock_filter[], 8 bytes each.
    pub program: ByteBuf,
}

/// struct sock_fprog.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::NoUninit)]
struct FilterProgram {
    len: u16,
    reserved: [u16; 3],
    instructions: u64,
}

/// SECCOMP_MODE_* in /proc/PID/status.
const MODE_STRICT: u32 = 1;
const MODE_FILTER: u32 = 2;

/// Which of the two kinds has the filters of this thread.
fn is_privileged(status: &Status) -> bool {
    status.seccomp == Some(MODE_FILTER) && status.nonewprivs != Some(1)
}

fn refuse<T>(who: &Subject<'_>, reason: &str, advice: &str) -> Result<T> {
    let object = format!("the seccomp filter of thread {}", who.tid);
    Err(Error::Refused(Refusal { pid: who.pid, object, reason: reason.to_owned(), advice: advice.to_owned(), passing: false }))
}

/// Can the filters be had? Must be known before a remote call is made in a stopped thread.
pub fn check(who: &Subject<'_>) -> Result<()> {
    if who.status.seccomp != Some(MODE_FILTER) {
        return Ok(());
    }
    match ptrace_state::seccomp_filter(who.tid, 0) {
        Err(e) if matches!(e.raw_os_error(), Some(libc::EACCES | libc::EPERM)) => {
            refuse(who, "can only be read with CAP_SYS_ADMIN, by a ckpt that runs under no filter itself", "run ckpt as root")
        }
        Err(e) if matches!(e.raw_os_error(), Some(libc::EIO | libc::EMEDIUMTYPE)) => {
            refuse(who, "is not kept by this kernel in a form that can be read", "use a kernel with CONFIG_CHECKPOINT_RESTORE")
        }
        // Some of what can be read cannot be made again.
        _ => collect(who).map(drop),
    }
}

/// Can it answer SECCOMP_RET_USER_NOTIF?
fn notifies(program: &[FilterInstruction]) -> bool {
    const RET_CONSTANT: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let action = |k: u32| k & libc::SECCOMP_RET_ACTION_FULL;
    program.iter().any(|i| i.code == RET_CONSTANT && action(i.k) == libc::SECCOMP_RET_USER_NOTIF)
}

fn collect(who: &Subject<'_>) -> Result<SeccompRecord> {
    match who.status.seccomp {
        None | Some(0) => return Ok(SeccompRecord::default()),
        Some(MODE_STRICT) => return Ok(SeccompRecord { strict: true, filters: Vec::new() }),
        Some(MODE_FILTER) => {}
        Some(mode) => return Err(Error::Unexpected(format!("thread {} is in the unknown seccomp mode {mode}", who.tid))),
    }
    let doing = || format!("cannot read the seccomp filter of thread {}", who.tid);
    let mut filters = Vec::new();
    while let Some(program) = ptrace_state::seccomp_filter(who.tid, filters.len()).doing(doing)? {
        if notifies(&program) {
            return refuse(who, "asks another process to decide on system calls", "checkpoint it without that supervisor");
        }
        let flags = ptrace_state::seccomp_flags(who.tid, filters.len()).doing(doing)?;
        filters.push(SeccompFilter { flags, program: ByteBuf::from(bytemuck::cast_slice(&program)) });
    }
    Ok(SeccompRecord { strict: false, filters })
}

fn restore(task: &mut RemoteTask<'_>, record: &SeccompRecord) -> Result<()> {
    if *record == SeccompRecord::default() {
        return Ok(());
    }
    let tid = task.tid();
    ptrace::set_options(tid, spawn::OPTIONS | ptrace::O_SUSPEND_SECCOMP).doing(|| {
        format!("cannot give thread {tid} its seccomp filters: that takes root, and a ckpt without filters of its own")
    })?;
    for filter in &record.filters {
        install(task, filter)?;
    }
    if record.strict {
        let args = [libc::PR_SET_SECCOMP.into(), libc::SECCOMP_MODE_STRICT.into()];
        task.call("cannot enter seccomp's strict mode", libc::SYS_prctl, args)?;
    }
    Ok(())
}

fn install(task: &mut RemoteTask<'_>, filter: &SeccompFilter) -> Result<()> {
    let (len, rest) =
        (filter.program.len() / size_of::<FilterInstruction>(), filter.program.len() % size_of::<FilterInstruction>());
    if len == 0 || len > FILTER_MAX || rest != 0 {
        return Err(Error::Restart(format!(
            "the image holds a seccomp filter of {} bytes, which cannot be",
            filter.program.len()
        )));
    }
    let mut batch = Batch::new();
    let instructions = batch.bytes(&filter.program);
    let instructions = task.address_of(instructions)?.0;
    let program = batch.value(&FilterProgram { len: len as u16, reserved: [0; 3], instructions });
    // How the processor speculates is a kind of its own, and not for the filter to change.
    let flags = filter.flags | libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW;
    let id = batch.call(libc::SYS_seccomp, [libc::SECCOMP_SET_MODE_FILTER.into(), flags.into(), program.into()]);
    let answers = task.run(batch)?;
    answers.ret(id).doing(|| format!("cannot give thread {} its seccomp filter again", task.tid())).map(drop)
}

impl TaskResource for Seccomp {
    const KIND: &'static str = "seccomp-filters";
    type Record = SeccompRecord;
    type Asked = ();

    fn ask(who: &Subject<'_>, _batch: &mut Batch) -> Result<()> {
        check(who)
    }

    fn collect(_cx: &mut Collector<'_>, who: &Subject<'_>, (): (), _answers: &Answers) -> Result<SeccompRecord> {
        if is_privileged(who.status) { Ok(SeccompRecord::default()) } else { collect(who) }
    }

    fn restore(_cx: &mut Restorer<'_>, task: &mut RemoteTask<'_>, record: &SeccompRecord) -> Result<()> {
        restore(task, record)
    }
}

impl TaskResource for PrivilegedSeccomp {
    const KIND: &'static str = "privileged-seccomp-filters";
    type Record = SeccompRecord;
    type Asked = ();

    fn ask(_who: &Subject<'_>, _batch: &mut Batch) -> Result<()> {
        Ok(())
    }

    fn collect(_cx: &mut Collector<'_>, who: &Subject<'_>, (): (), _answers: &Answers) -> Result<SeccompRecord> {
        if is_privileged(who.status) { collect(who) } else { Ok(SeccompRecord::default()) }
    }

    fn restore(_cx: &mut Restorer<'_>, task: &mut RemoteTask<'_>, record: &SeccompRecord) -> Result<()> {
        restore(task, record)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::trial::{self, Trial};

    const LOAD_NR: FilterInstruction = FilterInstruction { code: 0x20, jump_true: 0, jump_false: 0, k: 0 };

    fn ret(k: u32) -> FilterInstruction {
        FilterInstruction { code: 0x06, jump_true: 0, jump_false: 0, k }
    }

    fn equals(k: u32, jump_true: u8, jump_false: u8) -> FilterInstruction {
        FilterInstruction { code: 0x15, jump_true, jump_false, k }
    }

    /// Lets everything but one call through, which gives that error.
    fn deny(nr: libc::c_long, errno: i32) -> SeccompFilter {
        let refused = ret(libc::SECCOMP_RET_ERRNO | errno as u32);
        let program = [LOAD_NR, equals(nr as u32, 0, 1), refused, ret(libc::SECCOMP_RET_ALLOW)];
        SeccompFilter { flags: 0, program: ByteBuf::from(bytemuck::cast_slice(&program)) }
    }

    fn two() -> SeccompRecord {
        let logged = SeccompFilter { flags: libc::SECCOMP_FILTER_FLAG_LOG, ..deny(libc::SYS_getppid, libc::EDOM) };
        SeccompRecord { strict: false, filters: vec![deny(libc::SYS_getpid, libc::ENOTTY), logged] }
    }

    fn take_rights(program: &mut Trial) {
        program.prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0).unwrap();
    }

    fn denied(program: &mut Trial, nr: libc::c_long) -> Option<i32> {
        let args: [crate::tracee::batch::Arg; 0] = [];
        program.task().call("x", nr, args).err().and_then(|e| e.errno())
    }

    #[test]
    fn filters_return_in_order_and_work() {
        let made = two();
        let mut program = Trial::sleep();
        program.fix_workspace();
        take_rights(&mut program);
        program.restore::<Seccomp>(&made).unwrap();
        assert_eq!(program.collect::<Seccomp>().unwrap(), made);
        assert_eq!(program.collect::<PrivilegedSeccomp>().unwrap(), SeccompRecord::default());
        assert_eq!(denied(&mut program, libc::SYS_getpid), None, "suspended while we hold it");
        let tid = program.pid().leader();
        ptrace::set_options(tid, spawn::OPTIONS).unwrap();
        assert_eq!(denied(&mut program, libc::SYS_getpid), Some(libc::ENOTTY));
        assert_eq!(denied(&mut program, libc::SYS_getppid), Some(libc::EDOM));
        assert_eq!(denied(&mut program, libc::SYS_getuid), None);
    }

    #[test]
    fn filters_of_a_privileged_thread_are_told_apart() {
        let made = two();
        let (before, after) = trial::roundtrip::<PrivilegedSeccomp>(|program| {
            program.fix_workspace();
            program.restore::<PrivilegedSeccomp>(&made).unwrap();
            assert_eq!(program.collect::<Seccomp>().unwrap(), SeccompRecord::default());
        });
        assert_eq!((&before, &after), (&made, &made));
    }

    #[test]
    fn strict_mode_returns() {
        let made = SeccompRecord { strict: true, filters: Vec::new() };
        let (before, after) = trial::roundtrip::<Seccomp>(|program| program.restore::<Seccomp>(&made).unwrap());
        assert_eq!((&before, &after), (&made, &made));
    }

    #[test]
    fn a_filter_with_a_supervisor_is_refused() {
        let mut program = Trial::sleep();
        program.fix_workspace();
        take_rights(&mut program);
        let code =
            [LOAD_NR, equals(libc::SYS_mkdir as u32, 0, 1), ret(libc::SECCOMP_RET_USER_NOTIF), ret(libc::SECCOMP_RET_ALLOW)];
        let filter = SeccompFilter { flags: 0, program: ByteBuf::from(bytemuck::cast_slice(&code)) };
        program.restore::<Seccomp>(&SeccompRecord { strict: false, filters: vec![filter] }).unwrap();
        let error = program.collect::<Seccomp>().unwrap_err();
        assert!(matches!(&error, Error::Refused(_)) && error.to_string().contains("decide"), "{error}");
    }

    #[test]
    fn damaged_filters_are_errors() {
        let mut program = Trial::sleep();
        program.fix_workspace();
        take_rights(&mut program);
        for len in [0, 7, 9, 8 * (FILTER_MAX + 1), 16] {
            let filter = SeccompFilter { flags: 0, program: ByteBuf::from(vec![0xff; len]) };
            assert!(program.restore::<Seccomp>(&SeccompRecord { strict: false, filters: vec![filter] }).is_err());
        }
    }
}
