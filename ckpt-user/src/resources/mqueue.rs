//! POSIX message queues, with their messages.
//!
//! One that has a name outlives its processes. If it is still there at a restart, it gets the messages of the image in place of those that it
//! holds; else it is made again.

use std::ffi::{CString, OsString};
use std::fs::{File, Permissions};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, fchown};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::collector::ObjectKey;
use super::file::{Descriptor, FileKind, OpenFile};
use super::{Collector, Restorer, named_file, regular};
use crate::error::{Doing, Error, Result};
use crate::ids::ObjRef;
use crate::image::model::Section;
use crate::sys::mqueue::{self, Attributes};
use crate::track::ebpf::mqueue_messages;

/// See the module.
#[derive(Debug)]
pub struct Mqueue;

/// An opening of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MqueueRecord {
    /// The object of kind "mqueue-messages".
    pub queue: ObjRef,
}

/// The queue behind the openings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct QueueRecord {
    /// Its name, which begins with a slash.
    #[serde(with = "serde_bytes")]
    pub name: Vec<u8>,
    /// The name was taken away.
    pub unlinked: bool,
    /// Its inode: by this the same one is known again.
    pub inode: u64,
    /// Permissions.
    pub mode: u32,
    /// Owner and group.
    pub owner: (u32, u32),
    /// How many messages it can hold.
    pub capacity: i64,
    /// Bytes of the longest message.
    pub longest: i64,
    /// Those of one priority in the order in which they were sent.
    pub messages: Vec<Message>,
}

/// One message.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Message {
    /// Its priority.
    pub priority: u32,
    /// Its text.
    #[serde(with = "serde_bytes")]
    pub text: Vec<u8>,
}

const KIND: &str = "mqueue-messages";

fn collect(cx: &Collector<'_>, d: &Descriptor<'_>) -> Result<QueueRecord> {
    let object = format!("the message queue {} (descriptor {})", d.link.display(), d.fd);
    let doing = || format!("cannot look at {object} of pid {}", d.pid);
    if has_listener(d).doing(doing)? {
        let reason = "has a process that is to be told of the next message (mq_notify), which ckpt cannot save";
        return cx.refuse(d.pid, object, reason, "let the program cancel that first");
    }
    let Attributes { capacity, longest, waiting } = mqueue::attributes(d.own).doing(doing)?;
    let messages = match waiting {
        0 => Vec::new(),
        _ => match mqueue_messages(d.own, waiting as usize) {
            Ok(messages) => messages.into_iter().map(|m| Message { priority: m.priority, text: m.text }).collect(),
            Err(error) => {
                let reason = format!("holds {waiting} messages, at which ckpt cannot look without eBPF ({error})");
                return cx.refuse(d.pid, object, reason, "run ckpt as root, or try again when it is empty");
            }
        },
    };
    let name = d.link.as_bytes();
    Ok(QueueRecord {
        name: name.strip_suffix(b" (deleted)").unwrap_or(name).to_vec(),
        unlinked: d.stat.st_nlink == 0,
        inode: d.stat.st_ino,
        mode: d.stat.st_mode & 0o7777,
        owner: (d.stat.st_uid, d.stat.st_gid),
        capacity,
        longest,
        messages,
    })
}

/// "QSIZE:0 NOTIFY:0 SIGNO:0 NOTIFY_PID:0": what reading a queue gives, wherever its offset is.
fn has_listener(d: &Descriptor<'_>) -> std::io::Result<bool> {
    let mut text = [0; 200];
    let file = File::open(format!("/proc/self/fd/{}", d.own.as_raw_fd()))?;
    let length = file.read_at(&mut text, 0)?;
    let text = String::from_utf8_lossy(&text[..length]);
    let listener = text.split_whitespace().find_map(|word| word.strip_prefix("NOTIFY_PID:"));
    Ok(listener.is_some_and(|pid| pid != "0"))
}

/// A queue of a restart. If that fails, one that was made for it goes.
#[derive(Debug)]
struct Made {
    queue: OwnedFd,
    name: CString,
    is_ours: bool,
}

