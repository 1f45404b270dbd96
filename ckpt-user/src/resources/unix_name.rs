//! The name of a unix socket: a path, or an abstract name, which ends with the socket.

use std::ffi::OsString;
use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt, lchown};
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, unshare};
use serde::{Deserialize, Serialize};

use super::Collector;
use super::holders::Holder;
use super::socket;
use crate::error::{Doing, Error, Result};
use crate::sys::socket as raw;

/// What a socket is bound to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct UnixName {
    /// The address, as the kernel's bytes.
    #[serde(with = "serde_bytes")]
    pub address: Vec<u8>,
    /// The file, if the name is a path.
    pub file: Option<SocketFile>,
}

/// The file of a socket.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct SocketFile {
    /// Where it is.
    #[serde(with = "serde_bytes")]
    pub path: Vec<u8>,
    /// The directory that the name in the address counts from. Empty: it counts from the root.
    #[serde(with = "serde_bytes")]
    pub folder: Vec<u8>,
    /// It was deleted: nobody can connect to it any more.
    pub deleted: bool,
    /// Permissions.
    pub mode: u32,
    /// Owner and group.
    pub owner: (u32, u32),
}

/// Where the name begins in a struct sockaddr_un.
const NAME_AT: usize = 2;

fn path_from(bytes: &[u8]) -> PathBuf {
    PathBuf::from(OsString::from_vec(bytes.to_vec()))
}

fn looking(holder: &Holder) -> String {
    format!("cannot look at the socket {} of pid {}", holder.fd, holder.pid)
}

/// The path in an address. `None`: it has no name, or an abstract one.
pub fn path_in(address: &[u8]) -> Option<&[u8]> {
    let name = address.get(NAME_AT..)?;
    let path = name.split(|&b| b == 0).next()?;
    (!path.is_empty()).then_some(path)
}

impl UnixName {
    /// The name of the socket of `holder`, of which `own` is a duplicate, if it has one.
    pub fn collect(cx: &Collector<'_>, holder: &Holder, own: BorrowedFd<'_>) -> Result<Option<UnixName>> {
        let address = raw::local_address(own).doing(|| looking(holder))?;
        if address.len() <= NAME_AT {
            return Ok(None);
        }
        let Some(name) = path_in(&address).map(path_from) else { return Ok(Some(UnixName { address, file: None })) };
        let refuse = |reason: String, advice: &str| {
            cx.refuse(holder.pid, format!("descriptor {} (unix socket)", holder.fd), reason, advice)
        };
        let cwd = format!("/proc/{}/cwd", holder.pid);
        let cwd = fs::read_link(&cwd).doing(|| format!("cannot read {cwd}"))?;
        let Some(mut file) = find(holder, own, &cwd.join(&name))? else {
            let reason = format!("is bound to {}, and only root may ask where that is", name.display());
            return refuse(reason, "run ckpt as root or with CAP_NET_ADMIN");
        };
        if name.is_relative() {
            let Some(folder) = folder_of(&name, &path_from(&file.path), &cwd) else {
                let reason = format!("is bound to {}, counted from a directory that cannot be told now", name.display());
                return refuse(reason, "let the program bind it to an absolute path");
            };
            file.folder = folder.into_os_string().into_vec();
        }
        Ok(Some(UnixName { address, file: Some(file) }))
    }

    /// Does its name lead to it, for who wants to connect?
    pub fn can_be_reached(&self) -> bool {
        self.file.as_ref().is_none_or(|file| !file.deleted)
    }

    /// An address that leads to it from every directory.
    pub fn reachable_at(&self) -> Vec<u8> {
        self.file.as_ref().map_or_else(|| self.address.clone(), |file| address_of(&path_from(&file.path)))
    }

    /// Binds a socket to the name, and has `reach` use an address that leads there, which need not do so afterwards. Takes the place of a socket file
    /// that nobody serves any more.
    pub fn bind(&self, fd: BorrowedFd<'_>, reach: impl FnOnce(&[u8]) -> Result<()>) -> Result<()> {
        let Some(file) = &self.file else {
            raw::bind(fd, &self.address).map_err(|error| socket::cannot_bind(&self.address, error))?;
            return reach(&self.address);
        };
        let path = path_from(&file.path);
        let made = path_from(&file.folder).join(path_in(&self.address).map(path_from).unwrap_or_default());
        // A socket file may have been deleted with the folder that it was in (Python's multiprocessing does so at its end).
        let _folders = if file.deleted { [&path, &made].map(|path| Folders::lead_to(path)) } else { Default::default() };
        make_way(&path)?;
        make_way(&made)?;
        if file.folder.is_empty() {
            raw::bind(fd, &self.address).map_err(|error| socket::cannot_bind(&self.address, error))?;
        } else {
            bind_in(fd, &path_from(&file.folder), &self.address)?;
        }
        move_to(&made, &path)?;
        let doing = || format!("cannot set the permissions of {}", path.display());
        match lchown(&path, Some(file.owner.0), Some(file.owner.1)) {
            // Without the right to give it away it stays the caller's.
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {}
            other => other.doing(doing)?,
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(file.mode & 0o7777)).doing(doing)?;
        reach(&address_of(&path))?;
        if file.deleted {
            fs::remove_file(&path).doing(|| format!("cannot remove {}", path.display()))?;
        }
        Ok(())
    }
}

/// Folders that are there only for a moment.
#[derive(Default)]
struct Folders(Vec<PathBuf>);

