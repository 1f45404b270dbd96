//! A terminal that a program writes to, and what a user sees on it.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::process::Stdio;
use std::thread::{self, JoinHandle};

use nix::pty::{Winsize, openpty};

/// A terminal of 24 lines of 200 characters.
#[derive(Debug)]
pub struct Terminal {
    end: OwnedFd,
    reader: JoinHandle<Vec<u8>>,
}

impl Terminal {
    /// Makes one.
    pub fn open() -> Terminal {
        let size = Winsize { ws_row: 24, ws_col: 200, ws_xpixel: 0, ws_ypixel: 0 };
        let pair = openpty(Some(&size), None).expect("no pseudoterminal");
        let mut master = File::from(pair.master);
        // All the time: it has room for a few kilobytes only.
        let reader = thread::spawn(move || {
            let mut all = Vec::new();
            let mut buf = [0; 4096];
            // EIO: nobody has it open any more.
            while let Ok(n @ 1..) = master.read(&mut buf) {
                all.extend_from_slice(&buf[..n]);
            }
            all
        });
        Terminal { end: pair.slave, reader }
    }

    /// For a program's input, output or errors. The command must be dropped before [`Terminal::close`].
    pub fn stdio(&self) -> Stdio {
        self.end.try_clone().expect("cannot duplicate a descriptor").into()
    }

    /// Once all programs have ended: everything that was written to it.
    pub fn close(self) -> String {
        drop(self.end);
        let bytes = self.reader.join().expect("the reader of a terminal has failed");
        String::from_utf8(bytes).expect("not UTF-8")
    }
}

/// What is on the screen after all that was written, and what was there before.
#[derive(Debug)]
pub struct Screen {
    /// From the first line on.
    pub lines: Vec<String>,
    /// The texts of lines that were cleared.
    pub past: Vec<String>,
}

impl Screen {
    /// Understands what a progress bar sends: text, line ends, and the sequences that move the cursor up and down and clear a line.
    pub fn after(written: &str) -> Screen {
        let mut screen = Screen { lines: vec![String::new()], past: Vec::new() };
        let (mut row, mut column) = (0usize, 0);
        let mut chars = written.chars();
        while let Some(c) = chars.next() {
            match c {
                '\r' => column = 0,
                '\n' => row += 1,
                '\x1b' => match sequence(&mut chars) {
                    (count, 'A') => row -= count.parse().unwrap_or(1).min(row),
                    (count, 'B') => row += count.parse().unwrap_or(1),
                    (_, 'K') => screen.past.push(std::mem::take(&mut screen.lines[row])),
                    // Colours, and whether the cursor is seen.
                    (_, 'm' | 'h' | 'l') => {}
                    other => panic!("the terminal does not know {other:?}"),
                },
                c => {
                    let mut text: Vec<char> = screen.lines[row].chars().collect();
                    text.resize(text.len().max(column + 1), ' ');
                    text[column] = c;
                    screen.lines[row] = text.into_iter().collect();
                    column += 1;
                }
            }
            screen.lines.resize(screen.lines.len().max(row + 1), String::new());
        }
        screen
    }
}

/// What follows on an escape: `[`, parameters, and a letter.
fn sequence(chars: &mut std::str::Chars<'_>) -> (String, char) {
    let mut parameters = String::new();
    for c in chars.skip(1) {
        if c.is_ascii_alphabetic() {
            return (parameters, c);
        }
        parameters.push(c);
    }
    (parameters, ' ')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_overwritten_and_cleared() {
        let screen = Screen::after("one\r\ntwo\rT\r\x1b[2Kthree\r\n\x1b[1A\x1b[2Kfour");
        assert_eq!(screen.lines, ["one", "four", ""]);
        assert_eq!(screen.past, ["Two", "three"]);
    }
}
