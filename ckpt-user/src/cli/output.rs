//! Showing things to people: sizes, times, counts, and text that came from elsewhere.

use std::fmt::Display;
use std::io::{self, Write};

use serde::Serialize;

/// Writes a text to standard output.
pub fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// Writes one JSON object to standard output, on one line.
pub fn print_json(object: &impl Serialize) -> io::Result<()> {
    let text = serde_json::to_string(object)?;
    print(&(text + "\n"))
}

/// "1.5 GiB".
pub fn bytes(n: u64) -> String {
    indicatif::BinaryBytes(n).to_string()
}

/// Microseconds as "12.3 ms".
pub fn micros(us: u64) -> String {
    match us {
        0..1_000 => format!("{us} us"),
        1_000..1_000_000 => format!("{:.1} ms", us as f64 / 1e3),
        _ => format!("{:.2} s", us as f64 / 1e6),
    }
}

/// "3 threads", or "2 processes, 5 threads".
pub fn size_of_tree(processes: usize, threads: usize) -> String {
    let threads = count(threads as u64, "thread");
    if processes == 1 { threads } else { format!("{processes} processes, {threads}") }
}

/// "1 thread", "5 threads".
pub fn count(n: impl Into<u64>, what: &str) -> String {
    let n = n.into();
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// Text from an image or another process, fit for a terminal: control characters are shown, not sent.
pub fn clean(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}

/// A table with its columns aligned; the last column is left as it is.
pub fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; N] = std::array::from_fn(width);
    let mut text = String::new();
    for row in rows {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("  {cell:width$}"));
        text.push_str(cells.collect::<String>().trim_end());
        text.push('\n');
    }
    text
}

/// A row of a table.
pub fn row<const N: usize>(cells: [&dyn Display; N]) -> [String; N] {
    cells.map(|cell| clean(&cell.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_an_image_can_reach_the_terminal() {
        assert_eq!(clean("a\x1b[2Jb\n"), "a\\u{1b}[2Jb\\n");
        assert_eq!(clean("Grüße"), "Grüße");
    }

    #[test]
    fn numbers_are_for_people() {
        assert_eq!(micros(999), "999 us");
        assert_eq!(micros(23_456), "23.5 ms");
        assert_eq!(count(1u64, "thread"), "1 thread");
        assert_eq!(table(&[row([&1, &"x"]), row([&22, &""])]), "  1   x\n  22\n");
    }
}