impl Folders {
    /// Makes those that are missing on the way to a file. If that fails, whoever wants the file finds out.
    fn lead_to(path: &Path) -> Folders {
        let missing: Vec<&Path> = path.ancestors().skip(1).take_while(|folder| !folder.exists()).collect();
        let made = missing.into_iter().rev().take_while(|folder| fs::DirBuilder::new().mode(0o700).create(folder).is_ok());
        Folders(made.map(Path::to_owned).collect())
    }
}

impl Drop for Folders {
    fn drop(&mut self) {
        for folder in self.0.iter().rev() {
            if let Err(error) = fs::remove_dir(folder) {
                tracing::warn!("{} was made for a moment, and cannot be removed: {error}", folder.display());
            }
        }
    }
}

/// The address of a path.
pub fn address_of(path: &Path) -> Vec<u8> {
    [&(libc::AF_UNIX as u16).to_ne_bytes()[..], path.as_os_str().as_bytes()].concat()
}

/// The file of a bound socket. `None`: we may not ask, and it is not at `likely`.
fn find(holder: &Holder, own: BorrowedFd<'_>, likely: &Path) -> Result<Option<SocketFile>> {
    let file = match raw::unix_file(own) {
        Ok(file) => fs::File::from(file),
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
            let metadata = fs::symlink_metadata(likely).ok().filter(|m| m.file_type().is_socket());
            return Ok(metadata.map(|m| describe(likely, &m, false)));
        }
        Err(error) => return Err(error).doing(|| looking(holder)),
    };
    let metadata = file.metadata().doing(|| looking(holder))?;
    let link = fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())).doing(|| looking(holder))?;
    let deleted = metadata.nlink() == 0;
    let path = link.as_os_str().as_bytes();
    let path = if deleted { path.strip_suffix(b" (deleted)").unwrap_or(path) } else { path };
    Ok(Some(describe(&path_from(path), &metadata, deleted)))
}

fn describe(path: &Path, metadata: &fs::Metadata, deleted: bool) -> SocketFile {
    SocketFile {
        path: path.as_os_str().as_bytes().to_vec(),
        folder: Vec::new(),
        deleted,
        mode: metadata.mode() & 0o7777,
        owner: (metadata.uid(), metadata.gid()),
    }
}

/// The directory from which `name` leads to `path`: the working directory, or what comes before the name in the path.
fn folder_of(name: &Path, path: &Path, cwd: &Path) -> Option<PathBuf> {
    let plain = name.strip_prefix(".").unwrap_or(name);
    if path.ends_with(plain) {
        return path.ancestors().nth(plain.components().count()).map(Path::to_owned);
    }
    let parent = cwd.join(name).parent().and_then(|parent| fs::canonicalize(parent).ok())?;
    (path.parent() == Some(&parent)).then(|| cwd.to_owned())
}

/// Removes a socket file that was left behind; whatever else is there stays, and is an error.
fn make_way(path: &Path) -> Result<()> {
    let metadata = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        other => other.doing(|| format!("cannot look at {}", path.display()))?,
    };
    if !metadata.file_type().is_socket() {
        return Err(Error::Restart(format!(
            "{} was a socket of the program, and something else is there now; move it away",
            path.display()
        )));
    }
    // Whatever its type, a socket that somebody has does not refuse this one in this way.
    let probe = raw::create(libc::AF_UNIX, libc::SOCK_DGRAM, 0).doing(|| "cannot make a socket")?;
    match raw::connect(probe.as_fd(), &address_of(path)) {
        Err(error) if error.raw_os_error() == Some(libc::ECONNREFUSED) => {
            fs::remove_file(path).doing(|| format!("cannot remove {}, which nobody serves any more", path.display()))
        }
        _ => Err(Error::Restart(format!("another program has the socket {}; end it first", path.display()))),
    }
}

/// The file of a socket may have another name than the address: servers bind to a temporary name, and rename the file once all is ready.
fn move_to(made: &Path, path: &Path) -> Result<()> {
    let inode = |path: &Path| fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()));
    // Two spellings may lead to one file.
    if inode(path).ok() == Some(inode(made).doing(|| format!("cannot look at {}", made.display()))?) {
        return Ok(());
    }
    fs::rename(made, path).doing(|| format!("cannot rename {} to {}", made.display(), path.display()))
}

/// Binds to a name that counts from `folder`, in a thread with a working directory of its own.
fn bind_in(fd: BorrowedFd<'_>, folder: &Path, address: &[u8]) -> Result<()> {
    let there = || {
        unshare(CloneFlags::CLONE_FS).doing(|| "cannot have a working directory of its own")?;
        nix::unistd::chdir(folder).doing(|| format!("cannot go to {}", folder.display()))?;
        raw::bind(fd, address).map_err(|error| socket::cannot_bind(address, error))
    };
    std::thread::scope(|scope| scope.spawn(there).join())
        .unwrap_or_else(|_| Err(Error::Unexpected("a thread panicked".to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_count_from_a_directory() {
        let folder = |name: &str, path: &str| {
            folder_of(Path::new(name), Path::new(path), Path::new("/nowhere")).map(|f| f.display().to_string())
        };
        assert_eq!(folder("sock", "/run/x/sock").as_deref(), Some("/run/x"));
        assert_eq!(folder("./x/sock", "/run/x/sock").as_deref(), Some("/run"));
        assert_eq!(folder("../sock", "/run/x/sock"), None);
    }

    #[test]
    fn paths_in_addresses() {
        assert_eq!(path_in(b"\x01\0/run/x\0"), Some(&b"/run/x"[..]));
        assert_eq!(path_in(b"\x01\0\0abstract"), None);
        for short in [&b""[..], b"\x01", b"\x01\0"] {
            assert_eq!(path_in(short), None);
        }
    }
}
