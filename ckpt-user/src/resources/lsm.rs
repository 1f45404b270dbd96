//! What security modules confine a thread by.
//!
//! * A label (SELinux, AppArmor, Smack). ckpt does not change labels: a new thread has ckpt's own, and if that is another the restart fails and
//!   says so.
//! * Rules of Landlock, which the kernel gives to nobody: a thread that is under them is refused, because it would come back free of them.

use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::task::{Subject, TaskResource};
use super::{Collector, Restorer};
use crate::error::{Doing, Error, Result};
use crate::ids::{Pid, Tid};
use crate::sys::status::Status;
use crate::sys::{landlock, task_file};
use crate::tracee::batch::{Answers, Batch, CallId};
use crate::tracee::remote::RemoteTask;

/// See the module.
#[derive(Debug, Clone, Copy)]
pub struct SecurityLabel;

/// /proc/PID/attr/current.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SecurityLabelRecord {
    /// `None`: no module of this kernel has labels.
    pub label: Option<ByteBuf>,
}

/// Does a module of this kernel have labels?
#[derive(Debug)]
struct Labels {
    there_are: bool,
}

/// A process that the thread may look at, if Landlock lets it.
fn witness(status: &Status) -> Result<Option<Pid>> {
    let (user, group) = (status.uids[0], status.gids[0]);
    landlock::witness(user, group).doing(|| format!("cannot make a process of user {user}, by which Landlock is found"))
}

/// Makes what [`SecurityLabel`] will need for a thread that still runs.
pub fn prepare(status: &Status) -> Result<()> {
    witness(status).map(drop)
}

/// Has the thread's own label, rather than Landlock, kept it from looking?
fn is_labelled_otherwise(who: &Subject<'_>) -> Result<bool> {
    let own = Pid(std::process::id() as i32);
    Ok(read(who.pid, who.tid)? != read(own, own.leader())?)
}

/// AppArmor's word for a thread that it does not confine.
const UNCONFINED: &[u8] = b"unconfined";

