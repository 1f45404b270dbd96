//! The label that a security module (SELinux, AppArmor, Smack) confines a thread by.
//!
//! ckpt does not change labels: a new thread has ckpt's own, and if that is another the restart fails and says so.

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::task::{Subject, TaskResource};
use super::{Collector, Restorer};
use crate::error::{Error, Result};
use crate::ids::{Pid, Tid};
use crate::sys::task_file;
use crate::tracee::batch::{Answers, Batch};
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
    type Asked = ();

    fn ask(_who: &Subject<'_>, _batch: &mut Batch) -> Result<()> {
        Ok(())
    }

    fn collect(cx: &mut Collector<'_>, who: &Subject<'_>, (): (), _answers: &Answers) -> Result<SecurityLabelRecord> {
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
