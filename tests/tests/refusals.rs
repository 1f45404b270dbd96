//! What cannot be saved is refused before the process is changed, in one sentence that names the object and says what can be done; `ckpt
//! check PID` tells the same.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use ckpt_tests::ckpt::{self, Outcome};
use ckpt_tests::job::Job;
use ckpt_tests::{maps, needs_root, or_skip, process, program, python, skip};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;
use serde_json::Value;
use tempfile::tempdir;

/// `ckpt check` must tell why not, and `ckpt checkpoint` must refuse for the same reason, with all of `words` in one sentence, and leave
/// nothing behind.
fn is_refused(pid: i32, folder: &Path, words: &[&str]) {
    let sentence = checked(pid, words);
    let image = folder.join("image");
    let said = ckpt::try_checkpoint(pid, &image, &[]).failure();
    assert_eq!(
        said.lines().find_map(|line| line.strip_prefix("ckpt: ").filter(|line| *line == sentence)),
        Some(&*sentence),
        "{said}"
    );
    let other = said.lines().find(|line| !line.starts_with(&format!("ckpt: cannot checkpoint pid {pid}: ")));
    assert_eq!(other, None, "one sentence for each reason, and nothing else: {said}");
    let left: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().contains("image")), "something is left: {left:?}");
}

/// What `ckpt check PID` says with all of `words`, for people and for programs.
fn checked(pid: i32, words: &[&str]) -> String {
    let check = |more: &[&str]| ckpt::run(ckpt::command(["check", &pid.to_string()]).args(more));
    let Outcome { status, stdout, stderr, .. } = check(&[]);
    assert_eq!((status.code(), &*stderr), (Some(1), ""), "{stdout}");
    let sentence = stdout.lines().find(|line| words.iter().all(|word| line.contains(word)));
    let sentence = sentence.unwrap_or_else(|| panic!("nothing about {words:?}: {stdout}")).to_owned();
    assert!(sentence.starts_with(&format!("cannot checkpoint pid {pid}: ")), "{sentence}");
    assert!(sentence.contains("; "), "it says nothing about what can be done: {sentence}");

    let outcome = check(&["--json"]);
    assert_eq!(outcome.status.code(), Some(1));
    let report = outcome.json();
    assert_eq!(report["pid"], pid);
    let refusals = report["refusals"].as_array().unwrap();
    assert_eq!(refusals.len(), stdout.lines().count(), "{report}");
    let refusal = refusals.iter().find(|refusal| refusal["message"] == *sentence).unwrap_or_else(|| panic!("{report}"));
    let part = |key: &str| refusal[key].as_str().filter(|part| !part.is_empty()).unwrap_or_else(|| panic!("no {key}: {refusal}"));
    assert_eq!(sentence, format!("cannot checkpoint pid {pid}: {} {}; {}", part("object"), part("reason"), part("advice")));
    sentence
}

/// A resting program of ours is refused, and has noticed nothing.
fn stays_as_it_is(job: &Job, words: &[&str]) {
    let (mappings, look) = (maps::read(job.pid()), process::look(job.pid()));
    is_refused(job.pid(), job.folder(), words);
    maps::assert_same(&mappings, &maps::read(job.pid()));
    process::assert_same(&look, &process::look(job.pid()));
}

/// The test of a program that does what a script says.
macro_rules! refused {
    ($($name:ident: $words:expr, $script:expr;)*) => { $(
        #[test]
        fn $name() {
            needs_root!();
            let folder = tempdir().unwrap();
            match python::rest_after(folder.path(), $script) {
                Ok(job) => stays_as_it_is(&job, &$words),
                Err(why) => skip!("{why}"),
            }
        }
    )* };
}

