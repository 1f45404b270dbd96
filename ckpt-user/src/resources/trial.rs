//! For the tests of the kinds: real programs, stopped, in which state is made, collected, and restored into another one.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::collector::CollectOptions;
use super::restorer::RestoreOptions;
use super::task::{Subject, TaskResource};
use super::{Collector, Restorer};
use crate::error::Result;
use crate::ids::{Addr, Pid, Tid};
use crate::image::model::Section;
use crate::sys::procfs;
use crate::sys::ptrace::{self, Stop};
use crate::tracee::batch::Batch;
use crate::tracee::freeze::{FrozenProcess, Stragglers};
use crate::tracee::maps;
use crate::tracee::remote::{Injector, RemoteTask};
use crate::tracee::tree::FrozenTree;

/// A stopped program. It is killed in the end.
#[derive(Debug)]
pub struct Trial {
    child: Child,
    frozen: Option<FrozenProcess>,
    injector: Injector,
}

impl Trial {
    /// A `sleep`, asleep, whose addresses are the same each time.
    pub fn sleep() -> Trial {
        Trial::of(Command::new("setarch").args(["-R", "sleep", "1000"]))
    }

    /// Any program, stopped once it waits for something.
    pub fn of(command: &mut Command) -> Trial {
        let child = command.stdin(Stdio::null()).spawn().unwrap();
        let pid = Pid(child.id() as i32);
        let until = Instant::now() + Duration::from_secs(10);
        while !waits(pid) {
            assert!(Instant::now() < until, "{command:?} does not come to rest");
            std::thread::yield_now();
        }
        let mut tree = FrozenTree::freeze(pid, Duration::from_secs(10), &Stragglers::default()).unwrap();
        let frozen = tree.processes.remove(0);
        let (injector, _) = Injector::new(pid, &maps::read(pid).unwrap()).unwrap();
        Trial { child, frozen: Some(frozen), injector }
    }

    pub fn pid(&self) -> Pid {
        Pid(self.child.id() as i32)
    }

    pub fn tids(&self) -> Vec<Tid> {
        self.frozen.as_ref().unwrap().threads.iter().map(|t| t.tid).collect()
    }

    /// Its main thread, with a workspace that does not move, as at a restart.
    pub fn task(&mut self) -> RemoteTask<'_> {
        self.thread(0)
    }

    pub fn thread(&mut self, n: usize) -> RemoteTask<'_> {
        RemoteTask::new(&mut self.injector, &mut self.frozen.as_mut().unwrap().threads[n])
    }

    /// Where its main thread's stack is.
    pub fn stack_pointer(&self) -> Addr {
        Addr(self.frozen.as_ref().unwrap().threads[0].regs.rsp)
    }

    /// Memory of the program's own, zeroed, that it may execute.
    pub fn map(&mut self, bytes: u64) -> Addr {
        let args = [0u64, bytes, 7, (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64, u64::MAX, 0].map(Into::into);
        Addr(self.task().call("cannot map memory", libc::SYS_mmap, args).unwrap())
    }

    /// Has remote calls made from memory mapped for good, as at a restart.
    pub fn fix_workspace(&mut self) {
        let at = self.map(0x11000);
        self.task().move_to(at, at.offset(0x1000), 0x10000).unwrap();
    }

    /// prctl in the main thread.
    pub fn prctl(&mut self, option: i32, a: u64, b: u64) -> Result<u64> {
        self.task().call("cannot prctl", libc::SYS_prctl, [option.into(), a.into(), b.into(), 0u64.into(), 0u64.into()])
    }

    /// Collects one kind, through its encoded form.
    pub fn collect<R: TaskResource>(&mut self) -> Result<R::Record> {
        self.collect_of::<R>(0)
    }

    pub fn collect_of<R: TaskResource>(&mut self, n: usize) -> Result<R::Record> {
        let (pid, tid) = (self.pid(), self.tids()[n]);
        let options = CollectOptions::default();
        let mut cx = Collector::new(&options, vec![pid]);
        let status = procfs::status(pid, tid)?;
        let who = Subject { pid, tid, status: &status };
        let mut batch = Batch::new();
        let asked = R::ask(&who, &mut batch)?;
        let answers = self.thread(n).run(batch)?;
        let record = R::collect(&mut cx, &who, asked, &answers)?;
        Ok(Section::encode(R::KIND, &record)?.decode()?)
    }

    pub fn restore<R: TaskResource>(&mut self, record: &R::Record) -> Result<()> {
        let options = RestoreOptions::default();
        R::restore(&mut Restorer::new(&options, Vec::new()), &mut self.task(), record)
    }

    /// Lets it run on.
    pub fn thaw(&mut self) {
        for thread in &mut self.frozen.as_mut().unwrap().threads {
            RemoteTask::new(&mut self.injector, thread).leave().unwrap();
        }
        self.frozen.take().unwrap().thaw().unwrap();
    }

    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        // It may be gone already, and nothing can be done about it here. Its other threads must be taken note of before the end of
        // the process is told.
        let _ = self.child.kill();
        for thread in self.frozen.iter().flat_map(|frozen| frozen.threads.iter().skip(1)) {
            while !matches!(ptrace::wait(thread.tid, true), Ok(Some(Stop::Ended(_))) | Err(_)) {}
        }
        let _ = self.child.wait();
    }
}

/// Is it asleep in a system call of its own program (not still on its way through exec)?
fn waits(pid: Pid) -> bool {
    let read = |file: &str| std::fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let call = read("syscall");
    let nr = call.split(' ').next().and_then(|nr| nr.parse().ok());
    matches!(
        nr,
        Some(
            libc::SYS_clock_nanosleep
                | libc::SYS_nanosleep
                | libc::SYS_pause
                | libc::SYS_select
                | libc::SYS_pselect6
                | libc::SYS_poll
        )
    )
}

/// Makes state in one program, collects it, restores it into another, and collects it there: what was collected both times.
pub fn roundtrip<R: TaskResource>(make: impl FnOnce(&mut Trial)) -> (R::Record, R::Record) {
    let mut before = Trial::sleep();
    make(&mut before);
    let record = before.collect::<R>().unwrap();
    let mut after = Trial::sleep();
    after.fix_workspace();
    after.restore::<R>(&record).unwrap();
    let again = after.collect::<R>().unwrap();
    (record, again)
}
