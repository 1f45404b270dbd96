//! Which mappings a core file would hold (/proc/PID/coredump_filter).

use serde::{Deserialize, Serialize};

use super::task::{Subject, TaskResource};
use super::{Collector, Restorer};
use crate::error::{Doing, Error, Result};
use crate::ids::Pid;
use crate::sys::procfs;
use crate::sys::task_file;
use crate::tracee::batch::{Answers, Batch};
use crate::tracee::remote::RemoteTask;

/// See the module.
#[derive(Debug, Clone, Copy)]
pub struct CoredumpFilter;

/// The bits of core(5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CoredumpFilterRecord {
    /// `None`: this kernel writes no core files.
    pub bits: Option<u32>,
}

fn read(pid: Pid) -> Result<Option<u32>> {
    let path = format!("/proc/{pid}/coredump_filter");
    let text = match procfs::read_text(&path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        other => other.doing(|| format!("cannot read {path}"))?,
    };
    let bits = u32::from_str_radix(text.trim(), 16);
    bits.map(Some).map_err(|_| Error::Unexpected(format!("{path} holds {text:?}")))
}

impl TaskResource for CoredumpFilter {
    const KIND: &'static str = "coredump-filter";
    type Record = CoredumpFilterRecord;
    type Asked = ();

    fn ask(_who: &Subject<'_>, _batch: &mut Batch) -> Result<()> {
        Ok(())
    }

    fn collect(_cx: &mut Collector<'_>, who: &Subject<'_>, (): (), _answers: &Answers) -> Result<CoredumpFilterRecord> {
        Ok(CoredumpFilterRecord { bits: read(who.pid)? })
    }

    fn restore(_cx: &mut Restorer<'_>, task: &mut RemoteTask<'_>, record: &CoredumpFilterRecord) -> Result<()> {
        let pid = task.pid();
        let Some(bits) = record.bits else { return Ok(()) };
        if read(pid)?.is_none_or(|now| now == bits) {
            return Ok(());
        }
        task_file::write(pid, "coredump_filter", &format!("{bits:#x}"))
            .doing(|| format!("cannot set the coredump filter of pid {pid}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::trial;

    #[test]
    fn the_filter_returns() {
        let made = CoredumpFilterRecord { bits: Some(0x1d) };
        let (before, after) = trial::roundtrip::<CoredumpFilter>(|program| program.restore::<CoredumpFilter>(&made).unwrap());
        assert_eq!((before, after), (made, made));
    }
}
