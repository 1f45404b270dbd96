//! How the processor may speculate for a thread (PR_SET_SPECULATION_CTRL), where the machine leaves that to each thread.

use serde::{Deserialize, Serialize};

use super::task::{Subject, TaskResource};
use super::{Collector, Restorer};
use crate::error::{Doing, Error, Result};
use crate::sys::prctl;
use crate::tracee::batch::{Answers, Batch, CallId};
use crate::tracee::remote::RemoteTask;

/// See the module.
#[derive(Debug, Clone, Copy)]
pub struct Speculation;

/// The mitigations that a thread has a setting of its own for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SpeculationRecord {
    /// PR_SPEC_STORE_BYPASS, ...: and PR_SPEC_ENABLE, PR_SPEC_DISABLE, PR_SPEC_FORCE_DISABLE or PR_SPEC_DISABLE_NOEXEC.
    pub controls: Vec<(i32, u32)>,
}

fn ask(batch: &mut Batch, which: i32) -> CallId {
    let zero = 0u64.into();
    batch.call(libc::SYS_prctl, [libc::PR_GET_SPECULATION_CTRL.into(), which.into(), zero, zero, zero])
}

/// The setting without the bit that says that there is one.
fn setting(value: u64) -> u32 {
    value as u32 & !libc::PR_SPEC_PRCTL
}

impl TaskResource for Speculation {
    const KIND: &'static str = "speculation";
    type Record = SpeculationRecord;
    type Asked = Vec<(i32, CallId)>;

    fn ask(_who: &Subject<'_>, batch: &mut Batch) -> Result<Self::Asked> {
        Ok(prctl::speculation_controls().iter().map(|&which| (which, ask(batch, which))).collect())
    }

    fn collect(_cx: &mut Collector<'_>, who: &Subject<'_>, asked: Self::Asked, answers: &Answers) -> Result<Self::Record> {
        let mut controls = Vec::new();
        for (which, id) in asked {
            let value = answers.ret(id).doing(|| format!("cannot read speculation control {which} of thread {}", who.tid))?;
            controls.push((which, setting(value)));
        }
        Ok(SpeculationRecord { controls })
    }

    fn restore(_cx: &mut Restorer<'_>, task: &mut RemoteTask<'_>, record: &Self::Record) -> Result<()> {
        for &(which, wanted) in &record.controls {
            if !prctl::speculation_controls().contains(&which) {
                if wanted & libc::PR_SPEC_ENABLE == 0 {
                    tracing::warn!(
                        "thread {} had mitigation {which} of speculation on for itself; on this machine that is not for threads to choose",
                        task.tid()
                    );
                }
                continue;
            }
            let mut batch = Batch::new();
            let id = ask(&mut batch, which);
            let now = task.run(batch)?.ret(id).doing(|| format!("cannot read speculation control {which} of a new thread"))?;
            if setting(now) == wanted {
                continue;
            }
            if ![libc::PR_SPEC_ENABLE, libc::PR_SPEC_DISABLE, libc::PR_SPEC_FORCE_DISABLE, libc::PR_SPEC_DISABLE_NOEXEC]
                .contains(&wanted)
            {
                return Err(Error::Restart(format!("the image holds a speculation setting that cannot be: {wanted:#x}")));
            }
            let zero = 0u64.into();
            let args = [libc::PR_SET_SPECULATION_CTRL.into(), which.into(), wanted.into(), zero, zero];
            task.call("cannot set how the processor may speculate", libc::SYS_prctl, args)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::trial::{self, Trial};

    #[test]
    fn settings_return_where_there_are_any() {
        let (before, after) = trial::roundtrip::<Speculation>(|program| {
            for &which in prctl::speculation_controls() {
                let zero = 0u64.into();
                let args = [libc::PR_SET_SPECULATION_CTRL.into(), which.into(), libc::PR_SPEC_DISABLE.into(), zero, zero];
                program.task().call("prctl", libc::SYS_prctl, args).unwrap();
            }
        });
        assert_eq!(before, after);
        assert!(before.controls.iter().all(|(_, value)| *value == libc::PR_SPEC_DISABLE));
    }

    #[test]
    fn a_setting_that_this_machine_does_not_have_is_no_error() {
        Trial::sleep().restore::<Speculation>(&SpeculationRecord { controls: vec![(99, libc::PR_SPEC_DISABLE)] }).unwrap();
    }
}
