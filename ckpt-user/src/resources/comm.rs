//! The name of a thread (PR_SET_NAME), as ps and top show it.

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use super::task::{Subject, TaskResource};
use super::{Collector, Restorer};
use crate::error::{Doing, Error, Result};
use crate::tracee::batch::{Answers, Batch};
use crate::tracee::remote::RemoteTask;

/// See the module.
#[derive(Debug, Clone, Copy)]
pub struct Comm;

/// The name: any bytes but NUL, 15 at most.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CommRecord {
    /// See the struct.
    pub name: ByteBuf,
}

/// TASK_COMM_LEN without its NUL.
const NAME_MAX: usize = 15;

impl TaskResource for Comm {
    const KIND: &'static str = "comm";
    type Record = CommRecord;
    type Asked = ();

    fn ask(_who: &Subject<'_>, _batch: &mut Batch) -> Result<()> {
        Ok(())
    }

    fn collect(_cx: &mut Collector<'_>, who: &Subject<'_>, (): (), _answers: &Answers) -> Result<CommRecord> {
        Ok(CommRecord { name: ByteBuf::from(who.status.name.clone()) })
    }

    fn restore(_cx: &mut Restorer<'_>, task: &mut RemoteTask<'_>, record: &CommRecord) -> Result<()> {
        if record.name.len() > NAME_MAX || record.name.contains(&0) {
            return Err(Error::Restart(format!("the image holds a thread name that cannot be: {:?}", record.name)));
        }
        let mut batch = Batch::new();
        let name = batch.c_string(&record.name);
        let id = batch.call(libc::SYS_prctl, [libc::PR_SET_NAME.into(), name.into()]);
        task.run(batch)?.ret(id).doing(|| format!("cannot set the name of thread {}", task.tid())).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::trial::{self, Trial};

    #[test]
    fn any_name_returns() {
        for name in [&b"worker-1"[..], b"", b"a:b \\n)\n(", b"\xff\xfe", b"fifteen-bytes-x"] {
            let record = CommRecord { name: ByteBuf::from(name) };
            let (before, after) = trial::roundtrip::<Comm>(|program| program.restore::<Comm>(&record).unwrap());
            assert_eq!((&before, &after), (&record, &record));
        }
    }

    #[test]
    fn a_name_that_is_too_long_is_refused() {
        for name in [&b"sixteen-bytes-xy"[..], b"nul\0"] {
            assert!(Trial::sleep().restore::<Comm>(&CommRecord { name: ByteBuf::from(name) }).is_err());
        }
    }
}
