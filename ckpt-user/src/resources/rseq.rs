//! Restartable sequences (rseq(2)): where each thread has registered the struct through which the kernel tells it its processor.
//!
//! glibc registers one for every thread, and tcmalloc, jemalloc and others use it: sequences of instructions that the kernel restarts
//! when the thread is preempted within. A thread that is made to run elsewhere (in the stub of a remote call, or as a new
//! thread) looks to the kernel as if it had left its sequence, so whoever does that must abort it first: [`abort_ip`].

use serde::{Deserialize, Serialize};

use super::task::{Subject, TaskResource};
use super::{Collector, Restorer};
use crate::error::{Doing, Result};
use crate::ids::{Addr, Tid};
use crate::sys::ptrace_state::{self, RseqConfiguration};
use crate::tracee::batch::{Answers, Batch};
use crate::tracee::memory::ProcessMemory;
use crate::tracee::remote::RemoteTask;

/// See the module.
#[derive(Debug, Clone, Copy)]
pub struct Rseq;

/// The registration.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RseqRecord {
    /// Address of struct rseq; 0: none.
    pub area: Addr,
    /// Bytes registered.
    pub size: u32,
    /// What stands before each abort handler.
    pub signature: u32,
    /// Flags of the registration.
    pub flags: u32,
}

/// RSEQ_FLAG_UNREGISTER (linux/rseq.h).
const UNREGISTER: u32 = 1;
/// Offset of rseq_cs in struct rseq: the address of the sequence that the thread is in, or has been in.
const RSEQ_CS: u64 = 8;

/// struct rseq_cs: one sequence.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, bytemuck::Pod, bytemuck::Zeroable)]
struct Sequence {
    version: u32,
    flags: u32,
    start_ip: u64,
    len: u64,
    abort_ip: u64,
}

const _: () = assert!(size_of::<Sequence>() == 32);

fn configuration(tid: Tid) -> Result<RseqConfiguration> {
    let known = ptrace_state::rseq_configuration(tid).doing(|| format!("cannot read the rseq registration of thread {tid}"))?;
    // A kernel that does not tell is older than the libraries that use it without being told to.
    Ok(known.unwrap_or_default())
}

/// Where a stopped thread must go on if it stands at `ip` inside a restartable sequence: at the abort handler, as the kernel would
/// have it. `None`: it does not, or the kernel will find fault with the sequence by itself.
pub fn abort_ip(memory: &ProcessMemory, tid: Tid, ip: Addr) -> Result<Option<Addr>> {
    let RseqConfiguration { area, signature, .. } = configuration(tid)?;
    if area == 0 {
        return Ok(None);
    }
    // Memory that cannot be read is a fault of the program's, for which the kernel has its own answer.
    let Some(at) = read::<u64>(memory, Addr(area).offset(RSEQ_CS)).filter(|at| *at != 0) else { return Ok(None) };
    let Some(sequence) = read::<Sequence>(memory, Addr(at)) else { return Ok(None) };
    if sequence.version != 0 || ip.0.wrapping_sub(sequence.start_ip) >= sequence.len {
        return Ok(None);
    }
    let before_handler = Addr(sequence.abort_ip.wrapping_sub(size_of::<u32>() as u64));
    Ok((read::<u32>(memory, before_handler) == Some(signature)).then_some(Addr(sequence.abort_ip)))
}

fn read<T: bytemuck::AnyBitPattern>(memory: &ProcessMemory, at: Addr) -> Option<T> {
    let mut bytes = vec![0; size_of::<T>()];
    let n = memory.read_some(at, &mut bytes).ok()?;
    (n == bytes.len()).then(|| bytemuck::pod_read_unaligned(&bytes))
}

/// Takes the registration away. A new task that begins as a copy of ckpt has ckpt's, and must not lose the memory it lies in before.
pub fn unregister(task: &mut RemoteTask<'_>) -> Result<()> {
    let RseqConfiguration { area, size, signature, .. } = configuration(task.tid())?;
    if area == 0 {
        return Ok(());
    }
    let args = [area.into(), size.into(), UNREGISTER.into(), signature.into()];
    task.call("cannot take an rseq registration away", libc::SYS_rseq, args).map(drop)
}

impl TaskResource for Rseq {
    const KIND: &'static str = "rseq";
    type Record = RseqRecord;
    type Asked = ();

    fn ask(_who: &Subject<'_>, _batch: &mut Batch) -> Result<()> {
        Ok(())
    }

    fn collect(_cx: &mut Collector<'_>, who: &Subject<'_>, (): (), _answers: &Answers) -> Result<RseqRecord> {
        let RseqConfiguration { area, size, signature, flags, .. } = configuration(who.tid)?;
        Ok(RseqRecord { area: Addr(area), size, signature, flags })
    }

    fn restore(_cx: &mut Restorer<'_>, task: &mut RemoteTask<'_>, record: &RseqRecord) -> Result<()> {
        let now = configuration(task.tid())?;
        if (now.area, now.size, now.signature) == (record.area.0, record.size, record.signature) {
            return Ok(());
        }
        unregister(task)?;
        if record.area == Addr(0) {
            return Ok(());
        }
        let args = [record.area.into(), record.size.into(), record.flags.into(), record.signature.into()];
        task.call("cannot register rseq", libc::SYS_rseq, args).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::trial::{self, Trial};

    #[test]
    fn the_registration_returns() {
        let (before, after) = trial::roundtrip::<Rseq>(|_| {});
        assert_eq!(before, after);
        assert_ne!(before.area, Addr(0), "glibc registers one");
        let (before, after) = trial::roundtrip::<Rseq>(|program| {
            let area = program.map(4096);
            unregister(&mut program.task()).unwrap();
            assert_eq!(program.collect::<Rseq>().unwrap(), RseqRecord::default());
            program.restore::<Rseq>(&RseqRecord { area, size: 32, signature: 0x1234, flags: 0 }).unwrap();
        });
        assert_eq!(before, after);
        assert_eq!(before.signature, 0x1234);
    }

    #[test]
    fn a_thread_within_a_sequence_goes_on_at_its_abort_handler() {
        let mut program = Trial::sleep();
        let (tid, area) = (program.pid().leader(), program.map(4096));
        unregister(&mut program.task()).unwrap();
        program.restore::<Rseq>(&RseqRecord { area, size: 32, signature: 0xfeed, flags: 0 }).unwrap();
        let sequence = Sequence { version: 0, flags: 0, start_ip: 0x5000, len: 0x10, abort_ip: area.0 + 0x204 };
        let memory = ProcessMemory::open(program.pid()).unwrap();
        let at = area.offset(0x100);
        memory.write(at, bytemuck::bytes_of(&sequence)).unwrap();
        memory.write(area.offset(RSEQ_CS), &at.0.to_le_bytes()).unwrap();
        let abort = |ip: u64| abort_ip(&memory, tid, Addr(ip)).unwrap();
        assert_eq!(abort(0x5008), None, "without the signature it is no handler");
        memory.write(area.offset(0x200), &0xfeedu32.to_le_bytes()).unwrap();
        assert_eq!(abort(0x5000), Some(area.offset(0x204)));
        assert_eq!(abort(0x500f), Some(area.offset(0x204)));
        assert_eq!((abort(0x5010), abort(0x4fff)), (None, None));
        memory.write(area.offset(RSEQ_CS), &8u64.to_le_bytes()).unwrap();
        assert_eq!(abort(0x5008), None, "a sequence that cannot be read");
        memory.write(area.offset(RSEQ_CS), &0u64.to_le_bytes()).unwrap();
        assert_eq!(abort(0x5008), None, "no sequence");
    }
}
