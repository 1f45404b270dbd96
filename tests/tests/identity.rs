//! Who a process is: ids, credentials, limits, and all the small things that it may have been given, come back as they were (SEED.md:
//! "credentials and capabilities", "cwd and root, umask, rlimits, comm", "PR_SET_* state, sched attributes").

use std::path::Path;
use std::process::Command;

use ckpt_tests::job::Job;
use ckpt_tests::{ckpt, identity, needs_root, process, python, skip, static_program};
use tempfile::{TempDir, tempdir};

/// What only the process itself can tell, on SIGUSR1.
const REPORT: &str = "
import resource
def value_of(option):
    value = ctypes.c_int()
    prctl(option, ctypes.byref(value))
    return value.value
def report():
    print('pdeathsig', value_of(2), 'subreaper', value_of(37))
    for name, option in dict(dumpable=3, keepcaps=7, securebits=27, timerslack=30, no_new_privs=39, thp_disable=42, tsc=0).items():
        if option: print(name, c.prctl(option, 0, 0, 0, 0))
    print('personality', hex(c.personality(0xffffffff)))
    print('ids', os.getresuid(), os.getresgid(), os.getgroups(), os.getsid(0), os.getpgid(0), os.getppid())
    print('policy', [(os.sched_getscheduler(t), os.sched_getparam(t).sched_priority, os.sched_getaffinity(t)) for t in threads()])
    print('nice', [os.getpriority(os.PRIO_PROCESS, t) if not filtered else 0 for t in threads()])
    print('ioprio', [c.syscall(252, 1, t) for t in threads()])
    for n in range(16): print('limit', n, resource.getrlimit(n))
    mask = os.umask(0)
    os.umask(mask)
    print('umask', oct(mask), 'cwd', os.getcwd(), 'environment', sorted(os.environ.items()))
    ctypes.set_errno(0)
    print('getpriority', c.syscall(140, 0, 0), ctypes.get_errno())
    print('done', flush=True)
def threads(): return sorted(int(t) for t in os.listdir('/proc/self/task'))
filtered = False
";

/// Checkpoints, kills and restarts it twice; whatever `/proc` and the process itself tell must stay the same.
fn comes_back(mut job: Job) {
    for round in ["first", "second"] {
        let (before, report) = (identity::of(job.pid()), job.report());
        let image = job.folder().join(round);
        ckpt::checkpoint(job.pid(), &image, &[]);
        process::assert_same(&before, &identity::of(job.pid()));
        ckpt::checkpoint_and_kill(&mut job, &image, &[]);
        job = ckpt::restart(&job, &image, &[]);
        process::assert_same(&before, &identity::of(job.pid()));
        assert_eq!(report, job.report(), "{round}");
    }
}

/// Where any user may enter.
fn open_folder() -> TempDir {
    let folder = tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    folder
}

/// A program that is started by `wrapper`, a command line of tools that change something and then run the next.
fn wrapped(folder: &Path, wrapper: &str, script: &str) -> Result<Job, String> {
    let mut words = wrapper.split_whitespace().chain([python::PYTHON, "-c"]);
    let mut command = Command::new(words.next().unwrap());
    command.args(words).arg(python::resting(&format!("{REPORT}{script}")));
    python::start(folder, &mut command)
}

macro_rules! comes_back {
    ($($name:ident: $wrapper:expr, $script:expr;)*) => { $(
        #[test]
        fn $name() {
            needs_root!();
            let folder = open_folder();
            match wrapped(folder.path(), $wrapper, $script) {
                Ok(job) => comes_back(job),
                Err(why) => skip!("{why}"),
            }
        }
    )* };
}

