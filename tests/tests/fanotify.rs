//! What a fanotify group marks is marked again, and only what happens after that is reported.

use ckpt_tests::job::Job;
use ckpt_tests::moments::Moments;
use ckpt_tests::scratch_disk::ScratchDisk;
use ckpt_tests::{needs_root, or_skip, python, story, watched};
use tempfile::{TempDir, tempdir};

/// Two groups: one whose events bring open files, and one whose events tell names. The program provokes events, and says what was reported.
const SCRIPT: &str = "
import select
FAN_MODIFY, FAN_CLOSE_WRITE, FAN_OPEN, FAN_CREATE = 0x2, 0x8, 0x20, 0x100
ON_CHILD, ON_FOLDERS = 0x08000000, 0x40000000
def group(flags):
    # Close on exec, without blocking.
    return call('fanotify_init', 300, 0x3 | flags, os.O_RDONLY | os.O_CLOEXEC)
def mark(fd, flags, mask, path):
    call('fanotify_mark ' + path, 301, fd, 1 | flags, ctypes.c_uint64(mask), ctypes.c_int64(-100), path.encode())
def touch(name):
    with open(name, 'a') as file: file.write('x')
os.mkdir('folder')
for name in ['folder/seen', 'folder/quiet', 'alone']: touch(name)
files, names = group(0), group(0xc00)
mark(files, 0, FAN_MODIFY | ON_CHILD, os.getcwd() + '/folder')
mark(files, 0, FAN_OPEN, 'alone')
# Ignored, and that stays so when the file is modified.
mark(files, 0x20 | 0x40, FAN_MODIFY, 'folder/quiet')
mark(names, 0, FAN_CREATE | ON_FOLDERS, os.getcwd() + '/folder')
mark(names, 0x100, FAN_CLOSE_WRITE, 'DISK')
mark(files, 0x10, FAN_CLOSE_WRITE, 'DISK')
def marks(fd):
    text = open(f'/proc/self/fdinfo/{fd}').read()
    return sorted(line for line in text.splitlines() if line.startswith('fanotify'))
def events(fd):
    # Mask and name: the link of the open file, or the name that ends the record.
    found = []
    try: data = os.read(fd, 65536)
    except BlockingIOError: return found
    while data:
        length, _, _, header, mask, file, pid = struct.unpack('IBBHQii', data[:24])
        if pid == os.getpid():
            if file >= 0: name = os.readlink(f'/proc/self/fd/{file}')
            # After the kind, the file system and the file handle.
            else: name = data[header + 20 + struct.unpack('I', data[header + 12:header + 16])[0]:length].split(b'\\0')[0].decode()
            found.append((mask, os.path.basename(name)))
        if file >= 0: os.close(file)
        data = data[length:]
    return sorted(found)
n = 0
def provoke():
    global n
    n += 1
    touch('folder/seen'); touch('folder/quiet'); touch('alone')
    os.mkdir(f'folder/new {n}')
    touch('DISK/file'); os.unlink('DISK/file')
    return events(files), [(mask, len(name) > 0) for mask, name in events(names)]
before, first = (marks(files), marks(names)), provoke()
assert len(first[0]) == 3 and len(first[1]) == 2, first
def report():
    if (marks(files), marks(names)) != before: print('marks', marks(files), marks(names), 'instead of', before)
    now = provoke()
    if now != first: print('events', now, 'instead of', first)
    print('report', n)
    print('done', flush=True)
";

/// The job, its folder, and a file system of its own.
fn start() -> Result<(Job, TempDir, ScratchDisk), String> {
    let (folder, disk) = (tempdir().unwrap(), ScratchDisk::new(1 << 20)?);
    let job = python::rest_after(folder.path(), &SCRIPT.replace("DISK", disk.path().to_str().unwrap()))?;
    Ok((job, folder, disk))
}

#[test]
fn marks_and_what_they_report() {
    needs_root!();
    let (job, folder, _disk) = or_skip!(start());
    python::reports(&job, 1);
    let image = folder.path().join("image");
    story::stays_as_it_was(job, &image, |job| python::reports(job, 2));
}

#[test]
fn under_a_watch() {
    needs_root!();
    let (job, _folder, _disk) = or_skip!(start());
    let job = watched::survives_crashes(job, "20ms", 3, &Moments::new(), |job| python::reports(job, 1));
    python::reports(&job, 1);
}
