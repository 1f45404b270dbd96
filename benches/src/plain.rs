//! Plain copies of a process's memory: what any checkpoint or restart in user space has to do at least, and nothing else. One thread, one
//! buffer of a mebibyte.

use std::fs::File;
use std::io::{IoSlice, IoSliceMut, Read, Seek, Write};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use nix::sys::uio::{RemoteIoVec, process_vm_readv, process_vm_writev};
use nix::unistd::Pid;

use crate::target::Target;

const BUFFER: usize = 1 << 20;

/// How long a copy took.
#[derive(Clone, Copy, Debug)]
pub struct Took {
    /// On the clock.
    pub wall: Duration,
    /// Of processors: what is left of it when others use the machine too.
    pub cpu: Duration,
}

/// When a copy began.
struct Began {
    wall: Instant,
    cpu: Duration,
}

impl Began {
    fn now() -> Result<Began> {
        Ok(Began { wall: Instant::now(), cpu: cpu()? })
    }

    fn took(&self) -> Result<Took> {
        Ok(Took { wall: self.wall.elapsed(), cpu: cpu()?.saturating_sub(self.cpu) })
    }
}

/// Processor time of this process so far.
fn cpu() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_SELF).context("cannot ask for the processor time")?;
    let time = usage.user_time() + usage.system_time();
    Ok(Duration::from_micros(u64::try_from(time.num_microseconds()).context("the processor time is negative")?))
}

/// process_vm_readv into one buffer, again and again.
pub fn read(target: &Target) -> Result<Took> {
    copy_out(target, |_| Ok(()))
}

/// The same, each buffer then written to `file`: what a checkpoint does at least.
pub fn read_and_write(target: &Target, mut file: &File) -> Result<Took> {
    copy_out(target, |bytes| file.write_all(bytes).context("cannot write the copy"))
}

fn copy_out(target: &Target, mut sink: impl FnMut(&[u8]) -> Result<()>) -> Result<Took> {
    // Not zeroed memory, whose pages would be made while they are first copied to.
    let mut buffer = vec![1; BUFFER];
    let began = Began::now()?;
    for (base, len) in pieces(target) {
        let remote = [RemoteIoVec { base, len }];
        let got = process_vm_readv(Pid::from_raw(target.pid()), &mut [IoSliceMut::new(&mut buffer[..len])], &remote);
        let got = got.with_context(|| format!("cannot read the memory of pid {}", target.pid()))?;
        ensure!(got == len, "process_vm_readv gave {got} bytes of {len}");
        sink(&buffer[..len])?;
    }
    began.took()
}

/// From `file`, which holds as many bytes, by process_vm_writev into memory that was never touched: what a restart does at least.
pub fn write_back(target: &Target, mut file: &File) -> Result<Took> {
    let mut buffer = vec![1; BUFFER];
    file.rewind().context("cannot go back to the start of the copy")?;
    let began = Began::now()?;
    for (base, len) in pieces(target) {
        file.read_exact(&mut buffer[..len]).context("cannot read the copy")?;
        let remote = [RemoteIoVec { base, len }];
        let put = process_vm_writev(Pid::from_raw(target.pid()), &[IoSlice::new(&buffer[..len])], &remote);
        let put = put.with_context(|| format!("cannot write the memory of pid {}", target.pid()))?;
        ensure!(put == len, "process_vm_writev took {put} bytes of {len}");
    }
    began.took()
}

/// (address, length) of the target's memory, a buffer at a time.
fn pieces(target: &Target) -> impl Iterator<Item = (usize, usize)> {
    let (address, bytes) = (target.address, target.bytes);
    (0..bytes).step_by(BUFFER).map(move |at| (address + at, BUFFER.min(bytes - at)))
}
