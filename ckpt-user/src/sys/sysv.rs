//! System V IPC (sysvipc(7)): shared memory segments, semaphores, message queues, and the choice of an id.

use std::fmt;
use std::fs;
use std::io;
use std::mem::MaybeUninit;
use std::ptr::{null, null_mut};

use serde::{Deserialize, Serialize};

use super::procfs;

/// A kind of System V object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A shared memory segment.
    Segment,
    /// A set of semaphores.
    Semaphores,
    /// A message queue.
    Queue,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Segment => "shared memory segment",
            Kind::Semaphores => "semaphores",
            Kind::Queue => "message queue",
        })
    }
}

/// Has the next object of this kind that is made in our IPC namespace get this id, if that is free (Linux 3.9; takes CAP_SYS_ADMIN or
/// CAP_CHECKPOINT_RESTORE).
pub fn choose_next_id(kind: Kind, id: i32) -> io::Result<()> {
    let name = match kind {
        Kind::Segment => "shm_next_id",
        Kind::Semaphores => "sem_next_id",
        Kind::Queue => "msg_next_id",
    };
    fs::write(format!("/proc/sys/kernel/{name}"), id.to_string())
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// SHM_LOCKED in the mode of a segment (linux/shm.h).
pub const SHM_LOCKED: u32 = 0o2000;
/// SHM_DEST in the mode of a segment: it goes with its last attachment.
pub const SHM_DEST: u32 = 0o1000;

/// What IPC_STAT tells of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// 0: none, or it was removed.
    pub key: i32,
    /// Owner and group.
    pub owner: (u32, u32),
    /// Permissions, SHM_DEST, SHM_LOCKED.
    pub mode: u32,
    /// Bytes.
    pub size: u64,
    /// When it was made, or last changed hands: seconds of the clock.
    pub changed: i64,
    /// Who made it.
    pub creator: i32,
    /// Attachments.
    pub attached: u64,
}

/// IPC_STAT.
pub fn segment(id: i32) -> io::Result<Segment> {
    let mut raw = MaybeUninit::<libc::shmid_ds>::uninit();
    // SAFETY: the struct outlives the call, which fills it in when it succeeds.
    let raw = unsafe {
        check(libc::shmctl(id, libc::IPC_STAT, raw.as_mut_ptr()))?;
        raw.assume_init()
    };
    Ok(Segment {
        key: raw.shm_perm.__key,
        owner: (raw.shm_perm.uid, raw.shm_perm.gid),
        mode: u32::from(raw.shm_perm.mode),
        size: raw.shm_segsz as u64,
        changed: raw.shm_ctime,
        creator: raw.shm_cpid,
        attached: raw.shm_nattch,
    })
}

/// A new segment. EEXIST: the key is taken.
pub fn make_segment(key: i32, size: u64, mode: u32) -> io::Result<i32> {
    let flags = libc::IPC_CREAT | libc::IPC_EXCL | (mode & 0o777) as i32;
    // SAFETY: only numbers are passed.
    check(unsafe { libc::shmget(key, size as usize, flags) })
}

/// IPC_SET: owner, group and permissions.
pub fn set_segment(id: i32, owner: (u32, u32), mode: u32) -> io::Result<()> {
    // SAFETY: zeros are a valid value of this struct of numbers.
    let mut raw: libc::shmid_ds = unsafe { MaybeUninit::zeroed().assume_init() };
    (raw.shm_perm.uid, raw.shm_perm.gid) = owner;
    raw.shm_perm.mode = (mode & 0o777) as _;
    // SAFETY: the struct outlives the call.
    check(unsafe { libc::shmctl(id, libc::IPC_SET, &raw mut raw) }).map(drop)
}

/// SHM_LOCK: its pages stay in memory.
pub fn lock_segment(id: i32) -> io::Result<()> {
    // SAFETY: the command takes no argument.
    check(unsafe { libc::shmctl(id, libc::SHM_LOCK, null_mut()) }).map(drop)
}

