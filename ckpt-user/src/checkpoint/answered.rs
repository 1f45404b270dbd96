//! What threads have answered at the last cut, for as long as the kernel's own records say that they would answer the same.

use std::collections::HashMap;

use crate::error::Result;
use crate::ids::Tid;
use crate::tracee::batch::{Answers, Batch};
use crate::tracee::remote::RemoteTask;
use crate::track::ebpf::ThreadState;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Answered {
    last: HashMap<Tid, Known>,
    now: HashMap<Tid, Known>,
}

#[derive(Debug)]
struct Known {
    state: ThreadState,
    batch: Batch,
    answers: Answers,
    /// Of the main thread of a process: what it maps is locked.
    locks: bool,
}

/// A thread that is asked.
pub(super) struct Asking<'a, 'b> {
    pub(super) task: RemoteTask<'b>,
    pub(super) state: Option<ThreadState>,
    /// Asked of a main thread that has been asked: whether what was mapped for that is locked.
    pub(super) locks: &'a dyn Fn() -> Result<bool>,
}

impl Answered {
    /// What the thread answers to the batch, and whether what it maps is locked.
    pub(super) fn ask(&self, asking: Asking<'_, '_>, batch: &Batch) -> Result<(Answers, bool)> {
        let Asking { mut task, state, locks } = asking;
        let known = self.last.get(&task.tid()).filter(|known| Some(known.state) == state && known.batch == *batch);
        if let Some(Known { answers, locks, .. }) = known {
            return Ok((answers.clone(), *locks));
        }
        let answers = task.ask(batch.clone())?;
        task.leave()?;
        Ok((answers, locks()?))
    }

    /// It would answer the same as long as it is in this state.
    pub(super) fn remember(&mut self, tid: Tid, state: Option<ThreadState>, batch: Batch, (answers, locks): (Answers, bool)) {
        if let Some(state) = state {
            self.now.insert(tid, Known { state, batch, answers, locks });
        }
    }

