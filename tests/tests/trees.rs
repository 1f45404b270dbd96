//! Process trees: resources of SEED.md "process trees", "zombies", "sessions and process groups". Each is checkpointed as a whole and comes back with
//! the same pids, parents, sessions and groups, and with what its processes have together.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use ckpt_tests::ckpt;
use ckpt_tests::job::Job;
use ckpt_tests::moments::Moments;
use ckpt_tests::{laps, needs_root, process, program, python, skip, story};
use nix::sys::signal::Signal;
use tempfile::tempdir;

/// For each process of a tree: pid, parent, group, session, state (but for whether it runs or sleeps).
fn relations(root: i32) -> Vec<String> {
    let mut all: Vec<i32> = process::descendants(root);
    all.insert(0, root);
    all.sort_unstable();
    all.into_iter().map(|pid| relation(pid, root)).collect()
}

fn relation(pid: i32, root: i32) -> String {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let (name, rest) = stat.rsplit_once(')').unwrap_or_default();
    let words: Vec<&str> = rest.split_whitespace().collect();
    let state = match words[0] {
        "R" | "S" | "D" => "alive",
        other => other,
    };
    let parent = if pid == root { "outside" } else { words[1] };
    format!("{name}) parent {parent} group {} session {} {state} exit signal {}", words[2], words[3], words[35])
}

/// Whoever was stopped stops again once it is let go, which takes it a moment.
fn come_to_be(job: &Job, before: &[String]) {
    let since = std::time::Instant::now();
    while relations(job.pid()) != before && since.elapsed() < Duration::from_secs(10) {
        std::thread::yield_now();
    }
    assert_eq!(relations(job.pid()), before);
}

/// A family that a script founds; it is brought back and must be as it was. Then it is asked for a report.
fn family(script: &str) -> (Job, tempfile::TempDir) {
    let folder = tempdir().unwrap();
    let mut job = match python::rest_after(folder.path(), script) {
        Ok(job) => job,
        Err(why) => panic!("this machine cannot do it: {why}"),
    };
    let before = relations(job.pid());
    let image = folder.path().join("image");
    for _ in 0..2 {
        // One that goes on is as good as one that does not.
        ckpt::checkpoint(job.pid(), &image, &[]);
        come_to_be(&job, &before);
        ckpt::checkpoint_and_kill(&mut job, &image, &[]);
        job = ckpt::restart(&job, &image, &[]);
        come_to_be(&job, &before);
    }
    (job, folder)
}

/// What the tests of families say in the end.
const REPORT: &str = "
def child(work):
    pid = os.fork()
    if pid == 0:
        work()
        while True: signal.pause()
    return pid
def told(function):
    # A child tells something through a pipe.
    r, w = os.pipe()
    def work():
        os.write(w, repr(function()).encode())
    pid = child(work)
    os.close(w)
    return pid, eval(os.read(r, 10000))
";

#[test]
fn children_and_grandchildren() {
    needs_root!();
    let (job, _folder) = family(&format!(
        "{REPORT}
def nest(depth):
    if depth:
        for n in range(2): told(lambda: nest(depth - 1))
nest(3)
"
    ));
    assert_eq!(process::descendants(job.pid()).len(), 14);
}

#[test]
fn sessions_and_groups() {
    needs_root!();
    family(&format!(
        "{REPORT}
# A group of two, one alone, a session with a group in it.
a, _ = told(lambda: os.setpgid(0, 0))
b, _ = told(lambda: os.setpgid(0, a))
c, _ = told(lambda: os.setpgid(0, 0))
def session():
    early, _ = told(lambda: 0)
    os.setsid()
    told(lambda: os.setpgid(0, 0))
    told(lambda: 0)
d, _ = told(session)
"
    ));
}

#[test]
fn s6_the_dead_who_lead_sessions_and_groups() {
    needs_root!();
    family(&format!(
        "{REPORT}
prctl(36, 1, 0, 0, 0)
# The leader of a group ends; the group goes on.
a, _ = told(lambda: os.setpgid(0, 0))
b, _ = told(lambda: os.setpgid(0, a))
os.kill(a, 9)
os.waitpid(a, 0)
# So does the leader of a session, whose child is adopted by us.
def session():
    os.setsid()
    told(lambda: told(lambda: os.setpgid(0, 0)))
    os._exit(0)
c = os.fork()
if c == 0: session()
os.waitpid(c, 0)
# And somebody who only stood between a session's leader and its grandchild.
def leader():
    os.setsid()
    def between():
        told(lambda: 0)
        os._exit(0)
    pid = os.fork()
    if pid == 0: between()
    os.waitpid(pid, 0)
told(leader)
"
    ));
}

