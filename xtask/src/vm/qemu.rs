//! Running the virtual machine.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

const PROGRAM: &str = "qemu-system-x86_64";
/// Of the empty disk, whose file takes room only where it is written.
const DISK_BYTES: u64 = 2 << 30;
/// Bytes of the kernel's last messages that are shown when it went wrong.
const LAST_WORDS: usize = 4000;

/// Boots it, passes on what its command prints, and returns that one's exit status. After `limit` it is killed.
pub fn run(kernel: &Path, initramfs: &[u8], limit: Duration) -> Result<u8> {
    let scratch = tempfile::tempdir().context("cannot make a folder for the virtual machine")?;
    let file = |name: &str| scratch.path().join(name);
    fs::write(file("initramfs"), initramfs).context("cannot write the initramfs")?;
    let disk = fs::File::create(file("disk")).and_then(|disk| disk.set_len(DISK_BYTES));
    disk.context("cannot make the disk of the virtual machine")?;
    let mut qemu = Command::new(PROGRAM);
    // Emulated: that works everywhere, also in a virtual machine that offers none.
    qemu.args(["-accel", "tcg", "-cpu", "max", "-m", "2G", "-smp", "2", "-nodefaults", "-display", "none", "-no-reboot"]);
    qemu.arg("-kernel").arg(kernel).arg("-initrd").arg(file("initramfs"));
    qemu.args(["-append", "console=ttyS0 quiet panic=-1"]);
    qemu.arg("-drive").arg(format!("file={},format=raw,if=none,id=disk,cache=unsafe", file("disk").display()));
    qemu.args(["-device", "nvme,drive=disk,serial=disk"]);
    let port = |name: &str| format!("file:{}", file(name).display());
    qemu.args(["-serial", &port("console"), "-serial", "stdio", "-serial", &port("status")]);
    let ended = run_for(qemu.stdin(Stdio::null()), limit)?;
    let said = |name: &str| fs::read(file(name)).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let console = said("console");
    let tail = &console[console.floor_char_boundary(console.len().saturating_sub(LAST_WORDS))..];
    match (ended, status(&said("status"))) {
        (Some(ended), Some(status)) if ended.success() => Ok(status),
        (Some(ended), _) => {
            bail!("the virtual machine went down without having run its command ({ended}); its kernel said:\n{tail}")
        }
        (None, _) => bail!("the virtual machine was killed after {} s; its kernel said:\n{tail}", limit.as_secs()),
    }
}

/// "status 3"
fn status(line: &str) -> Option<u8> {
    line.trim().strip_prefix("status ")?.parse().ok()
}

/// Runs a program; kills it after `limit`. `None`: that was done.
fn run_for(command: &mut Command, limit: Duration) -> Result<Option<ExitStatus>> {
    let parent = std::process::id();
    // SAFETY: the closure makes system calls and nothing else, as it must after a fork.
    unsafe {
        command.pre_exec(move || {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            // It may have ended before.
            if libc::getppid() as u32 == parent { Ok(()) } else { Err(std::io::ErrorKind::BrokenPipe.into()) }
        });
    }
    let name = command.get_program().to_string_lossy().into_owned();
    let mut child = command.spawn().with_context(|| format!("cannot run {name}"))?;
    let pid = child.id() as libc::pid_t;
    let (sender, end) = mpsc::channel();
    let waiter = thread::spawn(move || {
        let status = child.wait();
        // Nobody listens only if the other end has panicked.
        let _ = sender.send(());
        status
    });
    let in_time = end.recv_timeout(limit) != Err(RecvTimeoutError::Timeout);
    if !in_time {
        // SAFETY: only numbers are passed. The process may have ended just now, and been waited for, but a moment ago it was there: no other has
        // its number so soon.
        unsafe { libc::kill(pid, libc::SIGKILL) };
    }
    let Ok(status) = waiter.join() else { bail!("the thread that waits for {name} has panicked") };
    let status = status.with_context(|| format!("cannot wait for {name}"))?;
    Ok(in_time.then_some(status))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_is_read() {
        assert_eq!(status("status 0\r\n"), Some(0));
        assert_eq!(status("status 101\n"), Some(101));
        assert_eq!((status(""), status("status"), status("status 300\n")), (None, None, None));
    }

    #[test]
    fn what_takes_too_long_is_killed() {
        let run = |script: &str, limit| run_for(Command::new("sh").args(["-c", script]), Duration::from_millis(limit)).unwrap();
        assert_eq!(run("exit 3", 60_000).and_then(|status| status.code()), Some(3));
        assert_eq!(run("exec sleep 1000", 50), None);
    }
}
