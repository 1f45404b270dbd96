//! The execution domain of a thread (personality(2)): no address space randomization, READ_IMPLIES_EXEC, the machine name it sees.

use serde::{Deserialize, Serialize};

use super::task::{Subject, TaskResource};
use super::{Collector, Restorer};
use crate::error::{Error, Result};
use crate::ids::{Pid, Tid};
use crate::sys::task_file;
use crate::tracee::batch::{Answers, Batch};
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

fn read(pid: Pid, tid: Tid) -> Result<u32> {
    let text = task_file::read_line(pid, tid, "personality")?;
    u32::from_str_radix(&text, 16).map_err(|_| Error::Unexpected(format!("the personality of thread {tid} is {text:?}")))
}

impl TaskResource for Personality {
    const KIND: &'static str = "personality";
    type Record = PersonalityRecord;
    type Asked = ();

    fn ask(_who: &Subject<'_>, _batch: &mut Batch) -> Result<()> {
        Ok(())
    }

    fn collect(_cx: &mut Collector<'_>, who: &Subject<'_>, (): (), _answers: &Answers) -> Result<PersonalityRecord> {
        Ok(PersonalityRecord { persona: read(who.pid, who.tid)? })
    }

    fn restore(_cx: &mut Restorer<'_>, task: &mut RemoteTask<'_>, record: &PersonalityRecord) -> Result<()> {
        if read(task.pid(), task.tid())? == record.persona {
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