#[test]
fn zombies_keep_their_status() {
    needs_root!();
    let (job, _folder) = family(&format!(
        "{REPORT}
def ends(how):
    pid = os.fork()
    if pid == 0: how()
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    return pid
zombies = [ends(lambda: os._exit(7)), ends(lambda: os.kill(os.getpid(), 9)), ends(lambda: os.kill(os.getpid(), 15)), ends(lambda: os._exit(0))]
def nested():
    global inner
    inner = ends(lambda: os._exit(9))
    return inner
told(nested)
def report():
    print([os.waitpid(pid, os.WNOHANG)[1] for pid in zombies], flush=True)
    print('done', flush=True)
"
    ));
    assert_eq!(job.report(), ["[1792, 9, 15, 0]"]);
}

#[test]
fn who_was_stopped_stays_stopped() {
    needs_root!();
    let (job, _folder) = family(&format!(
        "{REPORT}
count = 0
def work():
    signal.signal(signal.SIGCONT, lambda *_: os.write(2, b'goes on'))
pid, _ = told(work)
os.kill(pid, signal.SIGSTOP)
os.waitpid(pid, os.WUNTRACED)
def report():
    os.kill(pid, signal.SIGCONT)
    os.waitpid(pid, os.WCONTINUED)
    print('continued', open(f'/proc/{{pid}}/stat').read().split()[2] in 'SR', flush=True)
    print('done', flush=True)
"
    ));
    assert_eq!(job.report(), ["continued True"]);
}

/// Offsets of files, shared memory, pipes and sockets, all of them between processes.
#[test]
fn what_is_shared_stays_shared() {
    needs_root!();
    let (job, _folder) = family(&format!(
        "{REPORT}
import mmap, socket
shared = mmap.mmap(-1, 1 << 20)
log = os.open('log', os.O_RDWR | os.O_CREAT)
os.write(log, b'begin ')
ask, asked = os.pipe()
ours, theirs = socket.socketpair()
gram, grams = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
memory = os.memfd_create('together')
os.write(memory, b'x' * 10000)
os.write(asked, b'waits in the pipe')
ours.send(b'waits in the socket')
gram.send(b'one')
gram.send(b'two')
def work():
    shared[500000:500005] = b'hello'
    while True:
        word = os.read(ask, 100)
        os.write(log, b'child ')
        os.pwrite(memory, b'changed', 5000)
        theirs.send(word + b' and ' + theirs.recv(100) + b' and ' + grams.recv(100) + grams.recv(100) + shared[500005:500008])
pid = os.fork()
if pid == 0:
    shared[0] = 1
    # Only when we are told to.
    signal.sigwait([signal.SIGUSR2])
    work()
while shared[0] == 0: pass
def report():
    os.write(log, b'parent ')
    shared[500005:500008] = b'abc'
    os.kill(pid, signal.SIGUSR2)
    print(ours.recv(200), shared[500000:500005], os.pread(memory, 7, 5000), flush=True)
    os.write(log, b'end')
    print(os.pread(log, 100, 0), flush=True)
    print('done', flush=True)
"
    ));
    let report = job.report();
    assert_eq!(report[0], "b'waits in the pipe and waits in the socket and onetwoabc' b'hello' b'changed'");
    assert_eq!(report[1], "b'begin parent child end'");
}

/// A tree that is left stopped: all of it stands, and all of it goes on.
#[test]
fn s5_a_tree_is_frozen_and_thawed() {
    needs_root!();
    let folder = tempdir().unwrap();
    let script = format!(
        "{REPORT}
import mmap
counters = mmap.mmap(-1, 4096)
def count(n):
    while True: counters[n] = (counters[n] + 1) % 256
for n in range(3): child(lambda: count(n))
def report():
    before = bytes(counters[:3])
    while any(a == b for a, b in zip(before, counters[:3])): pass
    print('all count', flush=True)
    print('done', flush=True)
"
    );
    let mut job = python::rest_after(folder.path(), &script).unwrap();
    let image = folder.path().join("image");
    let family = |job: &Job| -> Vec<i32> { [vec![job.pid()], process::descendants(job.pid())].concat() };
    let all_are = |job: &Job, wanted: char| {
        for pid in family(job) {
            let since = std::time::Instant::now();
            while !process::states(pid).chars().all(|state| (state == 'T') == (wanted == 'T')) {
                assert!(since.elapsed() < Duration::from_secs(30), "pid {pid} is {}", process::states(pid));
                std::thread::yield_now();
            }
        }
    };
    let thaw = |job: &Job| ckpt::run(&mut ckpt::command(["thaw", &job.pid().to_string()])).success();
    ckpt::checkpoint(job.pid(), &image, &["--after", "stop", "--subtree"]);
    all_are(&job, 'T');
    thaw(&job);
    all_are(&job, 'R');
    assert_eq!(job.report(), ["all count"]);
    ckpt::checkpoint_and_kill(&mut job, &image, &[]);
    job = ckpt::restart(&job, &image, &["--frozen"]);
    all_are(&job, 'T');
    thaw(&job);
    assert_eq!(job.report(), ["all count"]);
}