/// Removes an object. A segment stays as long as it is attached.
pub fn remove(kind: Kind, id: i32) -> io::Result<()> {
    // SAFETY: the command takes no argument.
    let result = unsafe {
        match kind {
            Kind::Segment => libc::shmctl(id, libc::IPC_RMID, null_mut()),
            Kind::Semaphores => libc::semctl(id, 0, libc::IPC_RMID, 0),
            Kind::Queue => libc::msgctl(id, libc::IPC_RMID, null_mut()),
        }
    };
    check(result).map(drop)
}

/// A segment attached to our own memory, which nobody reads or writes through it.
#[derive(Debug)]
pub struct Attachment {
    at: usize,
}

impl Attachment {
    /// shmat(2).
    pub fn new(id: i32) -> io::Result<Attachment> {
        // SAFETY: the kernel chooses the address, so nothing of ours is there.
        let at = unsafe { libc::shmat(id, null(), 0) } as usize;
        if at == usize::MAX { Err(io::Error::last_os_error()) } else { Ok(Attachment { at }) }
    }

    /// Where it is.
    pub fn address(&self) -> usize {
        self.at
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        // SAFETY: it was attached here, and there are no references into it.
        if let Err(error) = check(unsafe { libc::shmdt(self.at as *const libc::c_void) }) {
            tracing::warn!("cannot detach a shared memory segment: {error}");
        }
    }
}

/// What is common to semaphore sets and message queues in /proc/sysvipc.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listed {
    /// 0: none.
    pub key: i32,
    /// The id.
    pub id: i32,
    /// Permissions.
    pub mode: u32,
    /// Owner and group.
    pub owner: (u32, u32),
    /// Semaphores of a set, or bytes in a queue.
    pub size: u64,
    /// Who has last sent to a queue, and received from it.
    pub users: (i32, i32),
}

/// Every semaphore set, or every message queue, of our IPC namespace.
pub fn list(kind: Kind) -> io::Result<Vec<Listed>> {
    let name = match kind {
        Kind::Segment => "shm",
        Kind::Semaphores => "sem",
        Kind::Queue => "msg",
    };
    let text = procfs::read_text(format!("/proc/sysvipc/{name}"))?;
    let listed = text.lines().skip(1).map(|line| parse(kind, line));
    listed.collect::<Option<_>>().ok_or_else(|| io::Error::other(format!("cannot understand /proc/sysvipc/{name}")))
}

fn parse(kind: Kind, line: &str) -> Option<Listed> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let number = |at: usize| fields.get(at)?.parse::<i64>().ok();
    // key semid perms nsems uid gid ...; key msqid perms cbytes qnum lspid lrpid uid gid ...
    let (users, owner) = match kind {
        Kind::Queue => ((number(5)? as i32, number(6)? as i32), 7),
        _ => ((0, 0), 4),
    };
    Some(Listed {
        key: number(0)? as i32,
        id: number(1)? as i32,
        mode: u32::from_str_radix(fields.get(2)?, 8).ok()? & 0o777,
        owner: (number(owner)? as u32, number(owner + 1)? as u32),
        size: number(3)? as u64,
        users,
    })
}

/// Does an error say that the object of an id is not there any more?
pub fn is_removed(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | libc::EIDRM))
}

/// The value of each semaphore of a set (GETALL).
pub fn values(id: i32, count: usize) -> io::Result<Vec<u16>> {
    let mut values = vec![0u16; count];
    // SAFETY: as many values as the set has semaphores, as the caller knows from the kernel, whose count never changes.
    check(unsafe { libc::semctl(id, 0, libc::GETALL, values.as_mut_ptr()) }).map(|_| values)
}

/// Who has last changed a semaphore (GETPID). 0: nobody in our pid namespace.
pub fn last_user(id: i32, number: usize) -> io::Result<i32> {
    // SAFETY: only numbers are passed.
    check(unsafe { libc::semctl(id, number as i32, libc::GETPID, 0) })
}

/// A new set. EEXIST: the key is taken.
pub fn make_semaphores(key: i32, count: usize, mode: u32) -> io::Result<i32> {
    // SAFETY: only numbers are passed.
    check(unsafe { libc::semget(key, count as i32, libc::IPC_CREAT | libc::IPC_EXCL | mode as i32) })
}

