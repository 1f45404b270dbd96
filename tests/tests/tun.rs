//! A program attached to a persistent TAP device is attached to it again.

use ckpt_tests::job::Job;
use ckpt_tests::moments::Moments;
use ckpt_tests::{ckpt, needs_root, or_skip, python, story, watched};
use tempfile::tempdir;

/// Two devices, and a descriptor that is attached to none. A frame that another program sends through the device arrives.
const SCRIPT: &str = "
import fcntl, select, socket
TUN, TAP, NO_PI, QUEUES = 0x1, 0x2, 0x1000, 0x100
def device(name, flags):
    try:
        fd = os.open('/dev/net/tun', os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(fd, 0x400454ca, struct.pack('16sH22x', name.encode(), flags))
        fcntl.ioctl(fd, 0x400454cb, 1)
        fcntl.ioctl(fd, 0x400454cc, 1234)
    except OSError as error: absent(f'no network devices of programs: {error}')
    return fd
names = [f'ckpta{os.getpid()}', f'ckptb{os.getpid()}']
tap = device(names[0], TAP | NO_PI)
tun = device(names[1], TUN | QUEUES)
second = device(names[1], TUN | QUEUES)
fcntl.ioctl(tap, 0x400454d4, struct.pack('i', 77777))
free = os.open('/dev/net/tun', os.O_RDWR)
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
# Up, without addresses.
for name in names:
    flags = struct.unpack('16xH', fcntl.ioctl(s, 0x8913, struct.pack('16sH22x', name.encode(), 0))[:18])[0]
    fcntl.ioctl(s, 0x8914, struct.pack('16sH22x', name.encode(), flags | 1))
s.close()
watch = select.epoll()
watch.register(tap, select.EPOLLIN)
def told(fd):
    try: return fcntl.ioctl(fd, 0x800454d2, bytes(40)).hex(), fcntl.ioctl(fd, 0x800454d3, bytes(4)).hex()
    except OSError as error: return error.errno
def look():
    return [told(fd) for fd in (tap, tun, second, free)]
first = look()
n = 0
def report():
    global n
    n += 1
    if look() != first: print('not as it was:', look(), 'instead of', first)
    frame = b'\\xff' * 6 + b'\\x02ckpt!' + b'\\x88\\xb5' + b'frame %d' % n + bytes(46)
    link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    link.bind((names[0], 0))
    link.send(frame)
    link.close()
    until = time.monotonic() + 20
    while True:
        if time.monotonic() > until:
            print('the frame does not arrive')
            break
        if watch.poll(1) and os.read(tap, 2000) == frame: break
    if os.write(tap, frame) != len(frame): print('not sent')
    print('report', n)
    print('done', flush=True)
";

/// The devices of a job, which outlive it.
struct Devices([String; 2]);

impl Devices {
    fn of(job: &Job) -> Devices {
        Devices(["a", "b"].map(|which| format!("ckpt{which}{}", job.pid())))
    }
}

impl Drop for Devices {
    fn drop(&mut self) {
        // Removed as they were made: by who is attached, without being persistent.
        let script = "
import fcntl, os, struct, sys
for name, flags in [(sys.argv[1], 0x1002), (sys.argv[2], 0x101)]:
    fd = os.open('/dev/net/tun', os.O_RDWR)
    fcntl.ioctl(fd, 0x400454ca, struct.pack('16sH22x', name.encode(), flags))
    fcntl.ioctl(fd, 0x400454cb, 0)
    os.close(fd)
";
        let status = std::process::Command::new(python::PYTHON).args(["-c", script]).args(&self.0).status();
        assert!(status.is_ok_and(|status| status.success()) || std::thread::panicking(), "the devices {:?} are left", self.0);
    }
}

#[test]
fn attached_again() {
    needs_root!();
    let folder = tempdir().unwrap();
    let job = or_skip!(python::rest_after(folder.path(), SCRIPT));
    let devices = Devices::of(&job);
    python::reports(&job, 2);
    let image = folder.path().join("image");
    let mut restarted = story::stays_as_it_was(job, &image, |job| python::reports(job, 2));
    restarted.kill();
    // A new one would have no addresses.
    let pid = restarted.pid();
    drop(devices);
    let said = ckpt::try_restart(&image, &["--files", "rollback", "--discard-changes"]).failure();
    assert!(said.contains(&format!("the network device ckpta{pid} is not there any more")), "{said}");
}

#[test]
fn under_a_watch() {
    needs_root!();
    let folder = tempdir().unwrap();
    let job = or_skip!(python::rest_after(folder.path(), SCRIPT));
    let _devices = Devices::of(&job);
    let mut job = watched::survives_crashes(job, "20ms", 3, &Moments::new(), |job| python::reports(job, 1));
    python::reports(&job, 1);
    job.kill();
}
