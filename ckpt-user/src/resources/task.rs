//! The traits of state that belongs to a process or to a thread rather than to a descriptor.
//!
//! Collecting happens in two steps, so that everything a thread must be asked goes into *one* batch of remote system calls, made in
//! one resume: `ask` adds calls to the batch, `collect` reads the answers and what /proc tells.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Collector, Restorer};
use crate::error::Result;
use crate::ids::{Pid, Tid};
use crate::image::model::Section;
use crate::sys::status::Status;
use crate::tracee::batch::{Answers, Batch};
use crate::tracee::remote::RemoteTask;

/// A stopped thread that is being collected.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// Its process.
    pub pid: Pid,
    /// The thread: the leader for per-process resources.
    pub tid: Tid,
    /// /proc/PID/task/TID/status, parsed.
    pub status: &'a Status,
}

/// State of a whole process (`tid` is the leader) or of one thread; the registry tells which.
pub trait TaskResource {
    /// The name of the kind in images.
    const KIND: &'static str;
    /// What an image holds of it.
    type Record: Serialize + DeserializeOwned;
    /// What `ask` hands to `collect`: the ids of its calls and slots.
    type Asked;

    /// Adds the system calls that only the thread itself can make. They must change nothing.
    fn ask(who: &Subject<'_>, batch: &mut Batch) -> Result<Self::Asked>;

    /// Reads the state of the stopped thread.
    fn collect(cx: &mut Collector<'_>, who: &Subject<'_>, asked: Self::Asked, answers: &Answers) -> Result<Self::Record>;

    /// Gives the state to a new thread, stopped, with all signals blocked. Called in the order of the registry.
    fn restore(cx: &mut Restorer<'_>, task: &mut RemoteTask<'_>, record: &Self::Record) -> Result<()>;
}

/// The second half of a collection, with the types erased.
pub type Collect = Box<dyn FnOnce(&mut Collector<'_>, &Subject<'_>, &Answers) -> Result<Section>>;

/// A [`TaskResource`] with its types erased: a row of the registry.
#[derive(Clone, Copy)]
pub struct TaskResourceEntry {
    /// [`TaskResource::KIND`].
    pub kind: &'static str,
    /// [`TaskResource::ask`]; what it returns is [`TaskResource::collect`].
    pub ask: fn(&Subject<'_>, &mut Batch) -> Result<Collect>,
    /// [`TaskResource::restore`], decoded.
    pub restore: fn(&mut Restorer<'_>, &mut RemoteTask<'_>, &Section) -> Result<()>,
}

impl std::fmt::Debug for TaskResourceEntry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TaskResourceEntry").field("kind", &self.kind).finish_non_exhaustive()
    }
}

impl TaskResourceEntry {
    /// The row for `R`.
    pub const fn of<R: TaskResource>() -> TaskResourceEntry
    where
        R::Asked: 'static,
    {
        TaskResourceEntry {
            kind: R::KIND,
            ask: |who, batch| {
                let asked = R::ask(who, batch)?;
                Ok(Box::new(move |cx, who, answers| {
                    let record = R::collect(cx, who, asked, answers)?;
                    Ok(Section::encode(R::KIND, &record)?)
                }))
            },
            restore: |cx, task, section| R::restore(cx, task, &section.decode()?),
        }
    }
}