fn read(pid: Pid, tid: Tid) -> Result<Option<ByteBuf>> {
    match task_file::read(pid, tid, "attr/current") {
        Ok(label) => Ok(label.map(|label| ByteBuf::from(trimmed(&label)))),
        // No module that has labels; or none was loaded.
        Err(e) if matches!(e.errno(), Some(libc::EINVAL | libc::EOPNOTSUPP)) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Without the newline (AppArmor) or NUL (SELinux) at its end.
fn trimmed(label: &[u8]) -> &[u8] {
    let end = label.iter().rposition(|byte| !matches!(byte, b'\n' | 0)).map_or(0, |last| last + 1);
    &label[..end]
}

/// May a thread that had `wanted` go on with `now`?
fn suits(wanted: Option<&[u8]>, now: Option<&[u8]>) -> bool {
    match (wanted, now) {
        (None, _) => true,
        (Some(wanted), None) => wanted == UNCONFINED,
        (Some(wanted), Some(now)) => wanted == now,
    }
}

impl TaskResource for SecurityLabel {
    const KIND: &'static str = "security-label";
    type Record = SecurityLabelRecord;
    /// The call that looks at the witness.
    type Asked = Option<CallId>;

    fn ask(who: &Subject<'_>, batch: &mut Batch) -> Result<Option<CallId>> {
        let Some(witness) = witness(who.status)? else { return Ok(None) };
        let (head, len) = (batch.room(8), batch.room(8));
        Ok(Some(batch.call(libc::SYS_get_robust_list, [witness.0.into(), head.into(), len.into()])))
    }

    fn collect(
        cx: &mut Collector<'_>,
        who: &Subject<'_>,
        looked: Option<CallId>,
        answers: &Answers,
    ) -> Result<SecurityLabelRecord> {
        if looked.is_some_and(|id| answers.ret(id) == Err(Errno::EPERM)) && !is_labelled_otherwise(who)? {
            return cx.refuse(
                who.pid,
                format!("thread {}", who.tid),
                "is under Landlock rules, which the kernel shows to nobody, so that it would come back free of them",
                "run the program without that sandbox",
            );
        }
        // All threads have one or none has: that is for the kernel's modules to say.
        let labels = cx.fact(|_| Ok(Labels { there_are: read(who.pid, who.tid)?.is_some() }))?;
        Ok(SecurityLabelRecord { label: if labels.there_are { read(who.pid, who.tid)? } else { None } })
    }

    fn restore(_cx: &mut Restorer<'_>, task: &mut RemoteTask<'_>, record: &SecurityLabelRecord) -> Result<()> {
        let now = read(task.pid(), task.tid())?;
        if suits(record.label.as_deref().map(Vec::as_slice), now.as_deref().map(Vec::as_slice)) {
            return Ok(());
        }
        let shown = |label: &Option<ByteBuf>| {
            label.as_ref().map_or("no label".to_owned(), |label| format!("the label '{}'", String::from_utf8_lossy(label)))
        };
        Err(Error::Restart(format!(
            "thread {} ran under {}, and would now run under {}; run ckpt restart under the former (runcon, aa-exec)",
            task.tid(),
            shown(&record.label),
            shown(&now)
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::trial::{self, Trial};

    #[test]
    fn whatever_label_this_machine_gives_suits_itself() {
        let (before, after) = trial::roundtrip::<SecurityLabel>(|_| {});
        assert_eq!(before, after);
    }

    /// Makes system calls in the program.
    fn calls<const N: usize>(program: &mut Trial, calls: [(libc::c_long, [u64; 3]); N]) {
        for (nr, args) in calls {
            program.task().call("prepare", nr, args.map(Into::into)).unwrap();
        }
    }

    const BECOME_A_USER: [(libc::c_long, [u64; 3]); 3] =
        [(libc::SYS_setgroups, [0; 3]), (libc::SYS_setresgid, [1001, 1002, 1003]), (libc::SYS_setresuid, [1001, 1002, 1003])];

    #[test]
    fn a_thread_under_landlock_rules_is_refused_whoever_it_is() {
        for user in [false, true] {
            let mut program = Trial::sleep();
            if user {
                calls(&mut program, BECOME_A_USER);
                program.prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0).unwrap();
            }
            program.collect::<SecurityLabel>().expect("there are no rules yet");
            let mut batch = Batch::new();
            // struct landlock_ruleset_attr: LANDLOCK_ACCESS_FS_WRITE_FILE.
            let attributes = batch.value(&2u64);
            let made = batch.call(libc::SYS_landlock_create_ruleset, [attributes.into(), 8u64.into(), 0u64.into()]);
            let rules = program.task().run(batch).unwrap().ret(made).unwrap();
            calls(&mut program, [(libc::SYS_landlock_restrict_self, [rules, 0, 0]), (libc::SYS_close, [rules, 0, 0])]);
            let said = program.collect::<SecurityLabel>().unwrap_err().to_string();
            assert!(said.contains("Landlock"), "{said}");
        }
    }

    #[test]
    fn one_that_has_given_up_its_capabilities_is_not_taken_for_it() {
        let mut program = Trial::sleep();
        let mut batch = Batch::new();
        let (head, none) = (batch.value(&[0x2008_0522u32, 0]), batch.room(24));
        let dropped = batch.call(libc::SYS_capset, [head.into(), none.into()]);
        assert_eq!(program.task().run(batch).unwrap().ret(dropped), Ok(0));
        program.collect::<SecurityLabel>().unwrap();
    }

    #[test]
    fn another_label_is_an_error_that_names_it() {
        let record = SecurityLabelRecord { label: Some(ByteBuf::from(*b"system_u:system_r:httpd_t:s0")) };
        let error = Trial::sleep().restore::<SecurityLabel>(&record).unwrap_err();
        assert!(error.to_string().contains("httpd_t"), "{error}");
    }

    #[test]
    fn labels_are_compared_as_names() {
        assert_eq!(trimmed(b"unconfined\n"), b"unconfined");
        assert_eq!(trimmed(b"a:b\0"), b"a:b");
        assert_eq!(trimmed(b"\n"), b"");
        assert!(suits(None, None) && suits(None, Some(b"x")) && suits(Some(UNCONFINED), None));
        assert!(suits(Some(b"x"), Some(b"x")) && !suits(Some(b"x"), Some(UNCONFINED)) && !suits(Some(b"x"), None));
    }
}
