//! Two connected unix sockets that tell of their peers what they told (SO_PEERCRED, getpeername): made by socketpair(2), or, if one of
//! them was accepted, by connect(2) to a socket of the same name that listens only for this moment.
//!
//! The name is that of the server, which may listen to it again later. One that is a path is bound in a root directory of its own, so that nothing
//! is seen of it.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, Permissions};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};

use super::Restorer;
use super::file::{FileBody, FileKind};
use super::socket::{self, SocketType};
use super::unix::{Unix, UnixRecord};
use super::unix_name;
use super::unix_pair::{self, UnixPair};
use crate::error::{Doing, Error, Result};
use crate::sys::peer::{self, Identity};
use crate::sys::socket as raw;
use crate::tracee::batch::{Batch, CallId};
use crate::tracee::remote::RemoteTask;
use crate::tracee::spawn::Freeing;

/// What an end tells of itself and of its peer.
#[derive(Clone, Copy, Debug, Default)]
pub struct End<'e> {
    /// SO_PEERCRED.
    pub peer: Option<&'e Identity>,
    /// Its name: that of the server, if it was accepted, or its own.
    pub name: &'e [u8],
}

/// Pairs that one process has made, and that are made by one process again: all at once.
#[derive(Debug, Default)]
pub struct Pool {
    made: Option<HashMap<Sort, Vec<[OwnedFd; 2]>>>,
}

/// Who has made a pair, and its type (SOCK_STREAM, ...).
type Sort = (Identity, i32);

impl Pool {
    fn take(cx: &mut Restorer<'_>, by: &Identity, kind: i32) -> Result<Option<[OwnedFd; 2]>> {
        if cx.pairs.made.is_none() {
            let mut wanted: HashMap<Sort, usize> = HashMap::new();
            for (_, pair) in cx.all::<UnixPair>(unix_pair::KIND)? {
                if let Made::ByOne(by) = Made::of(pair.told()) {
                    *wanted.entry((by.clone(), pair.socket.kind)).or_default() += 1;
                }
            }
            let all = wanted.into_iter().map(|((by, kind), count)| {
                let made = make_all(&by, kind, count);
                ((by, kind), made)
            });
            cx.pairs.made = Some(all.collect());
        }
        Ok(cx.pairs.made.as_mut().and_then(|made| made.get_mut(&(by.clone(), kind))).and_then(Vec::pop))
    }
}

fn make_all(by: &Identity, kind: i32, count: usize) -> Vec<[OwnedFd; 2]> {
    let mut all = Vec::new();
    while all.len() < count {
        match with_pid(by, || peer::pairs(by, libc::AF_UNIX, kind, count - all.len())) {
            Ok(made) => all.extend(made),
            Err(error) => {
                let pid = by.credentials.pid;
                tracing::warn!("pairs of unix sockets that pid {pid} has made tell of ckpt as their peer (SO_PEERCRED): {error}");
                break;
            }
        }
    }
    all
}

/// How two sockets came to be connected.
enum Made<'e> {
    /// One end was accepted.
    Accepted(usize),
    /// The same, and the client was bound before: which is which, their names alone do not tell.
    BothNamed,
    /// By socketpair(2).
    ByOne(&'e Identity),
    /// Nobody knows.
    Unknown,
}

