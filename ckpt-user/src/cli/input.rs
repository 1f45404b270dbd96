//! The image that the user named: a file, or `-` for standard input.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use super::Failure;

/// Opens it. Reading takes no byte beyond the image's end.
pub fn open(path: &Path) -> Result<File, Failure> {
    if is_stdin(path) {
        let fd = io::stdin().as_fd().try_clone_to_owned();
        return Ok(File::from(fd.map_err(|error| Failure::file("cannot read standard input", error))?));
    }
    File::open(path).map_err(|error| Failure::file(format!("cannot open {}", path.display()), error))
}

/// Does the path mean standard input?
pub fn is_stdin(path: &Path) -> bool {
    path == Path::new("-")
}
