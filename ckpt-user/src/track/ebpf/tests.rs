//! The programs in the running kernel, on this process and on one with threads that wait in every way that has a restart block.
//! Where eBPF cannot be used, the tests say so and pass.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::num::NonZeroUsize;
use std::process::{Child, Command, Stdio};
use std::ptr::NonNull;
use std::time::Duration;
use std::{env, ptr, thread};

use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap_anonymous, munmap};
use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::time::{ClockId, clock_gettime};

use super::{FaultLog, Happening, Preserver, RestartBlock, Room, TaskInspector, TaskTiming};
use crate::ids::{PAGE_SIZE, Pid, Tid};

/// How exact the scheduler's times must be: a few ticks of 10 ms, and the time until a thread that has spoken is asleep.
const TICKS: Duration = Duration::from_millis(50);

/// Unwraps what the machine may refuse; None after noting that the test was skipped. Other failures are the test's.
fn usable<T>(test: &str, result: super::Result<T>) -> Option<T> {
    use std::io::ErrorKind::{PermissionDenied, Unsupported};
    let reason = match result {
        Ok(value) => return Some(value),
        Err(e) if matches!(e.kind(), PermissionDenied | Unsupported) => e.to_string(),
        Err(e) => panic!("{e}"),
    };
    crate::skip::note(test, &reason);
    None
}

