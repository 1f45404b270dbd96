//! Another process that writes to the memory of this one: a child, which is told what and where, and answers when it is done.

use std::io::{self, ErrorKind, Read, Write};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};

use ckpt_tests::sys::memory::{PAGE, Region};
use ckpt_tests::sys::writes;

/// The word with which it is started, before the pid of its parent.
pub const WORD: &str = "writer";

/// This side of it. It ends with its parent.
#[derive(Debug)]
pub struct Writer {
    requests: ChildStdin,
    answers: ChildStdout,
}

impl Writer {
    /// Starts the process.
    pub fn start() -> io::Result<Writer> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args([WORD.to_owned(), std::process::id().to_string()]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn()?;
        match (child.stdin.take(), child.stdout.take()) {
            (Some(requests), Some(answers)) => Ok(Writer { requests, answers }),
            _ => Err(io::Error::other("a process without its pipes")),
        }
    }

    /// Has it write the page.
    pub fn write(&mut self, page: Region, bytes: &[u8; PAGE]) -> io::Result<()> {
        let mut request = page.start.to_ne_bytes().to_vec();
        request.extend_from_slice(bytes);
        self.requests.write_all(&request)?;
        self.answers.read_exact(&mut [0])
    }
}

/// The process: does what it is told until its parent is gone.
pub fn serve(pid: &str) -> Result<(), String> {
    let pid = pid.parse().map_err(|_| format!("'{pid}' is no pid"))?;
    let (mut requests, mut answers) = (io::stdin().lock(), io::stdout().lock());
    let (mut address, mut bytes) = ([0; size_of::<usize>()], [0; PAGE]);
    loop {
        match requests.read_exact(&mut address).and_then(|()| requests.read_exact(&mut bytes)) {
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return Ok(()),
            read => read.map_err(|error| format!("cannot read what to write: {error}"))?,
        }
        let page = Region { start: usize::from_ne_bytes(address), len: PAGE };
        let written = writes::write_into(pid, page, &bytes).and_then(|()| answers.write_all(&[1])).and_then(|()| answers.flush());
        written.map_err(|error| format!("cannot write to pid {pid}: {error}"))?;
    }
}
