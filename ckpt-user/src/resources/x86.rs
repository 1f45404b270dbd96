//! What the processor does differently for one thread: reading the time stamp and CPUID may fault. And the x86 state that cannot be
//! saved, or in whose presence no remote call can be made: that is found, and refused, before anything is planted.

use serde::{Deserialize, Serialize};

use super::task::{Subject, TaskResource};
use super::{Collector, Restorer};
use crate::error::{Doing, Error, Refusal, Result};
use crate::sys::prctl::{self, ARCH_GET_UNTAG_MASK, ARCH_SET_CPUID};
use crate::sys::ptrace_state;
use crate::tracee::batch::{Answers, Batch, CallId, Slot};
use crate::tracee::remote::RemoteTask;

/// See the module.
#[derive(Debug, Clone, Copy)]
pub struct X86;

/// Which instructions fault.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct X86Record {
    /// RDTSC does (PR_TSC_SIGSEGV).
    pub tsc_faults: bool,
    /// CPUID does (ARCH_SET_CPUID 0).
    pub cpuid_faults: bool,
}

/// NT_X86_SHSTK (linux/elf.h): the shadow stack of a thread.
const NT_X86_SHSTK: i32 = 0x204;
/// NT_386_IOPERM (linux/elf.h): the ports it may use.
const NT_386_IOPERM: i32 = 0x201;
/// asm/prctl.h.
const ARCH_GET_CPUID: i32 = 0x1011;
/// modify_ldt(2): read.
const LDT_READ: i32 = 0;
/// Bytes of one entry.
const LDT_ENTRY: usize = 8;

/// The calls that ask.
#[derive(Debug, Clone, Copy)]
pub struct Asked {
    tsc: (CallId, Slot),
    cpuid: Option<CallId>,
    process: Option<AskedOfProcess>,
}

#[derive(Debug, Clone, Copy)]
struct AskedOfProcess {
    ldt: CallId,
    untag: (CallId, Slot),
}

fn refusal(who: &Subject<'_>, reason: &str, advice: &str) -> Error {
    let object = if who.tid == who.pid.leader() { "it".to_owned() } else { format!("its thread {}", who.tid) };
    Error::Refused(Refusal { pid: who.pid, object, reason: reason.to_owned(), advice: advice.to_owned(), passing: false })
}

/// What must be known before a remote call is made in a stopped thread.
pub fn check(who: &Subject<'_>) -> Result<()> {
    let doing = || format!("cannot read the state of thread {}", who.tid);
    if ptrace_state::user_dispatch(who.tid).doing(doing)?.is_some_and(|dispatch| dispatch.mode != 0) {
        let reason = "has its system calls dispatched to itself (as Wine does), under which ckpt cannot make any in it";
        return Err(refusal(who, reason, "run it without system call user dispatch"));
    }
    if ptrace_state::has_register_set(who.tid, NT_X86_SHSTK).doing(doing)? {
        return Err(refusal(who, "uses a shadow stack", "start it with GLIBC_TUNABLES=glibc.cpu.x86_shstk=off"));
    }
    if ptrace_state::has_register_set(who.tid, NT_386_IOPERM).doing(doing)? {
        return Err(refusal(who, "uses I/O ports (ioperm), which belong to the machine", "let it give them up first"));
    }
    Ok(())
}

impl TaskResource for X86 {
    const KIND: &'static str = "x86";
    type Record = X86Record;
    type Asked = Asked;

    /// After [`check`].
    fn ask(who: &Subject<'_>, batch: &mut Batch) -> Result<Asked> {
        let tsc = batch.room(size_of::<i32>());
        let tsc = (batch.call(libc::SYS_prctl, [libc::PR_GET_TSC.into(), tsc.into()]), tsc);
        let cpuid = prctl::has_cpuid_faulting().then(|| batch.call(libc::SYS_arch_prctl, [ARCH_GET_CPUID.into(), 0u64.into()]));
        let process = (who.tid == who.pid.leader()).then(|| {
            let (entry, mask) = (batch.room(LDT_ENTRY), batch.room(size_of::<u64>()));
            AskedOfProcess {
                ldt: batch.call(libc::SYS_modify_ldt, [LDT_READ.into(), entry.into(), LDT_ENTRY.into()]),
                untag: (batch.call(libc::SYS_arch_prctl, [ARCH_GET_UNTAG_MASK.into(), mask.into()]), mask),
            }
        });
        Ok(Asked { tsc, cpuid, process })
    }