comes_back! {
    nothing_special: "env", "";
    a_user_with_groups: "setpriv --reuid=1234 --regid=2345 --groups=10,20,30 --", "";
    root_with_few_capabilities: "setpriv --bounding-set=-all,+kill,+chown,+net_raw,+setpcap --inh-caps=-all,+chown,+net_raw --", "";
    a_user_with_capabilities: "setpriv --reuid=1234 --regid=2345 --clear-groups --bounding-set=-all,+kill,+chown,+net_raw
        --inh-caps=-all,+chown,+net_raw --ambient-caps=-all,+net_raw --no-new-privs --pdeathsig=USR2 --", "";
    different_ids: "setpriv --ruid=11 --euid=0 --rgid=22 --egid=33 --keep-groups --", "
c.setresuid(11, 0, 44)
c.setresgid(22, 33, 55)
";
    securebits: "setpriv --securebits=+noroot,+noroot_locked,+keep_caps_locked --", "";
    no_new_privs: "setpriv --no-new-privs --", "";
    a_parent_death_signal: "setpriv --pdeathsig=WINCH --", "";
    limits: "prlimit --as=4000000000:5000000000 --core=1111:2222 --cpu=3333:4444 --data=3000000000:3100000000 --fsize=50000000:60000000
        --memlock=70000:80000 --nofile=700:900 --nproc=1000:2000 --rss=1000000:2000000 --stack=5000000:9000000 --locks=11:22
        --msgqueue=333:444 --rttime=100000:200000 --sigpending=99:111", "";
    limits_that_only_privilege_raises: "env", "
try:
    resource.setrlimit(13, (5, 6))
    resource.setrlimit(14, (7, 8))
except (ValueError, PermissionError) as error: absent(str(error))
";
    niceness_and_processor: "nice -n 5 taskset -c 0", "";
    below_the_first_niceness: "nice -n -7", "";
    a_batch_policy: "chrt --batch 0", "";
    an_idle_policy: "chrt --idle 0", "";
    a_real_time_policy: "chrt --rr 17", "";
    a_real_time_policy_not_for_children: "chrt --reset-on-fork --fifo 23", "";
    an_io_priority: "ionice -c 2 -n 6", "";
    a_personality: "setarch --addr-no-randomize --", "";
    an_older_layout: "setarch --addr-compat-layout --uname-2.6 --whole-seconds --", "";
    an_oom_score: "choom -n 321 --", "";
    an_environment: "env -i A=1 B=two LONG=xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx", "
os.environ['ADDED'] = 'later'
";
    a_working_directory_and_umask: "env", "
os.mkdir('deep inside')
os.chdir('deep inside')
os.umask(0o137)
";
    a_file_for_core_dumps_only: "env", "
open('/proc/self/coredump_filter', 'w').write('0x7f')
prctl(4, 0)
";
    what_prctl_sets: "env", "
prctl(29, 123456)
prctl(36, 1)
prctl(41, 1, 0, 0, 0)
prctl(8, 1)
";
    names: "env", "
prctl(15, b'other \\xff name')
def named():
    prctl(15, b'a thread')
    time.sleep(1000)
thread = threading.Thread(target=named, daemon=True)
thread.start()
while b'a thread' not in [open(f'/proc/self/task/{t}/comm', 'rb').read().strip() for t in threads()]: time.sleep(0.001)
";
    threads_that_differ: "env", "
waiting = threading.Barrier(3)
def special():
    prctl(29, 777)
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 9)
    os.sched_setaffinity(0, {0})
    waiting.wait()
    time.sleep(1000)
def real_time():
    os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(3))
    waiting.wait()
    time.sleep(1000)
for target in special, real_time: threading.Thread(target=target, daemon=True).start()
waiting.wait()
";
    seccomp_filters: "env", "
filtered = True
def filter(number, errno):
    code = ctypes.create_string_buffer(
        struct.pack('HBBI' * 4, 0x20, 0, 0, 0, 0x15, 0, 1, number, 6, 0, 0, 0x50000 | errno, 6, 0, 0, 0x7fff0000))
    prctl(22, 2, struct.pack('HxxxxxxQ', 4, ctypes.addressof(code)))
filter(140, 77)
prctl(38, 1, 0, 0, 0)
filter(141, 78)
filter(140, 79)
";
    seccomp_filters_of_a_user: "setpriv --reuid=1234 --regid=2345 --clear-groups --no-new-privs --", "
filtered = True
code = ctypes.create_string_buffer(
    struct.pack('HBBI' * 4, 0x20, 0, 0, 0, 0x15, 0, 1, 140, 6, 0, 0, 0x50000 | 77, 6, 0, 0, 0x7fff0000))
prctl(22, 2, struct.pack('HxxxxxxQ', 4, ctypes.addressof(code)))
";
    everything_at_once: "prlimit --nofile=700:900 --core=0:1 nice -n 3 taskset -c 0 choom -n 99 -- setarch --addr-no-randomize
        setpriv --reuid=1234 --regid=2345 --groups=10,20 --bounding-set=-all,+kill,+net_raw --inh-caps=-all,+net_raw
        --ambient-caps=-all,+net_raw --no-new-privs --pdeathsig=USR2 --", "
os.umask(0o77)
prctl(29, 4321)
prctl(15, b'all of it')
";
}

/// A program that sees another root directory.
#[test]
fn a_root_directory() {
    needs_root!();
    let folder = tempdir().unwrap();
    let root = folder.path().join("root");
    std::fs::create_dir_all(root.join("inside")).unwrap();
    if let Err(why) = static_program::build(&root, "static_hash") {
        skip!("{why}");
    }
    let start = |folder: &Path| {
        let mut command = Command::new("chroot");
        Job::start(folder, command.arg(&root).args(["/static_hash", "200000000"]))
    };
    let undisturbed = start(folder.path()).succeed();
    let mut job = start(folder.path());
    let link = |name: &str| std::fs::read_link(format!("/proc/{}/{name}", job.pid())).unwrap();
    while link("root") != root || !link("exe").ends_with("static_hash") {
        // Nothing tells when the program was started.
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    let before = (link("root"), link("cwd"), link("exe"));
    let image = folder.path().join("image");
    ckpt::checkpoint_and_kill(&mut job, &image, &[]);
    let mut job = ckpt::restart(&job, &image, &[]);
    let link = |name: &str| std::fs::read_link(format!("/proc/{}/{name}", job.pid())).unwrap();
    assert_eq!(before, (link("root"), link("cwd"), link("exe")));
    assert_eq!(job.succeed(), undisturbed);
}