/// Memory, descriptors and directories of clone(2).
#[test]
fn what_clone_shares() {
    needs_root!();
    let (job, _folder) = family(
        "
import threading
stacks = []
def clone(flags):
    # A child that only waits.
    CODE = bytes.fromhex('b8220000000f05ebf7')  # pause() for ever
    import mmap
    page = mmap.mmap(-1, 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, 7)
    page[:len(CODE)] = CODE
    stacks.append(page)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    stack = ctypes.create_string_buffer(65536)
    stacks.append(stack)
    top = (ctypes.addressof(stack) + 65536) & ~15
    pid = c.clone(ctypes.c_void_p(address), ctypes.c_void_p(top), flags | 17, None)
    return pid
os.chdir('/')
pids = [clone(0x100), clone(0x100 | 0x400), clone(0x400 | 0x200), clone(0x100 | 0x200 | 0x400 | 0x800), clone(0)]
def kcmp(a, b): return ''.join('1' if c.syscall(312, a, b, kind, 0, 0) == 0 else '0' for kind in (1, 2, 3, 4))
def report():
    print([kcmp(os.getpid(), pid) for pid in pids], kcmp(pids[0], pids[3]), flush=True)
    print('done', flush=True)
",
    );
    assert_eq!(job.report(), ["['1000', '1100', '0110', '1111', '0000'] 1000"]);
}

/// A shell runs one program after the other: there are always processes that are just being made (vfork), execute a program, or end.
#[test]
fn a_shell_that_is_busy() {
    needs_root!();
    let moments = Moments::new();
    let folder = tempdir().unwrap();
    let script =
        "i=0; while [ $i -lt 1500 ]; do i=$((i+1)); /bin/echo $i; x=$(echo $i | cat); [ $x = $i ] || exit 3; done > numbers";
    let start = |folder: &Path| Job::start(folder, Command::new("sh").args(["-c", script]).current_dir(folder));
    let mut job = start(folder.path());
    let image = folder.path().join("image");
    let mut taken = 0;
    for n in 0..60 {
        moments.let_pass(Duration::from_millis(20), 0.0, 1.0);
        if !job.is_alive() {
            break;
        }
        let image = folder.path().join(format!("image{n}"));
        let outcome = ckpt::try_checkpoint(job.pid(), &image, &[]);
        taken += usize::from(outcome.status.success());
        assert!(outcome.status.success() || outcome.came_too_late(&job), "{}", outcome.stderr);
        if n % 10 == 9 && job.is_alive() {
            let outcome = ckpt::try_checkpoint(job.pid(), &image, &["--after", "kill"]);
            if outcome.status.success() {
                job.is_killed();
                ckpt::bury_family(job.pid(), &image);
                job = ckpt::restart(&job, &image, &[]);
            }
        }
    }
    job.succeed();
    assert!(taken >= 5, "only {taken} checkpoints");
    let expected: String = (1..=1500).map(|n| format!("{n}\n")).collect();
    assert_eq!(std::fs::read_to_string(folder.path().join("numbers")).unwrap(), expected);
    drop(image);
}

/// posix_spawn and vfork of Python's subprocess, which stop their parent for a moment.
#[test]
fn a_program_that_spawns() {
    needs_root!();
    let script = "
import subprocess
total = 0
for n in range(400):
    total += int(subprocess.run(['/bin/echo', str(n)], capture_output=True).stdout)
    pid = os.posix_spawn('/bin/true', ['true'], {})
    assert os.waitpid(pid, 0)[1] == 0
print('total', total, flush=True)
";
    story::survives(|folder| Job::start(folder, python::command(script).current_dir(folder)), |job| job.output());
}

