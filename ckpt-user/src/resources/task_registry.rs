//! Every kind of state that belongs to a process or to a thread, in the order in which it is restored.
//!
//! By then the process has its memory and its descriptors, and all its threads exist. What matters of the order:
//! * signal actions before pending signals, because setting a signal to be ignored throws away what waits of it;
//! * limits late, because they may lie below what is in use, and before the users change, because raising them takes rights;
//! * dumpable last of the process, because once it is off an unprivileged ckpt can read less of /proc;
//! * timer slack before the scheduling policy, because real-time threads ignore it;
//! * credentials after everything that may take rights, the parent-death signal after them, because they clear it;
//! * seccomp filters last, but for those that only root may install.

use super::affinity::Affinity;
use super::comm::Comm;
use super::coredump_filter::CoredumpFilter;
use super::credentials::Credentials;
use super::dumpable::Dumpable;
use super::fs_state::FsState;
use super::ioprio::IoPriority;
use super::itimer::IntervalTimers;
use super::lsm::SecurityLabel;
use super::membarrier::Membarrier;
use super::mempolicy::MemoryPolicy;
use super::oom::OomScore;
use super::pdeathsig::ParentDeathSignal;
use super::pending::{SharedPending, ThreadPending};
use super::personality::Personality;
use super::posix_timer::PosixTimers;
use super::process_flags::ProcessFlags;
use super::rlimit::ResourceLimits;
use super::robust_list::RobustList;
use super::rseq::Rseq;
use super::sched::Scheduling;
use super::seccomp::{PrivilegedSeccomp, Seccomp};
use super::sigaltstack::AlternateStack;
use super::signals::SignalActions;
use super::speculation::Speculation;
use super::task::{Subject, TaskResourceEntry};
use super::thread_flags::ThreadFlags;
use super::tid_address::TidAddress;
use super::timerslack::TimerSlack;
use super::x86::X86;
use super::{seccomp, x86};
use crate::error::Result;

/// State of the process as a whole, given to its leader.
pub const PROCESS_RESOURCES: &[TaskResourceEntry] = &[
    TaskResourceEntry::of::<SignalActions>(),
    TaskResourceEntry::of::<SharedPending>(),
    TaskResourceEntry::of::<Membarrier>(),
    TaskResourceEntry::of::<ProcessFlags>(),
    TaskResourceEntry::of::<CoredumpFilter>(),
    TaskResourceEntry::of::<OomScore>(),
    TaskResourceEntry::of::<IntervalTimers>(),
    TaskResourceEntry::of::<PosixTimers>(),
    TaskResourceEntry::of::<ResourceLimits>(),
    TaskResourceEntry::of::<Dumpable>(),
];

/// State of each thread.
pub const THREAD_RESOURCES: &[TaskResourceEntry] = &[
    TaskResourceEntry::of::<SecurityLabel>(),
    TaskResourceEntry::of::<X86>(),
    TaskResourceEntry::of::<Comm>(),
    TaskResourceEntry::of::<FsState>(),
    TaskResourceEntry::of::<Personality>(),
    TaskResourceEntry::of::<AlternateStack>(),
    TaskResourceEntry::of::<RobustList>(),
    TaskResourceEntry::of::<TidAddress>(),
    TaskResourceEntry::of::<Rseq>(),
    TaskResourceEntry::of::<MemoryPolicy>(),
    TaskResourceEntry::of::<ThreadFlags>(),
    TaskResourceEntry::of::<ThreadPending>(),
    TaskResourceEntry::of::<TimerSlack>(),
    TaskResourceEntry::of::<IoPriority>(),
    TaskResourceEntry::of::<Affinity>(),
    TaskResourceEntry::of::<Scheduling>(),
    TaskResourceEntry::of::<Speculation>(),
    TaskResourceEntry::of::<PrivilegedSeccomp>(),
    TaskResourceEntry::of::<Credentials>(),
    TaskResourceEntry::of::<ParentDeathSignal>(),
    TaskResourceEntry::of::<Seccomp>(),
];