/// IPC_SET.
pub fn set_semaphores(id: i32, owner: (u32, u32), mode: u32) -> io::Result<()> {
    // SAFETY: zeros are a valid value of this struct of numbers.
    let mut raw: libc::semid_ds = unsafe { MaybeUninit::zeroed().assume_init() };
    (raw.sem_perm.uid, raw.sem_perm.gid) = owner;
    raw.sem_perm.mode = mode as _;
    // SAFETY: the struct outlives the call.
    check(unsafe { libc::semctl(id, 0, libc::IPC_SET, &raw mut raw) }).map(drop)
}

/// A message.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Its type, more than 0.
    pub kind: i64,
    /// Its text.
    #[serde(with = "serde_bytes")]
    pub text: Vec<u8>,
}

/// MSG_COPY of msgrcv(2).
const MSG_COPY: i32 = 0o40000;

/// The bytes that a queue may hold (IPC_STAT).
pub fn queue_limit(id: i32) -> io::Result<u64> {
    let mut raw = MaybeUninit::<libc::msqid_ds>::uninit();
    // SAFETY: the struct outlives the call, which fills it in when it succeeds.
    unsafe {
        check(libc::msgctl(id, libc::IPC_STAT, raw.as_mut_ptr()))?;
        Ok(raw.assume_init().msg_qbytes)
    }
}

/// The message at this place in a queue (or, without one, the first, which is taken away), of which no text is longer than `longest`. `None`: there
/// is none. ENOSYS: this kernel cannot look without taking (CONFIG_CHECKPOINT_RESTORE).
pub fn message(id: i32, place: Option<i64>, longest: usize) -> io::Result<Option<Message>> {
    let mut buffer = vec![0u64; 1 + longest.div_ceil(8)];
    let flags = libc::IPC_NOWAIT | if place.is_some() { MSG_COPY } else { 0 };
    // SAFETY: the buffer has room for the type and `longest` bytes.
    let length = unsafe { libc::msgrcv(id, buffer.as_mut_ptr().cast(), longest, place.unwrap_or(0), flags) };
    if length < 0 {
        let error = io::Error::last_os_error();
        return if error.raw_os_error() == Some(libc::ENOMSG) { Ok(None) } else { Err(error) };
    }
    let text = bytemuck::cast_slice::<u64, u8>(&buffer[1..]).get(..length as usize).unwrap_or_default().to_vec();
    Ok(Some(Message { kind: buffer[0] as i64, text }))
}

/// A new queue. EEXIST: the key is taken.
pub fn make_queue(key: i32, mode: u32) -> io::Result<i32> {
    // SAFETY: only numbers are passed.
    check(unsafe { libc::msgget(key, libc::IPC_CREAT | libc::IPC_EXCL | mode as i32) })
}

/// IPC_SET. More than the default limit takes CAP_SYS_RESOURCE.
pub fn set_queue(id: i32, owner: (u32, u32), mode: u32, limit: u64) -> io::Result<()> {
    // SAFETY: zeros are a valid value of this struct of numbers.
    let mut raw: libc::msqid_ds = unsafe { MaybeUninit::zeroed().assume_init() };
    (raw.msg_perm.uid, raw.msg_perm.gid) = owner;
    raw.msg_perm.mode = mode as _;
    raw.msg_qbytes = limit;
    // SAFETY: the struct outlives the call.
    check(unsafe { libc::msgctl(id, libc::IPC_SET, &raw mut raw) }).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_understood() {
        let sem = "        -5     32769   640          3  1000  1001     0     0 1795828387 1795828385";
        let expected = Listed { key: -5, id: 32769, mode: 0o640, owner: (1000, 1001), size: 3, users: (0, 0) };
        assert_eq!(parse(Kind::Semaphores, sem), Some(expected));
        let msg = "   7  1   600   20   2   11   12  3   4   0  0  0 0 0";
        let expected = Listed { key: 7, id: 1, mode: 0o600, owner: (3, 4), size: 20, users: (11, 12) };
        assert_eq!(parse(Kind::Queue, msg), Some(expected));
        assert_eq!(parse(Kind::Queue, "7 1"), None);
    }
}