refused! {
    io_uring: ["descriptor 9 ", "io_uring", "close it"], "
fd = call('io_uring_setup', 425, 8, ctypes.create_string_buffer(120))
at_nine(fd)
";
    io_uring_in_memory: ["the mapping at 0x", "io_uring"], "
import mmap
fd = call('io_uring_setup', 425, 8, ctypes.create_string_buffer(120))
ring = mmap.mmap(fd, 4096, mmap.MAP_SHARED | 0x8000, mmap.PROT_READ | mmap.PROT_WRITE)
os.close(fd)
";
    bpf_map: ["descriptor 9 ", "bpf-map", "close it"], "
attributes = struct.pack('IIIII', 2, 4, 4, 1, 0) + bytes(52)
at_nine(call('bpf', 321, 0, attributes, len(attributes)))
";
    perf_event: ["descriptor 9 ", "perf_event", "close it"], "
attributes = struct.pack('IIQ', 1, 112, 1) + bytes(96)
at_nine(call('perf_event_open', 298, attributes, 0, -1, -1, 0))
";
    userfaultfd: ["descriptor 9 ", "userfaultfd", "close it"], "
at_nine(call('userfaultfd', 323, 1))
";
    fanotify_that_others_wait_for: ["descriptor 9 ", "fanotify", "decides what other programs may open", "close it"], "
open('asked', 'w').close()
group = call('fanotify_init', 300, 4, 0)
call('fanotify_mark', 301, group, 1, ctypes.c_uint64(0x10000), ctypes.c_int64(-100), b'asked')
at_nine(group)
";
    fanotify_with_events: ["descriptor 9 ", "fanotify", "has events", "read them"], "
open('watched', 'w').close()
group = call('fanotify_init', 300, 0, 0)
call('fanotify_mark', 301, group, 1, ctypes.c_uint64(0x20), ctypes.c_int64(-100), b'watched')
open('watched').close()
at_nine(group)
";
    a_network_device_with_a_filter: ["descriptor 9 (the network device ckpt", "has a packet filter", "take it away"], "
import fcntl
try:
    fd = os.open('/dev/net/tun', os.O_RDWR)
    fcntl.ioctl(fd, 0x400454ca, struct.pack('16sH22x', b'ckpt%d', 0x1002))
    # BPF_RET, all of it.
    everything = ctypes.create_string_buffer(struct.pack('HBBI', 6, 0, 0, 0xffff))
    fcntl.ioctl(fd, 0x401054d5, struct.pack('H6xQ', 1, ctypes.addressof(everything)))
except OSError as error: absent(f'no network devices of programs: {error}')
at_nine(fd)
";
    packet_socket: ["descriptor 9 ", "packet", "socket", "close it"], "
import socket
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
at_nine(s.detach())
";
    a_file_of_another_process: ["descriptor 9 (/proc/1/status)", "looks into pid 1", "close it"], "
at_nine(os.open('/proc/1/status', os.O_RDONLY))
";
    a_folder_of_another_process: ["descriptor 9 (/proc/1/task)", "looks into pid 1", "close it"], "
at_nine(os.open('/proc/1/task', os.O_RDONLY | os.O_DIRECTORY))
";
    a_file_of_a_process_that_is_gone: ["descriptor 9 (/proc/", "status", "has ended", "ESRCH", "close it"], "
at_nine_of_the_dead('status')
";
    memory_from_before_an_exec: ["descriptor 9 (/proc/", "maps", "before it executed another program", "close it"], "
if 'AGAIN' not in os.environ:
    os.environ['AGAIN'] = 'yes'
    at_nine(os.open('/proc/self/maps', os.O_RDONLY))
    os.execv(sys.orig_argv[0], sys.orig_argv)
";
    the_descriptors_of_a_process_that_is_gone: ["descriptor 9 (/proc/", "/fd", "has ended", "ESRCH", "close it"], "
at_nine_of_the_dead('fd', os.O_RDONLY | os.O_DIRECTORY)
";
    a_file_of_a_process_whose_number_another_has: ["descriptor 9 (/proc/", "stat", "has ended", "ESRCH", "close it"], "
child = at_nine_of_the_dead('stat')
number = ctypes.c_int(child)
# struct clone_args, with set_tid.
arguments = struct.pack('QQQQQQQQQQQ', 0, 0, 0, 0, 17, 0, 0, 0, ctypes.addressof(number), 1, 0)
if call('clone3', 435, arguments, len(arguments)) == 0:
    while True: signal.pause()
";
    a_handle_of_another_process: ["descriptor 9 ", "a handle on pid 1", "close it"], "
at_nine(call('pidfd_open', 434, 1, 0))
";
    tcp_with_notes: ["descriptor 9 ", "TCP connection whose program is told", "MSG_ZEROCOPY", "--tcp-close"], "
import socket
server = socket.create_server(('127.0.0.1', 0))
client = socket.create_connection(server.getsockname())
accepted, _ = server.accept()
client.setsockopt(socket.SOL_SOCKET, 60, 1)
at_nine(client.detach())
";
    established_tcp: ["descriptor 9 ", "TCP connection from 127.0.0.1:", " to 127.0.0.1:", "--tcp-close"], "
import socket
listener = socket.create_server(('127.0.0.1', 0))
def serve():
    server, _ = listener.accept()
    listener.close()
    while True: signal.pause()
outside(serve)
client = socket.create_connection(listener.getsockname())
listener.close()
at_nine(client.detach())
";
    a_working_directory_that_is_gone: ["its working directory", "has been deleted", "change to a directory"], "
os.mkdir('gone')
os.chdir('gone')
os.rmdir('../gone')
";
}