impl Drop for Made {
    fn drop(&mut self) {
        if self.is_ours
            && let Err(error) = mqueue::unlink(&self.name)
        {
            tracing::warn!("cannot remove the message queue {}: {error}", self.name.to_string_lossy());
        }
    }
}

impl QueueRecord {
    fn make(&self) -> Result<Made> {
        let name = String::from_utf8_lossy(&self.name).into_owned();
        let doing = || format!("cannot make the message queue {name} again");
        let made = self.open().doing(doing)?;
        let Some(made) = made else {
            return Err(Error::Restart(format!(
                "{}: there is another one with its name; remove that (/dev/mqueue{name}) if nobody uses it",
                doing()
            )));
        };
        let file = File::from(made.queue.try_clone().doing(doing)?);
        fchown(&file, Some(self.owner.0), Some(self.owner.1)).doing(doing)?;
        file.set_permissions(Permissions::from_mode(self.mode)).doing(doing)?;
        for message in &self.messages {
            mqueue::send(made.queue.as_fd(), &message.text, message.priority).doing(doing)?;
        }
        Ok(made)
    }

    /// `None`: another one has its name.
    fn open(&self) -> std::io::Result<Option<Made>> {
        let mut name = CString::new(self.name.clone())?;
        let new = Some((0o600, Attributes { capacity: self.capacity, longest: self.longest, waiting: 0 }));
        match mqueue::open(&name, new) {
            Ok(queue) => {
                let mut made = Made { queue, name, is_ours: true };
                if self.unlinked {
                    mqueue::unlink(&made.name)?;
                    made.is_ours = false;
                }
                Ok(Some(made))
            }
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) && self.unlinked => {
                // Under another name, for a moment.
                name = CString::new([&self.name[..], format!(".ckpt-{}", std::process::id()).as_bytes()].concat())?;
                let queue = mqueue::open(&name, new)?;
                mqueue::unlink(&name)?;
                Ok(Some(Made { queue, name, is_ours: false }))
            }
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {
                let queue = mqueue::open(&name, None)?;
                let now = mqueue::attributes(queue.as_fd())?;
                let inode = File::from(queue.try_clone()?).metadata()?.ino();
                if (inode, now.capacity, now.longest) != (self.inode, self.capacity, self.longest) {
                    return Ok(None);
                }
                mqueue::drain(queue.as_fd(), now.longest)?;
                Ok(Some(Made { queue, name, is_ours: false }))
            }
            Err(error) => Err(error),
        }
    }
}

impl FileKind for Mqueue {
    const KIND: &'static str = "mqueue";
    type Record = MqueueRecord;

    fn matches(d: &Descriptor<'_>) -> bool {
        regular::is_regular(d) && mqueue::is_queue(d.own) && !d.link.as_bytes().ends_with(b"/")
    }

    fn collect(cx: &mut Collector<'_>, d: &Descriptor<'_>) -> Result<MqueueRecord> {
        let key = ObjectKey::Inode(KIND, d.stat.st_dev, d.stat.st_ino);
        let queue = cx.intern(key, |cx, _| Ok(Section::encode(KIND, &collect(cx, d)?)?))?;
        Ok(MqueueRecord { queue })
    }

    fn restore(cx: &mut Restorer<'_>, common: &OpenFile, record: &MqueueRecord) -> Result<OwnedFd> {
        let queue = record.queue;
        let made = cx.shared(queue, |cx| cx.record::<QueueRecord>(queue, KIND)?.make())?;
        let path = PathBuf::from(OsString::from_vec(format!("/proc/self/fd/{}", made.queue.as_raw_fd()).into_bytes()));
        named_file::open(&path, common.flags & !libc::O_NOFOLLOW)
            .map(Into::into)
            .doing(|| format!("cannot open {} again", common.link))
    }
}

/// Nothing can fail any more: the queues stay.
pub fn settle(cx: &mut Restorer<'_>) -> Result<()> {
    for (objref, _) in cx.all::<QueueRecord>(KIND)? {
        cx.shared(objref, |_| Err::<Made, _>(Error::Unexpected("a message queue was not made".into())))?.is_ours = false;
    }
    Ok(())
}
