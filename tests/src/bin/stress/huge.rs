//! Huge pages for the modes that need reserved ones.

use std::fs;

const NUMBER: &str = "/proc/sys/vm/nr_hugepages";
/// More than any mode takes.
const ENOUGH: u64 = 128;

/// As many as there were are reserved again when this is dropped.
#[derive(Debug)]
pub struct Reserved {
    before: u64,
}

impl Reserved {
    /// Has the kernel reserve them. It may find fewer; a job that cannot have them says so.
    pub fn pages() -> Result<Reserved, String> {
        let text = fs::read_to_string(NUMBER).map_err(|error| format!("cannot read {NUMBER}: {error}"))?;
        let before = text.trim().parse().map_err(|_| format!("{NUMBER} holds no number: {text}"))?;
        set(ENOUGH.max(before))?;
        Ok(Reserved { before })
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if let Err(why) = set(self.before) {
            eprintln!("stress: {why}");
        }
    }
}

fn set(number: u64) -> Result<(), String> {
    fs::write(NUMBER, number.to_string()).map_err(|error| format!("cannot reserve {number} huge pages in {NUMBER}: {error}"))
}