/// Has a page whose writes are reported to a userfaultfd with these features, which another process holds.
fn with_protected_memory(folder: &Path, features: u64) -> Result<Job, String> {
    let script = format!(
        "
import fcntl, mmap, select
handler = call('userfaultfd', 323, 1)
memory = mmap.mmap(-1, 4096, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
try:
    fcntl.ioctl(handler, 0xc018aa3f, struct.pack('QQQ', 0xaa, {features}, 0))
    fcntl.ioctl(handler, 0xc020aa00, bytearray(struct.pack('QQQQ', address, 4096, 2, 0)))
except OSError as error: absent(f'no write protection by userfaultfd: {{error}}')
job = os.getpid()
child = os.fork()
if child == 0:
    os.setsid()
    if os.fork() == 0:
        end = select.poll()
        end.register(os.pidfd_open(job))
        end.poll()
    os._exit(0)
os.waitpid(child, 0)
os.close(handler)
"
    );
    python::rest_after(folder, &script)
}

/// UFFD_FEATURE_PAGEFAULT_FLAG_WP, _WP_UNPOPULATED, _WP_ASYNC.
const REPORTED: u64 = 1 << 0;
const ONLY_NOTED: u64 = 1 << 0 | 1 << 13 | 1 << 15;

/// Whoever writes to that memory after a restart would not find the one who is to let it go on.
#[test]
fn memory_whose_writes_another_process_handles() {
    needs_root!();
    let folder = tempdir().unwrap();
    match with_protected_memory(folder.path(), REPORTED) {
        Ok(job) => {
            stays_as_it_is(&job, &["the anonymous mapping at 0x", "registered with a userfaultfd", "before it uses userfaultfd"])
        }
        Err(why) => skip!("{why}"),
    }
}

/// That the kernel notes writes for somebody (another ckpt, say) changes nothing for the process.
#[test]
fn memory_whose_writes_are_only_noted_is_not_refused() {
    needs_root!();
    let folder = tempdir().unwrap();
    match with_protected_memory(folder.path(), ONLY_NOTED) {
        Ok(mut job) => {
            let image = folder.path().join("image");
            ckpt::checkpoint_and_kill(&mut job, &image, &[]);
            ckpt::restart(&job, &image, &[]);
        }
        Err(why) => skip!("{why}"),
    }
}

/// The connection that is refused without it is saved as closed with `--tcp-close`; one within the tree is what it was.
#[test]
fn tcp_close_is_a_way_out() {
    needs_root!();
    let folder = tempdir().unwrap();
    let script = "
import socket
listener = socket.create_server(('127.0.0.1', 0))
def serve():
    server, _ = listener.accept()
    listener.close()
    while True: signal.pause()
outside(serve)
client = socket.create_connection(listener.getsockname())
here = socket.create_server(('127.0.0.1', 0))
ours = socket.create_connection(here.getsockname())
theirs, _ = here.accept()
ours.send(b'within')
def report():
    print(theirs.recv(100), client.recv(100))
    print('done', flush=True)
";
    let mut job = python::rest_after(folder.path(), script).unwrap();
    let image = folder.path().join("image");
    ckpt::try_checkpoint(job.pid(), &image, &[]).failure();
    ckpt::checkpoint_and_kill(&mut job, &image, &["--tcp-close"]);
    assert_eq!(ckpt::restart(&job, &image, &[]).report(), ["b'within' b''"]);
}

/// What a process outside has of a connection within the tree: an end that was not closed after a fork. A socket that only listens (whoever has started a
/// server may have made it), or that nobody has a connection of, does no harm, nor does a pipe, of which a warning tells.
#[test]
fn ends_that_are_open_outside_as_well() {
    needs_root!();
    const HELD: &str = "
import socket
ready, say = os.pipe()
def hold(*kept):
    'A process outside has these open, and no other.'
    kept = [one if isinstance(one, int) else one.fileno() for one in kept] + [say]
    def work():
        for fd in range(3, 100):
            if fd not in kept:
                try: os.close(fd)
                except OSError: pass
        os.write(say, b'x')
        os.close(say)
        while True: signal.pause()
    outside(work)
    os.read(ready, 1)
    os.close(say); os.close(ready)
def stream(domain, address):
    server = socket.socket(domain)
    server.bind(address)
    server.listen()
    client = socket.socket(domain)
    client.connect(server.getsockname())
    return server, client
def unix(): return stream(socket.AF_UNIX, 'server')
def tcp(): return stream(socket.AF_INET, ('127.0.0.1', 0))
";
    for script in [
        "a, b = socket.socketpair(); hold(a)",
        "a, b = socket.socketpair(type=socket.SOCK_DGRAM); hold(b)",
        "server, client = unix(); it = server.accept()[0]; hold(it)",
        "server, client = unix(); hold(client)",
        "server, client = tcp(); it = server.accept()[0]; hold(client)",
        "server, client = tcp(); it = server.accept()[0]; hold(it)",
        "server, client = tcp(); hold(client)",
    ] {
        let folder = tempdir().unwrap();
        let job = python::rest_after(folder.path(), &format!("{HELD}{script}")).unwrap();
        stays_as_it_is(&job, &["(socket) is an end of a connection within the tree that pid ", " (python3) has open, too"]);
    }
    for script in [
        "server, client = unix(); it = server.accept()[0]; hold(server)",
        "server, client = tcp(); it = server.accept()[0]; hold(server)",
        "new = socket.socket(); named = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM); named.bind('x'); hold(new, named)",
    ] {
        let folder = tempdir().unwrap();
        let job = python::rest_after(folder.path(), &format!("{HELD}{script}")).unwrap();
        ckpt::checkpoint(job.pid(), &folder.path().join("image"), &[]);
    }
    let folder = tempdir().unwrap();
    let mut job = python::rest_after(folder.path(), &format!("{HELD}r, w = os.pipe(); hold(w)")).unwrap();
    let image = folder.path().join("image");
    let outcome = ckpt::try_checkpoint(job.pid(), &image, &[]).success();
    assert!(outcome.stderr.contains("has the pipe open that is descriptor"), "{outcome:?}");
    job.kill();
    ckpt::restart(&job, &image, &[]);
}

/// Every reason is told at once, of all processes.
#[test]
fn all_reasons_together() {
    needs_root!();
    let folder = tempdir().unwrap();
    let script = "
first = os.open('/proc/1/status', os.O_RDONLY)
second = os.open('/proc/1/comm', os.O_RDONLY)
r, w = os.pipe()
if os.fork() == 0:
    third = os.open('/proc/1/stat', os.O_RDONLY)
    os.write(w, b'x')
    while True: signal.pause()
os.read(r, 1)
";
    let job = python::rest_after(folder.path(), script).unwrap();
    let report = ckpt::run(&mut ckpt::command(["check", &job.pid().to_string(), "--json"])).json();
    assert_eq!(report["refusals"].as_array().map(Vec::len), Some(3), "{report}");
}

#[test]
fn nothing_in_the_way() {
    needs_root!();
    let folder = tempdir().unwrap();
    let job = python::rest_after(folder.path(), "").unwrap();
    let outcome = ckpt::run(&mut ckpt::command(["check", &job.pid().to_string()])).success();
    assert_eq!(outcome.stdout, format!("nothing stands in the way of a checkpoint of pid {}\n", job.pid()));
    let outcome = ckpt::run(&mut ckpt::command(["check", &job.pid().to_string(), "--json"])).success();
    assert_eq!(outcome.json(), serde_json::json!({ "pid": job.pid(), "refusals": [] }));
}

#[test]
fn a_traced_process() {
    needs_root!();
    let (folder, tracers) = (tempdir().unwrap(), tempdir().unwrap());
    let job = python::rest_after(folder.path(), "").unwrap();
    // PTRACE_SEIZE
    let script = format!("if c.ptrace(0x4206, {}, 0, 0) != 0: absent('ptrace does not work')", job.pid());
    let tracer = or_skip!(python::rest_after(tracers.path(), &script));
    stays_as_it_is(&job, &[&format!("thread {} ", job.pid()), &format!("traced by pid {}", tracer.pid()), "detach"]);
    drop(tracer);
    ckpt::checkpoint(job.pid(), &folder.path().join("image"), &[]);
}

#[test]
fn a_main_thread_that_has_ended() {
    needs_root!();
    let folder = tempdir().unwrap();
    // exit(2) ends the thread that calls it.
    let script = "
threading.Thread(target=lambda: time.sleep(1000)).start()
print('ready', flush=True)
c.syscall(60, 0)
";
    let job = python::start(folder.path(), &mut python::command(script)).unwrap();
    while !process::states(job.pid()).contains('Z') {
        assert!(process::states(job.pid()).len() == 2, "it has ended altogether");
        // Nothing tells of it.
        std::thread::sleep(Duration::from_millis(1));
    }
    stays_as_it_is(&job, &["its main thread has ended", "wait for the others"]);
}

#[test]
fn another_pid_namespace() {
    needs_root!();
    let folder = tempdir().unwrap();
    let mut command = Command::new("unshare");
    command.args(["--pid", "--fork", "--kill-child", python::PYTHON, "-c", &python::resting("")]);
    let outer = or_skip!(python::start(folder.path(), &mut command));
    let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", outer.pid())).unwrap();
    let inner: i32 = children.trim().parse().expect("it has one child");
    let look = process::look(inner);
    is_refused(inner, folder.path(), &["its pid namespace", "is not the one that ckpt runs in", "nsenter"]);
    process::assert_same(&look, &process::look(inner));
}

/// What only a stopped thread tells: `ckpt check` stops nothing, and so cannot know.
fn stays_as_it_is_once_stopped(script: &str, words: &[&str]) {
    let folder = tempdir().unwrap();
    let job = or_skip!(python::rest_after(folder.path(), script));
    let (mappings, look) = (maps::read(job.pid()), process::look(job.pid()));
    let said = ckpt::try_checkpoint(job.pid(), &folder.path().join("image"), &[]).failure();
    assert!(said.starts_with(&format!("ckpt: cannot checkpoint pid {}: ", job.pid())), "{said}");
    assert!(words.iter().all(|word| said.contains(word)) && said.lines().count() == 1, "no {words:?}: {said}");
    assert!(!folder.path().join("image").exists());
    maps::assert_same(&mappings, &maps::read(job.pid()));
    process::assert_same(&look, &process::look(job.pid()));
}

#[test]
fn system_call_user_dispatch() {
    needs_root!();
    // The selector (0) lets every call pass, but the thread is set up for it.
    let script = "
selector = ctypes.create_string_buffer(1)
prctl(59, 1, 0, 0, selector)
";
    stays_as_it_is_once_stopped(script, &["it has its system calls dispatched to itself", "run it without"]);
}

#[test]
fn a_seccomp_supervisor() {
    needs_root!();
    // Whoever has the descriptor is asked about getpriority(2); everything else is allowed.
    let script = "
prctl(38, 1, 0, 0, 0)
code = ctypes.create_string_buffer(
    struct.pack('HBBI' * 4, 0x20, 0, 0, 0, 0x15, 0, 1, 140, 6, 0, 0, 0x7fc00000, 6, 0, 0, 0x7fff0000))
os.close(call('seccomp', 317, 1, 8, struct.pack('HxxxxxxQ', 4, ctypes.addressof(code))))
";
    stays_as_it_is_once_stopped(script, &["seccomp filter of thread", "asks another process", "without that supervisor"]);
}

/// landlock_create_ruleset(2) for writing to files, and landlock_restrict_self(2).
const UNDER_LANDLOCK: &str = "
attributes = ctypes.c_uint64(2)
rules = call('landlock', 444, ctypes.byref(attributes), 8, 0)
call('landlock', 446, rules, 0)
os.close(rules)
";

#[test]
fn landlock_rules_of_root() {
    needs_root!();
    stays_as_it_is_once_stopped(UNDER_LANDLOCK, &["thread", "under Landlock rules", "without that sandbox"]);
}

#[test]
fn landlock_rules_of_a_user() {
    needs_root!();
    let script = format!(
        "os.setgroups([]); os.setresgid(1234, 1234, 1234); os.setresuid(1234, 1234, 1234); prctl(38, 1, 0, 0, 0){UNDER_LANDLOCK}"
    );
    stays_as_it_is_once_stopped(&script, &["thread", "under Landlock rules", "without that sandbox"]);
}

/// Of what is no process that could be saved there is one thing to tell.
fn is_no_target(pid: i32, words: &[&str]) {
    let folder = tempdir().unwrap();
    is_refused(pid, folder.path(), words);
    let report = ckpt::run(&mut ckpt::command(["check", &pid.to_string(), "--json"])).json();
    assert_eq!(report["refusals"].as_array().map(Vec::len), Some(1), "{report}");
}

#[test]
fn a_zombie() {
    needs_root!();
    let mut child = Command::new("true").spawn().unwrap();
    let pid = child.id() as i32;
    waitid(Id::Pid(Pid::from_raw(pid)), WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT).unwrap();
    is_no_target(pid, &["the process has ended", "waits for its parent", "name a running process"]);
    assert!(child.wait().unwrap().success());
}

#[test]
fn a_thread_of_the_kernel() {
    needs_root!();
    if process::status(2, "Kthread").as_deref() != Some("1") {
        skip!("no thread of the kernel is to be seen");
    }
    is_no_target(2, &["is a thread of the kernel", "name a process"]);
}

#[test]
fn a_thread_of_a_process() {
    needs_root!();
    let folder = tempdir().unwrap();
    let script = "threading.Thread(target=lambda: time.sleep(1000), daemon=True).start()";
    let job = python::rest_after(folder.path(), script).unwrap();
    let other = process::tids(job.pid()).into_iter().find(|tid| *tid != job.pid()).expect("it has two threads");
    is_no_target(other, &[&format!("is a thread of process {}", job.pid()), "name the process"]);
}

#[test]
fn no_such_process() {
    let mut child = Command::new("true").spawn().unwrap();
    let pid = child.id().to_string();
    child.wait().unwrap();
    let folder = tempdir().unwrap();
    let image = folder.path().join("image");
    for arguments in [vec!["check", &pid], vec!["checkpoint", &pid, "-o", image.to_str().unwrap()]] {
        let said = ckpt::run(&mut ckpt::command(&arguments)).failure();
        assert_eq!(said, format!("ckpt: cannot checkpoint pid {pid}: there is no such process\n"), "{arguments:?}");
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

/// The init of a pid namespace, seen from inside: here a shell in one of its own.
#[test]
fn init() {
    needs_root!();
    let folder = tempdir().unwrap();
    let mut command = Command::new("unshare");
    let script = r#""$0" check 1 --json; "$0" checkpoint 1 -o image; echo "exit code $?""#;
    command.args(["--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", script]).arg(ckpt::binary());
    let output = command.current_dir(folder.path()).stdin(Stdio::null()).output().unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if stderr.starts_with("unshare:") {
        skip!("{stderr}");
    }
    let sentence = "cannot checkpoint pid 1: the process is the init of this pid namespace";
    assert!(stderr.starts_with(&format!("ckpt: {sentence}")), "{stderr}");
    let (json, code) = stdout.split_once('\n').expect("two lines");
    assert_eq!(code, "exit code 1\n");
    let report: Value = serde_json::from_str(json).unwrap();
    assert_eq!(report["refusals"].as_array().map(Vec::len), Some(1), "{report}");
    assert!(report["refusals"][0]["message"].as_str().unwrap().starts_with(sentence), "{report}");
    assert!(!folder.path().join("image").exists());
}

#[test]
fn ckpt_itself() {
    let folder = tempdir().unwrap();
    for (arguments, told) in [("check $$", "stdout"), ("checkpoint $$ -o image", "stderr")] {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("exec \"$0\" {arguments}")]).arg(ckpt::binary()).current_dir(folder.path());
        let outcome = ckpt::run(&mut command);
        assert_eq!(outcome.status.code(), Some(1));
        let said = if told == "stdout" { outcome.stdout } else { outcome.stderr };
        assert!(said.contains("the process is ckpt itself; name another pid") && said.lines().count() == 1, "{said}");
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
}

/// Those of the programs of our own that are refused nothing: the list of reasons is no list of everything.
#[test]
fn programs_with_much_of_everything_are_not_refused() {
    needs_root!();
    let folder = tempdir().unwrap();
    let job = ckpt_tests::checks::start(folder.path(), program!("filer"), &["tcp-listener-v6"]);
    ckpt::run(&mut ckpt::command(["check", &job.pid().to_string()])).success();
}