    fn collect(_cx: &mut Collector<'_>, who: &Subject<'_>, asked: Asked, answers: &Answers) -> Result<X86Record> {
        if let Some(process) = asked.process {
            // Bytes read; errors come as 32-bit numbers, or as ENOSYS where there are no such tables.
            if answers.ret(process.ldt).is_ok_and(|bytes| (1..=LDT_ENTRY as u64).contains(&bytes)) {
                return Err(refusal(
                    who,
                    "has segments of its own (modify_ldt), as 16- and 32-bit emulators do",
                    "checkpoint it without them",
                ));
            }
            // EINVAL: a kernel without address tagging.
            if answers.ret(process.untag.0).is_ok() && answers.value::<u64>(process.untag.1) != u64::MAX {
                return Err(refusal(who, "uses tagged addresses (LAM)", "run it without them"));
            }
        }
        answers.ret(asked.tsc.0).doing(|| format!("cannot read the TSC mode of thread {}", who.tid))?;
        let tsc_faults = answers.value::<i32>(asked.tsc.1) == libc::PR_TSC_SIGSEGV;
        Ok(X86Record { tsc_faults, cpuid_faults: asked.cpuid.is_some_and(|id| answers.ret(id) == Ok(0)) })
    }

    fn restore(_cx: &mut Restorer<'_>, task: &mut RemoteTask<'_>, record: &X86Record) -> Result<()> {
        if record.tsc_faults {
            let args = [libc::PR_SET_TSC.into(), libc::PR_TSC_SIGSEGV.into()];
            task.call("cannot make RDTSC fault", libc::SYS_prctl, args)?;
        }
        if record.cpuid_faults {
            let args = [ARCH_SET_CPUID.into(), 0u64.into()];
            task.call("cannot make CPUID fault, which this processor may not be able to", libc::SYS_arch_prctl, args)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::trial::{self, Trial};
    use crate::sys::ptrace_state::UserDispatch;

    #[test]
    fn a_faulting_time_stamp_returns() {
        let (before, after) = trial::roundtrip::<X86>(|program| {
            program.prctl(libc::PR_SET_TSC, libc::PR_TSC_SIGSEGV as u64, 0).unwrap();
        });
        let made = X86Record { tsc_faults: true, cpuid_faults: false };
        assert_eq!((before, after), (made, made));
        assert_eq!(Trial::sleep().collect::<X86>().unwrap(), X86Record::default());
    }

    #[test]
    fn segments_of_its_own_are_refused() {
        let mut program = Trial::sleep();
        // struct user_desc: entry 0, base 0x1000, limit 0xff, 32-bit, useable.
        let mut batch = Batch::new();
        let entry = batch.value(&[0u32, 0x1000, 0xff, 1 | 1 << 6]);
        let id = batch.call(libc::SYS_modify_ldt, [0x11u64.into(), entry.into(), 16u64.into()]);
        assert_eq!(program.task().run(batch).unwrap().ret(id), Ok(0));
        let error = program.collect::<X86>().unwrap_err();
        assert!(matches!(&error, Error::Refused(_)) && error.to_string().contains("modify_ldt"), "{error}");
    }

    #[test]
    fn dispatched_system_calls_are_refused_before_any_is_made() {
        let program = Trial::sleep();
        let tid = program.pid().leader();
        let dispatch = UserDispatch { mode: 1, ..UserDispatch::default() };
        ptrace_state::set_user_dispatch(tid, &dispatch).unwrap();
        assert_eq!(ptrace_state::user_dispatch(tid).unwrap(), Some(dispatch));
        let status = crate::sys::procfs::status(program.pid(), tid).unwrap();
        let who = Subject { pid: program.pid(), tid, status: &status };
        let error = check(&who).unwrap_err();
        assert!(matches!(error, Error::Refused(_)), "{error}");
    }
}