    /// All threads were asked: others are there no more.
    pub(super) fn end_of_cut(&mut self) {
        self.last = std::mem::take(&mut self.now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::memory;
    use crate::resources::task::Subject;
    use crate::resources::task_registry::{PROCESS_RESOURCES, THREAD_RESOURCES};
    use crate::resources::trial::Trial;
    use crate::sys::procfs;
    use crate::tracee::batch::Arg;
    use crate::track::ebpf::TaskInspector;

    /// What a checkpoint asks of the main thread of a process.
    fn batch(program: &Trial) -> Batch {
        let (pid, tid) = (program.pid(), program.pid().leader());
        let status = procfs::status(pid, tid).unwrap();
        let who = Subject { pid, tid, status: &status };
        let mut batch = Batch::new();
        for entry in PROCESS_RESOURCES.iter().chain(THREAD_RESOURCES) {
            (entry.ask)(&who, &mut batch).map(drop).unwrap();
        }
        memory::ask(&mut batch);
        batch
    }

    fn state(inspector: &TaskInspector, program: &Trial) -> ThreadState {
        let (threads, _) = inspector.look(program.pid()).unwrap();
        threads.iter().find(|thread| thread.tid == program.pid().leader()).unwrap().state.expect("this kernel has all fields")
    }

    /// A new program, of which `change` makes something else. `None`: it cannot be changed here.
    fn changed(inspector: &TaskInspector, change: impl FnOnce(&mut Trial) -> Result<()>) -> Option<bool> {
        let mut program = Trial::sleep();
        program.fix_workspace();
        let ask = |program: &mut Trial| {
            let batch = batch(program);
            let answers = program.task().run(batch.clone()).unwrap();
            (batch, answers)
        };
        let look = |program: &mut Trial| (ask(program), state(inspector, program));
        // The state may change though no answer does: it is not looked into what it means.
        let settled = (0..20).find_map(|_| Some(look(&mut program)).filter(|before| *before == look(&mut program)));
        let (said, was) = settled.expect("nothing has changed");
        change(&mut program).ok()?;
        let (says, is) = look(&mut program);
        (says != said).then_some(is != was)
    }

    /// What answers otherwise is in another state, whatever it is that has changed.
    #[test]
    fn no_answer_changes_without_a_trace() {
        let inspector = TaskInspector::load().unwrap();
        let mut untried = Vec::new();
        let mut try_it = |name, change: &dyn Fn(&mut Trial) -> Result<()>| match changed(&inspector, change) {
            Some(trace) => assert!(trace, "{name} changes the answers and not the state"),
            None => untried.push(name),
        };
        let prctl = |option: i32, a: u64, b: u64| move |program: &mut Trial| program.prctl(option, a, b).map(drop);
        let call = |nr: libc::c_long, args: [u64; 3]| {
            move |program: &mut Trial| program.task().call("change something", nr, args.map(Arg::from)).map(drop)
        };
        // Needs a pointer to these words.
        let with = |nr: libc::c_long, before: Option<u64>, words: &'static [u64], after: [u64; 2]| {
            move |program: &mut Trial| {
                let mut batch = Batch::new();
                let words: Arg = batch.bytes(bytemuck::cast_slice(words)).into();
                let first = before.map_or([words, Arg::from(0u64)], |before| [before.into(), words]);
                let id = batch.call(nr, [first[0], first[1], after[0].into(), after[1].into()]);
                program.task().run(batch)?.ret(id).map_err(|errno| crate::error::Error::os("change something", errno)).map(drop)
            }
        };
        try_it("time stamp", &prctl(libc::PR_SET_TSC, libc::PR_TSC_SIGSEGV as u64, 0));
        try_it("cpuid", &call(libc::SYS_arch_prctl, [0x1012, 0, 0]));
        try_it("memory failures", &prctl(libc::PR_MCE_KILL, libc::PR_MCE_KILL_SET as u64, libc::PR_MCE_KILL_EARLY as u64));
        try_it("timer slack", &prctl(libc::PR_SET_TIMERSLACK, 123_456, 0));
        try_it("death of the parent", &prctl(libc::PR_SET_PDEATHSIG, 10, 0));
        try_it("subreaper", &prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0));
        try_it("dumpable", &prctl(libc::PR_SET_DUMPABLE, 0, 0));
        try_it("huge pages", &prctl(libc::PR_SET_THP_DISABLE, 1, 0));
        try_it("merging of pages", &prctl(libc::PR_SET_MEMORY_MERGE, 1, 0));
        try_it("no new code", &prctl(libc::PR_SET_MDWE, 1, 0));
        try_it("securebits", &prctl(libc::PR_SET_KEEPCAPS, 1, 0));
        for which in [0, 1, 2] {
            let disable = [libc::PR_SET_SPECULATION_CTRL as u64, which, libc::PR_SPEC_DISABLE.into()];
            try_it("speculation", &call(libc::SYS_prctl, disable));
        }
        try_it("personality", &call(libc::SYS_personality, [libc::UNAME26 as u64, 0, 0]));
        try_it("address to clear", &call(libc::SYS_set_tid_address, [0x7777_0000, 0, 0]));
        try_it("membarrier", &call(libc::SYS_membarrier, [1 << 4, 0, 0]));
        try_it("processor extensions", &call(libc::SYS_arch_prctl, [0x1023, 18, 0]));
        try_it("break", &|program| {
            let now = program.task().call("ask", libc::SYS_brk, [Arg::from(0u64)])?;
            program.task().call("move the break", libc::SYS_brk, [Arg::from(now + (1 << 20))]).map(drop)
        });
        try_it("signal stack", &with(libc::SYS_sigaltstack, None, &[0x10_0000, 0, 0x8000], [0, 0]));
        try_it("action", &with(libc::SYS_rt_sigaction, Some(10), &[1, 0, 0, 0], [0, 8]));
        try_it("Landlock", &|program| {
            let mut batch = Batch::new();
            // struct landlock_ruleset_attr: LANDLOCK_ACCESS_FS_WRITE_FILE.
            let attributes = batch.value(&2u64);
            let made = batch.call(libc::SYS_landlock_create_ruleset, [attributes.into(), 8u64.into(), 0u64.into()]);
            let rules = program.task().run(batch)?.ret(made).map_err(|errno| crate::error::Error::os("make rules", errno))?;
            program.task().call("restrict", libc::SYS_landlock_restrict_self, [Arg::from(rules), 0u64.into()]).map(drop)
        });
        try_it("real-time timer", &with(libc::SYS_setitimer, Some(0), &[0, 0, 1000, 0], [0, 0]));
        try_it("virtual timer", &with(libc::SYS_setitimer, Some(1), &[0, 0, 1000, 0], [0, 0]));
        try_it("profiling timer", &with(libc::SYS_setitimer, Some(2), &[0, 0, 1000, 0], [0, 0]));
        try_it("segments", &with(libc::SYS_modify_ldt, Some(1), &[0, 0x51_0000_ffff], [16, 0]));
        println!("cannot be changed here, or is not asked for: {untried:?}");
        let elsewhere = ["cpuid", "speculation", "processor extensions", "merging of pages"];
        assert!(untried.iter().all(|name| elsewhere.contains(name)), "{untried:?}");
    }
}
