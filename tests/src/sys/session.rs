//! Programs that start in a session of their own, as a batch job does.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Has the program of `command` call setsid(2) before it starts.
pub fn own_session(command: &mut Command) -> &mut Command {
    // SAFETY: setsid is async-signal-safe and touches no memory.
    unsafe {
        command.pre_exec(|| {
            // SAFETY: it takes no arguments.
            if libc::setsid() < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
        })
    }
}
