//! An image that comes through a pipe from a process that still runs here (`ckpt checkpoint PID -o - --after kill | ckpt restart -`): its pid is
//! free only when the whole image was written, so the image waits in a file without a name until then.

use std::env;
use std::fs::File;
use std::io::{self, Cursor, Read, Seek};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

use ckpt::ids::Pid;
use ckpt::image::{ImageError, ImageReader, Payload, read_stored};
use ckpt::sys::pidfd;

use super::Failure;

/// How long a process may take to end, once its image is whole.
const END: Duration = Duration::from_secs(10);

/// What is left of an image to read.
pub type Image = Box<dyn Read + Send>;

/// Reads ahead, if need be, until the process that the image was made of is gone.
pub fn until_pid_is_free(image: File, name: &str) -> Result<Image, Failure> {
    let failed = |source| Failure::Image { path: name.to_owned(), source };
    let stat = image.metadata().map_err(|error| Failure::file(format!("cannot read {name}"), error))?;
    if stat.is_file() {
        return Ok(Box::new(image));
    }
    let mut copy = Copying { input: image, seen: Vec::new() };
    let stored = read_stored(&mut ImageReader::new(&mut copy).map_err(failed)?).map_err(failed)?;
    // An increment cannot be asked before its parents are: the restart says which pid is in use.
    let tasks = if stored.needs_parent() { Vec::new() } else { stored.decode(None).map_err(failed)?.tasks.tasks };
    let so_far = Cursor::new(copy.seen).chain(copy.input);
    let Some(task) = tasks.first().filter(|task| runs_here(task.pid, &task.comm)) else {
        return Ok(Box::new(so_far));
    };
    tracing::info!("pid {} still runs: reading the whole image first", task.pid);
    let spooled = spool(so_far).map_err(|error| Failure::file("cannot keep the image while its process still runs", error))?;
    check(&spooled).map_err(failed)?;
    let process = pidfd::open(task.pid);
    if let Ok(process) = process {
        let waited = pidfd::wait_for_burial(process.as_fd(), END);
        waited.map_err(|error| Failure::file(format!("cannot wait for the end of pid {}", task.pid), error))?;
    }
    Ok(Box::new(spooled))
}

/// Is it the process that the image was made of, as far as can be told?
fn runs_here(pid: Pid, comm: &str) -> bool {
    std::fs::read(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim_ascii_end() == comm.as_bytes())
}

fn spool(mut image: impl Read) -> io::Result<File> {
    let mut options = File::options();
    options.read(true).write(true).mode(0o600).custom_flags(libc::O_TMPFILE);
    let mut file = options.open(env::temp_dir())?;
    io::copy(&mut image, &mut file)?;
    file.rewind()?;
    Ok(file)
}

/// An image that ends in the reason of a failure must say so, rather than that its pid is in use.
fn check(mut image: &File) -> Result<(), ImageError> {
    let mut reader = ImageReader::new(image)?;
    let mut payload = Payload::default();
    while reader.next_raw(&mut payload)?.is_some() {}
    image.rewind().map_err(|source| ImageError::Read { offset: 0, source })
}

/// Keeps what was read.
struct Copying {
    input: File,
    seen: Vec<u8>,
}

impl Read for Copying {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n = self.input.read(buffer)?;
        self.seen.extend_from_slice(&buffer[..n]);
        Ok(n)
    }
}
