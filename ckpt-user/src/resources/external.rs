//! Open files whose other end is outside of the cut: a terminal, a pipe or socket to another program. They are not made again but
//! taken from whoever runs the restart: descriptors 0, 1 and 2 from its own, others as `--inherit-fd` says.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::sys::stat::{SFlag, fstat};
use nix::sys::termios::{SetArg, Termios, tcgetattr, tcsetattr};
use serde::{Deserialize, Serialize};

use super::file::{Descriptor, FileKind, OpenFile};
use super::{Collector, Restorer};
use crate::error::{Doing, Error, Result};
use crate::ids::ObjRef;

/// The kind of these objects.
pub const KIND: &str = "external";

/// Registered as a kind for terminals; other kinds whose other end is outside hand over to [`collect`].
#[derive(Debug)]
pub struct External;

/// See the module.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExternalRecord {
    /// The number it had: by this the other end is chosen at restart.
    pub fd: RawFd,
    /// "terminal", "pipe", "socket".
    pub class: String,
    /// The settings of a terminal: input, output, control and local flags.
    #[serde(default)]
    pub terminal: Option<Terminal>,
}

/// struct termios without the speeds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Terminal {
    flags: [u32; 4],
    #[serde(with = "serde_bytes")]
    control_characters: Vec<u8>,
}

/// Collects a descriptor of class `class` whose other end is outside.
pub fn collect(cx: &Collector<'_>, d: &Descriptor<'_>, class: &str) -> Result<ExternalRecord> {
    // Mapped, or in flight: there is no number to choose the other end by.
    if d.fd < 0 || !cx.pids.contains(&d.pid) {
        return cx.refuse(d.pid, d.link.display().to_string(), "leads outside", "let the program close it first");
    }
    let terminal = if class == "terminal" { tcgetattr(d.own).ok().map(|t| terminal(&t)) } else { None };
    Ok(ExternalRecord { fd: d.fd, class: class.to_owned(), terminal })
}

fn terminal(t: &Termios) -> Terminal {
    let raw: libc::termios = t.clone().into();
    Terminal { flags: [raw.c_iflag, raw.c_oflag, raw.c_cflag, raw.c_lflag], control_characters: raw.c_cc.to_vec() }
}

/// Takes the descriptor that the caller of the restart gave for it.
pub fn restore(cx: &Restorer<'_>, common: &OpenFile, record: &ExternalRecord) -> Result<OwnedFd> {
    let ambient = || cx.options.ambient.get(&record.fd).filter(|fd| is_of_class(fd.as_fd(), &record.class));
    let Some(given) = cx.options.inherit.get(&record.fd).or_else(ambient) else {
        return Err(Error::Restart(format!(
            "descriptor {} was a {} ({}) whose other end is not in the image; give it one with --inherit-fd {}=N",
            record.fd, record.class, common.link, record.fd
        )));
    };
    let fd = own_description(given.as_fd(), common.flags)?;
    if let Some(saved) = &record.terminal {
        set_terminal(fd.as_fd(), saved)?;
    }
    Ok(fd)
}

fn is_of_class(fd: BorrowedFd<'_>, class: &str) -> bool {
    let wanted = match class {
        "terminal" => SFlag::S_IFCHR,
        "pipe" => SFlag::S_IFIFO,
        _ => SFlag::S_IFSOCK,
    };
    fstat(fd).is_ok_and(|stat| SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == wanted)
}

/// An open file of its own where that is possible, so that its flags are not those of the caller's shell; regular files must share
/// the caller's offset, and sockets cannot be opened twice.
fn own_description(given: BorrowedFd<'_>, flags: i32) -> Result<OwnedFd> {
    let doing = || format!("cannot use descriptor {} for the restarted program", given.as_raw_fd());
    let kind = SFlag::from_bits_truncate(fstat(given).doing(doing)?.st_mode) & SFlag::S_IFMT;
    if kind == SFlag::S_IFCHR || kind == SFlag::S_IFIFO {
        let access = flags & libc::O_ACCMODE;
        let mut options = File::options();
        options.read(access != libc::O_WRONLY).write(access != libc::O_RDONLY);
        std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, libc::O_NOCTTY | libc::O_NONBLOCK);
        if let Ok(file) = options.open(format!("/proc/self/fd/{}", given.as_raw_fd())) {
            return Ok(file.into());
        }
    }
    given.try_clone_to_owned().doing(doing)
}

fn set_terminal(fd: BorrowedFd<'_>, saved: &Terminal) -> Result<()> {
    // Not a terminal this time, or one that another job owns: it stays as it is.
    let Ok(now) = tcgetattr(fd) else { return Ok(()) };
    let mut raw: libc::termios = now.into();
    [raw.c_iflag, raw.c_oflag, raw.c_cflag, raw.c_lflag] = saved.flags;
    let length = raw.c_cc.len().min(saved.control_characters.len());
    raw.c_cc[..length].copy_from_slice(&saved.control_characters[..length]);
    let foreground = nix::unistd::tcgetpgrp(fd).is_ok_and(|group| group == nix::unistd::getpgrp());
    if !foreground {
        return Ok(());
    }
    tcsetattr(fd, SetArg::TCSANOW, &raw.into()).doing(|| "cannot set the terminal as it was")
}

/// Remembers that an object leads outside.
pub fn note(cx: &mut Collector<'_>, objref: ObjRef) {
    cx.external.insert(objref);
}

/// Must `fd`, although it shares the open file `known` with another descriptor, get an end of its own at restart? Standard input,
/// output and error do: whoever restarts may have three different ones.
pub fn is_standard(cx: &Collector<'_>, known: ObjRef, fd: RawFd) -> bool {
    (0..=2).contains(&fd) && cx.external.contains(&known)
}

impl FileKind for External {
    const KIND: &'static str = KIND;
    type Record = ExternalRecord;

    fn matches(d: &Descriptor<'_>) -> bool {
        let kind = SFlag::from_bits_truncate(d.stat.st_mode) & SFlag::S_IFMT;
        kind == SFlag::S_IFCHR && d.info.flags & libc::O_PATH == 0 && tcgetattr(d.own).is_ok()
    }

    fn collect(cx: &mut Collector<'_>, d: &Descriptor<'_>) -> Result<ExternalRecord> {
        collect(cx, d, "terminal")
    }

    fn restore(cx: &mut Restorer<'_>, common: &OpenFile, record: &ExternalRecord) -> Result<OwnedFd> {
        restore(cx, common, record)
    }
}
