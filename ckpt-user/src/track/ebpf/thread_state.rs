//! Whether a thread would answer now what it has answered before: where the kernel keeps what it tells of a thread to nobody but itself.
//!
//! To ask a thread takes it out of its stop and back, which is most of what a pause is made of. So the kernel's own fields behind all answers are looked
//! at instead: while they have not changed, neither have the answers. What these are is for nobody to know here, so that no kernel's way to keep
//! them must be known, only the names of the fields.

use ckpt_ebpf::tasks::{ACTION_WORDS, Owner, STATE_PARTS_MAX, StateOwners, StatePart};

use crate::sys::btf::{Btf, BtfError};
use crate::sys::{landlock, prctl};

/// The fields behind all that `resources` ask of a thread or of its process: of whom, where, and whether they are 8 bytes, rather than 4.
const FIELDS: &[(Owner, &str, bool)] = &[
    // Another thread by the same number.
    (Owner::Task, "start_boottime", true),
    (Owner::Task, "self_exec_id", false),
    // prctl(PR_GET_TSC), arch_prctl(ARCH_GET_CPUID) and some of PR_GET_SPECULATION_CTRL.
    (Owner::Task, "thread_info.flags", true),
    // PR_MCE_KILL_GET, PR_GET_IO_FLUSHER.
    (Owner::Task, "flags", false),
    // The rest of PR_GET_SPECULATION_CTRL.
    (Owner::Task, "atomic_flags", true),
    // personality(2).
    (Owner::Task, "personality", false),
    // PR_GET_PDEATHSIG.
    (Owner::Task, "pdeath_signal", false),
    // PR_GET_TID_ADDRESS.
    (Owner::Task, "clear_child_tid", true),
    // sigaltstack(2).
    (Owner::Task, "sas_ss_sp", true),
    (Owner::Task, "sas_ss_size", true),
    (Owner::Task, "sas_ss_flags", false),
    // get_mempolicy(2): as long as there is none.
    (Owner::Task, "mempolicy", true),
    // PR_GET_TIMERSLACK.
    (Owner::Task, "timer_slack_ns", true),
    // PR_GET_SECUREBITS.
    (Owner::Credentials, "securebits", false),
    // PR_GET_CHILD_SUBREAPER: a bit of it.
    (Owner::Process, "is_child_subreaper", false),
    // getitimer(2): as long as none runs.
    (Owner::Process, "it_real_incr", true),
    (Owner::Process, "real_timer.node.expires", true),
    (Owner::Process, "it", true),
    // brk(2).
    (Owner::Memory, "brk", true),
    // PR_GET_DUMPABLE, PR_GET_THP_DISABLE, PR_GET_MEMORY_MERGE, PR_GET_MDWE.
    (Owner::Memory, "flags", true),
    // Whether what is mapped is locked (mlockall(MCL_FUTURE)).
    (Owner::Memory, "def_flags", true),
    // membarrier(MEMBARRIER_CMD_GET_REGISTRATIONS).
    (Owner::Memory, "membarrier_state", false),
    // modify_ldt(2).
    (Owner::Memory, "context.ldt", true),
];

/// So much of what security modules keep of credentials is looked at: 8 to 32 bytes each, that of Landlock among the first. What belongs to nobody may change,
/// for no harm.
const SECURITY_LONGS: u32 = 8;

/// How long `it` of a process is, in longs: two timers, each with a time and a period.
const CPU_TIMER_LONGS: u32 = 4;

/// For the program.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) owners: StateOwners,
    pub(super) parts: [StatePart; STATE_PARTS_MAX],
}

impl Table {
    /// `None`: this kernel keeps something in another way, or it has another name, so that threads must be asked each time.
    pub(super) fn of(btf: &Btf) -> Result<Option<Table>, BtfError> {
        match Table::find(btf) {
            Err(BtfError::Absent(what)) => {
                tracing::info!("threads are asked for their state at each cut: this kernel has no {what}");
                Ok(None)
            }
            found => found.map(Some),
        }
    }

    fn find(btf: &Btf) -> Result<Table, BtfError> {
        let mut parts = Vec::new();
        for &(of, path, long) in FIELDS {
            let at = btf.offset_of(struct_of(of), path)?;
            let part = |at| StatePart { of: of as u32, at, long: long.into() };
            let longs = if path == "it" { CPU_TIMER_LONGS } else { 1 };
            parts.extend((0..longs).map(|n| part(at + 8 * n)));
        }
        // What Landlock lets a thread look at.
        if landlock::is_there() {
            parts.extend((0..SECURITY_LONGS).map(|n| StatePart { of: Owner::Security as u32, at: 8 * n, long: 1 }));
        }
        // ARCH_GET_UNTAG_MASK, where there are tags.
        if prctl::has_address_tags() {
            parts.push(StatePart { of: Owner::Memory as u32, at: btf.offset_of("mm_struct", "context.untag_mask")?, long: 1 });
        }

        let action = btf.size_of("k_sigaction")?;
        if action as usize != size_of::<[u64; ACTION_WORDS]>() || parts.len() > STATE_PARTS_MAX {
            return Err(BtfError::Absent("struct k_sigaction of the size that is known".to_owned()));
        }
        let task = |path| btf.offset_of("task_struct", path);
        let owners = StateOwners {
            parts: parts.len() as u32,
            credentials: task("cred")?,
            security: btf.offset_of("cred", "security")?,
            process: task("signal")?,
            signals: task("sighand")?,
            actions: btf.offset_of("sighand_struct", "action")?,
            action,
        };
        parts.resize(STATE_PARTS_MAX, StatePart::default());
        let parts = parts.try_into().map_err(|_| BtfError::Absent("room for all fields".to_owned()))?;
        Ok(Table { owners, parts })
    }
}

fn struct_of(owner: Owner) -> &'static str {
    match owner {
        Owner::Task => "task_struct",
        Owner::Credentials | Owner::Security => "cred",
        Owner::Process => "signal_struct",
        Owner::Memory => "mm_struct",
    }
}
