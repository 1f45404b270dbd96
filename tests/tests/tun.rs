//! A program attached to a persistent TAP device is attached to it again; a device that goes away with the program is made again.

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

/// Devices that are gone with the program: a TUN of several queues, one of them switched off, and a TAP. Packets go to a UDP socket and come from there.
const FLEETING: &str = "
import fcntl, json, select, socket, subprocess
TUN, TAP, NO_PI, QUEUES, HEADER = 0x1, 0x2, 0x1000, 0x100, 0x4000
names = [f'ckptc{os.getpid()}', f'ckptd{os.getpid()}']
net = f'10.{200 + os.getpid() % 50}.{os.getpid() // 50 % 250}'
def attach(name, flags):
    try:
        fd = os.open('/dev/net/tun', os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(fd, 0x400454ca, struct.pack('16sH22x', name.encode(), flags))
    except OSError as error: absent(f'no network devices of programs: {error}')
    return fd
def ip(*words):
    try: return subprocess.run(['ip', *words], check=True, capture_output=True, text=True).stdout
    except FileNotFoundError: absent('no ip(8)')
tun = attach(names[0], TUN | NO_PI | QUEUES)
second = attach(names[0], TUN | NO_PI | QUEUES)
fcntl.ioctl(second, 0x400454d9, struct.pack('16sH22x', b'', 0x400))
fcntl.ioctl(tun, 0x400454cc, 1234)
fcntl.ioctl(tun, 0x400454d4, struct.pack('i', 77777))
tap = attach(names[1], TAP | NO_PI | HEADER)
fcntl.ioctl(tap, 0x400454d8, struct.pack('i', 12))
fcntl.ioctl(tap, 0x400454d0, 0x07)
for words in [
    f'link set {names[0]} mtu 1380 txqueuelen 77 up', f'addr add {net}.1/24 dev {names[0]}', f'addr add fd00:{os.getpid():x}::1/64 dev {names[0]} nodad',
    f'route add 10.199.{os.getpid() % 250}.0/24 via {net}.2 dev {names[0]} metric 77', f'-6 route add fd01:{os.getpid():x}::/64 dev {names[0]}',
    f'link set {names[1]} address 02:00:00:11:22:33 alias ours up', f'addr add {net}.129/32 peer {net}.130 dev {names[1]}']:
    ip(*words.split())
setting = f'/proc/sys/net/ipv4/conf/{names[0]}/rp_filter'
other = '2' if open(setting).read().strip() != '2' else '0'
open(setting, 'w').write(other)
local = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
local.bind((f'{net}.1', 5000))
def told(fd):
    return [fcntl.ioctl(fd, request, bytes(40)).hex() for request in (0x800454d2, 0x800454d3, 0x800454d7)]
def offload(name, what):
    # struct ethtool_value.
    value = (ctypes.c_uint32 * 2)(what, 0)
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    fcntl.ioctl(s, 0x8946, struct.pack('16sQ16x', name.encode(), ctypes.addressof(value)))
    s.close()
    return value[1]
def shown():
    all = []
    for name in names:
        for words in (['-d', '-j', 'addr', 'show', 'dev', name], ['-j', 'route', 'show', 'dev', name, 'table', 'all'], ['-j', '-6', 'route', 'show', 'dev', name, 'table', 'all']):
            all.append(json.loads(ip(*words)))
    # A link-local address that was the kernel's own choice is given to it now.
    for link in (all[0][0], all[3][0]):
        for address in link['addr_info']:
            for word in ('nodad', 'stable-privacy'): address.pop(word, None)
    return all
def look():
    offloads = [[offload(name, what) for what in (0x16, 0x1e)] for name in names]
    return [told(fd) for fd in (tun, second, tap)] + shown() + [open(setting).read(), offloads]
while any(a.get('tentative') for a in shown()[3][0]['addr_info']): time.sleep(0.05)
first = look()
if first[-1] != [[0, 0], [1, 1]]: absent(f'not the offloads that were set: {first[-1]}')
n = 0
def packet():
    until = time.monotonic() + 20
    while time.monotonic() < until:
        if select.select([tun], [], [], 1)[0]:
            got = os.read(tun, 2000)
            if got[0] == 0x45 and got[9] == 17 and got[20:24] == struct.pack('!HH', 5000, 6000): return got
def report():
    global n
    n += 1
    now = look()
    for a, b in zip(now, first):
        if a != b: print('not as it was:', a, 'instead of', b)
    local.sendto(b'there %d' % n, (f'{net}.2', 6000))
    got = packet()
    if not got or got[28:] != b'there %d' % n: print('the packet does not come:', got)
    # Back to where it came from: addresses and ports change places, and no checksum of UDP is needed.
    back = b'back! %d' % n
    answer = got[:12] + got[16:20] + got[12:16] + got[22:24] + got[20:22] + struct.pack('!HH', 8 + len(back), 0) + back
    os.write(tun, answer)
    local.settimeout(20)
    came = local.recvfrom(100)
    if came != (back, (f'{net}.2', 6000)): print('the answer does not come:', came)
    print('report', n)
    print('done', flush=True)
";

#[test]
fn made_again() {
    needs_root!();
    let folder = tempdir().unwrap();
    let job = or_skip!(python::rest_after(folder.path(), FLEETING));
    python::reports(&job, 2);
    let image = folder.path().join("image");
    let mut restarted = story::stays_as_it_was(job, &image, |job| python::reports(job, 2));
    let name = format!("ckptc{}", restarted.pid());
    restarted.kill();
    // Somebody else has its name.
    let ip = |words: &[&str]| assert!(std::process::Command::new("ip").args(words).status().unwrap().success());
    ip(&["tuntap", "add", &name, "mode", "tun"]);
    let said = ckpt::try_restart(&image, &["--files", "rollback", "--discard-changes"]).failure();
    ip(&["tuntap", "del", &name, "mode", "tun"]);
    assert!(said.contains(&format!("there is a network device {name} already")), "{said}");
}

#[test]
fn a_port_of_a_bridge_is_refused() {
    needs_root!();
    let folder = tempdir().unwrap();
    let script = format!(
        "{FLEETING}bridge = f'ckpte{{os.getpid()}}'\nip('link', 'add', bridge, 'type', 'bridge')\nip('link', 'set', names[1], 'master', bridge)"
    );
    let mut job = or_skip!(python::rest_after(folder.path(), &script));
    let said = ckpt::try_checkpoint(job.pid(), &folder.path().join("image"), &[]).failure();
    let bridge = format!("ckpte{}", job.pid());
    let gone = std::process::Command::new("ip").args(["link", "delete", &bridge]).status().unwrap().success();
    assert!(gone && said.contains("is a port of another device"), "{said}");
    python::reports(&job, 0);
    job.kill();
}