/// Is the test alone in its process, so that all faults are its own? If not, runs it in one where it is, and returns false.
fn alone(test: &str) -> bool {
    const ALONE: &str = "CKPT_TEST_ALONE";
    if env::var_os(ALONE).is_some() {
        return true;
    }
    let test = format!("track::ebpf::tests::{test}");
    let mut again = Command::new(env::current_exe().unwrap());
    let output = again.args(["--exact", "--nocapture", &test]).env(ALONE, "1").output().unwrap();
    print!("{}", String::from_utf8_lossy(&output.stdout));
    eprint!("{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success());
    false
}

fn own_pid() -> Pid {
    Pid(std::process::id() as i32)
}

/// Pages that were never touched.
struct Fresh {
    start: NonNull<u8>,
    pages: usize,
}

impl Fresh {
    fn new(pages: usize) -> Fresh {
        let bytes = NonZeroUsize::new(pages * PAGE_SIZE as usize).unwrap();
        let flags = MapFlags::MAP_PRIVATE;
        // SAFETY: a new mapping, wherever the kernel likes.
        let start = unsafe { mmap_anonymous(None, bytes, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, flags) }.unwrap();
        // One fault must be one page.
        // SAFETY: the advice changes no contents.
        unsafe { madvise(start, bytes.get(), MmapAdvise::MADV_NOHUGEPAGE) }.unwrap();
        Fresh { start: start.cast(), pages }
    }

    fn touch(&self, page: usize) {
        assert!(page < self.pages);
        // SAFETY: within the mapping, which nobody else uses.
        unsafe { self.start.add(page * PAGE_SIZE as usize).write_volatile(1) };
    }

    fn bytes(&mut self, page: usize) -> &mut [u8] {
        assert!(page < self.pages);
        // SAFETY: within the mapping, and borrowed from its owner.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr().add(page * PAGE_SIZE as usize), PAGE_SIZE as usize) }
    }

    /// The page's number.
    fn number(&self, page: usize) -> u64 {
        self.start.addr().get() as u64 / PAGE_SIZE + page as u64
    }

    /// Those of the write faults of this process that were on these pages: index, epoch, was the page present, by user code.
    fn among(&self, log: &mut FaultLog) -> Vec<(usize, u64, bool, bool)> {
        let mut found = Vec::new();
        log.drain(|_, epoch, happening| {
            if let Happening::Write { page, was_present, by_user_code } = happening
                && let Some(page) = page.checked_sub(self.number(0)).filter(|&page| page < self.pages as u64)
            {
                found.push((page as usize, epoch, was_present, by_user_code));
            }
        })
        .unwrap();
        found
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        // SAFETY: our own mapping, which nobody uses any more.
        unsafe { munmap(self.start.cast(), self.pages * PAGE_SIZE as usize) }.unwrap();
    }
}

/// The programs, with a small log, and the number of a process.
fn watching(test: &str, pid: Pid, log_bytes: u32) -> Option<(Preserver, u32)> {
    let inspector = usable(test, TaskInspector::load())?;
    let tgid = inspector.kernel_tgid(pid).unwrap();
    let room = Room { log_bytes, ..Room::new(Room::RING_LEAST, 1 << 10) };
    Some((usable(test, Preserver::load(room))?, tgid))
}

#[test]
fn write_faults_are_logged_with_page_epoch_and_cause() {
    const NAME: &str = "write_faults_are_logged_with_page_epoch_and_cause";
    if !alone(NAME) {
        return;
    }
    let Some((mut preserver, tgid)) = watching(NAME, own_pid(), 1 << 20) else { return };
    let log = preserver.writes().log();
    let mut fresh = Fresh::new(64);
    fresh.touch(0);
    assert_eq!(fresh.among(log), [], "nobody is watched yet");

    log.track(tgid).unwrap();
    log.set_epoch(7).unwrap();
    (1..40).for_each(|page| fresh.touch(page));
    // Already there: no fault.
    (0..40).for_each(|page| fresh.touch(page));
    log.set_epoch(8).unwrap();
    File::open("/dev/zero").unwrap().read_exact(&mut fresh.bytes(40)[..8]).unwrap();
    let expected = |page| (page, if page == 40 { 8 } else { 7 }, false, page != 40);
    assert_eq!(fresh.among(log), (1..41).map(expected).collect::<Vec<_>>());
    let info = log.info(tgid).unwrap().unwrap();
    assert!(info.write_faults >= 40 && info.lost == 0, "{info:?}");

    // A page that was only read so far is there, as the page of zeros.
    assert_eq!(fresh.bytes(41)[0], 0);
    fresh.touch(41);
    assert!(matches!(fresh.among(log)[..], [(41, 8, true, true)]));

    fresh.touch(42);
    log.untrack(tgid).unwrap();
    assert_eq!(fresh.among(log).len(), 1);
    fresh.touch(43);
    assert_eq!(fresh.among(log), []);
    assert_eq!(log.info(tgid).unwrap(), None);
    assert_eq!(log.counters().unwrap().lost, 0);
}

#[test]
fn faults_that_find_the_log_full_are_counted() {
    const NAME: &str = "faults_that_find_the_log_full_are_counted";
    if !alone(NAME) {
        return;
    }
    let Some((mut preserver, tgid)) = watching(NAME, own_pid(), PAGE_SIZE as u32) else { return };
    let log = preserver.writes().log();
    log.track(tgid).unwrap();
    let fresh = Fresh::new(1000);
    (0..1000).for_each(|page| fresh.touch(page));
    let (counters, info) = (log.counters().unwrap(), log.info(tgid).unwrap().unwrap());
    let room = PAGE_SIZE / 32;
    assert!(counters.logged <= room && counters.lost >= 1000 - room, "{counters:?}");
    assert!(info.write_faults >= counters.logged + counters.lost && info.lost == counters.lost, "{info:?}");
    // The oldest are in it, and it takes new ones once it was read.
    let first: Vec<usize> = fresh.among(log).iter().map(|&(page, ..)| page).collect();
    assert_eq!(first, (0..first.len()).collect::<Vec<_>>());
    let more = Fresh::new(1);
    more.touch(0);
    assert_eq!(more.among(log).len(), 1);
}

#[test]
fn writes_are_told_from_cut_to_cut() {
    const NAME: &str = "writes_are_told_from_cut_to_cut";
    if !alone(NAME) {
        return;
    }
    let Some((mut preserver, tgid)) = watching(NAME, own_pid(), 1 << 20) else { return };
    let writes = preserver.writes();
    let fresh = Fresh::new(4096);
    writes.follow(tgid).unwrap();
    writes.cut().unwrap();
    assert_eq!(writes.commit().unwrap(), None, "nothing is known of what was before");
    (0..3000).for_each(|page| fresh.touch(page));
    // An image that fails: the next one has all of it.
    writes.cut().unwrap();
    (3000..4096).for_each(|page| fresh.touch(page));
    writes.cut().unwrap();
    let told = writes.commit().unwrap().unwrap();
    // Others are the test's own.
    assert!((4096..4596).contains(&told.faults) && told.lost == 0, "{told:?}");
    assert!((8..30).contains(&told.regions) && (3..6).contains(&told.hot_regions) && told.again < 50, "{told:?}");

    // The same pages, anew.
    let drop_pages = |fresh: &Fresh| {
        // SAFETY: what it takes away nobody needs.
        unsafe { madvise(fresh.start.cast(), fresh.pages * PAGE_SIZE as usize, MmapAdvise::MADV_DONTNEED) }.unwrap();
    };
    drop_pages(&fresh);
    (0..1000).for_each(|page| fresh.touch(page));
    writes.cut().unwrap();
    let told = writes.commit().unwrap().unwrap();
    assert!((1000..1500).contains(&told.faults) && (1000..1100).contains(&told.again), "{told:?}");

    drop_pages(&fresh);
    assert_eq!(writes.rate_now().unwrap(), None, "it is too early");
    let began = std::time::Instant::now();
    let rate = loop {
        (0..4096).for_each(|page| fresh.touch(page));
        drop_pages(&fresh);
        if let Some(rate) = writes.rate_now().unwrap() {
            break rate;
        }
    };
    assert!(rate > 4096 * PAGE_SIZE / (began.elapsed().as_secs() + 1), "{rate}");
}

/// Which process, and what.
type Seen = [(u32, Happening)];

/// What happens to the processes of a shell: it is watched before it makes them.
#[test]
fn forks_execs_and_ends_are_noticed() {
    const NAME: &str = "forks_execs_and_ends_are_noticed";
    let mut shell = Command::new("sh");
    shell.args(["-c", "read go; sh -c 'true; exit 0'; (read go); exec sh -c 'read go; exit 3'"]);
    let mut shell = shell.stdin(Stdio::piped()).spawn().unwrap();
    let pid = Pid(shell.id() as i32);
    let Some((mut preserver, tgid)) = watching(NAME, pid, 1 << 20) else {
        shell.kill().unwrap();
        shell.wait().unwrap();
        return;
    };
    let log = preserver.writes().log();
    log.track(tgid).unwrap();
    let mut input = shell.stdin.take().unwrap();
    input.write_all(b"go\n").unwrap();
    let mut seen = Vec::new();
    let mut wait_for = |log: &mut FaultLog, wanted: &dyn Fn(&Seen) -> bool| {
        // Nothing announces an entry.
        let deadline = std::time::Instant::now() + Duration::from_secs(20);
        while !wanted(&seen) {
            assert!(std::time::Instant::now() < deadline, "{seen:?}");
            log.drain(|of, _, happening| {
                if !matches!(happening, Happening::Write { .. }) {
                    seen.push((of, happening));
                }
            })
            .unwrap();
            thread::yield_now();
        }
        seen.clone()
    };
    let forks = |seen: &Seen| -> Vec<u32> {
        seen.iter()
            .filter_map(|(of, what)| if let (true, Happening::Fork(new)) = (*of == tgid, what) { Some(*new) } else { None })
            .collect()
    };
    let seen = wait_for(log, &|seen| forks(seen).len() == 2);
    let [first, second] = forks(&seen)[..] else { panic!("{seen:?}") };
    let of = |seen: &Seen, one| seen.iter().filter(|(of, _)| *of == one).map(|(_, what)| *what).collect::<Vec<_>>();
    assert_eq!(of(&seen, first), [Happening::Exec, Happening::Exit], "the first child: {seen:?}");
    // The second child waits: it is watched, and has faults of its own.
    assert_eq!(log.info(first).unwrap(), None);
    assert_eq!(log.info(second).unwrap().unwrap().root, tgid);

    input.write_all(b"go\n").unwrap();
    wait_for(log, &|seen| of(seen, tgid).contains(&Happening::Exec));
    let info = log.info(tgid).unwrap().unwrap();
    assert_eq!((info.execs, info.root), (1, tgid), "it goes on to be watched, from zero");
    input.write_all(b"go\n").unwrap();
    assert_eq!(shell.wait().unwrap().code(), Some(3));
    let seen = wait_for(log, &|seen| of(seen, tgid).contains(&Happening::Exit));
    assert_eq!(of(&seen, tgid), [Happening::Fork(first), Happening::Fork(second), Happening::Exec, Happening::Exit]);
    assert_eq!(log.info(tgid).unwrap(), None);
    assert_eq!(log.counters().unwrap().lost, 0);
}

#[test]
fn the_end_of_a_thread_is_not_that_of_its_process() {
    const NAME: &str = "the_end_of_a_thread_is_not_that_of_its_process";
    let Some((mut preserver, tgid)) = watching(NAME, own_pid(), 1 << 20) else { return };
    let log = preserver.writes().log();
    log.track(tgid).unwrap();
    thread::spawn(|| ()).join().unwrap();
    assert!(log.info(tgid).unwrap().is_some());
    log.untrack(tgid).unwrap();
}

/// What a thread of the victim does, with the system call that it does it by, and how long in seconds.
const WAITS: [(&str, i64, u64); 6] = [
    ("sleep", libc::SYS_clock_nanosleep, 1000),
    ("remainder", libc::SYS_nanosleep, 2000),
    ("futex", libc::SYS_futex, 3000),
    ("realtime", libc::SYS_futex, 4000),
    ("poll", libc::SYS_poll, 5000),
    ("epoll", libc::SYS_epoll_wait, 6000),
];

/// By this a process of this very program knows that it is the victim of a test.
const VICTIM: &str = "CKPT_TEST_VICTIM";

/// The process whose threads wait. It runs until it is killed.
fn be_a_victim() {
    let threads = WAITS.map(|(name, _, seconds)| thread::spawn(move || wait(name, seconds)));
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

/// Says which thread does what, from when on, and waits.
fn wait(name: &str, seconds: u64) {
    let relative = libc::timespec { tv_sec: seconds as i64, tv_nsec: 0 };
    let real = libc::timespec { tv_sec: now(ClockId::CLOCK_REALTIME).as_secs() as i64 + relative.tv_sec, tv_nsec: 0 };
    let mut left = relative;
    let word = 5u32;
    let milliseconds = relative.tv_sec as i32 * 1000;
    let mut event = libc::epoll_event { events: 0, u64: 0 };
    // SAFETY: gettid has no preconditions, epoll_create1 neither.
    let (tid, epoll) = unsafe { (libc::gettid(), libc::epoll_create1(0)) };
    println!("\nvictim {name} {tid} {} {:p}", now(ClockId::CLOCK_MONOTONIC).as_nanos(), &raw const word);
    let null = ptr::null::<libc::timespec>();
    // SAFETY: all pointers are to variables of this function, which is still there when the calls end.
    unsafe {
        match name {
            "sleep" => libc::syscall(libc::SYS_clock_nanosleep, libc::CLOCK_MONOTONIC, 0, &raw const relative, null),
            "remainder" => libc::syscall(libc::SYS_nanosleep, &raw const relative, &raw mut left),
            "futex" => {
                let operation = libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG;
                libc::syscall(libc::SYS_futex, &raw const word, operation, word, &raw const relative)
            }
            "realtime" => {
                let operation = libc::FUTEX_WAIT_BITSET | libc::FUTEX_CLOCK_REALTIME;
                libc::syscall(libc::SYS_futex, &raw const word, operation, word, &raw const real, null, 0x0f)
            }
            "poll" => libc::syscall(libc::SYS_poll, null, 0, milliseconds),
            _ => libc::syscall(libc::SYS_epoll_wait, epoll, &raw mut event, 1, milliseconds),
        }
    };
}

fn now(clock: ClockId) -> Duration {
    clock_gettime(clock).unwrap().into()
}

/// A running victim.
struct Victim {
    process: Child,
    /// In the order of [`WAITS`]: tid, when it began to wait (at the earliest), the address of its futex.
    threads: Vec<(Tid, Duration, u64)>,
}

impl Victim {
    /// Starts it, and returns when all its threads are asleep.
    fn start() -> Victim {
        let mut program = Command::new(env::current_exe().unwrap());
        program.args(["--exact", "--nocapture", "track::ebpf::tests::restart_blocks_tell_when_interrupted_calls_end"]);
        program.env(VICTIM, "1");
        let mut process = program.stdout(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(process.stdout.take().unwrap()).lines().map(Result::unwrap);
        let spoken: Vec<Vec<String>> = lines
            .filter(|line| line.starts_with("victim "))
            .map(|line| line.split(' ').map(str::to_owned).collect())
            .take(WAITS.len())
            .collect();
        let threads = WAITS.map(|(name, ..)| {
            let words = spoken.iter().find(|words| words[1] == name).unwrap();
            let address = u64::from_str_radix(words[4].trim_start_matches("0x"), 16).unwrap();
            (Tid(words[2].parse().unwrap()), Duration::from_nanos(words[3].parse().unwrap()), address)
        });
        for ((tid, ..), (_, call, _)) in threads.iter().zip(WAITS) {
            // Nothing tells when another process's thread falls asleep.
            let path = format!("/proc/{}/task/{tid}/syscall", process.id());
            while !fs::read_to_string(&path).unwrap().starts_with(&format!("{call} ")) {
                thread::yield_now();
            }
        }
        Victim { process, threads: threads.into() }
    }

    fn pid(&self) -> Pid {
        Pid(self.process.id() as i32)
    }

    /// What is known of each thread, in the order of [`WAITS`].
    fn timings(&self, inspector: &TaskInspector) -> Vec<TaskTiming> {
        let (all, _) = inspector.look(self.pid()).unwrap();
        // The first thread, that of the test, and those that wait.
        assert_eq!(all.len(), WAITS.len() + 2);
        self.threads.iter().map(|(tid, ..)| all.iter().find(|t| t.tid == *tid).unwrap().clone()).collect()
    }

    /// Those of its threads that are still there.
    fn living(&self) -> Vec<nix::unistd::Pid> {
        let there = |tid: &i32| fs::exists(format!("/proc/{}/task/{tid}", self.pid())).unwrap();
        self.threads.iter().map(|(tid, ..)| tid.0).filter(there).map(nix::unistd::Pid::from_raw).collect()
    }

    fn freeze(&self) {
        for tid in self.living() {
            ptrace::seize(tid, ptrace::Options::empty()).unwrap();
            ptrace::interrupt(tid).unwrap();
            waitpid(tid, Some(WaitPidFlag::__WALL)).unwrap();
        }
    }

    /// Lets go of all its threads, and waits until those that have restart blocks are within restart_syscall(2), and the last, which
    /// has none, has ended.
    fn thaw(&self) {
        let (last, waiting) = self.threads.split_last().unwrap();
        for (tid, ..) in &self.threads {
            ptrace::detach(nix::unistd::Pid::from_raw(tid.0), None).unwrap();
        }
        for (tid, ..) in waiting {
            let path = format!("/proc/{}/task/{tid}/syscall", self.pid());
            while !fs::read_to_string(&path).unwrap().starts_with(&format!("{} ", libc::SYS_restart_syscall)) {
                thread::yield_now();
            }
        }
        while fs::exists(format!("/proc/{}/task/{}", self.pid(), last.0)).unwrap() {
            thread::yield_now();
        }
    }
}

impl Drop for Victim {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        for (tid, ..) in &self.threads {
            // The process is not buried before its tracer has seen the end of each thread. Without a tracer it is ECHILD.
            let end = waitpid(nix::unistd::Pid::from_raw(tid.0), Some(WaitPidFlag::__WALL));
            assert!(matches!(end, Ok(_) | Err(nix::errno::Errno::ECHILD)), "{end:?}");
        }
        self.process.wait().unwrap();
    }
}

#[test]
fn restart_blocks_tell_when_interrupted_calls_end() {
    if env::var_os(VICTIM).is_some() {
        return be_a_victim();
    }
    let Some(inspector) = usable("restart_blocks_tell_when_interrupted_calls_end", TaskInspector::load()) else { return };
    let victim = Victim::start();
    let before = victim.timings(&inspector);
    for ((name, ..), ((_, began, _), timing)) in WAITS.iter().zip(victim.threads.iter().zip(&before)) {
        let Some(last_ran) = timing.last_ran else { continue };
        assert!(last_ran.abs_diff(*began) < TICKS, "{name} began at {began:?}, last ran at {last_ran:?}");
    }

    victim.freeze();
    let frozen = victim.timings(&inspector);
    let read_at = now(ClockId::CLOCK_MONOTONIC);
    let real = now(ClockId::CLOCK_REALTIME);
    for (i, (name, _, seconds)) in WAITS.into_iter().enumerate() {
        let (_, began, address) = victim.threads[i];
        let timing = &frozen[i];
        // Going to sleep in the system call itself was before; since then, only the stop.
        assert_eq!(timing.voluntary_switches, before[i].voluntary_switches + 1, "{name}");
        let Some(until) = timing.restart.deadline() else {
            assert_eq!((name, &timing.restart), ("epoll", &RestartBlock::None));
            continue;
        };
        let left = timing.time_left.unwrap();
        if name == "realtime" {
            assert_eq!(until.clock, libc::CLOCK_REALTIME);
            assert!(left.abs_diff(until.at - real) < TICKS, "{left:?}");
        } else {
            assert_eq!(until.clock, libc::CLOCK_MONOTONIC, "{name}");
            let exact = began + Duration::from_secs(seconds);
            assert!(until.at >= exact && until.at < exact + TICKS, "{name}: {until:?}, not {exact:?}");
            assert!(left.abs_diff(exact - read_at) < TICKS, "{name}: {left:?}");
        }
        match (name, &timing.restart) {
            ("sleep", RestartBlock::Sleep { remainder: None, .. }) => {}
            ("remainder", RestartBlock::Sleep { remainder: Some(_), .. }) => {}
            ("futex", RestartBlock::Futex { address: a, expected: 5, bitset: u32::MAX, private: true, .. }) => {
                assert_eq!(a.0, address);
            }
            ("realtime", RestartBlock::Futex { address: a, expected: 5, bitset: 0x0f, private: false, .. }) => {
                assert_eq!(a.0, address);
            }
            ("poll", RestartBlock::Poll { count: 0, .. }) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_wait_that_is_interrupted_again_ends_when_it_should_have_at_first() {
    const NAME: &str = "a_wait_that_is_interrupted_again_ends_when_it_should_have_at_first";
    let Some(inspector) = usable(NAME, TaskInspector::load()) else { return };
    let victim = Victim::start();
    victim.freeze();
    let first = victim.timings(&inspector);
    victim.thaw();
    victim.freeze();
    let (second, _) = inspector.look(victim.pid()).unwrap();
    for timing in first.iter().take(WAITS.len() - 1) {
        let again = second.iter().find(|t| t.tid == timing.tid).unwrap();
        assert!(again.restart.deadline().is_some());
        assert_eq!(again.restart, timing.restart);
        assert!(again.time_left < timing.time_left);
    }
}

#[test]
fn a_process_that_is_not_there_is_an_error() {
    let Some(inspector) = usable("a_process_that_is_not_there_is_an_error", TaskInspector::load()) else { return };
    // Above the largest possible pid.
    let missing = inspector.look(Pid(1 << 30)).unwrap_err();
    assert!(missing.to_string().starts_with("cannot read the restart blocks of pid 1073741824: No such process"), "{missing}");
}

#[test]
fn processes_are_found_from_within_a_pid_namespace() {
    const NAME: &str = "processes_are_found_from_within_a_pid_namespace";
    if usable(NAME, TaskInspector::load()).is_none() {
        return;
    }
    let mut inside = Command::new("unshare");
    inside.args(["--pid", "--fork", "--mount-proc"]).arg(env::current_exe().unwrap()).args([
        "--exact",
        "--nocapture",
        "track::ebpf::tests::restart_blocks_tell_when_interrupted_calls_end",
        "track::ebpf::tests::write_faults_are_logged_with_page_epoch_and_cause",
    ]);
    let output = inside.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("2 passed; 0 failed") && !text.contains("SKIPPED"), "{text}");
}