#[test]
fn a_pipeline_of_bash() {
    needs_root!();
    let script = "seq 1 600000 | sort -R --random-source=/dev/zero | awk '{ print $1 * 2 }' | sort -n | gzip -n > out.gz";
    story::survives(
        |folder| Job::start(folder, Command::new("bash").args(["-c", script]).current_dir(folder)),
        |job| std::fs::read(job.folder().join("out.gz")).unwrap(),
    );
}

/// A small C project, built by two compilers at a time.
#[test]
fn make_j2() {
    needs_root!();
    if Command::new("make").arg("--version").output().is_err() || Command::new("cc").arg("--version").output().is_err() {
        skip!("make and a C compiler");
    }
    let start = |folder: &Path| {
        let mut rules = String::from("all: program\n");
        let objects: Vec<String> = (0..24).map(|n| format!("f{n}.o")).collect();
        rules += &format!("program: main.o {0}\n\tcc -o program main.o {0}\n%.o: %.c\n\tcc -O2 -c $< -o $@\n", objects.join(" "));
        std::fs::write(folder.join("Makefile"), rules).unwrap();
        let mut main = String::from("#include <stdio.h>\n");
        for n in 0..24 {
            let body = format!(
                "#include <math.h>\n#include <stdlib.h>\n#include <string.h>\nint f{n}(int x) {{ int s = 0; for (int i = 0; i < x; i++) s += i * {n}; return s; }}\n"
            );
            std::fs::write(folder.join(format!("f{n}.c")), body).unwrap();
            main += &format!("int f{n}(int);\n");
        }
        main += "int main(void) { int s = 0;\n";
        (0..24).for_each(|n| main += &format!("s += f{n}({n});\n"));
        main += "printf(\"%d\\n\", s); return 0; }\n";
        std::fs::write(folder.join("main.c"), main).unwrap();
        Job::start(folder, Command::new("make").args(["-j2"]).current_dir(folder))
    };
    story::survives(start, |job| String::from_utf8(Command::new(job.folder().join("program")).output().unwrap().stdout).unwrap());
}

/// Two programs that know what each of their pages must hold, under one parent and under watch: each increment holds what both have written.
#[test]
fn increments_of_a_tree() {
    needs_root!();
    use ckpt_tests::watched::Watch;
    let moments = Moments::new();
    let folder = tempdir().unwrap();
    let lapper = program!("lapper");
    let each = [("a", "512 store"), ("b", "512 dontneed remap"), ("c", "300 mremap read")];
    let mut script = String::new();
    for (name, words) in each {
        std::fs::create_dir(folder.path().join(name)).unwrap();
        std::fs::write(folder.path().join(name).join("out"), "").unwrap();
        script += &format!("cd {name}; {lapper} {words} > out & cd ..; ");
    }
    let mut job = Job::start(folder.path(), Command::new("sh").args(["-c", &format!("{script}wait")]).current_dir(folder.path()));
    let lappers = |job: &Job| -> Vec<Job> {
        let pids = process::descendants(job.pid());
        pids.iter().zip(each).map(|(pid, (name, _))| Job::adopt(*pid, &folder.path().join(name))).collect()
    };
    while process::descendants(job.pid()).len() < each.len() {
        std::thread::yield_now();
    }
    lappers(&job).into_iter().for_each(|lapper| {
        lapper.wait_for_line("ready");
        lapper.leave();
    });
    let dir = folder.path().join("images");
    for _ in 0..3 {
        let watch = Watch::start(&job, &dir, "50ms", &[]);
        let made = watch.wait_for(4);
        moments.let_pass(Duration::from_millis(200), 0.0, 1.0);
        watch.kill();
        assert!(made[1..4].iter().all(|report| !report["parent_id"].is_null()), "{made:?}");
        job.kill();
        job = ckpt::restart(&job, &dir, &[]);
        let lappers = lappers(&job);
        assert_eq!(lappers.len(), each.len());
        for lapper in lappers {
            laps::verify(&lapper);
            lapper.leave();
        }
    }
    for lapper in lappers(&job) {
        lapper.signal(Signal::SIGTERM);
        lapper.leave();
    }
    job.succeed();
    for (name, _) in each {
        let output = std::fs::read_to_string(folder.path().join(name).join("out")).unwrap();
        assert_eq!(output.lines().last(), Some("good"), "{name}");
    }
}