impl<'e> Made<'e> {
    fn of(ends: [End<'e>; 2]) -> Made<'e> {
        match (ends.map(|end| !end.name.is_empty()), ends[0].peer.or(ends[1].peer)) {
            ([true, true], _) => Made::BothNamed,
            ([true, false], _) => Made::Accepted(0),
            ([false, true], _) => Made::Accepted(1),
            ([false, false], Some(by)) => Made::ByOne(by),
            ([false, false], None) => Made::Unknown,
        }
    }
}

/// Makes both ends. What they cannot tell because a pid is in use, or because ckpt is not root, they tell of ckpt, and a warning says so.
pub fn pair(cx: &mut Restorer<'_>, socket: SocketType, ends: [End<'_>; 2]) -> Result<[OwnedFd; 2]> {
    let made = match Made::of(ends) {
        // Sockets are numbered as they come, by and large, and what is accepted comes last.
        Made::BothNamed => Made::Accepted(usize::from(!listens(cx, ends[0].name)? || listens(cx, ends[1].name)?)),
        other => other,
    };
    match made {
        Made::Accepted(end) => {
            match connected(socket, [ends[end].name, ends[1 - end].name], ends[1 - end].peer, ends[end].peer) {
                Ok((client, server)) => return Ok(if end == 0 { [server, client] } else { [client, server] }),
                Err(error) => {
                    let name = socket::describe(ends[end].name);
                    tracing::warn!(
                        "a connection to {name} does not tell its name or who its peer is (SO_PEERCRED) as before: {error}"
                    );
                }
            }
        }
        Made::ByOne(by) => {
            if let Some(pair) = Pool::take(cx, by, socket.kind)? {
                return Ok(pair);
            }
        }
        Made::BothNamed | Made::Unknown => {}
    }
    let (a, b) = raw::pair(socket.domain, socket.kind).doing(|| "cannot make a pair of unix sockets again")?;
    Ok([a, b])
}

/// Does a socket of the image listen with this name?
fn listens(cx: &mut Restorer<'_>, name: &[u8]) -> Result<bool> {
    let is_server = |record: &UnixRecord| match record {
        UnixRecord::Alone(alone) => alone.backlog.is_some() && alone.name.as_ref().is_some_and(|own| own.address == name),
        _ => false,
    };
    Ok(cx.all::<FileBody<UnixRecord>>(Unix::KIND)?.iter().any(|(_, body)| is_server(&body.record)))
}

/// Has a task make a call with the effective user and groups of somebody, if it may take them: by these a connection remembers it. The task gets its own
/// ones only later, when it is given its credentials.
pub fn call_as(
    task: &mut RemoteTask<'_>,
    who: Option<&Identity>,
    mut batch: Batch,
    call: impl FnOnce(&mut Batch) -> CallId,
) -> Result<Result<u64, Errno>> {
    const KEEP: u64 = u64::MAX;
    let (uid, gid) = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    let groups = nix::unistd::getgroups().doing(|| "cannot read the groups of ckpt")?;
    let groups: Vec<u32> = groups.into_iter().map(nix::unistd::Gid::as_raw).collect();
    let is_other = |who: &&Identity| (who.credentials.uid, who.credentials.gid, &who.groups) != (uid, gid, &groups);
    let Some(who) = who.filter(is_other) else {
        let call = call(&mut batch);
        return Ok(task.run(batch)?.ret(call));
    };
    let regroup = |batch: &mut Batch, groups: &[u32]| {
        let list = batch.bytes(bytemuck::cast_slice(groups));
        batch.call(libc::SYS_setgroups, [groups.len().into(), list.into()])
    };
    let mut taken = vec![regroup(&mut batch, &who.groups)];
    taken.push(batch.call(libc::SYS_setresgid, [KEEP.into(), who.credentials.gid.into(), KEEP.into()]));
    taken.push(batch.call(libc::SYS_setresuid, [KEEP.into(), who.credentials.uid.into(), KEEP.into()]));
    let call = call(&mut batch);
    taken.push(batch.call(libc::SYS_setresuid, [KEEP.into(), uid.into(), KEEP.into()]));
    taken.push(batch.call(libc::SYS_setresgid, [KEEP.into(), gid.into(), KEEP.into()]));
    taken.push(regroup(&mut batch, &groups));
    let answers = task.run(batch)?;
    if let Some(error) = taken.into_iter().find_map(|call| answers.ret(call).err()) {
        tracing::warn!("a unix socket of pid {} tells its peer of the user of ckpt (SO_PEERCRED): {error}", task.pid());
    }
    Ok(answers.ret(call))
}

/// Has a task connect a socket, as somebody.
pub fn connect_as(task: &mut RemoteTask<'_>, fd: RawFd, address: &[u8], who: Option<&Identity>) -> Result<()> {
    let mut batch = Batch::new();
    let at = batch.bytes(address);
    let connect = |batch: &mut Batch| batch.call(libc::SYS_connect, [fd.into(), at.into(), address.len().into()]);
    let answer = call_as(task, who, batch, connect)?;
    answer.doing(|| format!("cannot connect a unix socket to {} again", socket::describe(address))).map(drop)
}

/// Tries again for as long as the kernel has not freed the pid of a process that is gone.
pub(super) fn with_pid<T>(who: &Identity, make: impl Fn() -> std::io::Result<T>) -> std::io::Result<T> {
    let freeing = Freeing::new();
    loop {
        match make() {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) && freeing.goes_on(who.credentials.pid) => {}
            made => return made,
        }
    }
}

