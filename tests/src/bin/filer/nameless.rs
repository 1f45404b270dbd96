//! Files that nobody else will hold: deleted ones, those that never had a name, and memfds.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};

use ckpt_tests::checks::{Checks, said, same};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::{Made, boxed};

/// Makes them.
pub fn add(checks: &mut Checks) {
    checks.add("deleted", deleted());
    checks.add("deleted-twice-open", deleted_twice_open());
    checks.add("deleted-and-replaced", deleted_and_replaced());
    checks.add("deleted-empty", deleted_empty());
    checks.add("never-named", never_named());
    checks.add("memfd", memfd());
    checks.add("memfd-sealed", memfd_sealed());
    checks.add("memfd-unsealable", memfd_unsealable());
    checks.add("memfd-write-sealed", memfd_write_sealed());
}

fn create(name: &str) -> std::io::Result<File> {
    File::options().read(true).write(true).create_new(true).open(name)
}

/// Data, a hole, and an odd end.
fn put(file: &mut File) -> std::io::Result<()> {
    file.write_all(b"the beginning")?;
    file.write_all_at(b"the end", 100_001)?;
    file.seek(SeekFrom::Start(4)).map(drop)
}

fn look(file: &mut File, links: u64) -> Result<(), String> {
    let about = said("fstat", file.metadata())?;
    same("links and size", (about.nlink(), about.len()), (links, 100_008))?;
    same("offset", said("lseek", file.stream_position())?, 4)?;
    let (mut beginning, mut end, mut hole) = ([0; 13], [0; 7], [1; 100]);
    said("pread", file.read_exact_at(&mut beginning, 0))?;
    said("pread", file.read_exact_at(&mut end, 100_001))?;
    said("pread", file.read_exact_at(&mut hole, 50_000))?;
    same("contents", (&beginning, &end, hole), (b"the beginning", b"the end", [0; 100]))?;
    same("read at the end", said("pread", file.read_at(&mut hole, 100_008))?, 0)
}

fn deleted() -> Made {
    let mut file = create("deleted")?;
    put(&mut file)?;
    file.set_permissions(fs::Permissions::from_mode(0o640))?;
    fs::remove_file("deleted")?;
    boxed(move || {
        look(&mut file, 0)?;
        same("mode", said("fstat", file.metadata())?.mode() & 0o7777, 0o640)?;
        same("a file of that name", fs::exists("deleted").unwrap_or(true), false)?;
        // It is still one that can be written to.
        said("pwrite", file.write_all_at(b"x", 60_000))?;
        said("pwrite", file.write_all_at(b"\0", 60_000))
    })
}

/// Two openings, one of them for reading only, of one file.
fn deleted_twice_open() -> Made {
    let mut one = create("twice")?;
    let mut two = File::open("twice")?;
    put(&mut one)?;
    fs::remove_file("twice")?;
    boxed(move || {
        look(&mut one, 0)?;
        same("the offset of the second opening", said("lseek", two.stream_position())?, 0)?;
        said("pwrite", one.write_all_at(b"THE", 0))?;
        let mut found = [0; 3];
        said("pread", two.read_exact_at(&mut found, 0))?;
        same("what one writes and the other reads", &found, b"THE")?;
        same("writing to the one for reading", two.write(b"x").is_err(), true)?;
        said("pwrite", one.write_all_at(b"the", 0))
    })
}

/// Another file has the name now.
fn deleted_and_replaced() -> Made {
    let mut file = create("replaced")?;
    put(&mut file)?;
    fs::remove_file("replaced")?;
    fs::write("replaced", "the new one")?;
    boxed(move || {
        look(&mut file, 0)?;
        same("the new file", said("read", fs::read_to_string("replaced"))?, "the new one".to_owned())
    })
}

fn deleted_empty() -> Made {
    let mut file = create("empty")?;
    fs::remove_file("empty")?;
    boxed(move || {
        let mut bytes = Vec::new();
        same("bytes", said("read", file.read_to_end(&mut bytes))?, 0)
    })
}

fn never_named() -> Made {
    let mut file = File::options().read(true).write(true).custom_flags(libc::O_TMPFILE).open(".")?;
    put(&mut file)?;
    boxed(move || look(&mut file, 0))
}

fn seals(file: &File) -> Result<i32, String> {
    said("F_GET_SEALS", fcntl(file, FcntlArg::F_GET_SEALS))
}

fn memfd() -> Made {
    let mut file: File = memfd_create(c"plain name", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?.into();
    put(&mut file)?;
    boxed(move || {
        look(&mut file, 0)?;
        same("seals", seals(&file)?, 0)?;
        let link = said("readlink", fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())))?;
        same("name", link.to_string_lossy().into_owned(), "/memfd:plain name (deleted)".to_owned())
    })
}

fn memfd_sealed() -> Made {
    let mut file: File = memfd_create(c"sealed", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?.into();
    put(&mut file)?;
    let wanted = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW;
    fcntl(&file, FcntlArg::F_ADD_SEALS(wanted))?;
    boxed(move || {
        look(&mut file, 0)?;
        same("seals", seals(&file)?, wanted.bits())?;
        same("shrinking", file.set_len(1).is_err(), true)
    })
}

/// Made without MFD_ALLOW_SEALING.
fn memfd_unsealable() -> Made {
    let mut file: File = memfd_create(c"unsealable", MFdFlags::empty())?.into();
    put(&mut file)?;
    boxed(move || {
        look(&mut file, 0)?;
        same("seals", seals(&file)?, libc::F_SEAL_SEAL)
    })
}

fn memfd_write_sealed() -> Made {
    let mut file: File = memfd_create(c"constant", MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING)?.into();
    put(&mut file)?;
    let wanted = SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_WRITE | SealFlag::F_SEAL_SEAL;
    fcntl(file.as_fd(), FcntlArg::F_ADD_SEALS(wanted))?;
    boxed(move || {
        look(&mut file, 0)?;
        same("seals", seals(&file)?, wanted.bits())?;
        same("writing", file.write_all_at(b"x", 0).is_err(), true)
    })
}
