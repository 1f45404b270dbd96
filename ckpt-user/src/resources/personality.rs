//! The execution domain of a thread (personality(2)): no address space randomization, READ_IMPLIES_EXEC, the machine name it sees.

use serde::{Deserialize, Serialize};

use super::task::{Subject, TaskResource};
use super::{Collector, Restorer};
use crate::error::{Doing, Result};
use crate::tracee::batch::{Answers, Batch, CallId};
use crate::tracee::remote::RemoteTask;

/// See the module.
#[derive(Debug, Clone, Copy)]
pub struct Personality;

/// What personality(0xffffffff) would return.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PersonalityRecord {
    /// PER_* and flags.
    pub persona: u32,
}

/// As a persona: tell what there is.
const ASK: u32 = u32::MAX;

impl TaskResource for Personality {
    const KIND: &'static str = "personality";
    type Record = PersonalityRecord;
    type Asked = CallId;

    fn ask(_who: &Subject<'_>, batch: &mut Batch) -> Result<CallId> {
        Ok(batch.call(libc::SYS_personality, [ASK.into()]))
    }

    fn collect(_cx: &mut Collector<'_>, who: &Subject<'_>, asked: CallId, answers: &Answers) -> Result<PersonalityRecord> {
        let persona = answers.ret(asked).doing(|| format!("cannot read the personality of thread {}", who.tid))?;
        Ok(PersonalityRecord { persona: persona as u32 })
    }

    fn restore(_cx: &mut Restorer<'_>, task: &mut RemoteTask<'_>, record: &PersonalityRecord) -> Result<()> {
        let now = task.call("cannot read the personality", libc::SYS_personality, [ASK.into()])?;
        if now as u32 == record.persona {
            return Ok(());
        }
        task.call("cannot set the personality", libc::SYS_personality, [record.persona.into()]).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::trial;

    #[test]
    fn the_personality_returns() {
        // UNAME26 | READ_IMPLIES_EXEC
        let persona = 0x0020_0000 | 0x0040_0000;
        let (before, after) = trial::roundtrip::<Personality>(|program| {
            program.task().call("personality", libc::SYS_personality, [persona.into()]).unwrap();
        });
        assert_eq!((before, after), (PersonalityRecord { persona }, PersonalityRecord { persona }));
    }
}
