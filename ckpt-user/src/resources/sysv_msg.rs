//! System V message queues that the cut uses: those that a process of it was the last to send to, or to receive from.
//!
//! A queue that nobody has removed outlives its processes. If it is still there at a restart, it gets the messages of the image in place of
//! those that it holds; else one with the same id and key is made.

use serde::{Deserialize, Serialize};

use super::collector::ObjectKey;
use super::sysv::Made;
use super::{Collector, Restorer};
use crate::error::{Doing, Error, Result};
use crate::ids::Pid;
use crate::image::model::Section;
use crate::sys::sysv::{self, Kind, Listed, Message};
use crate::tracee::batch::Batch;
use crate::tracee::remote::RemoteTask;

/// The kind of the object.
pub const KIND: &str = "sysv-msg";

/// A queue.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct QueueRecord {
    /// Its id (msqid), which processes keep.
    pub id: i32,
    /// Its key. 0: none.
    pub key: i32,
    /// Permissions.
    pub mode: u32,
    /// Owner and group.
    pub owner: (u32, u32),
    /// Bytes that it may hold.
    pub limit: u64,
    /// In the order in which they were sent.
    pub messages: Vec<Message>,
}

/// Collects all queues that the cut uses.
pub fn collect(cx: &mut Collector<'_>) -> Result<()> {
    let queues = match sysv::list(Kind::Queue) {
        // A kernel without System V IPC.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other.doing(|| "cannot list the System V message queues")?,
    };
    for queue in queues {
        let users = [queue.users.0, queue.users.1].map(Pid);
        let Some(user) = users.into_iter().find(|user| cx.pids.contains(user)) else { continue };
        cx.attempt(|cx| {
            cx.intern(ObjectKey::Inode(KIND, 0, queue.id as u64), |cx, _| {
                let messages = messages(cx, user, &queue)?;
                let limit = sysv::queue_limit(queue.id).doing(|| format!("cannot look at message queue {}", queue.id))?;
                let Listed { id, key, mode, owner, .. } = queue;
                Ok(Section::encode(KIND, &QueueRecord { id, key, mode, owner, limit, messages })?)
            })
        })?;
    }
    Ok(())
}

fn messages(cx: &Collector<'_>, user: Pid, queue: &Listed) -> Result<Vec<Message>> {
    let mut messages = Vec::new();
    loop {
        match sysv::message(queue.id, Some(messages.len() as i64), queue.size as usize) {
            Ok(Some(message)) => messages.push(message),
            Ok(None) => return Ok(messages),
            Err(error) if error.raw_os_error() == Some(libc::ENOSYS) => {
                let object = format!("the System V message queue {}", queue.id);
                let reason = "holds messages at which this kernel does not let one look (CONFIG_CHECKPOINT_RESTORE)";
                return cx.refuse(user, object, reason, "try again when it is empty");
            }
            Err(error) => return Err(error).doing(|| format!("cannot read message queue {}", queue.id)),
        }
    }
}

impl QueueRecord {
    fn make(&self) -> Result<Made> {
        let doing = || format!("cannot make the System V message queue {} (key {:#x}) again", self.id, self.key);
        let list = sysv::list(Kind::Queue).doing(doing)?;
        let made = if let Some(there) = list.iter().find(|queue| queue.id == self.id) {
            if there.key != self.key {
                let text = format!("{}: another one has its id; remove that (ipcrm -q {}) if nobody uses it", doing(), self.id);
                return Err(Error::Restart(text));
            }
            while sysv::message(self.id, None, there.size as usize).doing(doing)?.is_some() {}
            Made::found(Kind::Queue, self.id)
        } else {
            sysv::choose_next_id(Kind::Queue, self.id).doing(|| format!("{}: cannot choose its id", doing()))?;
            let id = match sysv::make_queue(self.key, self.mode) {
                Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {
                    let text =
                        format!("{}: another one has its key; remove that (ipcrm -Q {:#x}) if nobody uses it", doing(), self.key);
                    return Err(Error::Restart(text));
                }
                other => other.doing(doing)?,
            };
            let made = Made::new(Kind::Queue, id);
            if id != self.id {
                return Err(Error::Restart(format!("{}: its id is in use", doing())));
            }
            made
        };
        sysv::set_queue(self.id, self.owner, self.mode, self.limit).doing(doing)?;
        Ok(made)
    }
}

/// Makes every queue, before the processes.
pub fn make(cx: &mut Restorer<'_>) -> Result<()> {
    for (objref, record) in cx.all::<QueueRecord>(KIND)? {
        cx.shared(objref, |_| record.make())?;
    }
    Ok(())
}

/// Sends all messages, from a process of the cut.
pub fn restore_messages(cx: &Restorer<'_>, task: &mut RemoteTask<'_>) -> Result<()> {
    for (_, record) in cx.all::<QueueRecord>(KIND)? {
        // One that is taken back at once: by this the next checkpoint knows who uses a queue, also an empty one.
        let mut batch = Batch::new();
        let (sent, room) = (batch.value(&1i64), batch.room(16));
        let flags = libc::IPC_NOWAIT;
        let calls = [
            batch.call(libc::SYS_msgsnd, [record.id.into(), sent.into(), 0.into(), flags.into()]),
            batch.call(libc::SYS_msgrcv, [record.id.into(), room.into(), 0.into(), 0.into(), flags.into()]),
        ];
        let answers = task.run(batch)?;
        for call in calls {
            answers.ret(call).doing(|| format!("cannot use message queue {}", record.id))?;
        }
        for message in &record.messages {
            let mut batch = Batch::new();
            let body = batch.bytes(&[&message.kind.to_ne_bytes(), &message.text[..]].concat());
            let args = [record.id.into(), body.into(), message.text.len().into(), flags.into()];
            let call = batch.call(libc::SYS_msgsnd, args);
            task.run(batch)?.ret(call).doing(|| format!("cannot put a message back into queue {}", record.id))?;
        }
    }
    Ok(())
}

/// Nothing can fail any more: the queues stay.
pub fn settle(cx: &mut Restorer<'_>) -> Result<()> {
    for (objref, _) in cx.all::<QueueRecord>(KIND)? {
        cx.shared(objref, |_| Err::<Made, _>(Error::Unexpected("a message queue was not made".into())))?.stay();
    }
    Ok(())
}