/// A client and an accepted socket. `own`: the name of the client, if it was bound before it was connected.
fn connected(
    socket: SocketType,
    [name, own]: [&[u8]; 2],
    listens: Option<&Identity>,
    connects: Option<&Identity>,
) -> Result<(OwnedFd, OwnedFd)> {
    let doing = || format!("cannot connect to {} again", socket::describe(name));
    let server = socket.create()?;
    let reachable = Apart::bind(server.as_fd(), name)?;
    match listens {
        Some(by) => with_pid(by, || peer::listen(by, server.as_fd(), 1)),
        None => raw::listen(server.as_fd(), 1),
    }
    .doing(doing)?;
    let client = socket.create()?;
    let _bound = if own.is_empty() { None } else { Some(Apart::bind(client.as_fd(), own)?) };
    let address = reachable.address(name);
    match connects {
        Some(by) => with_pid(by, || peer::connect(by, client.as_fd(), &address)),
        None => raw::connect(client.as_fd(), &address),
    }
    .doing(doing)?;
    Ok((client, raw::accept(server.as_fd()).doing(doing)?))
}

/// Where a socket is bound that nobody else is to see.
pub(super) struct Apart {
    /// The root directory that its path counts from, and its file. `None`: the name is an abstract one.
    place: Option<(Root, File)>,
}

/// A folder that goes with all that is in it.
struct Root(PathBuf);

impl Drop for Root {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::warn!("{} was made for a moment, and cannot be removed: {error}", self.0.display());
        }
    }
}

impl Apart {
    pub(super) fn bind(fd: BorrowedFd<'_>, name: &[u8]) -> Result<Apart> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let Some(path) = unix_name::path_in(name).map(|path| Path::new(OsStr::from_bytes(path))) else {
            raw::bind(fd, name).map_err(|error| socket::cannot_bind(name, error))?;
            return Ok(Apart { place: None });
        };
        let root = std::env::temp_dir().join(format!("ckpt-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
        DirBuilder::new().mode(0o700).create(&root).doing(|| format!("cannot make {}", root.display()))?;
        let root = Root(root);
        in_root(&root.0, || {
            let parent = path.parent().unwrap_or(path);
            DirBuilder::new().recursive(true).create(parent).doing(|| format!("cannot make {}", parent.display()))?;
            raw::bind(fd, name).map_err(|error| socket::cannot_bind(name, error))?;
            // Whoever connects may be anybody.
            fs::set_permissions(path, Permissions::from_mode(0o777))
                .doing(|| format!("cannot open {} to all", path.display()))?;
            let file = File::options().read(true).custom_flags(libc::O_PATH).open(path);
            file.doing(|| format!("cannot find {}", path.display()))
        })
        .map(|file| Apart { place: Some((root, file)) })
    }

    /// An address that leads there.
    fn address(&self, name: &[u8]) -> Vec<u8> {
        match &self.place {
            None => name.to_vec(),
            Some((_, file)) => unix_name::address_of(Path::new(&format!("/proc/self/fd/{}", file.as_raw_fd()))),
        }
    }
}

/// Does something in a thread that has a root directory, and a working directory, of its own.
fn in_root<T: Send>(root: &Path, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    let there = || {
        unshare(CloneFlags::CLONE_FS).doing(|| "cannot have a root directory of its own")?;
        nix::unistd::chroot(root).doing(|| format!("cannot make {} the root directory of a thread", root.display()))?;
        nix::unistd::chdir("/").doing(|| "cannot go to the root directory")?;
        work()
    };
    std::thread::scope(|scope| scope.spawn(there).join())
        .unwrap_or_else(|_| Err(Error::Unexpected("a thread panicked".to_owned())))
}
