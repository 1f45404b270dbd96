//! What machine this is, what time it is, and what surrounds a process.

use std::fs;
use std::io;

use nix::sys::utsname::uname;
use nix::time::{ClockId, clock_gettime};

use crate::error::{Doing, Result};
use crate::ids::{ImageId, Pid};
use crate::image::model::{Container, Uts};
use crate::sys::procfs;

/// uname(2).
pub fn uts() -> Result<Uts> {
    let names = uname().map_err(io::Error::from).doing(|| "cannot ask for the name of the machine")?;
    let text = |s: &std::ffi::OsStr| s.to_string_lossy().into_owned();
    Ok(Uts {
        sysname: text(names.sysname()),
        release: text(names.release()),
        version: text(names.version()),
        machine: text(names.machine()),
        nodename: text(names.nodename()),
        domainname: text(names.domainname()),
    })
}

/// CLOCK_REALTIME: seconds and nanoseconds since the epoch.
pub fn wall_clock() -> Result<(i64, u32)> {
    let now = clock_gettime(ClockId::CLOCK_REALTIME).map_err(io::Error::from).doing(|| "cannot read the clock")?;
    Ok((now.tv_sec(), now.tv_nsec() as u32))
}

/// The parts of the extended state that the operating system has enabled in the processor.
pub fn xcr0() -> u64 {
    #[target_feature(enable = "xsave")]
    fn read() -> u64 {
        // SAFETY: register 0 exists wherever xgetbv does.
        unsafe { std::arch::x86_64::_xgetbv(0) }
    }
    if !std::arch::is_x86_feature_detected!("xsave") {
        return 0;
    }
    // SAFETY: the processor and the system have xsave, as was just asked.
    unsafe { read() }
}

/// 128 random bits.
pub fn random_id() -> Result<ImageId> {
    let mut bytes = [0u8; 16];
    // SAFETY: the buffer is as long as told. The kernel gives up to 256 bytes whole.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    if got != bytes.len() as isize {
        return Err(io::Error::last_os_error()).doing(|| "cannot get random bits for the image's id");
    }
    Ok(ImageId(u128::from_le_bytes(bytes)))
}

/// The cgroups of a process, a line for each hierarchy.
pub fn cgroups(pid: Pid) -> Result<Vec<String>> {
    let cgroups = procfs::read_text(format!("/proc/{pid}/cgroup")).doing(|| format!("cannot read the cgroups of pid {pid}"))?;
    Ok(cgroups.lines().map(str::to_owned).collect())
}

/// What an image says of the surroundings of a process.
pub fn container(pid: Pid, cgroups: Vec<String>) -> Result<Container> {
    Ok(Container { is_container: false, namespaces: namespaces(pid)?, cgroups })
}

/// The namespaces of a process: kind and inode.
pub fn namespaces(pid: Pid) -> Result<Vec<(String, u64)>> {
    let doing = || format!("cannot read the namespaces of pid {pid}");
    let mut namespaces = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/ns")).doing(doing)? {
        let entry = entry.doing(doing)?;
        let kind = entry.file_name().to_string_lossy().into_owned();
        let link = fs::read_link(entry.path()).doing(doing)?;
        // "mnt:[4026531841]"
        let inode = link.to_string_lossy().split(['[', ']']).nth(1).and_then(|n| n.parse().ok());
        namespaces.extend(inode.map(|inode| (kind, inode)));
    }
    namespaces.sort();
    Ok(namespaces)
}