/// What must be refused before a remote call is made in a stopped thread, and is, of all threads, before anything is planted in the process.
pub fn check(who: &Subject<'_>) -> Result<()> {
    x86::check(who)?;
    seccomp::check(who)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::image::model::Section;
    use crate::resources::collector::CollectOptions;
    use crate::resources::restorer::RestoreOptions;
    use crate::resources::trial::Trial;
    use crate::resources::{Collector, Restorer};
    use crate::sys::{procfs, sched, signal};
    use crate::tracee::batch::Batch;

    fn all() -> impl Iterator<Item = &'static TaskResourceEntry> {
        PROCESS_RESOURCES.iter().chain(THREAD_RESOURCES)
    }

    /// Everything of a thread, in one batch, as a checkpoint does it.
    fn collect(program: &mut Trial) -> Vec<Section> {
        let (pid, tid) = (program.pid(), program.pid().leader());
        let options = CollectOptions::default();
        let mut cx = Collector::new(&options, vec![pid]);
        let status = procfs::status(pid, tid).unwrap();
        let who = Subject { pid, tid, status: &status };
        let mut batch = Batch::new();
        let asked: Vec<_> = all().map(|entry| (entry.ask)(&who, &mut batch).unwrap()).collect();
        let answers = program.task().run(batch).unwrap();
        asked.into_iter().map(|collect| collect(&mut cx, &who, &answers).unwrap()).collect()
    }

    fn restore(program: &mut Trial, sections: &[Section]) {
        let options = RestoreOptions::default();
        let mut cx = Restorer::new(&options, Vec::new());
        program.fix_workspace();
        for (entry, section) in all().zip(sections) {
            (entry.restore)(&mut cx, &mut program.task(), section).unwrap_or_else(|e| panic!("{}: {e}", entry.kind));
        }
    }

    #[test]
    fn a_program_with_some_of_everything_returns_and_lives() {
        let mut before = Trial::sleep();
        let tid = before.pid().leader();
        before.fix_workspace();
        before.task().call("umask", libc::SYS_umask, [0o27u64.into()]).unwrap();
        before.prctl(libc::PR_SET_TIMERSLACK, 7777, 0).unwrap();
        before.prctl(libc::PR_SET_PDEATHSIG, libc::SIGUSR2 as u64, 0).unwrap();
        before.prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0).unwrap();
        sched::set_niceness(tid, 3).unwrap();
        for (nr, args) in [
            (libc::SYS_setgroups, [0u64; 3]),
            (libc::SYS_setresgid, [1000, 1000, 1000]),
            (libc::SYS_setresuid, [1000, 1000, 1000]),
        ] {
            before.task().call("become a user", nr, args.map(Into::into)).unwrap();
        }
        before.prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0).unwrap();
        before.prctl(libc::PR_SET_PDEATHSIG, libc::SIGUSR2 as u64, 0).unwrap();
        signal::tgkill(before.pid(), tid, libc::SIGWINCH).unwrap();
        let saved = collect(&mut before);

        let mut after = Trial::sleep();
        restore(&mut after, &saved);
        for (one, other) in saved.iter().zip(collect(&mut after)) {
            assert_eq!(*one, other, "{}", one.kind);
        }
        after.thaw();
        assert_eq!(after.child().try_wait().unwrap(), None, "it sleeps on");
        let status = procfs::status(after.pid(), after.pid().leader()).unwrap();
        assert_eq!(
            (status.uids[0], status.gids[1], status.groups, status.capeff, status.nonewprivs),
            (1000, 1000, vec![], 0, Some(1))
        );
        // It was let go a moment ago, and needs one to fall asleep.
        let began = std::time::Instant::now();
        while procfs::thread_state(after.pid(), after.pid().leader()) != Some('S') {
            assert!(began.elapsed().as_secs() < 10, "it does not sleep");
            std::thread::yield_now();
        }
    }

    #[test]
    fn every_kind_has_a_name_of_its_own() {
        let names: HashSet<&str> = all().map(|entry| entry.kind).collect();
        assert_eq!(names.len(), all().count());
    }
}
