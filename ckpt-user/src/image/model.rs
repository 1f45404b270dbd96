//! What the metadata records of an image hold. Every struct here is encoded as a MessagePack map with field names: a reader ignores
//! fields that it does not know, and gives missing ones their default, so either side may be newer.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::ImageError;
use crate::ids::{ImageId, ObjRef, Pid, Tid};

/// The first record: what this image is, and of which machine.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Header {
    /// Identity of this image.
    pub image_id: Option<ImageId>,
    /// The image that this one is an increment of.
    pub parent: Option<ParentRef>,
    /// Of an image into which another one was merged with its parents: the checksum of that one's trailer, by which its children name it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stands_for: Option<u64>,
    /// Version of the ckpt that wrote it.
    pub ckpt_version: String,
    /// uname -s, -r, -v, -m, -n of the machine, and its NIS domain.
    pub kernel: Uts,
    /// Seconds and nanoseconds since the epoch at the cut.
    pub time: (i64, u32),
    /// CLOCK_MONOTONIC at the cut, nanoseconds.
    pub monotonic_ns: u64,
    /// CLOCK_BOOTTIME at the cut, nanoseconds.
    pub boottime_ns: u64,
    /// Bytes in a page.
    pub page_size: u32,
    /// The vector extensions of the processor that the tasks may hold state of: the XCR0 bits.
    pub xcr0: u64,
    /// How the chunks are compressed.
    pub codec: String,
    /// What was asked for: "subtree" or "container".
    pub scope: String,
}

impl Header {
    /// How increments of this image name it; its trailer has the checksum `trailer_checksum`.
    pub fn as_parent(&self, trailer_checksum: u64) -> Option<ParentRef> {
        let trailer_checksum = self.stands_for.unwrap_or(trailer_checksum);
        self.image_id.map(|image_id| ParentRef { image_id, trailer_checksum })
    }
}

/// The names that uname(2) tells.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Uts {
    /// uname -s.
    pub sysname: String,
    /// uname -r.
    pub release: String,
    /// uname -v.
    pub version: String,
    /// uname -m.
    pub machine: String,
    /// uname -n.
    pub nodename: String,
    /// The NIS domain name.
    pub domainname: String,
}

/// The parent of an incremental image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ParentRef {
    /// Its identity.
    pub image_id: ImageId,
    /// The checksum of its trailer record, which covers all of it.
    pub trailer_checksum: u64,
}

/// The second record: what surrounds the tasks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Container {
    /// Is the root task the init of a pid namespace of its own?
    pub is_container: bool,
    /// Kind ("mnt", "net", ...) and inode of every namespace of the root task.
    pub namespaces: Vec<(String, u64)>,
    /// Lines of /proc/PID/cgroup.
    pub cgroups: Vec<String>,
}

/// The third record: who is there, and who descends from whom.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TaskTable {
    /// Parents before their children.
    pub tasks: Vec<TaskEntry>,
}

/// One process in the task table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskEntry {
    /// Process id.
    pub pid: Pid,
    /// Its parent. Outside the table for the root task.
    pub ppid: Pid,
    /// Process group.
    pub pgid: Pid,
    /// Session.
    pub sid: Pid,
    /// Its threads, the leader first.
    pub threads: Vec<Tid>,
    /// Alive, dead but not waited for, or only a placeholder for a pid.
    #[serde(default)]
    pub kind: TaskKind,
    /// Was it stopped by job control, and by which signal?
    #[serde(default)]
    pub stopped_by: Option<i32>,
    /// Its parent has not asked for that yet (waitpid(2) with WUNTRACED).
    #[serde(default)]
    pub stop_untold: bool,
    /// The signal that its parent gets when it ends.
    #[serde(default = "sigchld")]
    pub exit_signal: i32,
    /// What it has together with processes that stand before it.
    #[serde(default)]
    pub shares: Shares,
    /// The name, for messages.
    #[serde(default)]
    pub comm: String,
}

fn sigchld() -> i32 {
    libc::SIGCHLD
}

/// Which process, of those before, has the very same of something (clone(2)). `None`: it is this one's own.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Shares {
    /// CLONE_VM.
    pub memory: Option<Pid>,
    /// CLONE_FILES.
    pub files: Option<Pid>,
    /// CLONE_FS.
    pub directories: Option<Pid>,
    /// CLONE_SIGHAND.
    pub signal_actions: Option<Pid>,
}

/// What a row of the task table stands for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum TaskKind {
    /// A running process with a state of its own in the image.
    #[default]
    Alive,
    /// Dead, its status not collected yet: the wait status.
    Zombie(i32),
    /// Never runs: holds a pid that a session or group is named after (SEED S6).
    Ghost,
}

/// A kernel object, saved once however many refer to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Object {
    /// Its number.
    pub objref: ObjRef,
    /// What it is, and its record.
    pub section: Section,
}

/// The state of one kind of resource: a name, and a record that only that kind's source file can read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Section {
    /// The name of the kind: "pipe", "epoll", "credentials", ...
    pub kind: String,
    /// Its record, encoded.
    #[serde(with = "serde_bytes")]
    pub body: Vec<u8>,
}

/// The state of one process: what it owns as a whole, and each of its threads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TaskState {
    /// The process.
    pub pid: Pid,
    /// One section per kind of per-process resource.
    pub sections: Vec<Section>,
    /// Its threads, the leader first.
    pub threads: Vec<ThreadState>,
}

/// The state of one thread.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThreadState {
    /// The thread.
    pub tid: Tid,
    /// One section per kind of per-thread resource.
    pub sections: Vec<Section>,
}

impl Section {
    /// Encodes `record` under the name `kind`.
    pub fn encode<T: Serialize>(kind: &str, record: &T) -> Result<Section, ImageError> {
        let body = rmp_serde::to_vec_named(record).map_err(|e| ImageError::encode(kind, e))?;
        Ok(Section { kind: kind.to_owned(), body })
    }

    /// Decodes the record, which must be of the kind that the caller expects.
    pub fn decode<T: DeserializeOwned>(&self) -> Result<T, ImageError> {
        rmp_serde::from_slice(&self.body).map_err(|e| ImageError::decode(&self.kind, e))
    }
}
